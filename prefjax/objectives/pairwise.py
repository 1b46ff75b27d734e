"""Objectives on pairs: score both responses, compare, average over the pairs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prefjax.objectives import links, metrics, scores
from prefjax.objectives.links import Link, Scalar
from prefjax.objectives.recipes import BelowHalf, Positive, recipe
from prefjax.types import (
  LossFn,
  Outputs,
  PreferenceBatch,
  check_batch,
  weighted_mean,
)

Pairs = Float[Array, '*m']
# (chosen score, rejected score, preference) -> loss of each pair. A margin and a
# link is the special case; some losses read both scores.
PairLoss = Callable[[Pairs, Pairs, Pairs], Pairs]


def on_margin(link: Link) -> PairLoss:
  """P l(h) + (1 - P) l(-h), with h = chosen - rejected and P the preference."""

  def pair_loss(chosen: Pairs, rejected: Pairs, preference: Pairs) -> Pairs:
    margin = chosen - rejected
    return _times(preference, link(margin)) + _times(1.0 - preference, link(-margin))

  return pair_loss


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
    counts = batch.pair_weight != 0
    # Before the loss: 0 times the derivative of what filling holds may be NaN.
    chosen, rejected, preference = (
      jnp.where(counts, x, 0.0)
      for x in (
        jnp.take_along_axis(every, batch.chosen, axis=1),
        jnp.take_along_axis(every, batch.rejected, axis=1),
        batch.preference,
      )
    )
    loss = pair_loss(chosen, rejected, preference)
    measured = metrics.preference_metrics(
      *jax.lax.stop_gradient((outputs, chosen, rejected)), batch, scale=scale
    )
    return weighted_mean(loss, batch.pair_weight), measured

  return loss_fn


@recipe(needs=('pairs', 'reference_logps'))
def dpo(*, beta: Positive, label_smoothing: BelowHalf = 0.0) -> LossFn:
  """Direct preference optimisation: -log sigmoid(beta h), h the margin of log-ratios.

  DPO (arXiv:2305.18290), Eq. 7. `label_smoothing` > 0 is cDPO: its minimum lies at
  beta h = log((1 - e) / e). Its derivative in h is -beta sigmoid(-beta h).
  """
  compare = on_margin(links.logistic(beta=beta))
  return pairwise(smoothed(compare, epsilon=label_smoothing), scale=beta)


@recipe(needs=('pairs', 'reference_logps'))
def robust_dpo(*, beta: Positive, flip_probability: BelowHalf) -> LossFn:
  """DPO made unbiased where labels are flipped with a known probability e.

  ((1 - e) l(h) - e l(-h)) / (1 - 2 e). Robust DPO (arXiv:2403.00409), Eq. 11.
  """
  compare = on_margin(links.logistic(beta=beta))
  return pairwise(unflipped(compare, epsilon=flip_probability), scale=beta)


@recipe(needs=('pairs', 'reference_logps'))
def ipo(*, tau: Positive, length_normalised: bool = False) -> LossFn:
  """Identity preference optimisation: (h - 1 / (2 tau))^2.

  IPO (arXiv:2310.12036), Eq. 17, which sums the log-ratios over tokens, as the DPO
  authors' code does; `length_normalised` takes their means, as TRL and HALOs do.
  """
  score = scores.mean_log_ratio if length_normalised else scores.log_ratio
  compare = on_margin(links.squared(tau=tau))
  return pairwise(compare, score=score, scale=tau)


@recipe(needs=('pairs', 'reference_logps'))
def hinge(*, beta: Positive) -> LossFn:
  """max(0, 1 - beta h): SLiC's loss (arXiv:2305.10425) on the margin of log-ratios.

  This is RSO's normalised form (arXiv:2309.06657, Table 1 `hinge-norm`).
  """
  return pairwise(on_margin(links.hinge(beta=beta)), scale=beta)
