"""Choosing one of N, by hand on a pool of two prompts."""

import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.evaluation import accuracy, selection

SCORES = np.array([[0.1, 0.9, 0.5, 0.4], [0.2, 0.2, -1.0, 0.0]])
RIGHT = np.array([[True, False, True, False], [True, False, False, True]])
ANSWERS = [['4', '5', '4', '5'], ['7', '7', '8', '9']]


@pytest.mark.parametrize(
  ('size', 'want'),
  [
    (1, [0.5, 0.5]),  # pass@1
    # blocks of two: (wrong, right) and (a tie of right and wrong, right)
    (2, [0.5, 0.75]),
    (4, [0.0, 0.5]),
  ],
)
def test_best_of_by_hand(size, want):
  np.testing.assert_allclose(selection.best_of(SCORES, RIGHT, size), want)


@pytest.mark.parametrize(
  ('size', 'want'),
  # Of two the answers 4 and 5 tie; four hold each twice. 7 is right once of twice.
  [(1, [0.5, 0.5]), (2, [0.5, 0.5]), (4, [0.5, 0.5])],
)
def test_majority_by_hand(size, want):
  right = np.array([[True, False, True, False], [True, False, False, True]])
  np.testing.assert_allclose(selection.vote(ANSWERS, right, size), want)


def test_a_weighted_vote_by_hand():
  # 4 weighs 0.6, 5 weighs 1.3; then 7 weighs 0.4 (right by half), 9 weighs 1
  weights = np.array([[0.1, 0.9, 0.5, 0.4], [0.2, 0.2, 0.1, 1.0]])
  np.testing.assert_allclose(selection.vote(ANSWERS, RIGHT, 4, weights), [0.0, 1.0])


def test_equal_weights_are_the_majority():
  rng = np.random.default_rng(0)
  answers = rng.integers(0, 3, (20, 8)).astype(str).tolist()
  right = rng.random((20, 8)) < 0.4
  got = selection.vote(answers, right, 4, np.full((20, 8), 0.3))
  np.testing.assert_allclose(got, selection.vote(answers, right, 4))


@pytest.mark.parametrize('size', [1, 2, 4])
def test_no_choice_exceeds_the_oracle(size):
  oracle = selection.oracle(RIGHT, size)
  np.testing.assert_allclose(oracle, {1: [0.5, 0.5], 2: [1, 1], 4: [1, 1]}[size])
  assert np.all(selection.best_of(SCORES, RIGHT, size) <= oracle)
  # The same expectation as pass@k, which uses every subset and not the blocks alone.
  if size == 4:
    np.testing.assert_allclose(oracle, accuracy.pass_at_k(RIGHT, 4))


def test_a_perfect_score_is_the_oracle():
  rng = np.random.default_rng(1)
  right = rng.random((50, 16)) < 0.2
  for size in (1, 4, 16):
    np.testing.assert_allclose(
      selection.best_of(right.astype(float), right, size), selection.oracle(right, size)
    )


@pytest.mark.parametrize('size', [0, 3, 8])
def test_a_size_that_does_not_divide_the_pool_is_refused(size):
  with pytest.raises(InputError, match=f'divides the 4 responses.*got {size}'):
    selection.best_of(SCORES, RIGHT, size)
