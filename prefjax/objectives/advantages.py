"""From rewards to advantages: how much better than expected, and which token's doing.

Each stage runs once a rollout, on the whole batch and outside the gradient. An outcome
is the sum of a response's rewards; a response counts where it has weight and a counted
token, and one that does not is in no mean and no spread.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prefjax.objectives.links import Scalar
from prefjax.types import RolloutBatch

Outcomes = Float[Array, 'p k']
Present = Bool[Array, 'p k']
Tokens = Float[Array, 'p k t']
Mask = Bool[Array, 'p k t']


def outcomes(batch: RolloutBatch) -> Outcomes:
  """The sum of each response's rewards."""
  return batch.rewards.sum(axis=-1)


def present(batch: RolloutBatch) -> Present:
  """Which responses count."""
  return (batch.weight != 0) & batch.mask.any(axis=-1)


def on_tokens(values: Outcomes, mask: Mask) -> Tokens:
  """A response's value on each of its counted tokens."""
  return jnp.where(mask, values[..., None], 0.0)


def group_centred(outcome: Outcomes, present: Present) -> Outcomes:
  """R_i - mean of the group. Dr. GRPO (arXiv:2503.20783), Section 3."""
  return _centred(outcome, present, axis=1)


def group_normalised(
  outcome: Outcomes, present: Present, *, ddof: int, eps: Scalar
) -> Outcomes:
  """(R_i - mean) / (std + eps) of the group. GRPO (arXiv:2402.03300), Section 4.1.2.

  `ddof` 1 divides the sum of squares by G - 1 (verl, TRL), 0 by G. Where all of a
  group is equal, or one, the advantage is 0.
  """
  centred = group_centred(outcome, present)
  count = present.sum(axis=1, keepdims=True)
  return centred / (_spread(jnp.square(centred), count, ddof, axis=1) + eps)


def leave_one_out(outcome: Outcomes, present: Present) -> Outcomes:
  """R_i - mean of the others, G / (G - 1) times `group_centred`.

  RLOO (arXiv:2402.14740), Eq. 6. A group of one has no others: 0.
  """
  count = present.sum(axis=1, keepdims=True)
  return group_centred(outcome, present) * count / jnp.maximum(count - 1, 1)


def token_leave_one_out(
  rewards: Tokens, mask: Mask, present: Present, *, discount: Scalar
) -> Tokens:
  """sum_{s >= t} discount^(s - t) (r_s - mean over the others of their mean r).

  PRIME (arXiv:2502.01456): what a token's reward is held against is a mean over tokens,
  so that no length is favoured. A group of one has no others: 0.
  """
  counted = mask & present[..., None]
  tokens = jnp.maximum(counted.sum(axis=-1), 1)
  means = jnp.sum(rewards, axis=-1, where=counted) / tokens
  others = jnp.maximum(present.sum(axis=1, keepdims=True) - 1, 0)
  rest = means.sum(axis=1, keepdims=True) - means
  baseline = rest / jnp.maximum(others, 1)
  counted &= others[..., None] > 0
  found = returns_to_go(
    jnp.where(counted, rewards - baseline[..., None], 0.0), discount=discount
  )
  return jnp.where(counted, found, 0.0)


def returns_to_go(rewards: Tokens, *, discount: Scalar = 1.0) -> Tokens:
  """sum_{s >= t} discount^(s - t) r_s."""

  def back(later, reward):
    total = reward + discount * later
    return total, total

  start = jnp.zeros(rewards.shape[:-1], rewards.dtype)
  _, found = jax.lax.scan(back, start, jnp.moveaxis(rewards, -1, 0), reverse=True)
  return jnp.moveaxis(found, 0, -1)


def whitened(values: Tokens, mask: Mask, present: Present, *, eps: Scalar) -> Tokens:
  """(x - mean) / (std + eps) over all counted tokens of the batch (std of ddof 0).

  REINFORCE++ (arXiv:2501.03262), Section 3.
  """
  counted = mask & present[..., None]
  centred = _centred(values, counted, axis=None)
  return centred / (_spread(jnp.square(centred), counted.sum(), 0, axis=None) + eps)


def process(
  rewards: Tokens,
  ends: Mask,
  mask: Mask,
  present: Present,
  *,
  ddof: int,
  eps: Scalar,
) -> Tokens:
  """A_t = sum of the normalised rewards of the steps that end at t or later.

  One mean and one spread for all step rewards of a group; a step's reward sits on its
  last token, where `ends` is True. GRPO (arXiv:2402.03300), Section 4.1.3.
  """
  counted = ends & present[..., None]
  centred = _centred(rewards, counted, axis=(1, 2))
  count = counted.sum(axis=(1, 2), keepdims=True)
  spread = _spread(jnp.square(centred), count, ddof, axis=(1, 2))
  return jnp.where(mask, returns_to_go(centred / (spread + eps)), 0.0)


def step_ends(step: Int[Array, 'p k t']) -> Mask:
  """Where a step has its last token; `step` is its number, -1 outside all steps."""
  after = jnp.pad(step[..., 1:], ((0, 0), (0, 0), (0, 1)), constant_values=-1)
  return (step >= 0) & (step != after)


def gae(
  rewards: Tokens,
  values: Float[Array, 'p k t+1'],
  length: Int[Array, 'p k'],
  truncated: Present,
  *,
  discount: Scalar,
  trace: Scalar,
) -> tuple[Tokens, Tokens]:
  """Generalised advantages and the returns that a critic is to predict.

      delta_t = r_t + discount V_{t+1} - V_t
      A_t = sum_s (discount trace)^s delta_{t+s}

  and return = A_t + V_t. V after the last token is 0 where the response ended, and the
  critic's where it was cut off. Schulman et al. (arXiv:1506.02438), Eq. 16.
  """
  column = jnp.arange(rewards.shape[-1])[None, None]
  real = column < length[..., None]
  ended = (column == length[..., None] - 1) & ~truncated[..., None]
  later = jnp.where(ended, 0.0, values[..., 1:])
  delta = rewards + discount * later - values[..., :-1]
  advantages = returns_to_go(jnp.where(real, delta, 0.0), discount=discount * trace)
  return advantages, jnp.where(real, advantages + values[..., :-1], 0.0)


def _centred(values, counted, axis):
  """The difference to the mean of what counts, 0 elsewhere.

  Taken above the least of them, so that equal values leave 0 and no rounding: the
  spread of that would make it an advantage of 1.
  """
  count = jnp.maximum(counted.sum(axis=axis, keepdims=True), 1)
  least = jnp.min(values, axis=axis, keepdims=True, where=counted, initial=jnp.inf)
  above = jnp.where(counted, values - least, 0.0)
  mean = above.sum(axis=axis, keepdims=True) / count
  return jnp.where(counted, above - mean, 0.0)


def _spread(squares, count, ddof, axis):
  return jnp.sqrt(squares.sum(axis=axis, keepdims=True) / jnp.maximum(count - ddof, 1))
