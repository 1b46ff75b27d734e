"""Recipes with a critic: PPO, and the critic's own loss."""

from typing import Literal

import jax.numpy as jnp

from prefjax.objectives import advantages, surrogates
from prefjax.objectives.combine import add
from prefjax.objectives.on_policy import ROLLOUT, Share
from prefjax.objectives.policy_gradient import (
  Kl,
  PolicyObjective,
  aggregated,
  policy_gradient,
  reads_reference,
  with_kl_in_reward,
)
from prefjax.objectives.recipes import NonNegative, Positive, recipe
from prefjax.types import LossFn, Outputs, RolloutBatch, check_batch


def _reads_critic(structure):
  shared = ('values',) if structure['trunk'] == 'shared' else ()
  return (*reads_reference(structure), *shared)


@recipe(needs=(*ROLLOUT, 'truncated'), needs_where=_reads_critic)
def ppo(
  *,
  clip_low: Share = 0.2,
  clip_high: Positive = 0.2,
  discount: Share = 1.0,
  trace: Share = 0.95,
  value_coef: NonNegative = 0.1,
  value_clip: Positive = 0.2,
  kl_coef: NonNegative = 0.05,
  eps: Positive = 1e-8,
  kl: Kl = 'reward',
  trunk: Literal['shared', 'separate'] = 'separate',
  bootstrap: bool = False,
) -> PolicyObjective:
  """-min(rho A, clip(rho) A), mean over tokens, A by GAE and whitened.

  PPO (arXiv:1707.06347), Eq. 7 and 11. A critic of its own (`separate`) learns by
  `critic`; with a `shared` trunk value_coef times that loss is added here. A response
  that was cut off has had its reward: `bootstrap` adds the critic's value of what
  would have followed, which nothing ever corrects.
  """

  def credit(batch: RolloutBatch) -> RolloutBatch:
    batch = with_kl_in_reward(batch, kl, kl_coef)
    found, returns = advantages.gae(
      batch.rewards,
      batch.values,
      batch.response_length,
      batch.truncated & bootstrap,
      discount=discount,
      trace=trace,
    )
    present = advantages.present(batch)
    white = advantages.whitened(found, batch.mask, present, eps=eps)
    return batch.replace(advantages=white, returns=returns)

  loss = policy_gradient(
    surrogates.clipped(low=clip_low, high=clip_high),
    bounds=(clip_low, clip_high),
    kl=kl,
    kl_coef=kl_coef,
    aggregate='token_mean',
  )
  if trunk == 'shared':
    loss = add(loss, (value_coef, critic(value_clip=value_clip)))
  return PolicyObjective(credit, loss)


@recipe(needs=('rewards', 'values'), logps=False)
def critic(*, value_clip: Positive = 0.2) -> LossFn:
  """Max((V - R)^2, (V_clipped - R)^2) / 2, mean over tokens, R the return.

  V_clipped stays within `value_clip` of the V that the rollout was judged with, as in
  the code of PPO (arXiv:1707.06347).
  """

  def loss_fn(outputs: Outputs, batch: RolloutBatch):
    check_batch(batch)
    arrays = outputs.values[..., :-1], batch.values[..., :-1], batch.returns
    value, old, target = (jnp.where(batch.mask, x, 0.0) for x in arrays)
    near = old + jnp.clip(value - old, -value_clip, value_clip)
    errors = [jnp.square(x - target) for x in (value, near)]
    loss = aggregated('token_mean', 0.5 * jnp.maximum(*errors), batch)
    return loss, {
      'value_error': aggregated('token_mean', errors[0], batch),
      'value': aggregated('token_mean', value, batch),
      'return': aggregated('token_mean', target, batch),
    }

  return loss_fn
