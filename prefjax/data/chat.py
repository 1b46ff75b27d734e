"""Chat templates: conversations to token ids, as a model's own template has them."""

from collections.abc import Mapping, Sequence
import datetime
import hashlib
import json
from pathlib import Path
import re
from typing import Any, Protocol, runtime_checkable

import jinja2
from jinja2 import sandbox

from prefjax.data.conversations import Message
from prefjax.errors import InputError

_MARK = '\ue000'  # private use: no template and hardly a text has it
_ANSWER = 'An answer.'
_SPECIALS = ('bos_token', 'eos_token', 'pad_token', 'unk_token')


@runtime_checkable
class SpecialTokenizer(Protocol):
  """What a template needs of a tokenizer beside text: its special tokens by name."""

  bos_id: int | None
  eos_id: int
  pad_id: int
  vocab_size: int
  fingerprint: str
  specials: Mapping[str, int]

  def encode(self, text: str) -> list[int]: ...
  def encode_continuation(self, text: str) -> list[int]: ...
  def encode_after_special(self, text: str) -> list[int]: ...
  def decode(self, ids: Sequence[int]) -> str: ...


class Template:
  """A jinja template in a sandbox, as `tokenizer_config.json` holds one.

  Args:
    source: the template.
    named: what it may read by name: `bos_token`, `eos_token`, ...
    where: the file, for errors.
  """

  def __init__(self, source: str, named: Mapping[str, str], where: str):
    environment = sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols']
    )
    environment.filters['tojson'] = _to_json
    environment.globals['raise_exception'] = _refuse
    environment.globals['strftime_now'] = _date
    self.source, self.named, self._where = source, dict(named), where
    try:
      self._template = environment.from_string(source)
    except jinja2.TemplateError as error:
      raise InputError(f'The chat template of {where} is broken: {error}') from error

  def render(self, messages: Sequence[Message], *, ask: bool) -> str:
    """The conversation as text; with `ask`, up to where the next answer begins.

    Raises:
      InputError: where the template does not take such a conversation.
    """
    turns = [message._asdict() for message in messages]
    try:
      return self._template.render(
        messages=turns,
        add_generation_prompt=ask,
        tools=None,
        documents=None,
        **self.named,
      )
    except (jinja2.TemplateError, TypeError) as error:
      roles = [message.role for message in messages]
      raise InputError(
        f'The chat template of {self._where} refuses a conversation of {roles}: {error}'
      ) from error


class ChatTokenizer:
  """A tokenizer whose prompts are conversations in the words of a template.

  The special tokens of the template become their ids; those that a message spells stay
  text. A response ends with what ends a turn, which is `eos_id` here.
  """

  def __init__(self, tokenizer: SpecialTokenizer, template: Template):
    self._tokenizer, self._template = tokenizer, template
    names = sorted(tokenizer.specials, key=len, reverse=True)
    self._special = re.compile('|'.join(map(re.escape, names)) or '(?!)')
    self.bos_id, self.pad_id = tokenizer.bos_id, tokenizer.pad_id
    self.eos_id = self._end_of_turn()
    self.vocab_size = tokenizer.vocab_size
    parts = [tokenizer.fingerprint, template.source, sorted(template.named.items())]
    self.fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()

  def encode(self, text: str) -> list[int]:
    """The ids of a text that begins a sequence."""
    return self._tokenizer.encode(text)

  def encode_continuation(self, text: str) -> list[int]:
    """The ids of a text that follows another in the same sequence."""
    return self._tokenizer.encode_continuation(text)

  def decode(self, ids: Sequence[int]) -> str:
    """The text of the ids; special tokens are left out."""
    return self._tokenizer.decode(ids)

  def encode_chat(self, messages: Sequence[Message]) -> list[int]:
    """The ids of a conversation up to where its next answer begins."""
    marked = [message._replace(content=self._mark(message)) for message in messages]
    return self._ids(self._template.render(marked, ask=True))

  def _mark(self, message):
    """The text with a mark inside whatever spells a special token."""
    return self._special.sub(lambda m: m[0][:1] + _MARK + m[0][1:], message.content)

  def _ids(self, text):
    ids, start = [], 0
    for found in self._special.finditer(text):
      ids += self._text_ids(text[start : found.start()], first=not start)
      ids.append(self._tokenizer.specials[found[0]])
      start = found.end()
    return ids + self._text_ids(text[start:], first=not start)

  def _text_ids(self, text, first):
    text = text.replace(_MARK, '')
    if not text:
      return []
    own = self._tokenizer
    return own.encode(text) if first else own.encode_after_special(text)

  def _end_of_turn(self):
    """The special token that the template puts after an answer, or else EOS."""
    turns = [Message('user', 'A question?'), Message('assistant', _ANSWER)]
    after = self._template.render(turns, ask=False).rpartition(_ANSWER)[2]
    found = self._special.search(after)
    if found is None:
      return self._tokenizer.eos_id
    return self._tokenizer.specials[found[0]]


def template(folder: Path) -> Template:
  """The chat template of a folder, from its file or its tokenizer_config.json.

  Raises:
    InputError: where there is none.
  """
  described = read_config(folder)
  own = folder / 'chat_template.jinja'
  source = own.read_text() if own.is_file() else described.get('chat_template')
  if isinstance(source, list):  # several by name
    named = {one.get('name'): one.get('template') for one in source}
    source = named.get('default')
  if not isinstance(source, str):
    raise InputError(
      f'records.chat: {folder} has no chat template, neither chat_template.jinja nor '
      'in tokenizer_config.json.'
    )
  named = {name: token(described, name) for name in _SPECIALS}
  given = {name: text for name, text in named.items() if text is not None}
  return Template(source, given, str(folder))


def read_config(folder: Path) -> dict[str, Any]:
  """The tokenizer_config.json of a folder, and what older ones keep beside it."""
  older = read_object(folder / 'special_tokens_map.json')
  described = read_object(folder / 'tokenizer_config.json')
  return older | {key: value for key, value in described.items() if value is not None}


def read_object(path: Path) -> dict[str, Any]:
  """A JSON object; empty where there is no such file."""
  if not path.is_file():
    return {}
  try:
    found = json.loads(path.read_bytes())
  except ValueError as error:
    raise InputError(f'{path} is not JSON: {error}') from error
  if not isinstance(found, dict):
    raise InputError(f'{path} must be a JSON object.')
  return found


def token(described: Mapping[str, Any], name: str) -> str | None:
  """The text of a special token, which is written as itself or as an object."""
  found = described.get(name)
  return found.get('content') if isinstance(found, Mapping) else found


def _to_json(value: Any, indent: int | None = None) -> str:
  # Jinja's own escapes what a page must escape and a prompt must not.
  return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(reason: str) -> None:
  raise jinja2.TemplateError(reason)


def _date(form: str) -> str:
  return datetime.datetime.now().strftime(form)
