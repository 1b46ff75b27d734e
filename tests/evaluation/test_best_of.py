import itertools

import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.evaluation.accuracy import pass_at_k
from prefjax.evaluation.best_of import best_of, divergence_bound


def test_by_hand():
  # Of {1, 2, 4}: pairs have the largest 2, 4, 4.
  rewards = np.array([[2.0, 4.0, 1.0]])
  assert best_of(rewards, 1) == pytest.approx(7 / 3)
  assert best_of(rewards, 2) == pytest.approx(10 / 3)
  assert best_of(rewards, 3) == pytest.approx(4.0)
  assert divergence_bound(1) == 0
  assert divergence_bound(4) == pytest.approx(np.log(4) - 3 / 4)


@pytest.mark.parametrize('n', [1, 2, 3, 6, 7])
def test_the_mean_over_all_subsets(n):
  rewards = np.random.default_rng(0).normal(size=(3, 7)).round(1)  # with ties
  subsets = [
    rewards[:, list(s)].max(axis=1) for s in itertools.combinations(range(7), n)
  ]
  np.testing.assert_allclose(best_of(rewards, n), np.mean(subsets, axis=0))


@pytest.mark.parametrize('k', [1, 3, 8])
def test_of_right_and_wrong_it_is_pass_at_k(k):
  right = np.random.default_rng(1).random((4, 8)) < 0.4
  np.testing.assert_allclose(best_of(right.astype(float), k), pass_at_k(right, k))


def test_the_best_of_many_is_formed_without_overflow():
  rewards = np.arange(2000.0)[None]
  # E[max of n of 0..m-1] = n (m + 1) / (n + 1) - 1.
  assert best_of(rewards, 128) == pytest.approx(128 * 2001 / 129 - 1)


@pytest.mark.parametrize('n', [0, 4])
def test_more_than_there_are(n):
  with pytest.raises(InputError, match='1 <= n <= 3'):
    best_of(np.zeros((1, 3)), n)
