"""Questions for rollouts: a prompt, and the record that a reward reads."""

from collections.abc import Iterator, Mapping
import dataclasses
from pathlib import Path
import string
from typing import Any

from prefjax.data import conversations, sources
from prefjax.data.conversations import Message
from prefjax.data.records import Skipped
from prefjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Question:
  """A prompt as text; `record` is its row, and `solution` one to learn from.

  `messages` are the prompt's turns, where it is a conversation and nothing else.
  """

  prompt: str
  record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  solution: str | None = None
  messages: tuple[Message, ...] | None = None


def read(
  source: str,
  *,
  prompt: str,
  solution: str = '',
  columns: str = '',
  data_dir: Path | None = None,
) -> Iterator[Question]:
  """The questions of a source, whose text is its fields put into templates.

  A field is `{name}`; a chat, a list of messages, is the text of its last one. Where it
  is all of the prompt, the question has its messages too.

  Args:
    source: as in `sources.read`.
    prompt: the template of the prompt, such as `Question: {question}\\nAnswer:`.
    solution: that of a solution; empty for none.
    columns: a map of `prefjax.data.columns`; '' for rows as they are.

  Raises:
    InputError: for a template that is none, or a row without one of its fields.
  """
  templates = [_fields(template) for template in (prompt, solution)]
  for where, row in sources.rows(source, columns=columns, data_dir=data_dir):
    if isinstance(row, Skipped):
      continue
    texts = [
      _fill(template, names, row, where)
      for template, names in zip((prompt, solution), templates, strict=True)
    ]
    yield Question(texts[0], row, texts[1] or None, _messages(prompt, row, where))


def _messages(template, row, where):
  """The turns of a prompt whose template is one field with a conversation."""
  value = row.get(template[1:-1]) if template == f'{{{template[1:-1]}}}' else None
  if not conversations.is_conversation(value):
    return None
  return conversations.read(value, template[1:-1], where)


def _fields(template: str) -> list[str]:
  """The names in a template; only plain names, so that a row's text stays text."""
  try:
    parsed = list(string.Formatter().parse(template))
  except ValueError as error:
    raise InputError(f'The template {template!r} is none: {error}.') from error
  names = [name for _, name, _, _ in parsed if name is not None]
  plain = all(name.replace(' ', '_').isidentifier() for name in names)
  if not plain or any(form or conversion for _, _, form, conversion in parsed):
    raise InputError(
      f'The template {template!r} may hold plain fields alone, such as {{question}}.'
    )
  return names


def _fill(template, names, row, where):
  missing = [name for name in names if row.get(name) is None]
  if missing:
    raise InputError(
      f'{where}: the template {template!r} needs {missing}; the row has {sorted(row)}.'
    )
  values = {name: _text(row[name], name, where) for name in names}
  pieces = string.Formatter().parse(template)
  return ''.join(text + (values[name] if name else '') for text, name, _, _ in pieces)


def _text(value, name, where):
  if isinstance(value, list) and value and isinstance(value[-1], dict):
    value = value[-1].get('content')
  if isinstance(value, str):
    return value
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value)
  raise InputError(
    f'{where}: the field {name!r} must be text, an integer or a chat, got '
    f'{type(value).__name__}.'
  )
