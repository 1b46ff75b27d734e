"""One record: a prompt, its responses, and what is known about them."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
from typing import Any, NamedTuple

from prefjax.data import checked, conversations
from prefjax.data.conversations import Message
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
  """A prompt with its responses, as text; `pairs` index into `responses`.

  Of a conversation, `messages` are the turns before the responses, `prompt` is their
  plain text, and a response begins with the space that follows it there.
  """

  prompt: str
  responses: tuple[str, ...]
  pairs: tuple[Pair, ...] = ()
  labels: tuple[float, ...] | None = None  # in [0, 1], 1 is desirable
  win_rates: tuple[float, ...] | None = None  # in [0, 1], P(y > pi_t)
  messages: tuple[Message, ...] | None = None
  steps: tuple[tuple[str, ...], ...] | None = None  # of a response, joined it
  step_labels: tuple[tuple[float, ...], ...] | None = None  # in [0, 1]; NaN: unknown


@dataclasses.dataclass(frozen=True)
class Skipped:
  """A row that is well-formed but holds no record; counted, never dropped."""

  reason: str
  where: str


def from_fields(fields: Mapping[str, Any], where: str) -> Record | Skipped:
  """The record in one row of a source; `where` names the row in errors.

  The fields decide the form: `chosen` and `rejected` with a `prompt` or as whole
  transcripts or conversations, `responses`, `response`, `messages` or `conversations`,
  or `text` (docs/data.md). A null counts as absent, and fields that no form knows are
  ignored.

  Raises:
    InputError: naming `where`, the rule and the field, never the text.
  """
  present = {key: value for key, value in fields.items() if value is not None}
  forms = [read for names, read in _FORMS if any(name in present for name in names)]
  if len(forms) != 1:
    raise InputError(
      f'{where}: a record has exactly one of these sets of fields: '
      '(`chosen`, `rejected`), `responses`, `response`, `messages`, `conversations` or '
      f'`text`; this one has {checked.names(present)}.'
    )
  return forms[0](present, where)


def _preference_pair(fields: Mapping, where: str) -> Record | Skipped:
  if conversations.is_conversation(fields.get('chosen')):
    return _conversation_pair(fields, where)
  chosen = checked.field(fields, 'chosen', where)
  rejected = checked.field(fields, 'rejected', where)
  pair = _only_pair(fields, where)
  if 'prompt' in fields:
    return _record(fields, where, _prompt(fields, where), (chosen, rejected), (pair,))
  if TURN not in chosen and TURN not in rejected:
    raise InputError(
      f'{where}: `chosen` and `rejected` need a `prompt`, unless both are '
      f'whole transcripts with turns that begin with {TURN!r}; '
      f'this row has {checked.names(fields)} and no such turn.'
    )
  end = _shared_prompt(chosen, rejected)
  if end is None:
    return Skipped('no_shared_prompt', where)
  if end in (len(chosen), len(rejected)):
    # Public transcript sets hold a few of these; one must not end a long run.
    return Skipped('empty_response', where)
  responses = (chosen[end:], rejected[end:])
  return _record(fields, where, chosen[:end], responses, (pair,))


def _only_pair(fields: Mapping, where: str) -> Pair:
  return Pair(0, 1, checked.share(fields.get('preference', 1.0), '`preference`', where))


def _conversation_pair(fields: Mapping, where: str) -> Record | Skipped:
  """Two conversations that go apart in their last turn, each an answer."""
  before = ()
  if conversations.is_conversation(fields.get('prompt')):
    before = _messages(fields, 'prompt', where)
  pair = _only_pair(fields, where)
  sides = [before + _messages(fields, name, where) for name in ('chosen', 'rejected')]
  if sides[0][:-1] != sides[1][:-1]:
    return Skipped('no_shared_prompt', where)
  if any(side[-1].role != 'assistant' for side in sides):
    return Skipped('no_last_answer', where)
  responses = tuple(side[-1].content for side in sides)
  if not all(responses):
    return Skipped('empty_response', where)
  return _record(fields, where, sides[0][:-1], responses, (pair,))


def _conversation(fields: Mapping, where: str) -> Record | Skipped:
  """One conversation, whose last turn is what is to be said."""
  name = 'messages' if 'messages' in fields else 'conversations'
  *before, last = _messages(fields, name, where)
  if last.role != 'assistant':
    return Skipped('no_last_answer', where)
  if not last.content:
    return Skipped('empty_response', where)
  return _record(fields, where, tuple(before), (last.content,))


def _messages(fields: Mapping, name: str, where: str) -> tuple[Message, ...]:
  messages = conversations.read(fields.get(name), name, where)
  for i, message in enumerate(messages):
    checked.text(message.content, f'`{name}[{i}]`', where, empty=True)
  return messages


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
  given = checked.sequence(fields['responses'], '`responses`', where)
  if not given:
    raise InputError(f'{where}: `responses` must hold at least one response.')
  responses = tuple(
    checked.text(text, f'`responses[{i}]`', where) for i, text in enumerate(given)
  )
  pairs = tuple(
    _pair(pair, f'`pairs[{i}]`', len(responses), where)
    for i, pair in enumerate(
      checked.sequence(fields.get('pairs', ()), '`pairs`', where)
    )
  )
  return _record(fields, where, _prompt(fields, where), responses, pairs)


def _one_response(fields: Mapping, where: str) -> Record:
  responses = (checked.field(fields, 'response', where),)
  return _record(fields, where, _prompt(fields, where), responses)


def _plain_text(fields: Mapping, where: str) -> Record:
  return _record(fields, where, '', (checked.field(fields, 'text', where),))


_FORMS: Sequence[tuple[tuple[str, ...], Callable]] = (
  (('chosen', 'rejected'), _preference_pair),
  (('responses',), _many_responses),
  (('response',), _one_response),
  (('messages', 'conversations'), _conversation),
  (('text',), _plain_text),
)
FORM_FIELDS = frozenset(name for names, _ in _FORMS for name in names)
"""Fields one of which every record has, in its form."""


def _record(
  fields: Mapping,
  where: str,
  prompt: str | tuple[Message, ...],
  responses: tuple[str, ...],
  pairs: tuple[Pair, ...] = (),
) -> Record:
  numbers = {
    name: _shares(fields, name, len(responses), where)
    for name in ('labels', 'win_rates')
  }
  steps = _steps(fields, responses, where)
  numbers['step_labels'] = _step_labels(fields, steps, where)
  if isinstance(prompt, str):
    return Record(prompt, responses, pairs, **numbers, steps=steps)
  spaced = tuple(f' {text}' for text in responses)
  if steps is not None:
    steps = tuple((f' {first}', *more) for first, *more in steps)
  text = conversations.as_text(prompt)
  return Record(text, spaced, pairs, **numbers, steps=steps, messages=prompt)


def _steps(
  fields: Mapping, responses: tuple[str, ...], where: str
) -> tuple[tuple[str, ...], ...] | None:
  if 'steps' not in fields:
    return None
  found = []
  for i, given in enumerate(
    checked.one_each(fields['steps'], '`steps`', len(responses), where)
  ):
    name = f'steps[{i}]'
    steps = tuple(
      checked.text(text, f'`{name}[{j}]`', where)
      for j, text in enumerate(checked.sequence(given, f'`{name}`', where))
    )
    if ''.join(steps) != responses[i]:
      raise InputError(f'{where}: `{name}` must join to response {i}, and do not.')
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
  for i, given in enumerate(
    checked.one_each(fields['step_labels'], '`step_labels`', len(steps), where)
  ):
    name = f'step_labels[{i}]'
    values = checked.sequence(given, f'`{name}`', where)
    if len(values) != len(steps[i]):
      raise InputError(
        f'{where}: `{name}` must have one number for each of the {len(steps[i])} '
        f'steps, got {len(values)}.'
      )
    found.append(
      tuple(
        float('nan')
        if x is None
        else checked.share(_number(x), f'`{name}[{j}]`', where)
        for j, x in enumerate(values)
      )
    )
  return tuple(found)


def _shares(
  fields: Mapping, name: str, count: int, where: str
) -> tuple[float, ...] | None:
  if name not in fields:
    return None
  values = checked.one_each(fields[name], f'`{name}`', count, where)
  if name == 'labels':
    values = [_number(value) for value in values]
  return tuple(
    checked.share(value, f'`{name}[{i}]`', where) for i, value in enumerate(values)
  )


def _number(value: Any) -> Any:
  """JSON writes "desirable or not" as true and false."""
  return float(value) if isinstance(value, bool) else value


def _pair(value: Any, name: str, count: int, where: str) -> Pair:
  parts = checked.sequence(value, name, where)
  if len(parts) not in (2, 3):
    raise InputError(
      f'{where}: {name} must be [chosen, rejected] or '
      f'[chosen, rejected, preference], got {len(parts)} entries.'
    )
  chosen, rejected = (checked.index(part, name, count, where) for part in parts[:2])
  if chosen == rejected:
    raise InputError(f'{where}: {name} compares response {chosen} with itself.')
  return Pair(chosen, rejected, *(checked.share(p, name, where) for p in parts[2:]))


def _prompt(fields: Mapping, where: str) -> str | tuple[Message, ...]:
  if conversations.is_conversation(fields.get('prompt')):
    return _messages(fields, 'prompt', where)
  return checked.field(fields, 'prompt', where, empty=True)
