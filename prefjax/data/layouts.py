"""Public files of comparisons that are in none of our own forms, as records.

Which layout a row has is told by its fields, where it has no field of a form of ours
(docs/data.md). In both the prompt is the row's text and a line break.
"""

from collections.abc import Mapping
from typing import Any

from prefjax.data import records
from prefjax.data.records import Pair, Record, Skipped
from prefjax.errors import InputError


def from_fields(fields: Mapping[str, Any], where: str) -> Record | Skipped:
  """The record in one row of a source, of a layout here or of a form of `records`.

  Raises:
    InputError: naming `where`, the rule and the field, never the text.
  """
  own = any(fields.get(name) is not None for name in records.FORM_FIELDS)
  for names, read in _LAYOUTS.items():
    if not own and all(fields.get(name) is not None for name in names):
      return read(fields, where)
  return records.from_fields(fields, where)


def _graded_solutions(fields: Mapping[str, Any], where: str) -> Record:
  """A question with graded solutions; each right one is paired with each wrong one.

  The layout of GSM8K's example_model_solutions: a field for each model.
  """
  graded = {name: x for name, x in fields.items() if isinstance(x, Mapping)}
  if not graded:
    raise InputError(f'{where}: no field holds a `solution` and its `is_correct`.')
  solutions, right = [], []
  for name, found in graded.items():
    at = f'{where}, {name}'
    solutions.append(_field(found, 'solution', str, at))
    right.append(_field(found, 'is_correct', bool, at))
  pairs = tuple(
    Pair(i, j)
    for i, good in enumerate(right)
    for j, other in enumerate(right)
    if good and not other
  )
  prompt = _field(fields, 'question', str, where) + '\n'
  return Record(prompt, tuple(solutions), pairs, tuple(map(float, right)))


def _two_outputs(fields: Mapping[str, Any], where: str) -> Record:
  """An instruction with two outputs and the number of the better one: LLMBar's."""
  label = _field(fields, 'label', int, where)
  if label not in (1, 2):
    raise InputError(f'{where}: `label` must be 1 or 2, got {label}.')
  outputs = tuple(_field(fields, f'output_{i}', str, where) for i in (1, 2))
  prompt = _field(fields, 'input', str, where) + '\n'
  return Record(prompt, outputs, (Pair(label - 1, 2 - label),))


_LAYOUTS = {
  ('question', 'ground_truth'): _graded_solutions,
  ('output_1', 'output_2'): _two_outputs,
}


def _field(fields, name, kind, where):
  value = fields.get(name)
  if type(value) is not kind or value == '':
    rule = 'a text that is not empty' if kind is str else f'of type {kind.__name__}'
    raise InputError(f'{where}: `{name}` must be {rule}, got {type(value).__name__}.')
  return value
