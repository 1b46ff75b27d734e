"""Win rates and picks by hand, then what holds of every matrix."""

import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.rewards import wins
from prefjax.tabular import games

SEEDS = range(3)


def random_wins(seed, n=4, k=5):
  """Preferences without any order."""
  upper = np.triu(np.random.default_rng(seed).uniform(0.02, 0.98, (n, k, k)), 1)
  below = np.tril(1.0 - np.swapaxes(upper, 1, 2), -1)
  return upper + below + 0.5 * np.eye(k)


# By hand ----------------------------------------------------------------------


def test_two_sure_responses_have_three_quarters_and_one():
  got = wins.win_rates(np.array([[[0.5, 1.0], [0.0, 0.5]]]))
  np.testing.assert_array_equal(got, [[0.75, 0.25]])


def test_five_responses_in_a_strict_order():
  """At most 9/10, so that a target of SPPO is at most 0.4 eta (arXiv:2405.00675)."""
  order = 0.5 + 0.5 * np.sign(np.subtract.outer(np.arange(5), np.arange(5)))
  got = wins.win_rates(order[None])
  np.testing.assert_allclose(got, [[0.1, 0.3, 0.5, 0.7, 0.9]], rtol=1e-15)
  picked = wins.best_and_worst(got)
  assert (picked.best, picked.worst, picked.tied) == (4, 0, False)


def test_two_responses_by_way_of_scores():
  """P = 3/4 has the logit log 3: s = +-log 3, and sigmoid(2 log 3) is 9/10."""
  got = wins.transitive(np.array([[[0.5, 0.75], [0.25, 0.5]]]))
  np.testing.assert_allclose(got, [[[0.5, 0.9], [0.1, 0.5]]], rtol=1e-12)


def test_five_responses_by_way_of_scores():
  """Response 4 beats every other with P = 3/4, and they are even among each other.

  s_4 = 2 (4 log 3) / 5 and the others' is -2 log 3 / 5: apart by 2 log 3, 9/10 again.
  """
  P = np.full((1, 5, 5), 0.5)
  P[0, 4, :4], P[0, :4, 4] = 0.75, 0.25
  got = wins.transitive(P)
  np.testing.assert_allclose(got[0, 4], [0.9, 0.9, 0.9, 0.9, 0.5], rtol=1e-12)
  np.testing.assert_allclose(got[0, :4, :4], 0.5, rtol=1e-12)
  np.testing.assert_allclose(wins.win_rates(P)[0], [0.45] * 4 + [0.7], rtol=1e-12)


@pytest.mark.parametrize(
  ('rates', 'best', 'worst', 'tied'),
  [
    ([0.4, 0.6, 0.5], 1, 0, False),
    ([0.4, 0.6, 0.6], 1, 0, False),  # the first of equals
    ([0.6, 0.4, 0.4], 0, 1, False),
    ([0.5, 0.5, 0.5], 0, 0, True),
  ],
)
def test_picks_and_ties(rates, best, worst, tied):
  got = wins.best_and_worst(np.array([rates]))
  assert (got.best, got.worst, got.tied) == (best, worst, tied)


# What holds of every matrix ----------------------------------------------------


@pytest.mark.parametrize('seed', SEEDS)
def test_rates_are_those_against_a_uniform_draw_of_the_responses(seed):
  P = random_wins(seed)
  rates = wins.win_rates(P)
  np.testing.assert_allclose(rates.mean(axis=1), 0.5, rtol=1e-12)
  want = games.win_rates(P[0], np.full(5, 0.2))
  np.testing.assert_allclose(rates[0], want, rtol=1e-6)


@pytest.mark.parametrize('seed', SEEDS)
def test_scores_are_those_of_the_tabular_world(x64, seed):
  P = random_wins(seed)
  got = wins.transitive(P)
  for one, matrix in zip(got, P, strict=True):
    np.testing.assert_allclose(one, games.scalar_fit(matrix), rtol=1e-9)
  np.testing.assert_allclose(got + np.swapaxes(got, 1, 2), 1.0, rtol=1e-15)


def test_a_cycle_is_lost_by_way_of_scores():
  P = np.array(games.cyclic(3, 0.8), np.float64)[None]
  np.testing.assert_allclose(wins.transitive(P), 0.5, atol=1e-7)
  assert abs(P - 0.5).max() > 0.3


def test_a_sure_preference_has_no_score():
  P = random_wins(0)
  P[2, 0, 1], P[2, 1, 0] = 1.0, 0.0
  with pytest.raises(InputError, match=r'Prompt 2: P\[0,1\] = 1.0 has no finite'):
    wins.as_used(P, 'scalar')
  np.testing.assert_array_equal(wins.as_used(P, 'matrix'), P)


def test_an_unknown_kind_of_win_rate():
  with pytest.raises(InputError, match=r"oracle\.win_rate .*'both'"):
    wins.as_used(random_wins(0), 'both')
