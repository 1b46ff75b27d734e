"""Preference oracles: what comes through each, and what is refused."""

import json

import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.rewards import oracles

PROMPTS = ['a', 'b']
RESPONSES = [['x', 'y'], ['x', 'z']]
RECORDS = [{'n': 0}, {'n': 1}]
FAIR = np.full((2, 2), 0.5)


def ask(oracle):
  return oracles.ask(oracle, PROMPTS, RESPONSES, RECORDS)


def judge(prompt, responses, record):
  """The second response of prompt 0 wins three times in four, of prompt 1 always."""
  assert responses in RESPONSES and prompt == PROMPTS[record['n']]
  p = 0.25 if record['n'] == 0 else 0.0
  return [[0.5, p], [1 - p, 0.5]]


def test_a_function_of_one_prompt():
  want = [[[0.5, 0.25], [0.75, 0.5]], [[0.5, 0.0], [1.0, 0.5]]]
  np.testing.assert_array_equal(ask(oracles.by_prompt(judge)), want)


def test_scores_by_hand():
  scores = np.log([[1.0, 3.0], [9.0, 1.0]])
  want = [[[0.5, 0.25], [0.75, 0.5]], [[0.5, 0.9], [0.1, 0.5]]]
  got = ask(oracles.from_scores(lambda *_: scores))
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_margins_are_mirrored_to_the_bit_and_chances_to_an_ulp():
  given = np.random.default_rng(0).normal(0, 5, (3, 4, 4)).astype(np.float32)
  margins = oracles.mirrored(given)
  np.testing.assert_array_equal(margins, -np.swapaxes(margins, 1, 2))
  np.testing.assert_array_equal(margins[:, 0, 1:], given[:, 0, 1:])  # above: as given
  chances = oracles.chances(margins)
  total = chances + np.swapaxes(chances, 1, 2)
  assert abs(total - 1.0).max() <= np.finfo(np.float64).eps


def write(path, *rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return oracles.stored(path)


def test_a_file_of_scores_or_chances_in_any_order(tmp_path):
  oracle = write(
    tmp_path / 'scores.jsonl',
    {'prompt': 'b', 'responses': ['x', 'z'], 'wins': [[0.5, 0.2], [0.8, 0.5]]},
    {'prompt': 'a', 'responses': ['y', 'x'], 'scores': [0.0, 9.0]},  # another list
    {'prompt': 'a', 'responses': ['x', 'y'], 'scores': [0.0, np.log(3.0)]},
  )
  want = [[[0.5, 0.25], [0.75, 0.5]], [[0.5, 0.2], [0.8, 0.5]]]
  np.testing.assert_allclose(ask(oracle), want, rtol=1e-12)


def test_a_file_that_lacks_a_prompt_or_is_not_there(tmp_path):
  path = tmp_path / 'scores.jsonl'
  with pytest.raises(InputError, match=r'Prompt 0: .*scores\.jsonl.* 2 of 2'):
    ask(oracles.stored(path))
  oracle = write(path, {'prompt': 'a', 'responses': ['x', 'y'], 'scores': [0, 1]})
  with pytest.raises(InputError, match=r'Prompt 1: .* 1 of 2'):
    ask(oracle)


@pytest.mark.parametrize(
  'row',
  [
    {'prompt': 'a', 'responses': ['x', 'y']},
    {'prompt': 'a', 'responses': ['x', 'y'], 'scores': [0, 1], 'wins': [[0.5]]},
    {'prompt': 'a', 'scores': [0, 1]},
    {'prompt': 'a', 'responses': ['x', 'y'], 'scores': ['high', 'low']},
    ['a'],
  ],
)
def test_a_line_that_is_no_row_is_named(tmp_path, row):
  good = {'prompt': 'a', 'responses': ['x', 'y'], 'scores': [0, 1]}
  oracle = write(tmp_path / 'scores.jsonl', good, row)
  with pytest.raises(InputError, match='line 2'):
    ask(oracle)


@pytest.mark.parametrize(
  ('matrix', 'said'),
  [
    ([[0.5, np.nan], [0.5, 0.5]], r'in \[0, 1\], got P\[0,1\] = nan'),
    ([[0.5, 1.5], [-0.5, 0.5]], r'in \[0, 1\], got P\[0,1\] = 1.5'),
    ([[0.5, 0.5, 0.5]] * 3, r'2 x 2 .* 2 responses, got shape \[3, 3\]'),
    ([0.5, 0.5], r'got shape \[2\]'),
    ([[0.5], [0.5, 0.5]], 'no matrix of numbers'),
    ([['a', 'b'], ['c', 'd']], 'no matrix of numbers'),
    (None, 'got shape'),
    ([[0.5, 0.8], [0.8, 0.5]], r'P_ij \+ P_ji = 1, got P\[0,1\] = 0.8'),
    ([[1.0, 0.5], [0.5, 0.5]], r'P_ij \+ P_ji = 1, got P\[0,0\] = 1.0'),
  ],
)
def test_what_is_no_preference_is_refused_with_the_prompts_index(matrix, said):
  oracle = oracles.by_prompt(lambda p, r, record: matrix if record['n'] else FAIR)
  with pytest.raises(InputError, match=f'Prompt 1: .*{said}'):
    ask(oracle)


def test_too_few_answers():
  with pytest.raises(InputError, match='1 win matrices for 2 prompts'):
    ask(lambda *_: [FAIR])


def test_an_import_path(monkeypatch, tmp_path):
  (tmp_path / 'my_judge.py').write_text(
    'coin = lambda prompt, responses, record: [[0.5, 0.5], [0.5, 0.5]]\nNONE = 3\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  np.testing.assert_array_equal(ask(oracles.imported('my_judge.coin')), [FAIR, FAIR])
  for name, said in (
    ('my_judge.gone', 'cannot be imported'),
    ('no.such', 'cannot be imported'),
    ('coin', 'cannot be imported'),
    ('my_judge.NONE', 'not a function'),
  ):
    with pytest.raises(InputError, match=said):
      oracles.imported(name)
