"""Public formats of labelled steps, by hand and as they are published."""

from collections import Counter
import json
import math

import pytest

from prefjax.data import solutions
from prefjax.data.solutions import Solution
from prefjax.errors import InputError

NAN = float('nan')


def same(a, b):
  """Equal, where NaN equals NaN."""
  return repr(a) == repr(b)


def completion(text, rating):
  return {'text': text, 'rating': rating, 'flagged': False}


def step(*completions, chosen=None, human=None):
  return {
    'completions': [completion(*c) for c in completions],
    'chosen_completion': chosen,
    'human_completion': human and {'text': human, 'rating': None},
  }


def prm800k(*steps):
  return {
    'question': {'problem': 'P'},
    'label': {'steps': list(steps), 'finish_reason': 'solution'},
  }


SHEPHERD = {
  'input': 'Two + two? Step 1: 2 + 2 = 4 ки\nStep 2: The answer is: 5 ки',
  'label': 'Two + two? Step 1: 2 + 2 = 4 +\nStep 2: The answer is: 5 -',
}
BENCH = {
  'problem': 'P',
  'steps': ['a', 'b', 'c'],
  'label': 1,
  'final_answer_correct': False,
}


def read(form, row):
  return list(solutions.FORMATS[form](row, 'file, line 3'))


# By hand ------------------------------------------------------------------------


def test_prm800k_is_the_followed_path_and_what_leaves_it():
  row = prm800k(
    step(('a', 1), chosen=0),
    step(('b', -1), ('c', -1), human='h'),
    step(('d', -1), ('e', 0), chosen=1),
    step(('f', -1), ('g', 1)),  # an error was found: nothing is chosen
  )
  want = [
    Solution('P', ('a', 'b'), (1.0, 0.0)),
    Solution('P', ('a', 'c'), (1.0, 0.0)),
    Solution('P', ('a', 'h', 'd'), (1.0, NAN, 0.0)),
    Solution('P', ('a', 'h', 'e', 'g'), (1.0, NAN, 1.0, 1.0)),
    Solution('P', ('a', 'h', 'e', 'f'), (1.0, NAN, 1.0, 0.0)),
  ]
  assert same(read('prm800k', row), want)
  assert [s.first_error for s in want] == [1, 1, 2, -1, 3]


def test_prm800k_that_was_given_up():
  gave_up = {'completions': None, 'chosen_completion': None, 'human_completion': None}
  found = read('prm800k', prm800k(step(('a', 1), chosen=0), gave_up))
  assert found == [Solution('P', ('a',), (1.0,))]
  assert read('prm800k', prm800k(gave_up)) == []


def test_math_shepherd():
  (found,) = read('math_shepherd', SHEPHERD)
  steps = ('Step 1: 2 + 2 = 4', 'Step 2: The answer is: 5')
  assert found == Solution('Two + two?', steps, (1.0, 0.0))
  assert found.first_error == 1


@pytest.mark.parametrize(
  ('label', 'labels'),
  [(1, (1.0, 0.0, NAN)), (-1, (1.0, 1.0, 1.0)), (0, (0.0, NAN, NAN))],
)
def test_processbench(label, labels):
  (found,) = read('processbench', BENCH | {'label': label})
  assert same(found, Solution('P', ('a', 'b', 'c'), labels, False))
  assert found.first_error == label


def test_a_solution_is_a_record_whose_steps_join_to_the_response():
  (found,) = read('processbench', BENCH | {'problem': '{x} {problem}'})
  record = found.record(prompt='Q: {problem}\nA:', separator='\n\n', lead=' ')
  assert record.prompt == 'Q: {x} {problem}\nA:'
  assert record.responses == (' a\n\nb\n\nc',)
  assert record.steps == ((' a\n\n', 'b\n\n', 'c'),)
  assert record.labels == (0.0,)
  assert same(record.step_labels, ((1.0, 0.0, NAN),))


# What is refused ----------------------------------------------------------------


@pytest.mark.parametrize(
  ('form', 'row', 'said'),
  [
    ('prm800k', {}, '`question.problem` must be text, got NoneType'),
    ('prm800k', {'question': {'problem': 'P'}}, '`label.steps` must be of type list'),
    ('prm800k', prm800k('a'), '`label.steps[0]` must be an object, got str'),
    ('prm800k', prm800k(step(('a', 2))), 'rating` must be -1, 0, 1 or null, got 2'),
    ('prm800k', prm800k(step(('a', True))), 'null, got bool'),
    ('prm800k', prm800k(step(('', 1))), 'completions[0].text` must be text'),
    ('prm800k', prm800k(step(('a', 1), chosen=1)), 'into 1 completions, got 1'),
    ('math_shepherd', {'input': 'x'}, '`label` must be text, got NoneType'),
    ('math_shepherd', {'input': 'x', 'label': 'x'}, '`Step 1:`'),
    ('math_shepherd', SHEPHERD | {'input': 'Step 1: a ки b'}, '`Step 1:`'),
    ('math_shepherd', SHEPHERD | {'label': 'Two'}, 'which it is not at step 1'),
    (
      'math_shepherd',
      SHEPHERD | {'label': SHEPHERD['label'][:-1] + '?'},
      'which it is not at step 2',
    ),
    ('processbench', BENCH | {'label': 3}, 'one of the 3 steps, got 3'),
    ('processbench', BENCH | {'label': -2}, 'got -2'),
    ('processbench', BENCH | {'label': True}, '`label` must be of type int, got bool'),
    ('processbench', BENCH | {'steps': []}, 'one of the 0 steps'),
    ('processbench', BENCH | {'steps': ['a', 2]}, '`steps[1]` must be text, got 2'),
    ('processbench', BENCH | {'problem': ''}, '`problem` must be text, got str'),
    ('processbench', BENCH | {'final_answer_correct': 1}, 'of type bool, got 1'),
  ],
)
def test_refused_with_place_rule_and_offender(form, row, said):
  with pytest.raises(InputError) as error:
    read(form, row)
  assert str(error.value).startswith('file, line 3: ')
  assert said in str(error.value)


def test_a_malformed_line_is_named(tmp_path):
  path = tmp_path / 'steps.jsonl'
  path.write_text(json.dumps(BENCH) + '\n{"problem": "P", \n')
  found = solutions.read(f'jsonl:{path}', 'processbench')
  assert next(found).first_error == 1
  with pytest.raises(InputError, match=r'steps\.jsonl, line 2: .*one JSON object'):
    next(found)


def test_an_unknown_format_is_refused():
  with pytest.raises(InputError, match="'prm8k'; known are"):
    solutions.read('jsonl:x', 'prm8k')


# As published -------------------------------------------------------------------


def test_prm800k_real_file(real_file):
  path = real_file('openr_samples/samples_prm800k.jsonl')
  found = list(solutions.read(f'jsonl:{path}', 'prm800k'))
  # A path a row, and the completions beside it.
  assert len(found) == (1 + 5 + 4) + (1 + 3) + (1 + 6) + (1 + 6) + (1 + 6) + 1
  longest = max(found, key=lambda solution: len(solution.steps))
  assert len(longest.steps) == 12 and longest.first_error == -1
  assert sum(math.isnan(x) for s in found for x in s.labels) > 0


def test_math_shepherd_real_file(real_file):
  path = real_file('openr_samples/samples_math-shepherd.jsonl')
  found = list(solutions.read(f'jsonl:{path}', 'math_shepherd'))
  assert [len(s.steps) for s in found] == [5, 3, 2, 5, 5, 2, 3]
  assert [s.first_error for s in found] == [4, 0, 0, 0, 1, 0, 0]
  assert all(s.problem.endswith(('.', '?')) for s in found)


def test_processbench_real_file(real_file):
  path = real_file('processbench/gsm8k.json')
  found = list(solutions.read(f'json:{path}', 'processbench'))
  assert len(found) == 400
  first = Counter(s.first_error for s in found)
  assert (first[-1], first[0], first[1], first[2]) == (193, 37, 61, 50)
  lucky = sum(s.correct and s.first_error >= 0 for s in found)
  assert (lucky, sum(s.correct for s in found)) == (7, 200)
