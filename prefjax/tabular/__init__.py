"""Worlds small enough to enumerate: every expectation is a sum, every optimum exact."""
