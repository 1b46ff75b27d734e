"""Objectives: pure functions of a model's outputs and a batch.

A stage (`scores`, `links`, `aggregation`) returns per-element values, a recipe (`dpo`,
`ipo`, ...) is a short composition of stages, and `create` turns a name with
hyperparameters into a validated `Objective`.
"""

from typing import Any

from prefjax.objectives import recipes
from prefjax.objectives.actor_critic import critic, ppo
from prefjax.objectives.aggregation import sequence_sum, token_mean
from prefjax.objectives.combine import add
from prefjax.objectives.links import logistic, squared
from prefjax.objectives.on_policy import (
  cispo,
  dapo,
  dr_grpo,
  grpo,
  gspo,
  online_dpo,
  reinforce_pp,
  rloo,
)
from prefjax.objectives.pairing import (
  on_margin,
  on_scores,
  pairwise,
  smoothed,
  unflipped,
)
from prefjax.objectives.pairs import (
  apo_down,
  apo_zero,
  bco_pair,
  discopop,
  dpo,
  dpop,
  exo_pair,
  f_dpo,
  hinge,
  ipo,
  ld_dpo,
  nca_pair,
  odpo,
  robust_dpo,
  rpo,
  wpo,
)
from prefjax.objectives.pointwise import bco, cross_entropy, kto, nca
from prefjax.objectives.policy_gradient import PolicyObjective
from prefjax.objectives.prime import prime
from prefjax.objectives.recipes import (
  BelowHalf,
  Field,
  Interval,
  NonNegative,
  Objective,
  Positive,
  recipe,
)
from prefjax.objectives.reference_free import (
  chosen_nll,
  cpo,
  orpo,
  preferred_ft,
  simpo,
  unlikelihood,
)
from prefjax.objectives.reward import bradley_terry, step_cross_entropy
from prefjax.objectives.scores import (
  log_prob,
  log_ratio,
  mean_log_prob,
  mean_log_ratio,
)
from prefjax.objectives.self_play import sppo, sppo_hard, sppo_single
from prefjax.objectives.supervised import sft
from prefjax.objectives.transport import aot, aot_unpaired

_CATALOGUE = (
  # pairs, against a reference
  dpo,
  robust_dpo,
  ipo,
  hinge,
  exo_pair,
  discopop,
  nca_pair,
  bco_pair,
  apo_zero,
  apo_down,
  dpop,
  odpo,
  f_dpo,
  ld_dpo,
  wpo,
  rpo,
  aot,
  aot_unpaired,
  # pairs, without one
  simpo,
  cpo,
  orpo,
  preferred_ft,
  unlikelihood,
  # single responses
  kto,
  bco,
  nca,
  cross_entropy,
  # self-play
  sppo,
  sppo_single,
  sppo_hard,
  # reward models
  bradley_terry,
  step_cross_entropy,
  # likelihood
  sft,
  # rollouts
  grpo,
  dr_grpo,
  dapo,
  gspo,
  cispo,
  rloo,
  reinforce_pp,
  ppo,
  critic,
  online_dpo,
  prime,
)
RECIPES = {function.__name__: function for function in _CATALOGUE}


def create(name: str, **hyperparameters: Any) -> Objective:
  """The objective of a recipe's name, or of an import path, with its numbers.

  Raises:
    InputError: for an unknown name or key, or a value out of its range; the message
      lists what exists.
  """
  return recipes.bind(name, recipes.find(name, RECIPES), hyperparameters)


def fields(name: str) -> dict[str, Field]:
  """The hyperparameters of a recipe: what `create(name, ...)` takes."""
  return recipes.fields(recipes.find(name, RECIPES))


__all__ = [
  'RECIPES',
  'BelowHalf',
  'Field',
  'Interval',
  'NonNegative',
  'Objective',
  'PolicyObjective',
  'Positive',
  'add',
  'aot',
  'aot_unpaired',
  'apo_down',
  'apo_zero',
  'bco',
  'bco_pair',
  'bradley_terry',
  'chosen_nll',
  'cispo',
  'cpo',
  'create',
  'critic',
  'cross_entropy',
  'dapo',
  'discopop',
  'dpo',
  'dpop',
  'dr_grpo',
  'exo_pair',
  'f_dpo',
  'fields',
  'grpo',
  'gspo',
  'hinge',
  'ipo',
  'kto',
  'ld_dpo',
  'log_prob',
  'log_ratio',
  'logistic',
  'mean_log_prob',
  'mean_log_ratio',
  'nca',
  'nca_pair',
  'odpo',
  'on_margin',
  'on_scores',
  'online_dpo',
  'orpo',
  'pairwise',
  'ppo',
  'preferred_ft',
  'prime',
  'recipe',
  'reinforce_pp',
  'rloo',
  'robust_dpo',
  'rpo',
  'sequence_sum',
  'sft',
  'simpo',
  'smoothed',
  'sppo',
  'sppo_hard',
  'sppo_single',
  'squared',
  'step_cross_entropy',
  'token_mean',
  'unflipped',
  'unlikelihood',
  'wpo',
]
