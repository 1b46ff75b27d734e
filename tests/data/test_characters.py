from collections import Counter
import hashlib
import json

import pytest

from prefjax.data import encoding, tokenizers
from prefjax.data.characters import Characters
from prefjax.data.records import Record
from prefjax.errors import InputError

ORDS = [*range(ord('0'), ord('9') + 1), ord(','), ord(':')]


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'tokenizer_config.json'
  path.write_text(json.dumps({'char_ords': ORDS, 'model_max_length': 2048}))
  return path


@pytest.fixture
def digits(path):
  return Characters(path)


def test_ids_of_the_published_file(real_file):
  path = real_file('digit_completion/tokenizer_config.json')
  digits = tokenizers.load(path)
  assert isinstance(digits, tokenizers.Tokenizer)
  assert digits.vocab_size == 16
  # verl's CharTokenizer: four special tokens, then char_ords in their order.
  assert digits.encode('8,3:9,4\n') == [12, 14, 7, 15, 13, 14, 8, 0]
  assert digits.encode('0123456789,:') == list(range(4, 16))
  assert digits.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()


def test_properties(digits):
  assert isinstance(digits, tokenizers.Tokenizer)
  assert not isinstance(digits, tokenizers.ContinuationTokenizer)
  special = (digits.bos_id, digits.eos_id, digits.pad_id)
  assert special == (None, 1, 2)
  assert digits.vocab_size == 16


@pytest.mark.parametrize('text', ['', '7', '8,3:9,4\n', '\n\n:', '0123456789,:'])
def test_round_trip(digits, text):
  assert digits.decode(digits.encode(text)) == text


def test_decode_leaves_out_special_ids(digits):
  assert digits.decode([2, 12, 0, 3, 7, 1, 2, 2]) == '8\n\ufffd3'
  for outside in (-1, 16):
    with pytest.raises(InputError, match=rf'ids \[{outside}\] .* vocabulary of 16'):
      digits.decode([4, outside])


# verl reads the letters as its special tokens, and all else as unknown.
@pytest.mark.parametrize('character', ['S', 'E', 'P', 'U', ' ', '\r', '一'])
def test_a_character_that_is_not_listed_is_named(digits, character):
  with pytest.raises(InputError) as error:
    digits.encode(f'8,{character}3')
  assert repr([character]) in str(error.value)


def test_order_decides_the_ids_and_the_fingerprint(digits, path):
  path.write_text(json.dumps({'char_ords': ORDS[::-1]}))
  other = Characters(path)
  assert other.encode('8:') == [7, 4]
  assert other.fingerprint != digits.fingerprint


def test_token_contract(digits):
  prompt = encoding.encode_prompt('8,3:9,4\n', digits, max_prompt=16)
  assert prompt == [12, 14, 7, 15, 13, 14, 8, 0]
  assert encoding.encode_prompt('8,3:9,4\n', digits, max_prompt=2) == [8, 0]
  record = Record(prompt='1,1:5,2\n', responses=('2,3',), pairs=())
  counts = Counter()
  found = encoding.encode(record, digits, max_prompt=16, max_response=8, counts=counts)
  assert found.responses[0].tolist() == [6, 14, 7, 1]
  assert counts['round_trip_changed'] == 0


@pytest.mark.parametrize(
  'content',
  [
    '[]',
    '{"model_max_length": 8}',
    '{"char_ords": []}',
    '{"char_ords": "0123"}',
    '{"char_ords": [48, 48]}',
    '{"char_ords": [48, 10]}',
    '{"char_ords": [48, true]}',
    '{"char_ords": [48, 55296]}',
    '{"char_ords": [48, 1114112]}',
  ],
)
def test_a_file_without_characters(path, content):
  path.write_text(content)
  with pytest.raises(InputError, match='char_ords'):
    tokenizers.load(path)


def test_a_file_that_cannot_be_read(path):
  path.write_bytes(b'{"char_ords": [48\xff')
  with pytest.raises(InputError, match='is not JSON'):
    Characters(path)
  path.unlink()
  with pytest.raises(InputError, match=r'tokenizer_config\.json` cannot be read'):
    Characters(path)
