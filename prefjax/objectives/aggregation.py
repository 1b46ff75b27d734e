"""From per-token values to a `Mean`; each way to average is its own function."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prefjax.types import Mean, weighted_mean

Tokens = Float[Array, 'p k t']
Mask = Bool[Array, 'p k t']
Weight = Float[Array, 'p k']
Aggregate = Callable[[Tokens, Mask, Weight], Mean]


def token_mean(values: Tokens, mask: Mask, weight: Weight) -> Mean:
  """Every counted token of the batch weighs the same, times its response's weight."""
  return weighted_mean(values, jnp.where(mask, weight[..., None], 0.0))


def sequence_sum(values: Tokens, mask: Mask, weight: Weight) -> Mean:
  """Sum within a response, mean over the responses that have a counted token."""
  sums = jnp.sum(values, axis=-1, where=mask)
  return weighted_mean(sums, jnp.where(mask.any(axis=-1), weight, 0.0))
