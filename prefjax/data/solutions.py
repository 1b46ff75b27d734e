"""Problems worked out in steps, with what is known of each: PRM800K, Math-Shepherd and
ProcessBench as they are published.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import math
from pathlib import Path
import re
from typing import Any

from prefjax.data import sources
from prefjax.data.records import Record
from prefjax.errors import InputError

NAN = float('nan')
_MARK = 'ки'  # what stands behind a step of Math-Shepherd
_FIRST = re.compile(r'\s*(?=Step 1:)')
_SIGNS = {'+': 1.0, '-': 0.0}
_RATINGS = {1: 1.0, 0: 1.0, -1: 0.0, None: NAN}


@dataclasses.dataclass(frozen=True)
class Solution:
  """A problem and a solution, a step at a time.

  Attributes:
    labels: of each step: 1 right, 0 wrong, NaN not known.
    correct: whether the final answer is right; None: not known.
  """

  problem: str
  steps: tuple[str, ...]
  labels: tuple[float, ...]
  correct: bool | None = None

  @property
  def first_error(self) -> int:
    """The index of the first wrong step, -1 if none is known to be wrong."""
    return self.labels.index(0.0) if 0.0 in self.labels else -1

  def record(self, *, prompt: str, separator: str, lead: str = '') -> Record:
    """As a record of one response: `lead`, and the steps with a separator between.

    Args:
      prompt: a template with `{problem}`.
    """
    *ended, last = self.steps
    pieces = [*(step + separator for step in ended), last]
    pieces[0] = lead + pieces[0]
    return Record(
      prompt=prompt.replace('{problem}', self.problem),
      responses=(''.join(pieces),),
      labels=None if self.correct is None else (float(self.correct),),
      steps=(tuple(pieces),),
      step_labels=(self.labels,),
    )


def read(source: str, form: str, *, data_dir: Path | None = None) -> Iterator[Solution]:
  """The solutions of a source in one of the formats of `FORMATS`.

  Raises:
    InputError: for another format, or a row that breaks a rule, naming file and row.
  """
  if form not in FORMATS:
    raise InputError(f'Unknown format of steps {form!r}; known are {sorted(FORMATS)}.')
  return _solutions(source, FORMATS[form], data_dir)


def _solutions(source, solutions, data_dir):
  for where, row in sources.rows(source, data_dir=data_dir):
    yield from solutions(row, where)


def prm800k(row: Mapping[str, Any], where: str) -> Iterator[Solution]:
  """The path that the labeller followed, and every other rated way to leave it.

  A step's completions are alternatives; the chosen one, or what a person wrote where
  none would do (not rated: NaN), goes on. Where nothing goes on, the path ends with
  the first, the one of the solution that was judged. A rating of 0, neutral, counts
  as right. Let's Verify Step by Step (arXiv:2305.20050), Appendices B and F.
  """
  problem = _field(row, 'question.problem', str, where)
  steps, labels = [], []
  for i, step in enumerate(_field(row, 'label.steps', list, where)):
    at = f'label.steps[{i}]'
    given = _completions(step, at, where)
    followed = _followed(step, given, at, where)
    for j, (text, label) in enumerate(given):
      if j != followed:
        yield Solution(problem, (*steps, text), (*labels, label))
    if followed is not None:
      text, label = given[followed]
      steps.append(text), labels.append(label)
    ended = step.get('chosen_completion') is None and not step.get('human_completion')
    if ended or followed is None:
      break
  if steps:
    yield Solution(problem, tuple(steps), tuple(labels))


def _completions(step, at, where):
  """(text, label) of a step's completions, that of a person last."""
  if not isinstance(step, dict):
    raise _wrong(where, at, 'an object', step)
  found = []
  for j, one in enumerate(step.get('completions') or ()):
    name = f'{at}.completions[{j}]'
    rating = one.get('rating') if isinstance(one, dict) else one
    if isinstance(rating, bool) or rating not in _RATINGS:
      raise _wrong(where, f'{name}.rating', '-1, 0, 1 or null', rating)
    found.append((_field(one, 'text', str, where, name), _RATINGS[rating]))
  if step.get('human_completion'):
    person = step['human_completion']
    found.append((_field(person, 'text', str, where, f'{at}.human_completion'), NAN))
  return found


def _followed(step, given, at, where):
  """The index of the completion that the path takes; None where there is none."""
  chosen = step.get('chosen_completion')
  if chosen is None:
    return (len(given) - 1 if step.get('human_completion') else 0) if given else None
  if type(chosen) is not int or not 0 <= chosen < len(given):
    rule = f'an index into {len(given)} completions'
    raise _wrong(where, f'{at}.chosen_completion', rule, chosen)
  return chosen


def math_shepherd(row: Mapping[str, Any], where: str) -> Iterator[Solution]:
  """A solution of `Step 1: ...` to the last, each labelled + or - by continuations.

  `input` marks the end of a step, `label` has its sign there. Math-Shepherd
  (arXiv:2312.08935), hard estimation.
  """
  text = _field(row, 'input', str, where)
  signed = _field(row, 'label', str, where)
  *parts, rest = text.split(_MARK)
  start = _FIRST.search(text)
  if start is None or not parts or rest.strip():
    raise InputError(
      f'{where}: `input` must be a problem and then `Step 1:` and so on, each step '
      f'with {_MARK!r} behind it.'
    )
  labels, at = [], 0
  for part in parts:
    at += len(part) + 1
    sign = signed[at - 1 : at]
    if signed[at - 1 - len(part) : at - 1] != part or sign not in _SIGNS:
      raise InputError(
        f'{where}: `label` must be the text of `input` with + or - in the place of '
        f'each {_MARK!r}, which it is not at step {len(labels) + 1}.'
      )
    labels.append(_SIGNS[sign])
  steps = [parts[0][start.end() :], *parts[1:]]
  yield Solution(
    text[: start.start()], tuple(step.strip() for step in steps), tuple(labels)
  )


def processbench(row: Mapping[str, Any], where: str) -> Iterator[Solution]:
  """A solution whose first wrong step people found, `label`; -1: none.

  What comes after it is not known. ProcessBench (arXiv:2412.06559).
  """
  steps = _field(row, 'steps', list, where)
  for i, step in enumerate(steps):
    if not isinstance(step, str):
      raise _wrong(where, f'steps[{i}]', 'text', step)
  first = _field(row, 'label', int, where)
  if not steps or not -1 <= first < len(steps):
    rule = f'-1 or the index of one of the {len(steps)} steps'
    raise _wrong(where, 'label', rule, first)
  right = len(steps) if first < 0 else first
  labels = [1.0] * right + [0.0] + [NAN] * (len(steps) - right)
  yield Solution(
    _field(row, 'problem', str, where),
    tuple(steps),
    tuple(labels[: len(steps)]),
    _field(row, 'final_answer_correct', bool, where),
  )


FORMATS: Mapping[str, Callable[[Mapping[str, Any], str], Iterator[Solution]]] = {
  'prm800k': prm800k,
  'math_shepherd': math_shepherd,
  'processbench': processbench,
}


def _field(row, path, kind, where, inside=''):
  """The value at a dotted path, which is of one type; text is not empty."""
  value: Any = row
  for name in path.split('.'):
    value = value.get(name) if isinstance(value, dict) else None
  full = f'{inside}.{path}' if inside else path
  if type(value) is not kind or value == '':
    raise _wrong(
      where, full, {str: 'text'}.get(kind, f'of type {kind.__name__}'), value
    )
  return value


def _wrong(where, field, rule, value):
  number = isinstance(value, int | float) and not isinstance(value, bool)
  got = repr(value) if number and math.isfinite(value) else type(value).__name__
  return InputError(f'{where}: `{field}` must be {rule}, got {got}.')
