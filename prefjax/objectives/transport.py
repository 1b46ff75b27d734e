"""Recipes that compare distributions of rewards over the whole batch.

They sort over every pair of a global batch, so they couple it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prefjax.objectives import links, metrics, scores
from prefjax.objectives.pairing import on_margin, paired, smoothed
from prefjax.objectives.recipes import BelowHalf, Positive, recipe
from prefjax.types import LossFn, Mean, Outputs, PreferenceBatch, check_batch

Atoms = Float[Array, ' n']


def quantile_gaps(
  first: Atoms, first_weight: Atoms, second: Atoms, second_weight: Atoms
) -> tuple[Float[Array, ' 2*n'], Float[Array, ' 2*n']]:
  """F^-1(q) - G^-1(q) of two weighted distributions: the gaps, and how long each lasts.

  The total weights must be equal. Where all weights are, the gaps are those of the
  sorted values.
  """

  def sort(values, weights):
    order = jnp.argsort(values)
    return values[order], jnp.cumsum(weights[order])

  (first, first_end), (second, second_end) = (
    sort(first, first_weight),
    sort(second, second_weight),
  )
  ends = jnp.sort(jnp.concatenate([first_end, second_end]))
  lasting = jnp.diff(ends, prepend=0.0)
  middle = ends - 0.5 * lasting

  def at(values, end):
    index = jnp.searchsorted(end, middle)
    return values[jnp.minimum(index, len(values) - 1)]

  return at(first, first_end) - at(second, second_end), lasting


def _both_orders(agreeing, disagreeing, batch):
  """Values and weights of atoms: P of a pair's weight on one, 1 - P on the other."""
  counts = batch.pair_weight != 0
  weight = jnp.where(counts, batch.pair_weight, 0.0)
  share = jnp.where(counts, batch.preference, 0.0)
  values = jnp.concatenate([agreeing.reshape(-1), disagreeing.reshape(-1)])
  weights = [(weight * p).reshape(-1) for p in (share, 1.0 - share)]
  return values, jnp.concatenate(weights)


def _transported(first, second, outputs, batch, ratios, *, beta, label_smoothing):
  """The link averaged over the quantiles of two distributions."""
  gaps, lasting = quantile_gaps(*first, *second)
  link = smoothed(on_margin(links.logistic(beta=beta)), epsilon=label_smoothing)
  loss = link(gaps, jnp.zeros_like(gaps), jnp.ones_like(gaps))
  total = jnp.sum(jnp.where(lasting > 0, loss * lasting, 0.0))
  measured = metrics.preference_metrics(
    *jax.lax.stop_gradient((outputs, *ratios)), batch, scale=beta
  )
  return Mean(total, jnp.sum(batch.pair_weight)), measured


@recipe(needs=('pairs', 'reference_logps'), couples_batch=True)
def aot(*, beta: Positive, label_smoothing: BelowHalf = 0.0) -> LossFn:
  """-log sigmoid(beta e), e the gap of sorted margins: policy's minus reference's.

  The i-th smallest log pi(y_w) - log pi(y_l) of the batch against the i-th smallest
  of the reference. AOT, paired (arXiv:2406.05882). A soft preference puts P of a
  pair's weight on its margin and 1 - P on the reverse.
  """

  def loss_fn(outputs: Outputs, batch: PreferenceBatch):
    check_batch(batch)
    margins = []
    for logps in (outputs.logps, scores.required(batch.reference_logps)):
      chosen, rejected = paired(scores.log_prob(logps, None, batch.mask), batch)
      margins.append(_both_orders(chosen - rejected, rejected - chosen, batch))
    ratios = scores.log_ratio(outputs.logps, batch.reference_logps, batch.mask)
    return _transported(
      *margins,
      outputs,
      batch,
      paired(ratios, batch),
      beta=beta,
      label_smoothing=label_smoothing,
    )

  return loss_fn


@recipe(needs=('pairs', 'reference_logps'), couples_batch=True)
def aot_unpaired(*, beta: Positive, label_smoothing: BelowHalf = 0.0) -> LossFn:
  """-log sigmoid(beta e), e the gap of sorted log-ratios: chosen's minus rejected's.

  The i-th smallest log-ratio among the chosen against the i-th smallest among the
  rejected, whatever pair each is of. AOT, unpaired (arXiv:2406.05882).
  """

  def loss_fn(outputs: Outputs, batch: PreferenceBatch):
    check_batch(batch)
    ratios = scores.log_ratio(outputs.logps, batch.reference_logps, batch.mask)
    chosen, rejected = paired(ratios, batch)
    return _transported(
      _both_orders(chosen, rejected, batch),
      _both_orders(rejected, chosen, batch),
      outputs,
      batch,
      (chosen, rejected),
      beta=beta,
      label_smoothing=label_smoothing,
    )

  return loss_fn
