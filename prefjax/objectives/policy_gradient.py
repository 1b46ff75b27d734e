"""From a rollout to a loss: what recipes on sampled responses are made of."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prefjax.errors import InputError
from prefjax.objectives import advantages as advantages_lib
from prefjax.objectives import aggregation
from prefjax.objectives.divergences import DIVERGENCES, k3
from prefjax.objectives.links import Scalar
from prefjax.objectives.scores import required
from prefjax.objectives.surrogates import LOG_RATIOS, Surrogate, ratio
from prefjax.types import (
  LossFn,
  Mean,
  Outputs,
  RolloutBatch,
  check_batch,
  weighted_mean,
)

# Where the KL to the reference stands: nowhere, in the loss by an estimate of it, or,
# as k1, in the reward.
Kl = Literal['none', 'k1', 'k2', 'k3', 'k3_as_k2', 'reward']
Aggregate = Literal[
  'mean_of_sequence_means', 'token_mean', 'group_token_mean', 'sequence_sum'
]
Credit = Callable[[RolloutBatch], RolloutBatch]
Tokens = Float[Array, 'p k t']


@dataclasses.dataclass(frozen=True)
class PolicyObjective:
  """A loss on sampled responses, and how their rewards become advantages.

  Attributes:
    credit: fills `advantages` (and `returns`, or pairs) of a whole rollout, where
      every group is complete; once a rollout, outside the gradient.
    loss: of each update, on any part of the rollout.
  """

  credit: Credit
  loss: LossFn

  def __call__(
    self, outputs: Outputs, batch: RolloutBatch
  ) -> tuple[Mean, dict[str, Mean]]:
    return self.loss(outputs, batch)


def reads_reference(structure: Mapping[str, Any]) -> tuple[str, ...]:
  """What a recipe with a `kl` needs beside a rollout."""
  return () if structure['kl'] == 'none' else ('reference_logps',)


def outcome_credit(
  advantage: Callable[[advantages_lib.Outcomes, advantages_lib.Present], Array],
  *,
  kl: Kl,
  kl_coef: Scalar,
) -> Credit:
  """An advantage of a response's outcome, on each of its tokens."""

  def credit(batch: RolloutBatch) -> RolloutBatch:
    batch = with_kl_in_reward(batch, kl, kl_coef)
    present = advantages_lib.present(batch)
    found = advantage(advantages_lib.outcomes(batch), present)
    return batch.replace(advantages=advantages_lib.on_tokens(found, batch.mask))

  return credit


def with_kl_in_reward(batch: RolloutBatch, kl: Kl, kl_coef: Scalar) -> RolloutBatch:
  """r_t - kl_coef (log pi_old - log pi_ref) where `kl` is `reward`.

  PPO from human feedback (arXiv:1909.08593), Eq. 2, a token at a time.
  """
  if kl != 'reward':
    return batch
  estimate = batch.old_logps - required(batch.reference_logps)
  penalty = jnp.where(batch.mask, kl_coef * estimate, 0.0)
  return batch.replace(rewards=batch.rewards - penalty)


def policy_gradient(
  surrogate: Surrogate,
  *,
  log_ratio: str = 'token',
  bounds: tuple[Scalar, Scalar] | None = None,
  kl: Kl = 'none',
  kl_coef: Scalar = 0.0,
  aggregate: Aggregate | Callable[..., Mean] = 'token_mean',
) -> LossFn:
  """The aggregate of surrogate + kl_coef KL over the counted tokens.

  Both stand under one denominator, so that their sum is exact under accumulation. A
  `correction` of the batch multiplies the surrogate alone. `bounds` (low, high) are
  those of the surrogate's ratio; for the metrics alone.
  """

  def loss_fn(outputs: Outputs, batch: RolloutBatch):
    check_batch(batch)
    if batch.advantages is None:
      raise InputError('This rollout has no advantages: run `credit` first.')
    difference = LOG_RATIOS[log_ratio](outputs.logps, batch.old_logps, batch.mask)
    loss = surrogate(difference, batch.advantages, outputs.logps)
    if batch.correction is not None:
      loss = loss * jnp.where(batch.mask, batch.correction, 0.0)
    if kl in DIVERGENCES:
      distance = outputs.logps - required(batch.reference_logps)
      loss = loss + kl_coef * DIVERGENCES[kl](jnp.where(batch.mask, distance, 0.0))
    measured = policy_metrics(*jax.lax.stop_gradient((outputs, batch)))
    if bounds is not None:
      measured |= _held_back(difference, batch, *bounds)
    return aggregated(aggregate, loss, batch), measured

  return loss_fn


def aggregated(
  aggregate: Aggregate | Callable[..., Mean], values: Tokens, batch: RolloutBatch
) -> Mean:
  """The named aggregate of per-token values over a batch."""
  arguments = (jnp.where(batch.mask, values, 0.0), batch.mask, batch.weight)
  if aggregate == 'group_token_mean':
    counted = batch.group_tokens
    counted = group_tokens(batch) if counted is None else counted
    return aggregation.group_token_mean(*arguments, group_tokens=counted)
  if callable(aggregate):
    return aggregate(*arguments)
  return getattr(aggregation, aggregate)(*arguments)


def group_tokens(batch: RolloutBatch) -> Float[Array, ' p']:
  """The weighted counted tokens of each prompt's responses."""
  return jnp.sum(batch.mask.sum(axis=-1) * batch.weight, axis=-1)


def policy_metrics(outputs: Outputs, batch: RolloutBatch) -> dict[str, Mean]:
  """Means that every update on a rollout logs.

  ratio             pi / pi_old of a token
  log_ratio_abs     |log pi - log pi_old|, nats a token: at the first update of a
                    rollout, how far sampler and trainer are apart
  kl_to_old         k3 of KL(pi_old || pi), nats a token
  kl_to_reference   k3 of KL(pi || pi_ref), nats a response
  entropy           nats a token
  advantage_abs     |A| of a token
  response_length   tokens
  truncated         share of responses cut off by the length limit
  """
  log_ratio = LOG_RATIOS['token'](outputs.logps, batch.old_logps, batch.mask)
  present = advantages_lib.present(batch).astype(batch.weight.dtype)
  tokens = {
    'ratio': ratio(log_ratio),
    'log_ratio_abs': jnp.abs(log_ratio),
    'kl_to_old': k3(-log_ratio),
    'advantage_abs': jnp.abs(batch.advantages),
  }
  if outputs.entropy is not None:
    tokens['entropy'] = outputs.entropy
  means = {
    name: aggregation.token_mean(value, batch.mask, present)
    for name, value in tokens.items()
  }
  responses = {'response_length': batch.response_length}
  if batch.truncated is not None:
    responses['truncated'] = batch.truncated
  if batch.reference_logps is not None:
    distance = jnp.where(batch.mask, outputs.logps - batch.reference_logps, 0.0)
    responses['kl_to_reference'] = k3(distance).sum(axis=-1)
  return means | {
    name: weighted_mean(value.astype(present.dtype), present)
    for name, value in responses.items()
  }


def _held_back(difference, batch, low, high):
  """Shares of the counted tokens that each bound of the ratio holds back.

  `clipped_low`: A < 0 and rho < 1 - low; `clipped_high`: A > 0 and rho > 1 + high.
  """
  rho = ratio(jax.lax.stop_gradient(difference))
  held = {
    'clipped_low': (batch.advantages < 0) & (rho < 1.0 - low),
    'clipped_high': (batch.advantages > 0) & (rho > 1.0 + high),
  }
  present = advantages_lib.present(batch).astype(batch.weight.dtype)
  return {
    name: aggregation.token_mean(x.astype(present.dtype), batch.mask, present)
    for name, x in held.items()
  }
