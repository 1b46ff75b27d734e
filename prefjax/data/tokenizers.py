"""Tokenizers: text to token ids and back; they add no special token."""

from collections.abc import Iterable, Sequence
import hashlib
import io
import os
from pathlib import Path
import re
from typing import Protocol, runtime_checkable

import sentencepiece

from prefjax.data import chat as chat_lib
from prefjax.data.characters import Characters
from prefjax.data.chat import ChatTokenizer
from prefjax.data.tokenizer_json import TokenizerJson
from prefjax.errors import InputError


@runtime_checkable
class Tokenizer(Protocol):
  """Text to ids and back. `encode` adds no special token and parses none.

  Text that spells a special token stays text. `pad_id` may equal `eos_id`:
  nothing in prefjax is inferred from a token's identity.
  """

  bos_id: int | None
  eos_id: int
  pad_id: int
  vocab_size: int
  fingerprint: str

  def encode(self, text: str) -> list[int]:
    """The ids of a text that begins a sequence."""
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """The text of the ids; BOS, EOS and pad are left out."""
    ...


@runtime_checkable
class ContinuationTokenizer(Tokenizer, Protocol):
  """A tokenizer that reads a text differently where it follows another."""

  def encode_continuation(self, text: str) -> list[int]:
    """The ids of a text that follows another in the same sequence."""
    ...


def encode_continuation(tokenizer: Tokenizer, text: str) -> list[int]:
  """The ids of a text that follows another in the same sequence."""
  if isinstance(tokenizer, ContinuationTokenizer):
    return tokenizer.encode_continuation(text)
  return tokenizer.encode(text)


# A serialised protobuf message is changed by appending to it. This appends, to
# a SentencePiece model, the field normalizer_spec (3) with add_dummy_prefix (3)
# and remove_extra_whitespaces (4) off.
_EXACT_SPACES = b'\x1a\x04\x18\x00\x20\x00'


class SentencePiece:
  """A SentencePiece `.model`.

  Models of the Llama kind put one space before every text they encode (the
  dummy prefix), and drop one leading space when they decode. That is right for
  the text that begins a sequence. A response that follows a prompt is encoded
  without it: its own leading space, where it has one, becomes the space of its
  first piece, and where it has none, none is added. So the joined ids decode to
  the joined text.

  Args:
    model: the path of a `.model` file, or its bytes.

  Raises:
    InputError: a missing file, no SentencePiece model, or no EOS in it.
  """

  def __init__(self, model: Path | str | bytes):
    name = '(bytes)' if isinstance(model, bytes) else f'`{model}`'
    content = model if isinstance(model, bytes) else _read(Path(model))
    self._begin = _load(content, name)
    self._continue = _load(content + _EXACT_SPACES, name)
    self.bos_id = _optional(self._begin.bos_id())
    eos_id = _optional(self._begin.eos_id())
    if eos_id is None:
      raise InputError(
        f'The SentencePiece model {name} has no EOS token; a response must end '
        'in one that is trained.'
      )
    self.eos_id = eos_id
    pad_id = _optional(self._begin.pad_id())
    self.pad_id = eos_id if pad_id is None else pad_id
    self.vocab_size = self._begin.get_piece_size()
    pieces = range(self.vocab_size)
    self.specials = {
      self._begin.id_to_piece(i): i for i in pieces if self._begin.is_control(i)
    }
    self.fingerprint = hashlib.sha256(content).hexdigest()

  def encode(self, text: str) -> list[int]:
    """The ids of a text that begins a sequence."""
    return self._begin.encode(text)

  def encode_continuation(self, text: str) -> list[int]:
    """The ids of a text that follows another, with exactly its own spaces."""
    return self._continue.encode(text)

  def encode_after_special(self, text: str) -> list[int]:
    """The ids of a text between two special tokens, as for one that follows another."""
    return self.encode_continuation(text)

  def decode(self, ids: Sequence[int]) -> str:
    """The text of the ids; BOS, EOS and pad are left out."""
    # A model may have more ids than its tokenizer, and draw one of them.
    known = (int(i) if i < self.vocab_size else self._begin.unk_id() for i in ids)
    return self._begin.decode(list(known))


def load(path: Path | str, *, chat: bool = False) -> Tokenizer:
  """The tokenizer in a file, of the kind that its name says.

  With `chat`, prompts are conversations under the template in the file's folder.

  Raises:
    InputError: for a file of no known kind, one that is broken, or no template.
  """
  path = Path(path)
  if chat and path.name == 'tokenizer_config.json':
    raise InputError(f'records.chat: the characters of `{path}` know no template.')
  if path.suffix == '.model':
    found = SentencePiece(path)
  elif path.name == 'tokenizer.json':
    found = TokenizerJson(path)
  elif path.name == 'tokenizer_config.json':
    found = Characters(path)
  else:
    raise InputError(
      f'`{path}` is no known tokenizer; known are a SentencePiece `NAME.model`, a '
      '`tokenizer.json`, and a `tokenizer_config.json` that lists `char_ords`.'
    )
  return ChatTokenizer(found, chat_lib.template(path.parent)) if chat else found


_TRAINING = dict(
  # Merges fill small vocabularies with whole words; the unigram model drops
  # most of its candidates on a few thousand short texts.
  model_type='bpe',
  hard_vocab_limit=False,
  num_threads=1,
  normalization_rule_name='identity',
  add_dummy_prefix=False,
  remove_extra_whitespaces=False,
  character_coverage=1.0,
  # Longer texts are dropped in silence; this is the most it takes.
  max_sentence_length=1 << 30,
  unk_id=0,
  bos_id=1,
  eos_id=2,
  pad_id=3,
  minloglevel=2,
)


def train_sentencepiece(
  texts: Iterable[str], *, vocab_size: int, path: Path
) -> SentencePiece:
  """Trains a BPE model on `texts`, writes it to `path` and returns it.

  The same texts give the same bytes. Every character of the texts gets a piece
  and white space is kept, so any text of these characters survives encoding and
  decoding, also in parts. The exceptions are the three characters that
  SentencePiece keeps for itself: U+0000, U+2581 and U+2585. The vocabulary may
  be smaller than asked where the texts do not fill it.

  Raises:
    InputError: no text, or a vocabulary too small for the characters in it.
  """
  texts = [text for text in texts if text]
  if not texts:
    raise InputError('A tokenizer cannot be trained on no text at all.')
  characters = set().union(*texts) - set(' \0\u2581\u2585')
  model = io.BytesIO()
  sentencepiece.set_random_generator_seed(0)
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=model,
      # Below four, it fails before it says what the texts need.
      vocab_size=max(vocab_size, 4),
      # Without this, the characters of a text that spells `</s>` are left out.
      required_chars=''.join(sorted(characters)),
      **_TRAINING,
    )
  except RuntimeError as error:
    raise _training_error(error, vocab_size) from error
  _write(model.getvalue(), path)
  return SentencePiece(model.getvalue())


def _training_error(error: RuntimeError, vocab_size: int) -> InputError:
  smallest = re.search(r'required_chars\. \d+ vs (\d+)', str(error))
  if smallest:
    return InputError(
      f'vocab_size = {vocab_size} is too small for the texts: the smallest '
      f'that works is {smallest[1]}, one piece for each of their characters '
      'and for each special token.'
    )
  return InputError(
    f'SentencePiece cannot train a vocabulary of {vocab_size} on these texts: {error}'
  )


def _load(content: bytes, name: str) -> sentencepiece.SentencePieceProcessor:
  try:
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
  except RuntimeError as error:
    raise InputError(f'{name} is not a SentencePiece model: {error}') from error
  return processor


def _read(path: Path) -> bytes:
  if not path.is_file():
    raise InputError(f'The tokenizer `{path}` is not there, or is no file.')
  return path.read_bytes()


def _write(content: bytes, path: Path) -> None:
  temporary = path.with_name(f'{path.name}.tmp-{os.getpid()}')
  path.parent.mkdir(parents=True, exist_ok=True)
  with temporary.open('wb') as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def _optional(special_id: int) -> int | None:
  return None if special_id < 0 else special_id
