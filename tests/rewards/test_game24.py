import csv
from fractions import Fraction
import itertools
import operator

import numpy as np
import pytest

from prefjax.rewards.game24 import game24

BY_HAND = [
  ('(1 + 1) * (4 + 6)', '1 1 4 6', 0.0),
  ('6 * 4 * 1 * 1', '1 1 4 6', 1.0),
  ('6*4*1*1 = 24', '1 1 4 6', 1.0),
  ('I try.\n\nAnswer: 6 * 4 / (1 * 1) = 24.\n \n', '1 1 4 6', 1.0),
  ('6 × 4 ÷ 1 − 1 + 1', '1 1 4 6', 0.0),
  ('(6 − 1) × 4 ÷ 1 = 24', '1 1 4 6', 0.0),
  ('1 × (6 × 4) ÷ 1', '1 1 4 6', 1.0),
  ('4 * 6 + 1 - 1', [1, 1, 4, 6], 1.0),
  ('4 * 6 + 1 - 1', '1, 1, 4, 6', 1.0),
  # Exact: 8 / (1/3). Floats give 23.99999...
  ('8 / (3 - 8 / 3)', '3 3 8 8', 1.0),
  ('24 * 1 - 10 + 10', '24 1 10 10', 1.0),
  # From left to right, and products before sums.
  ('30 - 4 - 3 + 1', '30 4 3 1', 1.0),
  ('48 / 2 / 2 * 2', '48 2 2 2', 1.0),
  ('4 + 5 * 4 * 1', '4 5 4 1', 1.0),
  ('(4 + 5) * 4 * 1', '4 5 4 1', 0.0),
  # Each number once.
  ('6 * 4', '1 1 4 6', 0.0),
  ('6 * 4 * 1 * 1 * 1', '1 1 4 6', 0.0),
  ('12 * 2 * 1 * 1', '1 1 4 6', 0.0),
  ('24', '1 1 4 6', 0.0),
  ('46 - 11', '1 1 4 6', 0.0),
  # The right side, if there is one, is 24.
  ('6 * 4 * 1 * 1 = 25', '1 1 4 6', 0.0),
  ('6 * 4 * 1 * 1 = 24 = 24', '1 1 4 6', 0.0),
  ('= 24', '1 1 4 6', 0.0),
  # What is no expression.
  ('6 * 4 * 1 * 1\nthat is it', '1 1 4 6', 0.0),
  ('6 * 4 * 1 * 1 (left: 24)', '1 1 4 6', 0.0),
  ('(6 * 4 * 1 * 1', '1 1 4 6', 0.0),
  ('6 * 4 * 1 * 1)', '1 1 4 6', 0.0),
  ('6 * 4 * 1 1', '1 1 4 6', 0.0),
  ('6 * 4 * 1 * 1 +', '1 1 4 6', 0.0),
  ('6 * 4 (1) * 1', '1 1 4 6', 0.0),
  ('-1 + 1 + 6 * 4', '1 1 4 6', 0.0),
  ('6 * 4 ** 1 * 1', '1 1 4 6', 0.0),
  ('6 * 4 // 1 * 1', '1 1 4 6', 0.0),
  ('6 / (1 - 1) * 4', '1 1 4 6', 0.0),
  ('()6 * 4 * 1 * 1', '1 1 4 6', 0.0),
  ('', '1 1 4 6', 0.0),
  ('__import__("os")', '1 1 4 6', 0.0),
]


@pytest.mark.parametrize(('response', 'numbers', 'expected'), BY_HAND)
def test_solutions_by_hand(response, numbers, expected):
  assert game24('', response, {'numbers': numbers}) == expected


@pytest.mark.parametrize(
  'text',
  ['(' * 10**6, '1' * 10**6, '6*4*1*1' + ' ' * 10**6 + '=', '٦ * ٤ * ١ * ١', '\ud800'],
)
def test_adversarial_text_is_wrong_at_once(text):
  assert game24('', text, {'numbers': '1 1 4 6'}) == 0.0


def test_brackets_nest_as_deep_as_a_line_is_long():
  nested = '(' * 90 + '6' + ')' * 90 + '*4*1*1'
  assert game24('', nested, {'numbers': '1 1 4 6'}) == 1.0
  assert game24('', f'({nested.replace("*", " * ")} )', {'numbers': '1 1 4 6'}) == 1.0
  longer = '(' * 7 + nested + ')' * 7
  assert len(longer) == 201
  assert game24('', longer, {'numbers': '1 1 4 6'}) == 0.0


def test_no_puzzle_no_reward():
  assert np.isnan(game24('', '24', {}))


OPERATORS = {
  '+': operator.add,
  '-': operator.sub,
  '*': operator.mul,
  '/': operator.truediv,
}


def solve(terms, target):
  """(an expression that makes 24, its value), or the last one tried that does not."""
  if len(terms) == 1:
    return terms[0] if (terms[0][1] == 24) == target else None
  for i, j in itertools.permutations(range(len(terms)), 2):
    rest = [term for k, term in enumerate(terms) if k not in (i, j)]
    for sign, apply in OPERATORS.items():
      if sign == '/' and terms[j][1] == 0:
        continue
      text = f'({terms[i][0]} {sign} {terms[j][0]})'
      found = solve([*rest, (text, apply(terms[i][1], terms[j][1]))], target)
      if found:
        return found
  return None


def test_real_puzzles_solved_by_brute_force(real_file):
  with real_file('game24/24.csv').open() as file:
    puzzles = [row['Puzzles'] for row in csv.DictReader(file)]
  assert len(puzzles) == 1362
  for puzzle in puzzles[::40]:
    terms = [(number, Fraction(number)) for number in puzzle.split()]
    for target in (True, False):
      text, _ = solve(terms, target)
      assert game24('', f'{text} = 24', {'numbers': puzzle}) == target
      assert game24('', text[1:-1], {'numbers': puzzle}) == target
