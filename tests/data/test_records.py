import math

import pytest

from prefjax.data import records
from prefjax.data.records import Pair, Record, Skipped
from prefjax.errors import InputError

WHERE = 'train.jsonl, line 7'
ABC = {'prompt': 'P', 'responses': ['a', 'b', 'c']}
STEPS = ABC | {'steps': [['a'], ['b'], ['c']]}


def transcript(*turns):
  return ''.join(
    f'\n\n{"Human" if i % 2 == 0 else "Assistant"}:{turn}'
    for i, turn in enumerate(turns)
  )


@pytest.mark.parametrize(
  ('fields', 'want'),
  [
    (
      {'prompt': 'P', 'chosen': 'a', 'rejected': 'b'},
      Record('P', ('a', 'b'), (Pair(0, 1, 1.0),)),
    ),
    (
      {'prompt': '', 'chosen': 'a', 'rejected': 'a', 'preference': 0.25},
      Record('', ('a', 'a'), (Pair(0, 1, 0.25),)),
    ),
    (ABC, Record('P', ('a', 'b', 'c'))),
    (
      ABC
      | {
        'pairs': [[2, 0], [1, 2, 0.5]],
        'labels': [1, 0, True],
        'win_rates': [0.5, 0.25, 1],
      },
      Record(
        'P',
        ('a', 'b', 'c'),
        (Pair(2, 0, 1.0), Pair(1, 2, 0.5)),
        (1.0, 0.0, 1.0),
        (0.5, 0.25, 1.0),
      ),
    ),
    ({'prompt': 'P', 'response': 'a'}, Record('P', ('a',))),
    (
      {
        'prompt': 'P',
        'responses': ['ab', 'c'],
        'steps': [['a', 'b'], ['c']],
        'step_labels': [[True, 0.25], [0]],
      },
      Record(
        'P',
        ('ab', 'c'),
        steps=(('a', 'b'), ('c',)),
        step_labels=((1.0, 0.25), (0.0,)),
      ),
    ),
    ({'text': 'once', 'prompt': None, 'id': 3}, Record('', ('once',))),
    # A list of one type, as Parquet has it, makes the indices floats.
    (
      ABC | {'pairs': [[1.0, 0.0, 0.5]]},
      Record('P', ('a', 'b', 'c'), (Pair(1, 0, 0.5),)),
    ),
  ],
)
def test_each_form_by_hand(fields, want):
  assert records.from_fields(fields, WHERE) == want


def test_an_unknown_label_of_a_step_is_not_a_number():
  found = records.from_fields(STEPS | {'step_labels': [[None], [1], [0]]}, WHERE)
  assert found.step_labels[1:] == ((1.0,), (0.0,))
  assert math.isnan(found.step_labels[0][0])


def test_transcripts_split_at_the_last_shared_turn():
  fields = {
    'chosen': transcript(' hi', ' hello', ' how?', ' well'),
    'rejected': transcript(' hi', ' hello', ' how?', ' we are'),
  }
  got = records.from_fields(fields, WHERE)
  assert got == Record(
    '\n\nHuman: hi\n\nAssistant: hello\n\nHuman: how?\n\nAssistant:',
    (' well', ' we are'),
    (Pair(0, 1, 1.0),),
  )


@pytest.mark.parametrize(
  ('chosen', 'rejected', 'reason'),
  [
    # Apart at an earlier turn: the rest would hold a person's turn.
    (
      transcript(' hi', ' a', ' x', ' b'),
      transcript(' hi', ' c', ' x', ' b'),
      'no_shared_prompt',
    ),
    # One goes on longer than the other.
    (
      transcript(' hi', ' a'),
      transcript(' hi', ' a', ' x', ' b'),
      'no_shared_prompt',
    ),
    (
      transcript(' hi', ' a'),
      'no turn of that kind',
      'no_shared_prompt',
    ),
    (transcript(' hi', ''), transcript(' hi', ' a'), 'empty_response'),
  ],
)
def test_odd_transcripts_are_counted_not_errors(chosen, rejected, reason):
  fields = {'chosen': chosen, 'rejected': rejected}
  assert records.from_fields(fields, WHERE) == Skipped(reason, WHERE)


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    ({'prompt': 'P'}, 'exactly one of these sets'),
    ({}, 'no field at all'),
    ({'text': 'x', 'response': 'y', 'prompt': 'P'}, 'exactly one of these'),
    ({'prompt': 'P', 'chosen': 'a'}, '`rejected` is missing'),
    ({'prompt': 'P', 'chosen': 'a', 'rejected': None}, '`rejected` is missing'),
    ({'response': 'a'}, '`prompt` is missing'),
    ({'chosen': 'a', 'rejected': 'b'}, 'need a `prompt`'),
    ({'prompt': ['P'], 'response': 'a'}, '`prompt` must be a text, got list'),
    ({'prompt': 'P', 'response': 7}, '`response` must be a text, got int'),
    ({'prompt': 'P', 'response': ''}, '`response` must not be empty'),
    ({'text': 'a\ud800'}, 'lone surrogate at character 1'),
    ({'prompt': 'P', 'responses': 'ab'}, '`responses` must be a list, got str'),
    ({'prompt': 'P', 'responses': []}, 'at least one response'),
    ({'prompt': 'P', 'responses': ['a', '']}, '`responses[1]` must not be'),
    (ABC | {'pairs': [[0, 1], [0, 3]]}, '`pairs[1]` must hold indices'),
    (ABC | {'pairs': [[0, -1]]}, 'got -1'),
    (ABC | {'pairs': [[0, 0.5]]}, 'got 0.5'),
    (ABC | {'pairs': [[0, True]]}, 'got True'),
    (ABC | {'pairs': [[1, 1]]}, 'compares response 1 with itself'),
    (ABC | {'pairs': [[0]]}, 'got 1 entries'),
    (ABC | {'pairs': [[0, 1, 1.5]]}, 'in [0, 1], got 1.5'),
    (ABC | {'pairs': [[0, 1, float('nan')]]}, 'got nan'),
    (ABC | {'pairs': [[float('inf'), 1]]}, 'got inf'),
    (ABC | {'pairs': [[10**400, 1]]}, 'got int'),
    (ABC | {'labels': [1, 0]}, 'each of the 3 responses, got 2'),
    (ABC | {'labels': [1, 0, 2]}, '`labels[2]` must be a number in [0, 1]'),
    (ABC | {'win_rates': [1, 0, True]}, '`win_rates[2]`'),
    (ABC | {'win_rates': [1, 'x', 0]}, 'got str'),
    (ABC | {'steps': ['a', 'b', 'c']}, '`steps[0]` must be a list, got str'),
    (ABC | {'steps': [['a'], ['b']]}, '`steps` must have one entry for each of the 3'),
    (ABC | {'steps': [['a'], ['b'], ['d']]}, '`steps[2]` must join to response 2'),
    (ABC | {'steps': [['a'], ['b', ''], ['c']]}, '`steps[1][1]` must not be empty'),
    (ABC | {'step_labels': [[1], [0], [1]]}, '`step_labels` need the `steps`'),
    (STEPS | {'step_labels': [[1], [0], [1, 1]]}, 'each of the 1 steps, got 2'),
    (STEPS | {'step_labels': [[1], [2], [1]]}, '`step_labels[1][0]` must be a number'),
  ],
)
def test_refused_with_place_rule_and_offender(fields, said):
  with pytest.raises(InputError) as error:
    records.from_fields(fields, WHERE)
  assert str(error.value).startswith(WHERE)
  assert said in str(error.value)


@pytest.mark.parametrize('value', [-0.01, 1.01, float('nan'), '1', True, [1]])
def test_preference_is_a_probability(value):
  fields = {'prompt': 'P', 'chosen': 'a', 'rejected': 'b', 'preference': value}
  with pytest.raises(InputError, match='`preference` must be a number'):
    records.from_fields(fields, WHERE)
