"""Where steps are: in texts, in tokens, in numbers; by hand."""

import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.rewards import steps
from prefjax.tasks import arithmetic

# Text ---------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('text', 'want'),
  [
    ('a;b', ['a;', 'b']),
    ('a;b;', ['a;', 'b;']),  # nothing begins behind the last separator
    ('a', ['a']),
    ('', []),
    (';', [';']),
    ('a;;b', ['a;;', 'b']),  # an empty step
    ('a; ;\n;b', ['a; ;\n;', 'b']),
    (' ;a;b', [' ;a;', 'b']),  # none before it: it goes to the next
    ('a;b=1', ['a;', 'b=1']),  # cut off by a limit
  ],
)
def test_a_separator_ends_a_step(text, want):
  assert steps.segmenter(';')(text) == want


def test_blank_lines_may_be_many():
  text = 'First.\n\n\n\nSecond,\nstill.\n\n'
  assert steps.segmenter('\n\n')(text) == ['First.\n\n\n\n', 'Second,\nstill.\n\n']


@pytest.mark.parametrize(
  ('text', 'want'),
  [
    ('Step 1: a\n\nStep 2: b', ['Step 1: a\n\n', 'Step 2: b']),
    ('\n Step 1: a\nStep 2:', ['\n Step 1: a\n', 'Step 2:']),
    ('So:\nStep 1: a', ['So:\n', 'Step 1: a']),
    ('By Step 1: no', ['By Step 1: no']),  # a mention, not a heading
    ('no step', ['no step']),
    ('', []),
  ],
)
def test_a_number_begins_a_step(text, want):
  assert steps.segmenter('Step N:')(text) == want


def test_no_separator_is_refused():
  with pytest.raises(InputError, match="'Step N:'; got none"):
    steps.segmenter('')


def test_random_text_is_kept_whole():
  rng = np.random.default_rng(0)
  for _ in range(300):
    text = ''.join(rng.choice(list('a; \n'), rng.integers(0, 9)))
    for how in (';', '\n', 'Step N:'):
      pieces = steps.segmenter(how)(text)
      assert ''.join(pieces) == text
      assert all(pieces)


# Tokens -------------------------------------------------------------------------


class Pieces:
  """Tokens that are a few characters each; 0 is EOS, which has no text."""

  texts = ('', 'a', 'b', ';', 'b;c', ';;', 'x;y;z')

  @classmethod
  def decode(cls, ids):
    return ''.join(cls.texts[i] for i in ids)


@pytest.mark.parametrize(
  ('ids', 'want'),
  [
    ([1, 3, 2, 0], [0, 0, 1, 1]),
    ([1, 4, 1, 3, 1], [0, 0, 1, 1, 2]),  # `b;c` begins in the first step
    ([1, 5, 2], [0, 0, 1]),
    ([6, 1], [0, 2]),  # a step without a token of its own
    ([1, 3, 0], [0, 0, 0]),
    ([0], [0]),
    ([], []),
  ],
)
def test_a_token_belongs_to_the_step_of_its_first_character(ids, want):
  found = steps.token_steps(ids, Pieces.decode, steps.segmenter(';'))
  np.testing.assert_array_equal(found, want)


def test_bytes_of_a_character_belong_together():
  data = 'naïve\n你好\n!'.encode()

  def decode(ids):
    return bytes(ids).decode(errors='replace')

  found = steps.token_steps(list(data), decode, steps.segmenter('\n'))
  np.testing.assert_array_equal(found, [0] * 7 + [1] * 7 + [2])


def test_a_segmentation_that_loses_text_is_refused():
  with pytest.raises(InputError, match='2 steps of 2 characters from a text of 3'):
    steps.token_steps([1, 3, 2], Pieces.decode, lambda text: ['a', 'b'])


def test_steps_of_a_batch():
  tokens = np.array([[[1, 3, 2, 0], [1, 5, 9, 9]], [[9] * 4, [2, 2, 2, 2]]])
  length = np.array([[4, 2], [0, 4]])
  found = steps.batch_steps(tokens, length, Pieces.decode, steps.segmenter(';'))
  want = [[[0, 0, 1, 1], [0, 0, -1, -1]], [[-1] * 4, [0] * 4]]
  np.testing.assert_array_equal(found, want)


def test_the_steps_of_a_task_will_do():
  text = '7+8=15;15-3=12'
  found = steps.token_steps(
    [ord(c) for c in text], lambda ids: ''.join(map(chr, ids)), arithmetic.steps
  )
  np.testing.assert_array_equal(found, [0] * 7 + [1] * 7)


def written(*texts):
  """Decodes id i as the i-th of the texts; 0 is EOS, and written as nothing."""
  return lambda ids: ''.join(texts[i - 1] for i in ids if i)


def test_a_step_ends_with_the_token_of_its_last_character():
  decode = written('7+8', '=1', '5;', '1', '5-3=12')
  ids = [1, 2, 3, 4, 5, 0]  # 7+8=15;15-3=12 and EOS
  assert steps.token_ends(ids, [7, 14], decode) == [2, 4]
  assert steps.token_ends(ids, [1, 3, 4, 8], decode) == [0, 0, 1, 3]
  # Cut off or ended, the last step earns the same in the same place.
  assert steps.token_ends(ids[:-1], [7, 14], decode) == [2, 4]
  assert steps.token_ends([0], [0], decode) == [0]


def test_a_character_of_several_tokens_is_there_with_the_last():
  three = '\N{EURO SIGN}'.encode()

  def decode(ids):
    return bytes(three[i] if i < 3 else i for i in ids).decode(errors='replace')

  ids = [ord('a'), 0, 1, 2, ord('b')]
  assert steps.token_ends(ids, [1, 2, 3], decode) == [0, 3, 4]


def test_steps_are_numbered_up_to_the_last_end():
  ends = np.array([[0, 0, 1, 1, 0, 1, 0], [0] * 7, [1, 0, 0, 0, 0, 0, 0]], bool)
  want = [[0, 0, 0, 1, 2, 2, -1], [-1] * 7, [0, -1, -1, -1, -1, -1, -1]]
  np.testing.assert_array_equal(steps.numbered(ends), want)
  assert steps.numbered(ends).dtype == np.int32
