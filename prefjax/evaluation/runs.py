"""Finished runs, read from their folders and gathered by what they have in common."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from prefjax.errors import InputError
from prefjax.evaluation.plots import Series
from prefjax.training import metrics
from prefjax.training.files import fingerprint

EVALUATION = 'evaluation.json'  # of a run: frontier, per prompt, best of n
POINTS = 'points.json'  # of a sweep: its runs, in order, with their labels
TRIALS = 'trials'  # of a sweep: the folder of its runs
_SEED = 'seed'


@dataclasses.dataclass(frozen=True)
class Told:
  """What a finished run's folder tells."""

  folder: Path
  config: Mapping[str, Any]
  summary: Mapping[str, Any]
  series: Mapping[str, Series]
  details: Mapping[str, Any]

  @property
  def seed(self) -> int:
    return self.config.get(_SEED, 0)

  def number(self, name: str) -> float | None:
    """A number of the summary, or None where the run has none of this name."""
    value = self.summary.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None


@dataclasses.dataclass(frozen=True)
class Arm:
  """Runs that differ in nothing but their seed, in the order of their seeds."""

  label: str
  runs: Sequence[Told]

  def numbers(self, name: str) -> dict[int, float]:
    """The number of each run that has it, by seed."""
    found = {run.seed: run.number(name) for run in self.runs}
    return {seed: value for seed, value in found.items() if value is not None}


def read(folder: Path) -> Told:
  """A run, finished or not.

  Raises:
    InputError: where the folder holds none.
  """
  path = folder / 'config.json'
  if not path.exists():
    raise InputError(f'{folder} is not the folder of a run: it has no config.json.')
  done, rows = folder / 'DONE', folder / metrics.METRICS
  more = folder / EVALUATION
  return Told(
    folder,
    json.loads(path.read_text())['config'],
    json.loads(done.read_text()) if done.exists() else {},
    series(metrics.read(rows)) if rows.exists() else {},
    json.loads(more.read_text()) if more.exists() else {},
  )


def series(rows: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
  """Each metric of a metrics file over the steps that have it."""
  rows = list(rows)
  names = sorted({name for row in rows for name in row} - {'step'})
  found = {}
  for name in names:
    points = [(row['step'], row[name]) for row in rows if name in row]
    steps, values = zip(*points, strict=True)
    found[name] = Series(np.array(steps), np.array(values))
  return found


def arms(folders: Sequence[Path]) -> list[Arm]:
  """The arms of runs and of sweeps, in the order in which they are named.

  A sweep's arms have the labels of its points, those of other runs what their configs
  differ in. Runs of a sweep that have not ended are left out.

  Raises:
    InputError: where a folder holds neither a run nor a sweep, or none has ended.
  """
  alone, found = [], []
  for folder in folders:
    if (folder / POINTS).exists():
      found += _swept(folder)
    else:
      alone.append(read(folder))
  found += _told_apart(alone)
  found = [arm for arm in found if arm.runs]
  if not found:
    raise InputError(f'No run in {", ".join(map(str, folders))} has ended.')
  return found


def _swept(folder: Path) -> list[Arm]:
  gathered: dict[str, list[Told]] = {}
  for point in json.loads((folder / POINTS).read_text()):
    runs = gathered.setdefault(point['label'], [])
    place = folder / TRIALS / point['name']
    if (place / 'DONE').exists():
      runs.append(read(place))
  return [_arm(label, runs) for label, runs in gathered.items()]


def _told_apart(runs: Sequence[Told]) -> list[Arm]:
  gathered: dict[str, list[Told]] = {}
  for run in runs:
    gathered.setdefault(fingerprint(_without_seed(run.config)), []).append(run)
  groups = list(gathered.values())
  flat = [flattened(_without_seed(group[0].config)) for group in groups]
  keys = dict.fromkeys(key for one in flat for key in one)
  varied = [key for key in keys if len({str(one.get(key)) for one in flat}) > 1]
  if not varied:
    return [_arm(group[0].folder.name, group) for group in groups]
  return [
    _arm(label({k: one[k] for k in varied if k in one}), group)
    for one, group in zip(flat, groups, strict=True)
  ]


def _arm(name, runs):
  return Arm(name, sorted(runs, key=lambda run: run.seed))


def _without_seed(config):
  return {key: value for key, value in config.items() if key != _SEED}


def flattened(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """A nested config as `{'objective.beta': 0.1, ...}`."""
  out = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      out |= flattened(value, f'{prefix}{key}.')
    else:
      out[f'{prefix}{key}'] = value
  return out


def label(overrides: Mapping[str, Any]) -> str:
  """What sets a point apart, short: `beta 0.05, learning_rate 0.001`."""
  last = [key.rpartition('.')[2] for key in overrides]
  parts = []
  for key, short in zip(overrides, last, strict=True):
    name = short if last.count(short) == 1 else key
    value = overrides[key]
    shown = f'{value:g}' if isinstance(value, float) else str(value)
    parts.append(shown if name in ('name', 'variant') else f'{name} {shown}')
  return ', '.join(parts)
