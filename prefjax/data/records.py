"""One record: a prompt, its responses, and what is known about them."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
from typing import Any, NamedTuple

from prefjax.errors import InputError

TURN = '\n\nAssistant:'
"""What ends the prompt of a transcript in the layout of the HH data."""


class Pair(NamedTuple):
  """Two responses of one prompt, by index; `preference` is P(chosen wins)."""

  chosen: int
  rejected: int
  preference: float = 1.0


@dataclasses.dataclass(frozen=True)
class Record:
  """A prompt with its responses, as text; `pairs` index into `responses`."""

  prompt: str
  responses: tuple[str, ...]
  pairs: tuple[Pair, ...] = ()
  labels: tuple[float, ...] | None = None  # in [0, 1], 1 is desirable
  win_rates: tuple[float, ...] | None = None  # in [0, 1], P(y > pi_t)
  steps: tuple[tuple[str, ...], ...] | None = None  # of a response, joined it
  step_labels: tuple[tuple[float, ...], ...] | None = None  # in [0, 1]; NaN: unknown


@dataclasses.dataclass(frozen=True)
class Skipped:
  """A row that is well-formed but holds no record; counted, never dropped."""

  reason: str
  where: str


def from_fields(fields: Mapping[str, Any], where: str) -> Record | Skipped:
  """The record in one row of a source; `where` names the row in errors.

  The fields decide the form: `chosen` and `rejected` with a `prompt` or as
  whole transcripts, `responses`, `response`, `text`, graded solutions of a `question`
  with its `ground_truth`, or `output_1` and `output_2` (docs/data.md). A null counts as
  absent, and fields that no form knows are ignored.

  Raises:
    InputError: naming `where`, the rule and the field, never the text.
  """
  present = {key: value for key, value in fields.items() if value is not None}
  forms = _matching(_FORMS, present) or _matching(_LAYOUTS, present)
  if len(forms) != 1:
    raise InputError(
      f'{where}: a record has exactly one of these sets of fields: '
      '(`chosen`, `rejected`), `responses`, `response`, `text`, (`question`, '
      '`ground_truth`) or (`output_1`, `output_2`); '
      f'this one has {_names(present)}.'
    )
  return forms[0](present, where)


def _preference_pair(fields: Mapping, where: str) -> Record | Skipped:
  chosen = _text(fields, 'chosen', where)
  rejected = _text(fields, 'rejected', where)
  preference = fields.get('preference', 1.0)
  pair = Pair(0, 1, _share(preference, '`preference`', where))
  if 'prompt' in fields:
    prompt = _prompt(fields, where)
    return _record(fields, where, prompt, (chosen, rejected), (pair,))
  if TURN not in chosen and TURN not in rejected:
    raise InputError(
      f'{where}: `chosen` and `rejected` need a `prompt`, unless both are '
      f'whole transcripts with turns that begin with {TURN!r}; '
      f'this row has {_names(fields)} and no such turn.'
    )
  end = _shared_prompt(chosen, rejected)
  if end is None:
    return Skipped('no_shared_prompt', where)
  if end in (len(chosen), len(rejected)):
    # Public transcript sets hold a few of these; one must not end a long run.
    return Skipped('empty_response', where)
  responses = (chosen[end:], rejected[end:])
  return _record(fields, where, chosen[:end], responses, (pair,))


def _shared_prompt(chosen: str, rejected: str) -> int | None:
  """Where the prompt of two transcripts ends, None if they share none.

  Both must go apart in their own last turn: an earlier turn is not a prompt to
  which the rest, with a person's turns in it, would be one response.
  """
  # These are texts, not paths.
  common = os.path.commonprefix([chosen, rejected])  # noqa: RUF071
  shared = common.rfind(TURN)
  if shared < 0 or not shared == chosen.rfind(TURN) == rejected.rfind(TURN):
    return None
  return shared + len(TURN)


def _many_responses(fields: Mapping, where: str) -> Record:
  given = _list(fields['responses'], '`responses`', where)
  if not given:
    raise InputError(f'{where}: `responses` must hold at least one response.')
  responses = tuple(
    _checked_text(text, f'`responses[{i}]`', where) for i, text in enumerate(given)
  )
  pairs = tuple(
    _pair(pair, f'`pairs[{i}]`', len(responses), where)
    for i, pair in enumerate(_list(fields.get('pairs', ()), '`pairs`', where))
  )
  return _record(fields, where, _prompt(fields, where), responses, pairs)


def _one_response(fields: Mapping, where: str) -> Record:
  responses = (_text(fields, 'response', where),)
  return _record(fields, where, _prompt(fields, where), responses)


def _plain_text(fields: Mapping, where: str) -> Record:
  return _record(fields, where, '', (_text(fields, 'text', where),))


def _graded_solutions(fields: Mapping, where: str) -> Record:
  """A question with graded solutions; each right one is paired with each wrong one.

  The layout of GSM8K's example_model_solutions: a field for each model.
  """
  graded = {name: x for name, x in fields.items() if isinstance(x, Mapping)}
  if not graded:
    raise InputError(f'{where}: no field holds a `solution` and its `is_correct`.')
  right = [
    _truth(found.get('is_correct'), f'`{name}.is_correct`', where)
    for name, found in graded.items()
  ]
  solutions = tuple(
    _text(found, 'solution', f'{where}, {name}') for name, found in graded.items()
  )
  pairs = tuple(
    Pair(i, j)
    for i, good in enumerate(right)
    for j, other in enumerate(right)
    if good and not other
  )
  question = _text(fields, 'question', where)
  return Record(f'{question}\n', solutions, pairs, tuple(map(float, right)))


def _two_outputs(fields: Mapping, where: str) -> Record:
  """An instruction with two outputs, the better one named: the layout of LLMBar."""
  label = fields.get('label')
  if isinstance(label, bool) or label not in (1, 2):
    raise InputError(f'{where}: `label` must be 1 or 2, got {_shown(label)}.')
  outputs = tuple(_text(fields, name, where) for name in ('output_1', 'output_2'))
  prompt = _text(fields, 'input', where)
  return Record(f'{prompt}\n', outputs, (Pair(label - 1, 2 - label),))


def _truth(value: Any, name: str, where: str) -> bool:
  if not isinstance(value, bool):
    raise InputError(f'{where}: {name} must be true or false, got {_shown(value)}.')
  return value


_FORMS: Sequence[tuple[tuple[str, ...], Callable]] = (
  (('chosen', 'rejected'), _preference_pair),
  (('responses',), _many_responses),
  (('response',), _one_response),
  (('text',), _plain_text),
)
# Of public files; looked for where a row has none of the forms above.
_LAYOUTS: Sequence[tuple[tuple[str, ...], Callable]] = (
  (('ground_truth',), _graded_solutions),
  (('output_1', 'output_2'), _two_outputs),
)


def _matching(forms: Sequence, present: Mapping) -> list[Callable]:
  return [read for names, read in forms if any(name in present for name in names)]


def _record(
  fields: Mapping,
  where: str,
  prompt: str,
  responses: tuple[str, ...],
  pairs: tuple[Pair, ...] = (),
) -> Record:
  numbers = {
    name: _shares(fields, name, len(responses), where)
    for name in ('labels', 'win_rates')
  }
  steps = _steps(fields, responses, where)
  step_labels = _step_labels(fields, steps, where)
  return Record(
    prompt, responses, pairs, **numbers, steps=steps, step_labels=step_labels
  )


def _steps(
  fields: Mapping, responses: tuple[str, ...], where: str
) -> tuple[tuple[str, ...], ...] | None:
  if 'steps' not in fields:
    return None
  found = []
  for i, given in enumerate(_each(fields, 'steps', len(responses), where)):
    name = f'`steps[{i}]`'
    steps = tuple(
      _checked_text(text, f'{name}[{j}]', where)
      for j, text in enumerate(_list(given, name, where))
    )
    if ''.join(steps) != responses[i]:
      raise InputError(f'{where}: {name} must join to response {i}, which they do not.')
    found.append(steps)
  return tuple(found)


def _step_labels(
  fields: Mapping, steps: tuple[tuple[str, ...], ...] | None, where: str
) -> tuple[tuple[float, ...], ...] | None:
  if 'step_labels' not in fields:
    return None
  if steps is None:
    raise InputError(f'{where}: `step_labels` need the `steps` that they are of.')
  found = []
  for i, given in enumerate(_each(fields, 'step_labels', len(steps), where)):
    name = f'`step_labels[{i}]`'
    values = _list(given, name, where)
    if len(values) != len(steps[i]):
      raise InputError(
        f'{where}: {name} must have one number for each of the {len(steps[i])} steps, '
        f'got {len(values)}.'
      )
    found.append(
      tuple(
        float('nan') if x is None else _share(_number(x), f'{name}[{j}]', where)
        for j, x in enumerate(values)
      )
    )
  return tuple(found)


def _shares(
  fields: Mapping, name: str, count: int, where: str
) -> tuple[float, ...] | None:
  if name not in fields:
    return None
  values = _each(fields, name, count, where)
  if name == 'labels':
    values = [_number(value) for value in values]
  return tuple(_share(value, f'`{name}[{i}]`', where) for i, value in enumerate(values))


def _each(fields: Mapping, name: str, count: int, where: str) -> Sequence:
  """A field's list, which has one entry for each of the responses."""
  values = _list(fields[name], f'`{name}`', where)
  if len(values) != count:
    raise InputError(
      f'{where}: `{name}` must have one entry for each of the {count} '
      f'responses, got {len(values)}.'
    )
  return values


def _number(value: Any) -> Any:
  """JSON writes "desirable or not" as true and false."""
  return float(value) if isinstance(value, bool) else value


def _pair(value: Any, name: str, count: int, where: str) -> Pair:
  parts = _list(value, name, where)
  if len(parts) not in (2, 3):
    raise InputError(
      f'{where}: {name} must be [chosen, rejected] or '
      f'[chosen, rejected, preference], got {len(parts)} entries.'
    )
  chosen, rejected = (_index(part, name, count, where) for part in parts[:2])
  if chosen == rejected:
    raise InputError(f'{where}: {name} compares response {chosen} with itself.')
  return Pair(chosen, rejected, *(_share(p, name, where) for p in parts[2:]))


def _index(value: Any, name: str, count: int, where: str) -> int:
  # Parquet and TFDS lists have one type, so an index beside a preference
  # arrives as a float.
  number = isinstance(value, int | float) and not isinstance(value, bool)
  if not (number and 0 <= value < count and value == int(value)):
    raise InputError(
      f'{where}: {name} must hold indices into the {count} responses '
      f'(whole numbers from 0 to {count - 1}), got {_shown(value)}.'
    )
  return int(value)


def _share(value: Any, name: str, where: str) -> float:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  if not (number and 0 <= value <= 1):  # a NaN is in no interval
    raise InputError(
      f'{where}: {name} must be a number in [0, 1], got {_shown(value)}.'
    )
  return float(value)


def _prompt(fields: Mapping, where: str) -> str:
  return _text(fields, 'prompt', where, empty=True)


def _text(fields: Mapping, name: str, where: str, *, empty: bool = False) -> str:
  if name not in fields:
    raise InputError(
      f'{where}: the field `{name}` is missing or null; this row has {_names(fields)}.'
    )
  return _checked_text(fields[name], f'`{name}`', where, empty=empty)


def _checked_text(value: Any, name: str, where: str, *, empty: bool = False) -> str:
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


def _list(value: Any, name: str, where: str) -> Sequence:
  if not isinstance(value, list | tuple):
    raise InputError(f'{where}: {name} must be a list, got {type(value).__name__}.')
  return value


def _names(fields: Mapping) -> str:
  names = ', '.join(f'`{name}`' for name in sorted(map(str, fields)))
  return names or 'no field at all'


def _shown(value: Any) -> str:
  # Numbers are shown; anything else may be long or offensive text.
  numeric = isinstance(value, int | float) and abs(value) < 1e18
  odd_float = isinstance(value, float)
  return repr(value) if numeric or odd_float else type(value).__name__
