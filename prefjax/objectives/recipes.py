"""What a recipe is: named numbers with ranges, structure, and declared needs.

The numbers are arguments of the compiled step and the structure is not, so a sweep
over numbers compiles once; a recipe must therefore not branch on them.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
import difflib
import importlib
import inspect
import math
from numbers import Real
import typing
from typing import Annotated, Any, Literal

from prefjax.errors import InputError
from prefjax.objectives.links import Scalar
from prefjax.types import LossFn

Recipe = Callable[..., LossFn]

# What an objective can ask for beside log-probs: what the batch holds, then what a
# forward gives. `mismatched` are responses of other prompts, with weight 0.
NEEDS = (
  'pairs',
  'label',
  'win_rate',
  'mismatched',
  'reference_logps',
  'old_logps',
  'step',
  'step_label',
  'entropy',
  'collision',
  'kl',
  'truncated',
  'rewards',
  'implicit',
  'values',
  'scores',
)


@dataclasses.dataclass(frozen=True)
class Interval:
  """The values a number may take; an open end is excluded."""

  low: float = -math.inf
  high: float = math.inf
  open_low: bool = False
  open_high: bool = False

  def __contains__(self, x: float) -> bool:
    above = x > self.low if self.open_low else x >= self.low
    below = x < self.high if self.open_high else x <= self.high
    return math.isfinite(x) and above and below

  def __str__(self) -> str:
    left = '(' if self.open_low or self.low == -math.inf else '['
    right = ')' if self.open_high or self.high == math.inf else ']'
    return f'{left}{self.low:g}, {self.high:g}{right}'


# A float from the user; in a compiled step, a traced scalar.
Positive = Annotated[Scalar, Interval(low=0.0, open_low=True)]
NonNegative = Annotated[Scalar, Interval(low=0.0)]
BelowHalf = Annotated[Scalar, Interval(low=0.0, high=0.5, open_high=True)]


def recipe(
  *,
  needs: Collection[str] = (),
  needs_where: Callable[[Mapping[str, Any]], Collection[str]] | None = None,
  couples_batch: bool = False,
  logps: bool = True,
) -> Callable[[Recipe], Recipe]:
  """Declares what the objective of a recipe reads beside log-probs.

  `needs_where` adds what it reads for some structure alone (a KL to the reference,
  where there is one). `couples_batch` says that its loss is no sum over prompts (a
  sort or a mean over the whole batch stands inside a nonlinearity). `logps=False`
  says that it reads no log-probs, so that none are formed.
  """
  always = _known(frozenset(needs))

  def declare(function: Recipe) -> Recipe:
    function.needs = always
    function.needs_where = needs_where
    function.couples_batch = couples_batch
    function.logps = logps
    return function

  return declare


def _known(needs: frozenset[str]) -> frozenset[str]:
  unknown = sorted(needs - set(NEEDS))
  if unknown:
    raise InputError(f'Unknown needs {unknown}; known are {list(NEEDS)}.')
  return needs


@dataclasses.dataclass(frozen=True)
class Field:
  """One hyperparameter of a recipe."""

  kind: Any
  default: Any  # inspect.Parameter.empty where the user must choose
  interval: Interval | None  # None: structure, not a number

  @property
  def required(self) -> bool:
    return self.default is inspect.Parameter.empty


def fields(function: Recipe) -> dict[str, Field]:
  """A recipe's hyperparameters, from its signature."""
  hints = typing.get_type_hints(function, include_extras=True)
  out = {}
  for name, parameter in inspect.signature(function).parameters.items():
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
      raise InputError(
        f'{function.__name__}: a recipe takes keyword-only hyperparameters, '
        f'{name!r} is not.'
      )
    hint = hints.get(name, float)
    kind, *extras = (
      typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    )
    interval = next((x for x in extras if isinstance(x, Interval)), None)
    if kind in (float, Scalar):
      kind, interval = float, interval or Interval()
    out[name] = Field(kind, parameter.default, interval)
  return out


@dataclasses.dataclass(frozen=True)
class Objective:
  """A recipe with validated hyperparameters, ready to be built under trace."""

  name: str
  recipe: Recipe
  numbers: Mapping[str, float]
  structure: Mapping[str, Any]

  @property
  def needs(self) -> frozenset[str]:
    always = getattr(self.recipe, 'needs', frozenset())
    where = getattr(self.recipe, 'needs_where', None)
    needs = always.union(where(self.structure)) if where else always
    return _known(needs)

  @property
  def reads(self) -> frozenset[str]:
    """What a forward must give it: its needs, and log-probs unless it reads none."""
    logps = ('logps',) if getattr(self.recipe, 'logps', True) else ()
    return self.needs.union(logps)

  @property
  def couples_batch(self) -> bool:
    return getattr(self.recipe, 'couples_batch', False)

  def build(self, numbers: Mapping[str, Any] | None = None) -> LossFn:
    """The loss function for these numbers (its own, or traced ones)."""
    numbers = self.numbers if numbers is None else numbers
    return self.recipe(**numbers, **self.structure)


def find(name: str, known: Mapping[str, Recipe]) -> Recipe:
  """The recipe of this name, or at this import path `package.module.function`.

  Raises:
    InputError: for a name that is neither, listing what exists.
  """
  if name in known:
    return known[name]
  module, _, function = name.rpartition('.')
  if not module:
    raise InputError(
      f'Unknown objective {name!r}{did_you_mean(name, known)}; known are '
      f'{sorted(known)}, or give an import path such as '
      f'my_package.my_objective.'
    )
  try:
    found = getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError, TypeError) as error:
    raise InputError(f'The objective {name!r} cannot be imported: {error}.') from (
      error
    )
  if not callable(found):
    raise InputError(f'The objective {name!r} is not a function.')
  return found


def bind(name: str, function: Recipe, given: Mapping[str, Any]) -> Objective:
  """Validates hyperparameters against a recipe's signature.

  Raises:
    InputError: naming an unknown, missing, mistyped or out-of-range key.
  """
  known = fields(function)
  for key in given:
    if key not in known:
      raise InputError(
        f'objective.{key} is not a hyperparameter of {name}'
        f'{did_you_mean(key, known)}; it has {sorted(known)}.'
      )
  numbers, structure = {}, {}
  for key, field in known.items():
    value = given.get(key)
    value = field.default if value is None else value
    if value is inspect.Parameter.empty:
      raise InputError(f'objective.{key} of {name} has no default: choose it.')
    if field.interval is None:
      structure[key] = _structure(name, key, value, field.kind)
    else:
      numbers[key] = _number(name, key, value, field.interval)
  return Objective(name, function, numbers, structure)


def _number(name, key, value, interval):
  if isinstance(value, bool) or not isinstance(value, Real):
    raise InputError(f'objective.{key} of {name} must be a number, got {value!r}.')
  number = float(value)
  if number not in interval:
    raise InputError(
      f'objective.{key} of {name} must lie in {interval}, got {value!r}.'
    )
  return number


def _structure(name, key, value, kind):
  choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
  # 1.0 == 1 and True == 1, but neither is the choice 1.
  if choices and (type(value), value) not in [(type(c), c) for c in choices]:
    raise InputError(
      f'objective.{key} of {name} must be one of {list(choices)}, got {value!r}.'
    )
  if isinstance(kind, type) and type(value) is not kind:
    raise InputError(
      f'objective.{key} of {name} must be of type {kind.__name__}, got {value!r}.'
    )
  return value


def did_you_mean(name: str, known: Collection[str]) -> str:
  """A hint for a mistyped name: ` (did you mean 'beta'?)`, or nothing."""
  close = difflib.get_close_matches(name, list(known), n=1)
  return f' (did you mean {close[0]!r}?)' if close else ''
