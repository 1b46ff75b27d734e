"""Conversations: lists of messages in the layouts that public data have."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from prefjax.errors import InputError


class Message(NamedTuple):
  """One turn; the role is `system`, `user`, `assistant` or `tool`."""

  role: str
  content: str


# The keys of a role and its text, and every name of a role that data have.
_KEYS = (('role', 'content'), ('from', 'value'))
_ROLES = {
  'system': 'system',
  'user': 'user',
  'human': 'user',
  'assistant': 'assistant',
  'gpt': 'assistant',
  'bot': 'assistant',
  'model': 'assistant',
  'chatgpt': 'assistant',
  'tool': 'tool',
}
_TITLES = {
  'system': 'System',
  'user': 'Human',
  'assistant': 'Assistant',
  'tool': 'Tool',
}


def is_conversation(value: Any) -> bool:
  """Whether a field is a list of messages, rather than text or a list of texts."""
  return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], dict)


def read(value: Any, name: str, where: str) -> tuple[Message, ...]:
  """The messages of a field, by `role` and `content` or by `from` and `value`.

  Raises:
    InputError: naming `where`, the field and what is wrong, never the text.
  """
  if not is_conversation(value):
    raise InputError(
      f'{where}: `{name}` must be a list of messages with `role` and `content`, or '
      f'with `from` and `value`, got {type(value).__name__}.'
    )
  return tuple(_message(one, f'`{name}[{i}]`', where) for i, one in enumerate(value))


def _message(value: Any, name: str, where: str) -> Message:
  for keys in _KEYS:
    if isinstance(value, Mapping) and all(value.get(key) is not None for key in keys):
      role, content = (value[key] for key in keys)
      break
  else:
    raise InputError(
      f'{where}: {name} must have `role` and `content`, or `from` and `value`.'
    )
  if role not in _ROLES:
    raise InputError(
      f'{where}: the role of {name} must be one of {sorted(_ROLES)}, got {role!r:.40}.'
    )
  if not isinstance(content, str):
    raise InputError(
      f'{where}: the text of {name} must be a text, got {type(content).__name__}.'
    )
  return Message(_ROLES[role], content)


def as_text(messages: Sequence[Message]) -> str:
  """A prompt in the layout of the HH data, for models without a template.

  A response to it begins with a space, which a chat template does without.
  """
  turns = [f'\n\n{_TITLES[role]}: {content}' for role, content in messages]
  return ''.join(turns) + f'\n\n{_TITLES["assistant"]}:'
