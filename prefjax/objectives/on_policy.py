"""Recipes on rollouts: GRPO and its family, RLOO, REINFORCE++, online DPO.

Below, A is a token's advantage, rho = pi / pi_old its ratio, and pi_old the policy
that sampled. Where two sources differ, `docs/objectives.md` says which is ours.
"""

import functools
from typing import Annotated, Literal

import jax.numpy as jnp

from prefjax.errors import InputError
from prefjax.objectives import advantages, aggregation, surrogates
from prefjax.objectives.links import Scalar
from prefjax.objectives.pairs import dpo
from prefjax.objectives.policy_gradient import (
  Aggregate,
  Kl,
  PolicyObjective,
  outcome_credit,
  policy_gradient,
  reads_reference,
  with_kl_in_reward,
)
from prefjax.objectives.recipes import Interval, NonNegative, Positive, recipe
from prefjax.types import RolloutBatch

ROLLOUT = ('rewards', 'old_logps')  # what every recipe on rollouts needs
_rollout = functools.partial(recipe, needs=ROLLOUT, needs_where=reads_reference)

# The lower bound of a ratio is 1 - clip_low, which must not be negative.
Share = Annotated[Scalar, Interval(low=0.0, high=1.0)]
AboveOne = Annotated[Scalar, Interval(low=1.0, open_low=True)]


def _reads_steps(structure):
  steps = ('step',) if structure['supervision'] == 'process' else ()
  return (*reads_reference(structure), *steps)


@recipe(needs=ROLLOUT, needs_where=_reads_steps)
def grpo(
  *,
  clip_low: Share = 0.2,
  clip_high: Positive = 0.2,
  kl_coef: NonNegative = 0.04,
  eps: Positive = 1e-6,
  kl: Kl = 'k3',
  supervision: Literal['outcome', 'process'] = 'outcome',
  ddof: Literal[0, 1] = 1,
  aggregate: Aggregate = 'mean_of_sequence_means',
) -> PolicyObjective:
  """The mean over responses of mean_t [-min(rho A, clip(rho) A) + kl_coef KL].

  A = (R - mean) / (std + eps) of the group, or of its step rewards (`process`). GRPO
  (arXiv:2402.03300), Eq. 3 and 4; `ddof` and `eps`, which it leaves open, are verl's.
  """
  bounds = (clip_low, clip_high)
  normal = functools.partial(advantages.group_normalised, ddof=ddof, eps=eps)
  credit = outcome_credit(normal, kl=kl, kl_coef=kl_coef)
  if supervision == 'process':
    if kl == 'reward':
      raise InputError(
        'grpo reads the rewards of steps alone where supervision is process, so that '
        'no KL can be in them: choose another kl than reward.'
      )
    credit = functools.partial(_process_credit, ddof=ddof, eps=eps)
  return PolicyObjective(
    credit,
    policy_gradient(
      surrogates.clipped(low=clip_low, high=clip_high),
      bounds=bounds,
      kl=kl,
      kl_coef=kl_coef,
      aggregate=aggregate,
    ),
  )


def _process_credit(batch, *, ddof, eps):
  found = advantages.process(
    batch.rewards,
    advantages.step_ends(batch.step),
    batch.mask,
    advantages.present(batch),
    ddof=ddof,
    eps=eps,
  )
  return batch.replace(advantages=found)


@_rollout()
def dr_grpo(
  *,
  max_length: Positive,
  clip_low: Share = 0.2,
  clip_high: Positive = 0.2,
  kl_coef: NonNegative = 0.0,
  kl: Kl = 'none',
) -> PolicyObjective:
  """The mean over responses of sum_t -min(rho A, clip(rho) A) / max_length.

  A = R - mean of the group: neither lengths nor spreads divide. Dr. GRPO
  (arXiv:2503.20783), Section 3.2; `max_length` in tokens.
  """
  return PolicyObjective(
    outcome_credit(advantages.group_centred, kl=kl, kl_coef=kl_coef),
    policy_gradient(
      surrogates.clipped(low=clip_low, high=clip_high),
      bounds=(clip_low, clip_high),
      kl=kl,
      kl_coef=kl_coef,
      aggregate=functools.partial(aggregation.sum_over_length, length=max_length),
    ),
  )


@_rollout()
def dapo(
  *,
  clip_low: Share = 0.2,
  clip_high: Positive = 0.28,
  eps: Positive = 1e-6,
  kl_coef: NonNegative = 0.0,
  kl: Kl = 'none',
  ddof: Literal[0, 1] = 1,
  aggregate: Aggregate = 'group_token_mean',
) -> PolicyObjective:
  """GRPO with a higher upper bound, no KL, and every token of a group alike.

  DAPO (arXiv:2503.14476), Eq. 8: 1 / sum_i |y_i| within a prompt's group. Its code
  has `token_mean`, over the whole batch. Dynamic sampling and the overlong
  punishment are the rollout's, not the loss's.
  """
  return grpo(
    clip_low=clip_low,
    clip_high=clip_high,
    kl_coef=kl_coef,
    eps=eps,
    kl=kl,
    ddof=ddof,
    aggregate=aggregate,
  )


@_rollout()
def gspo(
  *,
  clip_low: Share = 3e-4,
  clip_high: Positive = 4e-4,
  eps: Positive = 1e-6,
  kl_coef: NonNegative = 0.0,
  kl: Kl = 'none',
  ddof: Literal[0, 1] = 1,
  log_ratio: Literal['sequence', 'sequence_token'] = 'sequence',
) -> PolicyObjective:
  """-min(s A, clip(s) A) with s = (pi(y) / pi_old(y))^(1 / |y|), mean over responses.

  GSPO (arXiv:2507.18071), Eq. 5 and 7; `sequence_token` is Eq. 13.
  """
  normal = functools.partial(advantages.group_normalised, ddof=ddof, eps=eps)
  return PolicyObjective(
    outcome_credit(normal, kl=kl, kl_coef=kl_coef),
    policy_gradient(
      surrogates.clipped(low=clip_low, high=clip_high),
      log_ratio=log_ratio,
      bounds=(clip_low, clip_high),
      kl=kl,
      kl_coef=kl_coef,
      aggregate='mean_of_sequence_means',
    ),
  )


@_rollout()
def cispo(
  *,
  clip_high: Positive = 4.0,
  eps: Positive = 1e-6,
  kl_coef: NonNegative = 0.0,
  kl: Kl = 'none',
  ddof: Literal[0, 1] = 1,
  aggregate: Aggregate = 'group_token_mean',
) -> PolicyObjective:
  """-sg[min(rho, 1 + clip_high)] A log pi, mean over the tokens of a group.

  CISPO (arXiv:2506.13585), Eq. 4; it does not tell `clip_high`: ours caps at TRL's 5.
  """
  normal = functools.partial(advantages.group_normalised, ddof=ddof, eps=eps)
  return PolicyObjective(
    outcome_credit(normal, kl=kl, kl_coef=kl_coef),
    policy_gradient(
      surrogates.cispo(high=clip_high), kl=kl, kl_coef=kl_coef, aggregate=aggregate
    ),
  )


@_rollout()
def rloo(*, kl_coef: NonNegative = 0.03, kl: Kl = 'reward') -> PolicyObjective:
  """The mean over responses of sum_t -A log pi, A = R - mean of the others' R.

  RLOO (arXiv:2402.14740), Eq. 6: R less kl_coef log(pi_old / pi_ref). On-policy only:
  it has no ratio.
  """
  return PolicyObjective(
    outcome_credit(advantages.leave_one_out, kl=kl, kl_coef=kl_coef),
    policy_gradient(
      surrogates.likelihood(), kl=kl, kl_coef=kl_coef, aggregate='sequence_sum'
    ),
  )


@_rollout()
def reinforce_pp(
  *,
  clip_low: Share = 0.2,
  clip_high: Positive = 0.2,
  kl_coef: NonNegative = 0.01,
  eps: Positive = 1e-6,
  kl: Kl = 'reward',
  group_baseline: bool = False,
) -> PolicyObjective:
  """PPO's loss without a critic: A are returns-to-go, whitened over the batch's tokens.

  REINFORCE++ (arXiv:2501.03262), Section 3; with `group_baseline` R - mean of the
  group takes the place of the returns.
  """

  def credit(batch: RolloutBatch) -> RolloutBatch:
    batch = with_kl_in_reward(batch, kl, kl_coef)
    present = advantages.present(batch)
    values = advantages.returns_to_go(batch.rewards)
    if group_baseline:
      centred = advantages.group_centred(advantages.outcomes(batch), present)
      values = advantages.on_tokens(centred, batch.mask)
    white = advantages.whitened(values, batch.mask, present, eps=eps)
    return batch.replace(advantages=white)

  return PolicyObjective(
    credit,
    policy_gradient(
      surrogates.clipped(low=clip_low, high=clip_high),
      bounds=(clip_low, clip_high),
      kl=kl,
      kl_coef=kl_coef,
      aggregate='token_mean',
    ),
  )


@recipe(needs=('rewards', 'reference_logps'))
def online_dpo(*, beta: Positive = 0.1) -> PolicyObjective:
  """DPO on the best and the worst response of each group, where they differ.

  Online DPO (arXiv:2402.04792), Eq. 3, with a reward in the place of a judge.
  """

  def credit(batch: RolloutBatch) -> RolloutBatch:
    outcome, present = advantages.outcomes(batch), advantages.present(batch)
    best = jnp.where(present, outcome, -jnp.inf)
    worst = jnp.where(present, outcome, jnp.inf)
    differ = present.any(axis=1) & (best.max(axis=1) > worst.min(axis=1))
    weight = differ.astype(batch.weight.dtype)[:, None]
    return batch.replace(
      chosen=jnp.argmax(best, axis=1).astype(jnp.int32)[:, None],
      rejected=jnp.argmin(worst, axis=1).astype(jnp.int32)[:, None],
      preference=weight,
      pair_weight=weight,
    )

  return PolicyObjective(credit, dpo(beta=beta))
