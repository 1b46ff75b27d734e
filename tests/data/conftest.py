import os
from pathlib import Path

import pytest
import sentencepiece

from prefjax.data import tokenizers

_CHECKOUT = Path(__file__).parents[2]

# Two sentences with all that the tests below type, the special tokens included.
TEXTS = (
  'Is 2 + 2 = 4? yes, it is </s> <s> <pad> <unk>\n\nHuman: hi\n\nAssistant:',
  'no  it is\tnot naïve 你好 8,3:9,4 abcdefghijklmnopqrstuvwxyz I A B C D',
)


@pytest.fixture(scope='session')
def data_dir():
  return Path(os.environ.get('PREFJAX_DATA') or _CHECKOUT / 'data')


@pytest.fixture(scope='session')
def real_file(data_dir):
  def find(name):
    path = data_dir / name
    if not path.is_file():
      pytest.skip(f'{path} is not there (docs/data.md says where to get it)')
    return path

  return find


@pytest.fixture(scope='session')
def texts():
  return TEXTS


@pytest.fixture(scope='session')
def tokenizer_path(tmp_path_factory):
  path = tmp_path_factory.mktemp('tokenizer') / 'small.model'
  tokenizers.train_sentencepiece(TEXTS * 20, vocab_size=80, path=path)
  return path


def train_as_is(path, **settings):
  # SentencePiece's own defaults: a dummy prefix, runs of spaces joined, no pad.
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(['hello world', 'one two three'] * 20),
    model_prefix=str(path),
    vocab_size=24,
    hard_vocab_limit=False,
    minloglevel=2,
    **settings,
  )
  return path.with_name(f'{path.name}.model')


@pytest.fixture(scope='session')
def prefixing(tmp_path_factory):
  path = train_as_is(tmp_path_factory.mktemp('prefixing') / 'm')
  return tokenizers.SentencePiece(path)


@pytest.fixture(scope='session')
def without_eos_path(tmp_path_factory):
  return train_as_is(tmp_path_factory.mktemp('without_eos') / 'm', eos_id=-1)


@pytest.fixture(scope='session')
def without_bos(tmp_path_factory):
  path = train_as_is(tmp_path_factory.mktemp('without_bos') / 'm', bos_id=-1, eos_id=1)
  return tokenizers.SentencePiece(path)


@pytest.fixture(scope='session')
def tokenizer(tokenizer_path):
  return tokenizers.SentencePiece(tokenizer_path)
