"""A tokenizer of characters, as small known tasks have them."""

from collections.abc import Sequence
import hashlib
import json
from pathlib import Path

from prefjax.errors import InputError


class Characters:
  """One id a character: a `tokenizer_config.json` that lists `char_ords`.

  The ids are those of verl's CharTokenizer: 0 the separator, 1 EOS, 2 pad, 3 unknown,
  then the characters as listed. Its chat template puts the separator behind what the
  user says; here that is written as a newline, so that a prompt ends in one. The other
  three have no spelling (there, the letters E, P and U are read as them).

  Args:
    path: the file; its `model_max_length` and its template are not used.

  Raises:
    InputError: a missing file, or one without a list of distinct characters.
  """

  bos_id = None
  eos_id = 1
  pad_id = 2

  def __init__(self, path: Path | str):
    path = Path(path)
    try:
      content = path.read_bytes()
    except OSError as error:
      raise InputError(f'The tokenizer `{path}` cannot be read: {error}') from error
    characters = _characters(content, path)
    self._ids = {'\n': 0} | {text: i for i, text in enumerate(characters, start=4)}
    self._texts = {i: text for text, i in self._ids.items()} | {3: '\ufffd'}
    self.vocab_size = 4 + len(characters)
    self.fingerprint = hashlib.sha256(content).hexdigest()

  def encode(self, text: str) -> list[int]:
    """The ids of a text.

    Raises:
      InputError: for a character that is not listed. Written as 3, the unknown, it
        would be lost, and what is trained would not be the text.
    """
    unknown = sorted(set(text) - set(self._ids))
    if unknown:
      raise InputError(
        f'A text has the characters {unknown}; the tokenizer knows only those of '
        f'{"".join(self._ids)!r}.'
      )
    return [self._ids[character] for character in text]

  def decode(self, ids: Sequence[int]) -> str:
    """The text of the ids; EOS and pad are left out, the unknown is U+FFFD.

    Left out too, a policy that samples it would be rewarded for the text without it.

    Raises:
      InputError: for an id outside of the vocabulary.
    """
    outside = {int(i) for i in ids} - set(range(self.vocab_size))
    if outside:
      raise InputError(
        f'The ids {sorted(outside)} are outside of the vocabulary of {self.vocab_size}.'
      )
    return ''.join(self._texts.get(int(i), '') for i in ids)


def _characters(content: bytes, path: Path) -> list[str]:
  try:
    described = json.loads(content)
  except ValueError as error:
    raise InputError(f'`{path}` is not JSON: {error}') from error
  if not isinstance(described, dict) or 'char_ords' not in described:
    raise InputError(
      f'`{path}` has no `char_ords`: prefjax knows no other `{path.name}`.'
    )
  ords = described['char_ords']
  # Surrogates are not characters, and the newline is the separator's.
  valid = isinstance(ords, list) and all(
    type(i) is int and 0 <= i <= 0x10FFFF and not 0xD800 <= i <= 0xDFFF and i != 10
    for i in ords
  )
  if not valid or not ords or len(set(ords)) < len(ords):
    raise InputError(
      f'`char_ords` of `{path}` must list distinct characters by their numbers, '
      f'without the newline (10); got {ords!r}.'
    )
  return [chr(i) for i in ords]
