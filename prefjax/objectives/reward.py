"""Reward models: scores of single responses or steps, or logits of ordered pairs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prefjax.errors import InputError
from prefjax.objectives.aggregation import token_mean
from prefjax.objectives.pairing import compare, on_scores, paired
from prefjax.objectives.recipes import NonNegative, recipe
from prefjax.types import (
  LossFn,
  Mean,
  Outputs,
  PreferenceBatch,
  check_batch,
  weighted_mean,
)

Scores = Float[Array, 'p k']
PairLogits = Float[Array, 'p k k']  # [i, j]: the logit of P(i beats j)


@recipe(needs=('pairs', 'scores'), logps=False)
def bradley_terry(
  *, margin: NonNegative = 0.0, centre_coefficient: NonNegative = 0.0
) -> LossFn:
  """-log sigmoid(r_w - r_l - margin) + centre_coefficient (r_w + r_l)^2.

  DPO (arXiv:2305.18290), Eq. 2; the margin as in Llama 2 (arXiv:2307.09288), Section
  3.2; the centring, which fixes what the likelihood leaves open, as in
  arXiv:2312.09244. A soft preference mixes both orders.
  """

  def loss(chosen, rejected):
    ranked = -jax.nn.log_sigmoid(chosen - rejected - margin)
    return ranked + centre_coefficient * jnp.square(chosen + rejected)

  def loss_fn(outputs: Outputs, batch: PreferenceBatch):
    check_batch(batch)
    if outputs.scores is None:
      raise InputError('bradley_terry reads scores, and this model gives none.')
    chosen, rejected = paired(outputs.scores, batch)
    mean, measured = compare(
      on_scores(loss), chosen, rejected, outputs, batch, scale=1.0
    )
    constants = jax.lax.stop_gradient((chosen - rejected, batch))
    return mean, measured | _quality(*constants)

  return loss_fn


@recipe(needs=('step_label', 'values'), logps=False)
def step_cross_entropy() -> LossFn:
  """-c log s(v) - (1 - c) log s(-v), mean over the labelled steps.

  v is the value of the state after a step's last token, c in [0, 1] the step's label.
  Math-Shepherd (arXiv:2312.08935), Eq. 2; where the last step alone has a label, the
  outcome's, it is an outcome reward model, Eq. 1.
  """

  def loss_fn(outputs: Outputs, batch: PreferenceBatch):
    check_batch(batch)
    if outputs.values is None:
      raise InputError('step_cross_entropy reads values, and this model gives none.')
    counted = batch.mask & (batch.step_label >= 0)
    label = jnp.where(counted, batch.step_label, 0.0)
    value = jnp.where(counted, outputs.values[..., 1:], 0.0)
    right, wrong = jax.nn.log_sigmoid(value), jax.nn.log_sigmoid(-value)
    loss = token_mean(-label * right - (1.0 - label) * wrong, counted, batch.weight)
    probability = jax.nn.sigmoid(jax.lax.stop_gradient(value))
    agrees = ((probability > 0.5) == (label > 0.5)).astype(value.dtype)
    return loss, {
      'step_accuracy': token_mean(agrees, counted, batch.weight),
      'step_brier': token_mean(jnp.square(probability - label), counted, batch.weight),
    }

  return loss_fn


def _quality(gap, batch):
  """Brier score and length bias: means, so that they can be merged."""
  preference = jnp.where(batch.pair_weight != 0, batch.preference, 0.0)
  longer, shorter = paired(batch.response_length.astype(gap.dtype), batch)
  differ = longer != shorter
  follows = ((gap > 0) == (longer > shorter)).astype(gap.dtype)
  return {
    'brier': weighted_mean(
      jnp.square(jax.nn.sigmoid(gap) - preference), batch.pair_weight
    ),
    # Of the pairs whose lengths differ; 1/2 is no bias, in data without one.
    'longer_scored_higher': weighted_mean(
      follows, jnp.where(differ, batch.pair_weight, 0.0)
    ),
  }


def expected_calibration_error(
  probability: Float[Array, ' n'],
  outcome: Float[Array, ' n'],
  weight: Float[Array, ' n'],
  *,
  bins: int = 10,
) -> Float[Array, '']:
  """sum_b (w_b / w) |mean outcome - mean probability| over equal bins of [0, 1].

  Guo et al. (arXiv:1706.04599), Eq. 3. Of a whole evaluation: it is no mean.
  """
  place = jnp.clip((probability * bins).astype(jnp.int32), 0, bins - 1)
  gaps = jnp.zeros(bins).at[place].add(weight * (outcome - probability))
  return jnp.abs(gaps).sum() / weight.sum()


def length_correlation(
  scores: Float[Array, ' n'], length: Float[Array, ' n'], weight: Float[Array, ' n']
) -> Float[Array, '']:
  """Pearson's correlation of scores with lengths, weighted; 0 where one is constant."""

  def centred(x):
    return x - jnp.sum(weight * x) / weight.sum()

  x, y = centred(scores), centred(length)
  scale = jnp.sqrt(jnp.sum(weight * x * x) * jnp.sum(weight * y * y))
  return jnp.sum(weight * x * y) / jnp.where(scale == 0, 1.0, scale)


def antisymmetric(scores: PairLogits) -> PairLogits:
  """s(y, y') - s(y', y): logits with P(y > y') + P(y' > y) = 1, whatever s is."""
  return scores - jnp.swapaxes(scores, -1, -2)


def preference_loss(
  logits: PairLogits, batch: PreferenceBatch
) -> tuple[Mean, dict[str, Mean]]:
  """-P log sigmoid(l) - (1 - P) log sigmoid(-l), l the logit of (chosen, rejected).

  A general preference model (arXiv:2405.00675, Section 2): it may hold cycles.
  """
  row = jnp.take_along_axis(logits, batch.chosen[..., None], axis=1)
  logit = jnp.take_along_axis(row, batch.rejected[..., None], axis=2)[..., 0]
  counts = batch.pair_weight != 0
  logit, preference = (jnp.where(counts, x, 0.0) for x in (logit, batch.preference))
  right, wrong = jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)
  loss = -preference * right - (1.0 - preference) * wrong
  accurate = (jax.lax.stop_gradient(logit) > 0).astype(logit.dtype)
  return weighted_mean(loss, batch.pair_weight), {
    'accuracy': weighted_mean(accurate, batch.pair_weight)
  }


def win_rates(logits: PairLogits, weight: Scores) -> Scores:
  """P(y > pi_t) = mean_j sigmoid(l_ij) over the K responses, itself with 1/2.

  SPPO (arXiv:2405.00675), Eq. 4.5; `weight` 0 is no response.
  """
  present = (weight != 0).astype(logits.dtype)[:, None]
  won = jnp.where(present > 0, jax.nn.sigmoid(logits), 0.0).sum(axis=-1)
  return won / jnp.maximum(present.sum(axis=-1), 1.0)
