"""From two scores of a pair to a loss function: what pairwise recipes are made of."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prefjax.objectives import metrics, scores
from prefjax.objectives.links import Link, Scalar
from prefjax.types import (
  LossFn,
  Mean,
  Outputs,
  PreferenceBatch,
  check_batch,
  weighted_mean,
)

Pairs = Float[Array, '*m']
# (chosen score, rejected score, preference) -> loss of each pair. A margin and a
# link is the special case; some losses read both scores.
PairLoss = Callable[[Pairs, Pairs, Pairs], Pairs]


def on_scores(loss: Callable[[Pairs, Pairs], Pairs]) -> PairLoss:
  """P L(chosen, rejected) + (1 - P) L(rejected, chosen), P the preference."""

  def pair_loss(chosen: Pairs, rejected: Pairs, preference: Pairs) -> Pairs:
    agreeing = _times(preference, loss(chosen, rejected))
    return agreeing + _times(1.0 - preference, loss(rejected, chosen))

  return pair_loss


def on_margin(link: Link) -> PairLoss:
  """P l(h) + (1 - P) l(-h), with h = chosen - rejected and P the preference."""
  return on_scores(lambda chosen, rejected: link(chosen - rejected))


def _times(share, loss):
  """The product, 0 where the share is: a loss that overflows makes it no NaN."""
  return jnp.where(share == 0.0, 0.0, share * loss)


def smoothed(pair_loss: PairLoss, *, epsilon: Scalar) -> PairLoss:
  """Labels are flipped with probability epsilon: P -> P + epsilon (1 - 2 P)."""

  def smooth_loss(chosen: Pairs, rejected: Pairs, preference: Pairs) -> Pairs:
    softer = preference + epsilon * (1.0 - 2.0 * preference)
    return pair_loss(chosen, rejected, softer)

  return smooth_loss


def unflipped(pair_loss: PairLoss, *, epsilon: Scalar) -> PairLoss:
  """Unbiased under labels flipped with probability epsilon: P -> (P - e) / (1 - 2 e).

  The weights ((1 - e) and -e over 1 - 2 e for a hard label) are those of robust DPO
  (arXiv:2403.00409), Eq. 11; the inverse of `smoothed`.
  """

  def robust_loss(chosen: Pairs, rejected: Pairs, preference: Pairs) -> Pairs:
    sharper = (preference - epsilon) / (1.0 - 2.0 * epsilon)
    return pair_loss(chosen, rejected, sharper)

  return robust_loss


def paired(
  values: Float[Array, 'p k'], batch: PreferenceBatch
) -> tuple[Float[Array, 'p m'], Float[Array, 'p m']]:
  """The values of chosen and rejected; 0 where a pair has no weight.

  Zeroed before the loss: 0 times the derivative of what filling holds may be NaN.
  """
  counts = batch.pair_weight != 0
  chosen, rejected = (
    jnp.where(counts, jnp.take_along_axis(values, index, axis=1), 0.0)
    for index in (batch.chosen, batch.rejected)
  )
  return chosen, rejected


def compare(
  pair_loss: PairLoss,
  chosen: Float[Array, 'p m'],
  rejected: Float[Array, 'p m'],
  outputs: Outputs,
  batch: PreferenceBatch,
  *,
  scale: Scalar,
) -> tuple[Mean, dict[str, Mean]]:
  """The mean of `pair_loss` over the pairs, weighted by `pair_weight`, and metrics."""
  preference = jnp.where(batch.pair_weight != 0, batch.preference, 0.0)
  loss = pair_loss(chosen, rejected, preference)
  measured = metrics.preference_metrics(
    *jax.lax.stop_gradient((outputs, chosen, rejected)), batch, scale=scale
  )
  return weighted_mean(loss, batch.pair_weight), measured


def pairwise(
  pair_loss: PairLoss,
  *,
  scale: Scalar,
  score: scores.Score = scores.log_ratio,
) -> LossFn:
  """The mean of `pair_loss` over the pairs, weighted by `pair_weight`.

  `scale` turns a score into the implicit reward of the metrics.
  """

  def loss_fn(outputs: Outputs, batch: PreferenceBatch):
    check_batch(batch)
    every = score(outputs.logps, batch.reference_logps, batch.mask)
    chosen, rejected = paired(every, batch)
    return compare(pair_loss, chosen, rejected, outputs, batch, scale=scale)

  return loss_fn
