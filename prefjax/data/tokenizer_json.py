"""The `tokenizer.json` of a Hugging Face folder, by the tokenizers library."""

from collections.abc import Sequence
import hashlib
import json
from pathlib import Path
from typing import Any

import tokenizers

from prefjax.data import chat
from prefjax.errors import InputError


class TokenizerJson:
  """A `tokenizer.json` and the names of special tokens in the file beside it.

  BOS is what the file's own post-processor puts first, if it does: many that name a
  BOS never use it. EOS is named in the tokenizer_config.json beside it, or else it is
  the `eos_token_id` of the model's config.json. A text that follows another is encoded
  without the space that tokenizers of the Llama kind put before a text.

  Args:
    path: of the tokenizer.json.

  Raises:
    InputError: a missing or broken file, or no EOS.
  """

  def __init__(self, path: Path | str):
    path = Path(path)
    if not path.is_file():
      raise InputError(f'The tokenizer `{path}` is not there, or is no file.')
    content = path.read_bytes()
    try:
      self._begin = _load(json.loads(content))
      self._continue = _load(_without_prefix(json.loads(content), of_all=True))
      self._inner = _load(_without_prefix(json.loads(content), of_all=False))
    except Exception as error:  # the library raises no other class
      raise InputError(f'`{path}` is not a tokenizer.json: {error}') from error
    described = chat.read_config(path.parent)
    added = self._begin.get_added_tokens_decoder().items()
    self.specials = {each.content: i for i, each in added if each.special}
    self.bos_id = self._first()
    self.eos_id = self._eos(described, path)
    pad = chat.token(described, 'pad_token')
    pad_id = None if pad is None else self._begin.token_to_id(pad)
    self.pad_id = self.eos_id if pad_id is None else pad_id
    vocabulary = self._begin.get_vocab(with_added_tokens=True)
    self.vocab_size = max(vocabulary.values()) + 1
    names = [self.bos_id, self.eos_id, self.pad_id]
    self.fingerprint = hashlib.sha256(content + json.dumps(names).encode()).hexdigest()

  def encode(self, text: str) -> list[int]:
    """The ids of a text that begins a sequence."""
    return self._begin.encode(text, add_special_tokens=False).ids

  def encode_continuation(self, text: str) -> list[int]:
    """The ids of a text that follows another, with exactly its own spaces."""
    return self._continue.encode(text, add_special_tokens=False).ids

  def encode_after_special(self, text: str) -> list[int]:
    """The ids of a text between two special tokens, as the file itself has them."""
    return self._inner.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    """The text of the ids; special tokens are left out."""
    return self._begin.decode([int(i) for i in ids], skip_special_tokens=True)

  def _first(self) -> int | None:
    """The special token that the post-processor puts before a text."""
    first = self._begin.encode('a', add_special_tokens=True).ids[0]
    return first if first in self.specials.values() else None

  def _eos(self, described: dict[str, Any], path: Path) -> int:
    text = chat.token(described, 'eos_token')
    if text is not None:
      found = self._begin.token_to_id(text)
    else:
      found = chat.read_object(path.parent / 'config.json').get('eos_token_id')
      found = found[0] if isinstance(found, list) and found else found
    if not isinstance(found, int):
      raise InputError(
        f'`{path}` needs an EOS of its own: the eos_token of the tokenizer_config.json '
        f'beside it (it says {text!r}), or the eos_token_id of a config.json.'
      )
    return found


def _load(described: dict[str, Any]) -> tokenizers.Tokenizer:
  tokenizer = tokenizers.Tokenizer.from_str(json.dumps(described))
  # Text that spells a special token stays text.
  tokenizer.encode_special_tokens = True
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer


def _without_prefix(described: dict[str, Any], *, of_all: bool) -> dict[str, Any]:
  """The same tokenizer, putting no space before a text.

  Not `of_all`, it still does so where it would before every text between special
  tokens, and not before the first alone.
  """
  changed = dict(described)
  for part in ('normalizer', 'pre_tokenizer'):
    changed[part] = _spaceless(described.get(part), of_all)
  return changed


def _spaceless(part: Any, of_all: bool) -> Any:
  if part is None or (of_all and part['type'] == 'Prepend'):
    return None
  if part['type'] == 'Sequence':
    key = 'normalizers' if 'normalizers' in part else 'pretokenizers'
    changed = [_spaceless(each, of_all) for each in part[key]]
    return {**part, key: [each for each in changed if each is not None]}
  if part['type'] == 'Metaspace' and (of_all or part.get('prepend_scheme') == 'first'):
    return {**part, 'prepend_scheme': 'never'}
  if of_all and part['type'] == 'ByteLevel':
    return {**part, 'add_prefix_space': False}
  return part
