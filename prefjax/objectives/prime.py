"""PRIME: rewards of tokens from a model that learns outcomes while the policy does."""

from typing import Literal

import jax.numpy as jnp

from prefjax.objectives import advantages, surrogates
from prefjax.objectives.on_policy import ROLLOUT, Share
from prefjax.objectives.policy_gradient import (
  Aggregate,
  Kl,
  PolicyObjective,
  policy_gradient,
  reads_reference,
  with_kl_in_reward,
)
from prefjax.objectives.recipes import NonNegative, Positive, recipe
from prefjax.types import RolloutBatch


@recipe(needs=(*ROLLOUT, 'implicit'), needs_where=reads_reference)
def prime(
  *,
  process_coef: NonNegative = 5.0,
  outcome_coef: NonNegative = 5.0,
  discount: Share = 1.0,
  clip_low: Share = 0.2,
  clip_high: Positive = 0.2,
  kl_coef: NonNegative = 0.0,
  eps: Positive = 1e-6,
  kl: Kl = 'none',
  scale: Literal['largest_return', 'none'] = 'largest_return',
  whiten: bool = True,
  aggregate: Aggregate = 'token_mean',
) -> PolicyObjective:
  """-min(rho A, clip(rho) A), A = process_coef A_process + outcome_coef A_outcome.

  A_outcome = R - mean of the others' R, and A_process = sum_{s >= t} discount^(s - t)
  (r_s - mean over the others of their mean r), r the token rewards of an implicit
  process reward model. PRIME (arXiv:2502.01456), its leave-one-out advantage. As in its
  code, the r are divided by their largest return in the whole batch (`scale`) and A is
  whitened (`whiten`). A process_coef of 0 is RLOO.
  """

  def credit(batch: RolloutBatch) -> RolloutBatch:
    batch = with_kl_in_reward(batch, kl, kl_coef)
    present, mask = advantages.present(batch), batch.mask
    rewards = jnp.where(mask & present[..., None], batch.implicit, 0.0)
    if scale == 'largest_return':
      rewards = rewards / (jnp.abs(advantages.returns_to_go(rewards)).max() + eps)
    process = advantages.token_leave_one_out(rewards, mask, present, discount=discount)
    outcome = advantages.leave_one_out(advantages.outcomes(batch), present)
    found = process_coef * process + outcome_coef * advantages.on_tokens(outcome, mask)
    if whiten:
      found = advantages.whitened(found, mask, present, eps=eps)
    return batch.replace(advantages=found, implicit=None)

  return PolicyObjective(
    credit,
    policy_gradient(
      surrogates.clipped(low=clip_low, high=clip_high),
      bounds=(clip_low, clip_high),
      kl=kl,
      kl_coef=kl_coef,
      aggregate=aggregate,
    ),
  )
