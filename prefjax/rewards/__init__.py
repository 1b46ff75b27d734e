"""Rewards of responses: verifiers of text, penalties on length, a pool to score in.

Nothing that a worker process of the pool imports may import jax.
"""
