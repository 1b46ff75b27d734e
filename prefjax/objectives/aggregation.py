"""From per-token values to a `Mean`; each way to average is its own function.

Each is exact when a batch is taken in parts: its denominator is a sum over responses,
and a response without a counted token is in neither sum.
"""

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


def mean_of_sequence_means(values: Tokens, mask: Mask, weight: Weight) -> Mean:
  """Mean over a response's tokens, then over the responses that have one.

  GRPO (arXiv:2402.03300), Eq. 3: a token of a long response weighs less.
  """
  count = mask.sum(axis=-1)
  means = jnp.sum(values, axis=-1, where=mask) / jnp.maximum(count, 1)
  return weighted_mean(means, jnp.where(count > 0, weight, 0.0))


def group_token_mean(
  values: Tokens, mask: Mask, weight: Weight, *, group_tokens: Float[Array, ' p']
) -> Mean:
  """Mean over the tokens of a prompt's whole group, then over the prompts.

  DAPO (arXiv:2503.14476), Eq. 8, as printed. `group_tokens` is the weighted count of
  a group, given along because a micro-batch may hold a part of it.
  """
  share = weight / jnp.where(group_tokens > 0, group_tokens, 1.0)[:, None]
  return weighted_mean(values, jnp.where(mask, share[..., None], 0.0))


def sum_over_length(values: Tokens, mask: Mask, weight: Weight, *, length) -> Mean:
  """Sum over a response's tokens / `length` (tokens), mean over the responses.

  Dr. GRPO (arXiv:2503.20783): a constant takes the place of each response's length.
  """
  summed = sequence_sum(values, mask, weight)
  return Mean(summed.total / length, summed.weight)
