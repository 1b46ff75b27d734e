import pytest

from prefjax.data import layouts
from prefjax.data.records import Pair, Record
from prefjax.errors import InputError

WHERE = 'pairs.jsonl, line 7'
GRADED = {
  'question': 'Q?',
  'ground_truth': 'A: 4',
  'small': {'is_correct': False, 'solution': 'A: 3'},
  'large': {'is_correct': True, 'solution': 'A: 4'},
  'other': {'is_correct': False, 'solution': 'A: 5'},
}
OUTPUTS = {'input': 'Say a.', 'output_1': 'b', 'output_2': 'a', 'label': 2}


@pytest.mark.parametrize(
  ('fields', 'want'),
  [
    (
      GRADED,
      Record(
        'Q?\n', ('A: 3', 'A: 4', 'A: 5'), (Pair(1, 0), Pair(1, 2)), (0.0, 1.0, 0.0)
      ),
    ),
    (OUTPUTS, Record('Say a.\n', ('b', 'a'), (Pair(1, 0),))),
    (OUTPUTS | {'label': 1}, Record('Say a.\n', ('b', 'a'), (Pair(0, 1),))),
    # A form of our own is what it is, whatever else stands beside it.
    (GRADED | {'text': 'once'}, Record('', ('once',))),
    (OUTPUTS | {'text': 'once'}, Record('', ('once',))),
  ],
)
def test_each_layout_by_hand(fields, want):
  assert layouts.from_fields(fields, WHERE) == want


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    ({'question': 'Q', 'ground_truth': 'A'}, 'no field holds a `solution`'),
    (GRADED | {'small': {'is_correct': 1, 'solution': 's'}}, 'small: `is_correct`'),
    (GRADED | {'small': {'is_correct': True}}, 'small: `solution` must be a text'),
    (OUTPUTS | {'label': 0}, 'got 0'),
    (OUTPUTS | {'label': True}, '`label` must be of type int, got bool'),
    (OUTPUTS | {'input': ''}, '`input` must be a text that is not empty'),
    (OUTPUTS | {'output_2': None}, 'exactly one of these sets'),
  ],
)
def test_refused_with_place_rule_and_offender(fields, said):
  with pytest.raises(InputError) as error:
    layouts.from_fields(fields, WHERE)
  assert str(error.value).startswith(WHERE)
  assert said in str(error.value)
