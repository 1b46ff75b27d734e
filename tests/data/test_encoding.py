from collections import Counter
import hashlib

import numpy as np
import pytest

from prefjax.data import encoding
from prefjax.data.records import Pair, Record
from prefjax.data.tokenizers import SentencePiece
from prefjax.errors import InputError

BOS, EOS = 1, 2


class Letters:
  """One token a character, its code point: answers can be read off."""

  eos_id = EOS
  vocab_size = 256
  fingerprint = hashlib.sha256(b'letters').hexdigest()

  def __init__(self, bos_id=BOS, pad_id=EOS):
    self.bos_id = bos_id
    self.pad_id = pad_id

  def encode(self, text):
    return [ord(c) for c in text]

  def decode(self, ids):
    return ''.join(chr(i) for i in ids if i not in (BOS, EOS))


def encode(record, tokenizer=None, max_prompt=9, max_response=9):
  counts = Counter()
  example = encoding.encode(
    record,
    tokenizer or Letters(),
    max_prompt=max_prompt,
    max_response=max_response,
    counts=counts,
  )
  return example, counts


def lists(example):
  return example.prompt.tolist(), [ids.tolist() for ids in example.responses]


def test_by_hand():
  record = Record('ab', ('c', 'de'), (Pair(1, 0, 0.25),), (1.0, 0.0), (0.5, 0.75))
  example, counts = encode(record)
  assert lists(example) == ([1, 97, 98], [[99, 2], [100, 101, 2]])
  assert example.chosen.tolist() == [1] and example.rejected.tolist() == [0]
  assert example.preference.tolist() == [0.25]
  assert example.labels.tolist() == [1.0, 0.0]
  assert example.win_rates.tolist() == [0.5, 0.75]
  integers = (example.prompt, example.chosen, example.rejected)
  assert all(a.dtype == np.int32 for a in (*integers, *example.responses))
  assert example.preference.dtype == example.labels.dtype == np.float32
  assert +counts == Counter(
    prompts=1, responses=2, pairs=1, prompt_tokens=3, response_tokens=5
  )


def test_without_pairs_labels_and_win_rates():
  example, _ = encode(Record('a', ('b',)))
  assert example.chosen.shape == example.preference.shape == (0,)
  assert example.labels is None and example.win_rates is None


# 'abcde' and BOS are 6 tokens.
@pytest.mark.parametrize(
  ('limit', 'bos', 'want'),
  [
    (6, BOS, [1, 97, 98, 99, 100, 101]),
    (5, BOS, [1, 98, 99, 100, 101]),
    (2, BOS, [1, 101]),
    (1, BOS, [1]),
    (5, None, [97, 98, 99, 100, 101]),
    (2, None, [100, 101]),
  ],
)
def test_prompt_is_cut_on_the_left_and_keeps_bos(limit, bos, want):
  example, counts = encode(Record('abcde', ('x',)), Letters(bos), max_prompt=limit)
  assert example.prompt.tolist() == want
  assert counts['prompts_truncated'] == (len(want) < 5 + (bos is not None))
  assert counts['prompt_tokens'] == len(want)


# 'abc' and EOS are 4 tokens; a cut response has no EOS, as it did not end.
@pytest.mark.parametrize(
  ('limit', 'want', 'cut'),
  [
    (5, [97, 98, 99, 2], 0),
    (4, [97, 98, 99, 2], 0),
    (3, [97, 98, 99], 1),
    (2, [97, 98], 1),
    (1, [97], 1),
  ],
)
def test_response_is_cut_on_the_right_and_then_has_no_eos(limit, want, cut):
  example, counts = encode(Record('p', ('abc',)), max_response=limit)
  assert example.responses[0].tolist() == want
  assert counts['responses_truncated'] == cut


NAN = float('nan')


# 'abcde' and EOS are 6 tokens, of the steps ab, c and de; EOS belongs to the last.
@pytest.mark.parametrize(
  ('limit', 'sizes', 'labels'),
  [
    (9, [2, 1, 3], [1.0, 0.5, 0.0]),
    (6, [2, 1, 3], [1.0, 0.5, 0.0]),
    (5, [2, 1, 2], [1.0, 0.5, 0.0]),  # EOS is cut, the step is whole
    (4, [2, 1, 1], [1.0, 0.5, NAN]),
    (3, [2, 1, 0], [1.0, 0.5, NAN]),
    (1, [1, 0, 0], [NAN, NAN, NAN]),
  ],
)
def test_steps_end_with_their_tokens_and_lose_their_label_where_cut(
  limit, sizes, labels
):
  steps = (('ab', 'c', 'de'), ('f',))
  record = Record(
    'p', ('abcde', 'f'), steps=steps, step_labels=((1.0, 0.5, 0.0), (NAN,))
  )
  example, _ = encode(record, max_response=limit)
  assert example.steps[0].tolist() == sizes
  assert sum(sizes) == len(example.responses[0])
  np.testing.assert_array_equal(example.step_labels[0], np.array(labels, np.float32))
  assert np.isnan(example.step_labels[1]).all()
  whole, _ = encode(Record('p', ('abcde', 'f')), max_response=limit)
  assert lists(whole) == lists(example)
  assert whole.steps is None


def test_steps_of_plain_text_without_bos_lose_the_first_token():
  record = Record('', ('abc',), steps=(('ab', 'c'),))
  example, _ = encode(record, Letters(bos_id=None))
  assert lists(example) == ([97], [[98, 99, 2]])
  assert example.steps[0].tolist() == [1, 2]
  assert example.step_labels is None


def test_no_piece_of_a_tokenizer_lies_across_two_steps(tokenizer):
  record = Record('hi', (' it is', ' it is'), steps=((' it is',), (' it i', 's')))
  example, _ = encode(record, tokenizer, max_response=99)
  whole, parted = (ids[:-1].tolist() for ids in example.responses)
  assert whole != parted
  assert tokenizer.decode(whole) == tokenizer.decode(parted)
  first = parted[: example.steps[1][0]]
  assert tokenizer.decode(first) == tokenizer.decode(tokenizer.encode(' it i'))


@pytest.mark.parametrize('text', ['abcde', 'a', ''])
@pytest.mark.parametrize('limit', [1, 2, 9])
def test_a_prompt_alone_is_the_prompt_of_a_record(text, limit):
  example, _ = encode(Record(text, ('x',)), max_prompt=limit)
  got = encoding.encode_prompt(text, Letters(), max_prompt=limit)
  assert got == example.prompt.tolist()


def test_cuts_do_not_count_as_a_changed_text():
  _, counts = encode(Record('abcde', ('abcde',)), max_prompt=2, max_response=2)
  assert counts['round_trip_changed'] == 0


def test_plain_text_has_bos_as_its_prompt():
  example, _ = encode(Record('', ('abc',)))
  assert lists(example) == ([1], [[97, 98, 99, 2]])


def test_plain_text_without_bos_gives_its_first_token():
  example, _ = encode(Record('', ('abc',)), Letters(bos_id=None))
  assert lists(example) == ([97], [[98, 99, 2]])
  example, _ = encode(Record('', ('a', 'ab')), Letters(bos_id=None))
  assert lists(example) == ([97], [[2], [98, 2]])
  with pytest.raises(InputError, match='begin with the same token'):
    encode(Record('', ('ab', 'cd')), Letters(bos_id=None))


def test_pad_equal_to_eos_changes_nothing():
  record = Record('ab', ('c', 'de'))
  same, other = (
    encode(record, Letters(pad_id=EOS)),
    encode(record, Letters(pad_id=0)),
  )
  assert lists(same[0]) == lists(other[0])
  assert same[1] == other[1]


def test_a_tokenizer_that_parses_special_tokens_is_refused():
  # Code points 1 and 2 are BOS and EOS of this tokenizer.
  for text in ('a\x01', '\x02'):
    with pytest.raises(InputError, match='must stay text'):
      encode(Record('p', (text,)))
    with pytest.raises(InputError, match='must stay text'):
      encode(Record(text, ('p',)))


@pytest.mark.parametrize('limit', ['max_prompt', 'max_response'])
def test_limits(limit):
  with pytest.raises(InputError, match=f'`{limit}` must be at least 1'):
    encode(Record('a', ('b',)), **{limit: 0})


def test_typed_special_tokens_stay_text(tokenizer):
  record = Record('<s> hi </s>', (' it is </s>', '<pad><s>'))
  example, counts = encode(record, tokenizer, max_prompt=99, max_response=99)
  prompt, responses = lists(example)
  assert prompt.count(1) == 1 and prompt[0] == 1 and 2 not in prompt
  for ids, text in zip(responses, record.responses, strict=True):
    assert ids.count(2) == 1 and ids[-1] == 2 and 1 not in ids
    assert tokenizer.decode(prompt + ids) == '<s> hi </s>' + text
  assert counts['round_trip_changed'] == 0


def test_changed_text_is_counted(tokenizer):
  _, counts = encode(Record('hi', ('it is Ω', 'no')), tokenizer)
  assert counts['round_trip_changed'] == 1


def test_generated_dummy_prefix_model_keeps_the_joined_text(prefixing):
  record = Record('hello', (' world', 'world', '  one '))
  example, counts = encode(record, prefixing, max_response=99)
  assert counts['round_trip_changed'] == 0
  prompt, responses = lists(example)
  for ids, text in zip(responses, record.responses, strict=True):
    assert prefixing.decode(prompt + ids) == 'hello' + text
  example, _ = encode(Record('', ('world',)), prefixing, max_response=99)
  assert lists(example) == ([1], [[*prefixing.encode('world'), 2]])


def test_dummy_prefix_model_keeps_the_joined_text(real_file):
  model = SentencePiece(real_file('sentencepiece/test_model.model'))
  record = Record('Hello', (' world', 'world'))
  example, counts = encode(record, model)
  assert lists(example)[1][0] == [887, 2]
  assert counts['round_trip_changed'] == 0
  # Plain text begins a sequence: the model's own encoding, with its prefix.
  example, counts = encode(Record('', ('world',)), model)
  assert lists(example) == ([1], [[887, 2]])
  assert counts['round_trip_changed'] == 0
