import hashlib
import itertools
import os
import subprocess
import sys

import pytest

from prefjax.data import tokenizers
from prefjax.data.tokenizers import SentencePiece, encode_continuation
from prefjax.errors import InputError

HELLO = 'Hello world! 2+2=4 naïve 你好'


def test_published_ids(real_file):
  model = SentencePiece(real_file('sentencepiece/test_model.model'))
  want = [151, 88, 21, 887, 147, 4, 596, 0, 596, 0, 4, 24, 19, 0, 125, 4, 0]
  assert model.encode(HELLO) == want
  assert (model.bos_id, model.eos_id, model.vocab_size) == (1, 2, 1000)
  assert model.pad_id == 2  # the model has none
  assert isinstance(model, tokenizers.ContinuationTokenizer)


# The model puts one space before each text and joins runs of spaces; what
# follows a prompt must bring its own spaces and no other.
@pytest.mark.parametrize('response', [' world', 'world', '  a  b ', ' '])
def test_dummy_prefix_does_not_change_the_joined_text(real_file, response):
  model = SentencePiece(real_file('sentencepiece/test_model.model'))
  joined = model.encode('Hello') + encode_continuation(model, response)
  assert model.decode(joined) == 'Hello' + response


@pytest.mark.parametrize('response', [' world', 'world', '  one ', ' '])
def test_generated_dummy_prefix_model(prefixing, response):
  joined = prefixing.encode('hello')
  assert prefixing.decode(joined) == 'hello'
  assert joined == prefixing.encode_continuation(' hello')
  joined += prefixing.encode_continuation(response)
  assert prefixing.decode(joined) == 'hello' + response


def test_missing_special_ids(prefixing, without_bos, without_eos_path):
  assert prefixing.pad_id == prefixing.eos_id == 2
  assert without_bos.bos_id is None and without_bos.eos_id == 1
  with pytest.raises(InputError, match='has no EOS'):
    SentencePiece(without_eos_path)


def test_dummy_prefix_stands_for_one_leading_space(real_file):
  model = SentencePiece(real_file('sentencepiece/test_model.model'))
  # Piece 887 is "▁world": at the beginning of a text, or after its own space.
  assert model.encode('world') == [887]
  assert encode_continuation(model, ' world') == [887]
  assert encode_continuation(model, 'world') != [887]


def test_trained_round_trip_in_parts(tokenizer, texts):
  first, second = texts
  parts = [first[i : i + 7] for i in range(0, len(first), 7)]
  parts += [' ', '  ', '\n', ' \n\n ', '\tx', 'naïve', 'x ', second]
  for a, b in itertools.product(parts, repeat=2):
    ids = tokenizer.encode(a), tokenizer.encode(b)
    assert tokenizer.decode(ids[0]) + tokenizer.decode(ids[1]) == a + b
    assert encode_continuation(tokenizer, b) == ids[1]


def test_typed_special_tokens_stay_text(tokenizer):
  ids = tokenizer.encode('</s> <s> <pad> <unk>')
  assert not set(ids) & {0, 1, 2, 3}
  assert tokenizer.decode(ids) == '</s> <s> <pad> <unk>'


def test_decode_leaves_out_special_ids(tokenizer):
  ids = tokenizer.encode('hi')
  special = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
  assert special == (1, 2, 3)
  assert tokenizer.decode([1, *ids, 2, 3, 3]) == 'hi'


def test_training_is_deterministic_silent_and_written(tmp_path):
  script = """
import sys
from pathlib import Path
from prefjax.data.tokenizers import train_sentencepiece
model = train_sentencepiece(['one two  three four'] * 9, vocab_size=30,
                            path=Path(sys.argv[1]) / 'new' / 'm.model')
print(model.fingerprint)
"""
  prints = []
  for name in ('a', 'b'):
    done = subprocess.run(
      [sys.executable, '-c', script, tmp_path / name],
      capture_output=True,
      text=True,
      check=True,
    )
    assert done.stderr == ''
    path = tmp_path / name / 'new' / 'm.model'
    assert os.listdir(path.parent) == ['m.model']  # no temporary left
    prints.append(done.stdout.strip())
    assert prints[-1] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert SentencePiece(path).fingerprint == prints[-1]
  assert prints[0] == prints[1]


def test_long_texts_are_not_dropped(tmp_path):
  long = 'word ' * 5000 + 'zebra'  # SentencePiece drops above 4,192 bytes
  model = tokenizers.train_sentencepiece([long], vocab_size=30, path=tmp_path / 'm')
  assert model.decode(model.encode('zebra word')) == 'zebra word'


@pytest.mark.parametrize('size', [-1, 0, 3, 5, 7])
def test_too_small_vocabulary_names_the_smallest_that_works(tmp_path, size):
  # Characters a, b, c and the space, and four special tokens: 8.
  texts = ['ab ca', 'cab'] * 9
  with pytest.raises(InputError, match=rf'= {size} .* works is 8,'):
    tokenizers.train_sentencepiece(texts, vocab_size=size, path=tmp_path / 'm')
  assert not (tmp_path / 'm').exists()
  model = tokenizers.train_sentencepiece(texts, vocab_size=8, path=tmp_path / 'm')
  assert model.vocab_size == 8


def test_no_text(tmp_path):
  with pytest.raises(InputError, match='no text'):
    tokenizers.train_sentencepiece([''], vocab_size=9, path=tmp_path / 'm')


@pytest.mark.parametrize('content', [b'', b'garbage'])
def test_not_a_model(tmp_path, content):
  path = tmp_path / 'bad.model'
  path.write_bytes(content)
  for model in (path, content):
    with pytest.raises(InputError, match='not a SentencePiece model'):
      SentencePiece(model)


def test_missing_model(tmp_path):
  with pytest.raises(InputError, match='is not there'):
    SentencePiece(tmp_path / 'none.model')


def test_load_knows_a_tokenizer_by_its_name(tokenizer_path, tmp_path):
  found = tokenizers.load(tokenizer_path)
  assert isinstance(found, SentencePiece)
  assert found.fingerprint == SentencePiece(tokenizer_path).fingerprint
  path = tmp_path / 'tokenizer_config.json'
  path.write_text('{"char_ords": [97]}')
  assert isinstance(tokenizers.load(str(path)), tokenizers.Characters)
  for name in ('tokens.json', 'model', 'my_tokenizer_config.json'):
    with pytest.raises(InputError, match=r'known are .*`NAME\.model`.*`char_ords`'):
      tokenizers.load(tmp_path / name)
