"""Values of a row that is not trusted: each is what it must be, or the row is refused.

`where` names file and row in every refusal, `name` the value.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from prefjax.errors import InputError


def field(fields: Mapping, name: str, where: str, *, empty: bool = False) -> str:
  """The text of a field, which must be there."""
  if name not in fields:
    raise InputError(
      f'{where}: the field `{name}` is missing or null; this row has {names(fields)}.'
    )
  return text(fields[name], f'`{name}`', where, empty=empty)


def text(value: Any, name: str, where: str, *, empty: bool = False) -> str:
  """A text of valid Unicode, `empty` only where it may be."""
  if not isinstance(value, str):
    raise InputError(f'{where}: {name} must be a text, got {type(value).__name__}.')
  if not (value or empty):
    raise InputError(f'{where}: {name} must not be empty.')
  try:
    value.encode()
  except UnicodeEncodeError as error:  # JSON can spell half a character
    raise InputError(
      f'{where}: {name} is not valid Unicode: a lone surrogate at character '
      f'{error.start}.'
    ) from error
  return value


def sequence(value: Any, name: str, where: str) -> Sequence:
  """A list."""
  if not isinstance(value, list | tuple):
    raise InputError(f'{where}: {name} must be a list, got {type(value).__name__}.')
  return value


def one_each(value: Any, name: str, count: int, where: str) -> Sequence:
  """A list with one entry for each of `count` responses."""
  values = sequence(value, name, where)
  if len(values) != count:
    raise InputError(
      f'{where}: {name} must have one entry for each of the {count} '
      f'responses, got {len(values)}.'
    )
  return values


def share(value: Any, name: str, where: str) -> float:
  """A number from 0 to 1."""
  number = isinstance(value, int | float) and not isinstance(value, bool)
  if not (number and 0 <= value <= 1):  # a NaN is in no interval
    raise InputError(
      f'{where}: {name} must be a number in [0, 1], got {_shown(value)}.'
    )
  return float(value)


def index(value: Any, name: str, count: int, where: str) -> int:
  """A whole number that counts one of `count` responses, from 0."""
  # Parquet and TFDS lists have one type, so an index beside a preference
  # arrives as a float.
  number = isinstance(value, int | float) and not isinstance(value, bool)
  if not (number and 0 <= value < count and value == int(value)):
    raise InputError(
      f'{where}: {name} must hold indices into the {count} responses '
      f'(whole numbers from 0 to {count - 1}), got {_shown(value)}.'
    )
  return int(value)


def names(fields: Mapping) -> str:
  """The fields that a row has, for a refusal."""
  found = ', '.join(f'`{name}`' for name in sorted(map(str, fields)))
  return found or 'no field at all'


def _shown(value: Any) -> str:
  # Numbers are shown; anything else may be long or offensive text.
  numeric = isinstance(value, int | float) and abs(value) < 1e18
  odd_float = isinstance(value, float)
  return repr(value) if numeric or odd_float else type(value).__name__
