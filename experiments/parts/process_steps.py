"""What process reward models say of single steps, against what is known of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.parts.build import Config
from experiments.parts.process_models import Scored
from prefjax.data.records import Record
from prefjax.evaluation import steps
from prefjax.evaluation.statistics import Estimate
from prefjax.rewards import process


class Judged(NamedTuple):
  """What is known of the steps of n responses."""

  right: np.ndarray  # [n, s] all is right up to it
  known: np.ndarray  # [n, s]
  first_error: np.ndarray  # [n]
  group: np.ndarray  # [n] the prompt


def judged_steps(records: Sequence[Record], responses: int) -> Judged:
  """Step labels of the first responses of each record."""
  found = [
    (i, labels)
    for i, record in enumerate(records)
    for labels in (record.step_labels or ())[:responses]
  ]
  most = max((len(labels) for _, labels in found), default=1)
  table = np.full((len(found), most), np.nan)
  for row, (_, labels) in zip(table, found, strict=True):
    row[: len(labels)] = labels
  known = ~np.isnan(table)
  wrong = known & (table < 0.5)
  first = np.where(wrong.any(axis=1), wrong.argmax(axis=1), -1)
  return Judged(known & (table >= 0.5), known, first, np.array([i for i, _ in found]))


def of_pool(
  config: Config, records: Sequence[Record], models: Sequence[Scored]
) -> list[dict[str, Any]]:
  """How well each model tells right steps of the held-out pool from wrong ones."""
  truth = judged_steps(records, config['evaluation']['step_responses'])
  if not truth.known.any():
    return []
  always = steps.bootstrapped(
    lambda i: truth.right[i][truth.known[i]].mean(), truth.group
  )
  first = {'model': 'every step called right', 'accuracy': shown(always)}
  return [first, *_rows(models, 'pool', truth, _step_numbers)]


def of_bench(
  records: Sequence[Record], models: Sequence[Scored]
) -> list[dict[str, Any]]:
  """How well each model finds the first errors of ProcessBench."""
  if not records:
    return []
  truth = judged_steps(records, 1)
  # One problem may have several solutions.
  truth = truth._replace(group=np.array([record.prompt for record in records]))
  return list(_rows(models, 'bench', truth, _error_numbers))


def _rows(models, part, truth, numbers):
  """A row for each model and, of an implicit one, for each form of its rewards."""
  for scored in models:
    valued = scored.member.valued
    for form in process.FORMS[:1] if valued else process.FORMS:
      values, present = _step_values(scored, part, form, truth)
      row = {'model': scored.member.name, 'rewards': 'values' if valued else form}
      yield row | numbers(values, present, truth)


def _step_values(scored, part, form, truth):
  """The value that speaks of each step [n, s]: the least of the rewards so far."""
  found = scored.steps[part]
  per_prompt = len(truth.group) // len(found['rewards'])
  rewards, present = (
    found[name][:, :per_prompt].reshape(len(truth.group), -1)
    for name in ('rewards', 'present')
  )
  if form == 'accumulated':
    rewards = np.cumsum(rewards, axis=1)
  size = truth.known.shape[1]  # steps that a length limit cut off have no reward
  rewards, present = (
    np.pad(x, ((0, 0), (0, max(size - x.shape[1], 0))))[:, :size]
    for x in (rewards, present)
  )
  return steps.least_so_far(rewards, present), present


def _step_numbers(values, present, truth):
  known = truth.known & present
  hits = steps.classified(values, truth.right, known, truth.group)

  def area(i):
    return float(steps.auc(values[i][known[i]], truth.right[i][known[i]]))

  return {
    'AUC': shown(steps.bootstrapped(area, truth.group)),
    'accuracy': shown(
      steps.bootstrapped(lambda i: hits[i][known[i]].mean(), truth.group)
    ),
  } | _error_numbers(values, present, truth)


def _error_numbers(values, present, truth):
  predicted = steps.located(values, present, truth.first_error, truth.group)

  def number(name):
    def measure(i):
      return steps.localisation(predicted[i], truth.first_error[i])[name]

    return shown(steps.bootstrapped(measure, truth.group))

  return {name: number(name) for name in ('erroneous', 'correct', 'f1')}


def shown(estimate: Estimate) -> str:
  """A mean and its standard error."""
  return f'{float(estimate.mean):.3f} ± {float(estimate.standard_error):.3f}'
