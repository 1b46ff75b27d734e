"""What a sweep's config asks for: its points, each a whole config, or a space.

A config that is swept has beside `get_config(variant)`

    def sweep():   # yields overrides, by dotted name
      yield {'objective.beta': 0.1, 'seed': 0}

where `variant` among them is that of `get_config`, and `label` what reports call the
arm (`sweep(variant)` where sizes depend on the command's variant); or, for a search,

    def search():
      return {'space': {'objective.beta': ('log', 0.01, 10.0)}, 'trials': 20}

A space's kinds are ('log', low, high), ('uniform', low, high), ('int', low, high) and
('choice', ...). `METRIC` names what the study keeps of a run's summary: the less the
better where it ends in `loss`, else the more; `BESIDE` what docs/reproduction.md shows
after the usual numbers.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import importlib.util
import inspect
import itertools
from pathlib import Path
import shlex
from types import ModuleType
from typing import Any, NamedTuple

import ml_collections as mlc
import numpy as np

from prefjax.errors import InputError
from prefjax.evaluation import runs
from prefjax.objectives.recipes import did_you_mean

METRIC = 'eval/loss'  # where a config names none
_ARM = ('variant', 'label')  # of a point, and no key of its config


class Point(NamedTuple):
  """One run of a sweep."""

  name: str  # of its folder
  label: str  # of its arm: its seeds share it
  overrides: Mapping[str, Any]
  config: mlc.ConfigDict
  variant: str  # of the config file


def load(path: str) -> ModuleType:
  """The module of a config file."""
  spec = importlib.util.spec_from_file_location(Path(path).stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def grid(
  values: Mapping[str, Sequence[Any]], seeds: Sequence[int] = (0, 1, 2)
) -> Iterator[dict[str, Any]]:
  """Every combination, each with every seed; the first key changes slowest."""
  for combination in itertools.product(*values.values()):
    yield from seeded(dict(zip(values, combination, strict=True)), seeds)


def seeded(
  point: Mapping[str, Any], seeds: Sequence[int] = (0, 1, 2)
) -> Iterator[dict[str, Any]]:
  """The point with each seed."""
  for seed in seeds:
    yield {**point, 'seed': seed}


def drawn(
  space: Mapping[str, Sequence[Any]], count: int, seeds: Sequence[int] = (0,)
) -> Iterator[dict[str, Any]]:
  """`count` points drawn at random from a space, each with every seed."""
  rng = np.random.default_rng(0)
  for _ in range(count):
    point = {key: _draw(rng, key, kind) for key, kind in space.items()}
    yield from seeded(point, seeds)


def _draw(rng, key, kind):
  name, *values = kind
  if name == 'choice':
    return values[rng.integers(len(values))]
  low, high = values
  if name == 'int':
    return int(rng.integers(low, high + 1))
  if name == 'log':
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
  if name == 'uniform':
    return float(rng.uniform(low, high))
  raise InputError(f'{key}: a space knows log, uniform, int and choice, not {name!r}.')


def points(
  module: ModuleType, variant: str = '', changed: Mapping[str, Any] | None = None
) -> list[Point]:
  """The points of a config's `sweep()`, each with `changed` under its overrides.

  Raises:
    InputError: a point that names a key that no config has, gives it a wrong type, or
      stands there twice.
  """
  takes_variant = inspect.signature(module.sweep).parameters
  given = module.sweep(variant) if takes_variant else module.sweep()
  found = [point(module, one, variant, changed or {}) for one in given]
  names = [one.name for one in found]
  for name in names:
    if names.count(name) > 1:
      raise InputError(f'The sweep has the point {name!r} {names.count(name)} times.')
  return found


def point(
  module: ModuleType,
  given: Mapping[str, Any],
  variant: str = '',
  changed: Mapping[str, Any] | None = None,
) -> Point:
  """The run of these overrides, on top of what flags changed."""
  words = [word for word in (given.get('variant', ''), variant) if word]
  config = module.get_config(','.join(words))
  own = {key: value for key, value in given.items() if key not in _ARM}
  override(config, changed or {})
  override(config, own)
  arm = {key: value for key, value in given.items() if key not in ('seed', 'label')}
  label = given.get('label') or runs.label(arm) or 'all'
  seed = given.get('seed', config.get('seed', 0))
  name = f'{_file_name(label)},seed={seed}'
  return Point(name, label, own, config, ','.join(words))


def numbers(one: Point) -> dict[str, int | float]:
  """The numbers among the overrides of a point."""
  return {
    key: value
    for key, value in one.overrides.items()
    if isinstance(value, int | float) and not isinstance(value, bool)
  }


def ranges(found: Iterable[Point]) -> dict[str, tuple[Any, ...]]:
  """The space that points lie in, as far as it is one of numbers."""
  values: dict[str, list[int | float]] = {}
  for one in found:
    for key, value in numbers(one).items():
      values.setdefault(key, []).append(value)
  whole = {key: all(isinstance(x, int) for x in xs) for key, xs in values.items()}
  return {
    key: ('int' if whole[key] else 'uniform', min(xs), max(xs))
    for key, xs in values.items()
  }


def override(config: mlc.ConfigDict, changes: Mapping[str, Any]) -> None:
  """Sets values by dotted name.

  Raises:
    InputError: for a name that the config does not have, or a value of another type.
  """
  known = runs.flattened(config.to_dict())
  for key, value in changes.items():
    if key not in known:
      hint = did_you_mean(key, known)
      raise InputError(f'The sweep sets {key!r}, which its config has not{hint}.')
    try:
      config.update_from_flattened_dict({key: value})
    except (TypeError, ValueError) as error:
      raise InputError(f'The sweep sets {key}={value!r}: {error}') from error


def _file_name(label: str) -> str:
  kept = (c if c.isalnum() or c in '.,=+-_' else '_' for c in label.replace(', ', ','))
  return ''.join(kept)


def command(
  experiment: str,
  path: str,
  one: Point,
  changed: Mapping[str, Any],
  flags: Iterable[str],
) -> str:
  """The plain command that is this point."""
  where = f'{path}:{one.variant}' if one.variant else path
  values = {**changed, **one.overrides}
  words = [
    'python',
    '-m',
    f'experiments.{experiment}',
    f'--config={where}',
    *(f'--config.{key}={value}' for key, value in values.items()),
    *flags,
  ]
  return shlex.join(words)
