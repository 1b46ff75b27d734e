"""Recipes on single responses: each is desirable or not, whatever the others are.

Below, r is the log-ratio log pi / pi_ref of a response (nats), s the sigmoid, and
`label` in [0, 1] says how desirable it is; a soft one mixes both cases.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prefjax.objectives import metrics, scores
from prefjax.objectives.links import Scalar
from prefjax.objectives.pairing import paired
from prefjax.objectives.recipes import NonNegative, Positive, recipe
from prefjax.types import (
  LossFn,
  Mean,
  Outputs,
  PreferenceBatch,
  check_batch,
  weighted_mean,
)

Responses = Float[Array, 'p k']


def counted(values: Responses, batch: PreferenceBatch) -> Responses:
  """The values, 0 where a response has no weight."""
  return jnp.where(batch.weight != 0, values, 0.0)


def ratios_of(outputs: Outputs, batch: PreferenceBatch) -> Responses:
  """The log-ratios, 0 where a response has no weight."""
  ratios = scores.log_ratio(outputs.logps, batch.reference_logps, batch.mask)
  return counted(ratios, batch)


def response_mean(
  loss: Responses, outputs: Outputs, batch: PreferenceBatch, *, scale: Scalar
) -> tuple[Mean, dict[str, Mean]]:
  """The mean of a loss over the responses, and metrics: of pairs where there are."""
  return weighted_mean(loss, batch.weight), measured(outputs, batch, scale=scale)


def measured(
  outputs: Outputs, batch: PreferenceBatch, *, scale: Scalar
) -> dict[str, Mean]:
  """The metrics of every preference run, as constants: of pairs, or of labels."""
  outputs = jax.lax.stop_gradient(outputs)
  ratios = scores.log_ratio(outputs.logps, batch.reference_logps, batch.mask)
  if batch.chosen is None:
    found = metrics.response_metrics(outputs, batch)
    if batch.label is not None:
      found |= metrics.label_accuracy(ratios, batch)
    return found
  return metrics.preference_metrics(outputs, *paired(ratios, batch), batch, scale=scale)


def _binary(label, logit):
  """-label log s(logit) - (1 - label) log s(-logit)."""
  right, wrong = jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)
  return -label * right - (1.0 - label) * wrong


@recipe(needs=('label', 'reference_logps'))
def cross_entropy(*, beta: Positive) -> LossFn:
  """-label log s(beta r) - (1 - label) log s(-beta r): an outcome reward model.

  Implicit PRM (arXiv:2412.01981), Eq. 5, with the minus sign that is missing there.
  """

  def loss_fn(outputs: Outputs, batch: PreferenceBatch):
    check_batch(batch)
    label = counted(batch.label, batch)
    loss = _binary(label, beta * ratios_of(outputs, batch))
    return response_mean(loss, outputs, batch, scale=beta)

  return loss_fn


@recipe(needs=('label', 'reference_logps'), couples_batch=True)
def bco(*, beta: Positive) -> LossFn:
  """Cross-entropy of beta r - shift: a classifier whose bias is the batch's rewards.

  shift = (E[beta r | desirable] + E[beta r | undesirable]) / 2 over the batch, a
  constant. BCO (arXiv:2404.04656), Section 4, which keeps a running mean.
  """

  def loss_fn(outputs: Outputs, batch: PreferenceBatch):
    check_batch(batch)
    label = counted(batch.label, batch)
    reward = beta * ratios_of(outputs, batch)
    sides = (label, 1.0 - label)
    means = [weighted_mean(reward, batch.weight * side).value() for side in sides]
    shift = jax.lax.stop_gradient(0.5 * (means[0] + means[1]))
    loss = _binary(label, reward - shift)
    return response_mean(loss, outputs, batch, scale=beta)

  return loss_fn


@recipe(needs=('label', 'reference_logps', 'mismatched'), couples_batch=True)
def kto(
  *,
  beta: Positive,
  desirable_weight: NonNegative = 1.0,
  undesirable_weight: NonNegative = 1.0,
) -> LossFn:
  """lambda_D s(-beta (r - z)) where desirable, lambda_U s(beta (r - z)) where not.

  KTO (arXiv:2402.01306), Eq. 8. z = max(0, mean log-ratio over the batch's mismatched
  responses: those of weight 0 that have tokens), a constant for KL(pi || pi_ref).
  """

  def loss_fn(outputs: Outputs, batch: PreferenceBatch):
    check_batch(batch)
    label, ratio = counted(batch.label, batch), ratios_of(outputs, batch)
    gap = beta * (ratio - _kl_estimate(outputs, batch))
    desirable = desirable_weight * jax.nn.sigmoid(-gap)
    undesirable = undesirable_weight * jax.nn.sigmoid(gap)
    loss = label * desirable + (1.0 - label) * undesirable
    return response_mean(loss, outputs, batch, scale=beta)

  return loss_fn


def _kl_estimate(outputs, batch):
  ratio = scores.log_ratio(outputs.logps, batch.reference_logps, batch.mask)
  estimate = weighted_mean(ratio, further(batch).astype(ratio.dtype)).value()
  return jax.lax.stop_gradient(jnp.maximum(estimate, 0.0))


def further(batch: PreferenceBatch) -> Array:
  """The responses [p, k] that are not trained on: of weight 0, and with tokens."""
  return (batch.weight == 0) & batch.mask.any(axis=-1)


@recipe(needs=('label', 'reference_logps'))
def nca(*, beta: Positive, temperature: Positive = 1.0) -> LossFn:
  """-sum_k q_k log s(beta r_k) - (1 / K) sum_k log s(-beta r_k) a prompt.

  q is the softmax of label / temperature over the K responses. NCA
  (arXiv:2402.05369), Section 4.1. Prompts weigh the same, and a response's weight
  scales its share in both sums.
  """

  def loss_fn(outputs: Outputs, batch: PreferenceBatch):
    check_batch(batch)
    reward = beta * ratios_of(outputs, batch)
    logit = counted(batch.label, batch) / temperature
    shares = batch.weight * jnp.exp(logit - logit.max(axis=1, keepdims=True))
    target, uniform = _normalised(shares), _normalised(batch.weight)
    right, wrong = jax.nn.log_sigmoid(reward), jax.nn.log_sigmoid(-reward)
    loss = -jnp.sum(target * right + uniform * wrong, axis=1)
    present = (batch.weight != 0).any(axis=1).astype(loss.dtype)
    return weighted_mean(loss, present), measured(outputs, batch, scale=beta)

  return loss_fn


def _normalised(shares):
  total = shares.sum(axis=1, keepdims=True)
  return shares / jnp.where(total == 0, 1.0, total)
