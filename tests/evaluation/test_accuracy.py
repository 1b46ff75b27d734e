"""pass@k against enumeration, majorities by hand, and their errors."""

import itertools

import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.evaluation.accuracy import majority, pass_at_k, summary


def enumerated(row, k):
  """The share of the choices of k samples that hold a right one."""
  return np.mean([any(chosen) for chosen in itertools.combinations(row, k)])


def rows_with(n):
  """Rows of n samples, of which 0, 1, ... n are right."""
  return np.arange(n)[None] < np.arange(n + 1)[:, None]


# pass@k -----------------------------------------------------------------------


def test_pass_at_k_by_hand():
  right = np.array([[True, False, False, False], [True, True, False, False]])
  # 1 - 3/4 * 2/3 and 1 - 2/4 * 1/3.
  np.testing.assert_allclose(pass_at_k(right, 2), [1 / 2, 5 / 6], rtol=1e-15)


@pytest.mark.parametrize('n', range(1, 8))
def test_pass_at_k_is_the_share_of_the_choices(n):
  right = rows_with(n)
  for k in range(1, n + 1):
    wanted = [enumerated(row, k) for row in right]
    np.testing.assert_allclose(pass_at_k(right, k), wanted, rtol=1e-13, atol=1e-15)


def test_pass_at_1_is_the_mean():
  right = np.random.default_rng(0).random((50, 9)) < 0.3
  np.testing.assert_allclose(pass_at_k(right, 1), right.mean(axis=1), atol=1e-15)


def test_pass_at_n_is_whether_any_is_right():
  right = rows_with(6)
  np.testing.assert_array_equal(pass_at_k(right, 6), right.any(axis=1))


def test_pass_at_k_grows_with_k_and_with_what_is_right():
  right = rows_with(9)
  table = np.stack([pass_at_k(right, k) for k in range(1, 10)])
  assert (np.diff(table, axis=0) >= 0).all()
  assert (np.diff(table, axis=1) >= 0).all()
  assert table.min() == 0.0
  assert table.max() == 1.0


def test_the_order_of_the_samples_is_nothing():
  rng = np.random.default_rng(1)
  right = rng.random((20, 8)) < 0.4
  shuffled = rng.permuted(right, axis=1)
  np.testing.assert_array_equal(pass_at_k(right, 3), pass_at_k(shuffled, 3))


def test_many_samples_do_not_overflow():
  right = np.arange(10_000)[None] < np.array([[0], [1], [10_000]])
  found = pass_at_k(right, 5_000)
  # One of n is among k of them with probability k / n.
  np.testing.assert_allclose(found, [0.0, 0.5, 1.0], rtol=1e-11)
  assert found.dtype == np.float64


@pytest.mark.parametrize('k', [0, -1, 5])
def test_k_must_lie_within_the_samples(k):
  with pytest.raises(InputError, match=rf'1 <= k <= 4 samples a prompt, got k={k}'):
    pass_at_k(np.ones((2, 4), bool), k)


# Majorities -------------------------------------------------------------------


@pytest.mark.parametrize(
  ('answers', 'right', 'expected'),
  [
    ('aab', [True, True, False], 1.0),
    ('aab', [False, False, True], 0.0),
    ('baa', [True, False, False], 0.0),
    ('abab', [True, False, True, False], 1 / 2),
    ('abc', [True, False, False], 1 / 3),
    ('abcab', [False, False, True, False, False], 0.0),
    ('aabbc', [True, True, True, True, False], 1.0),
    ('a', [True], 1.0),
    # The verifier may hold one text right and another time not.
    ('aaab', [True, True, False, True], 2 / 3),
  ],
)
def test_majorities_by_hand(answers, right, expected):
  found = majority([list(answers)], np.array([right]))
  np.testing.assert_allclose(found, [expected], rtol=1e-15)


def test_answers_that_all_differ_have_the_majority_of_their_mean():
  right = np.random.default_rng(2).random((30, 7)) < 0.5
  answers = [list('abcdefg')] * 30
  np.testing.assert_allclose(majority(answers, right), right.mean(axis=1), atol=1e-15)


def test_answers_are_the_same_by_their_text_alone():
  answers = [['1', '1.0', '1 '], ['', '', 'x'], ['é', 'é', 'e']]
  right = np.array([[True, False, False], [False, False, True], [True, True, False]])
  np.testing.assert_allclose(majority(answers, right), [1 / 3, 0.0, 1.0])


# Together ---------------------------------------------------------------------


def test_a_summary_by_hand():
  right = np.array([[True, False], [True, True], [False, False], [False, True]])
  answers = [['a', 'a'], ['a', 'b'], ['a', 'b'], ['a', 'b']]
  found = summary(right, answers, [1, 2])
  assert list(found) == ['accuracy', 'pass@2', 'maj@2']
  # Per prompt: 1/2, 1, 0, 1/2; 1, 1, 0, 1; 1/2, 1, 0, 1/2.
  assert [float(x.mean) for x in found.values()] == [0.5, 0.75, 0.5]
  errors = [float(x.standard_error) for x in found.values()]
  expected = [np.sqrt(1 / 6) / 2, np.sqrt(1 / 4) / 2, np.sqrt(1 / 6) / 2]
  np.testing.assert_allclose(errors, expected, rtol=1e-14)


def test_without_answers_there_is_no_majority():
  found = summary(np.ones((3, 4), bool), None, [4, 1, 2])
  assert list(found) == ['accuracy', 'pass@4', 'pass@2']
  assert all(x.mean == 1.0 and x.standard_error == 0.0 for x in found.values())


def test_a_summary_refuses_a_k_beyond_its_samples():
  with pytest.raises(InputError, match='got k=8'):
    summary(np.ones((3, 4), bool), None, [8])
