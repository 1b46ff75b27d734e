"""Objectives: pure functions of a model's outputs and a batch.

A stage (`scores`, `links`, `aggregation`) returns per-element values, a recipe (`dpo`,
`ipo`, ...) is a short composition of stages, and `create` turns a name with
hyperparameters into a validated `Objective`.
"""

from typing import Any

from prefjax.objectives import recipes
from prefjax.objectives.aggregation import sequence_sum, token_mean
from prefjax.objectives.combine import add
from prefjax.objectives.links import logistic, squared
from prefjax.objectives.pairwise import (
  dpo,
  hinge,
  ipo,
  on_margin,
  pairwise,
  robust_dpo,
  smoothed,
  unflipped,
)
from prefjax.objectives.recipes import (
  BelowHalf,
  Field,
  Interval,
  NonNegative,
  Objective,
  Positive,
  recipe,
)
from prefjax.objectives.scores import log_ratio, mean_log_ratio
from prefjax.objectives.supervised import sft

RECIPES = {
  'dpo': dpo,
  'hinge': hinge,
  'ipo': ipo,
  'robust_dpo': robust_dpo,
  'sft': sft,
}


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
  'Positive',
  'add',
  'create',
  'dpo',
  'fields',
  'hinge',
  'ipo',
  'log_ratio',
  'logistic',
  'mean_log_ratio',
  'on_margin',
  'pairwise',
  'recipe',
  'robust_dpo',
  'sequence_sum',
  'sft',
  'smoothed',
  'squared',
  'token_mean',
  'unflipped',
]
