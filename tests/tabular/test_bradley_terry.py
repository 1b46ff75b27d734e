"""Bradley-Terry fits: textbook numbers, then what every fit must satisfy."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.tabular import bradley_terry as bt

METHODS = ('newton', 'mm', 'newman')
each_method = pytest.mark.parametrize('method', METHODS)


def counts(seed=0, n=6, games=30):
  """Random counts in which everyone beat everyone at least once."""
  rng = np.random.default_rng(seed)
  wins = rng.integers(1, games, (n, n)).astype(float)
  np.fill_diagonal(wins, 0.0)
  return wins


# By hand ------------------------------------------------------------------------


@each_method
def test_two_players_have_the_log_odds_of_their_counts(method):
  fit = bt.fit(np.array([[0.0, 12.0], [3.0, 0.0]]), method=method)
  np.testing.assert_allclose(fit.scores, [np.log(4) / 2, -np.log(4) / 2], atol=1e-10)
  # The variance of log odds is 1/12 + 1/3.
  difference, error = fit.difference(0, 1)
  np.testing.assert_allclose(difference, np.log(4), atol=1e-10)
  np.testing.assert_allclose(error, np.sqrt(1 / 12 + 1 / 3), rtol=1e-8)


@each_method
def test_two_who_never_met_are_compared_through_a_third(method):
  # A beat B 8 : 4 and C 3 : 5, so that B beats C with odds (4 / 8)(3 / 5).
  wins = np.array([[0, 8, 3], [4, 0, 0], [5, 0, 0]], float)
  P = bt.probabilities(bt.fit(wins, method=method).scores)
  np.testing.assert_allclose(P[1, 2], 3 / 13, atol=1e-10)


@each_method
def test_a_cycle_of_equal_counts_has_equal_strengths(method):
  wins = np.array([[0, 5, 0], [0, 0, 5], [5, 0, 0]], float)
  np.testing.assert_allclose(bt.fit(wins, method=method).scores, 0.0, atol=1e-12)


def test_a_tie_is_half_a_win_for_each():
  wins = np.array([[0.0, 2.5], [1.5, 0.0]])  # 2 : 1 and a tie
  difference, _ = bt.fit(wins).difference(0, 1)
  np.testing.assert_allclose(difference, np.log(2.5 / 1.5), atol=1e-10)


# Baseball, 1987 -----------------------------------------------------------------

AGRESTI = {  # Categorical Data Analysis (2002), Table 10.11, against Baltimore
  'Milwaukee': 1.58,
  'Detroit': 1.44,
  'Toronto': 1.29,
  'New York': 1.25,
  'Boston': 1.11,
  'Cleveland': 0.68,
  'Baltimore': 0.0,
}


@pytest.fixture(scope='module')
def baseball():
  folder = Path(os.environ.get('PREFJAX_DATA') or 'data')
  path = folder / 'bradley_terry' / 'baseball_al_east_1987.csv'
  if not path.is_file():
    pytest.skip(f'{path} is not there (docs/data.md says where to get it)')
  place = {team: i for i, team in enumerate(AGRESTI)}
  home, away = np.zeros((2, 7, 7))
  with path.open() as file:
    for row in csv.DictReader(file):
      i, j = place[row['home.team']], place[row['away.team']]
      home[i, j], away[j, i] = float(row['home.wins']), float(row['away.wins'])
  return home, away


@each_method
def test_baseball_is_agrestis(baseball, method):
  fit = bt.fit(baseball[0] + baseball[1], method=method)
  found = [round(fit.difference(i, 6)[0], 2) for i in range(7)]
  assert found == list(AGRESTI.values())


def test_playing_at_home_is_agrestis(baseball):
  home, away = baseball
  fit = bt.fit(home, away_wins=away)
  assert round(fit.home, 3) == 0.302
  alone = bt.fit(home + away)
  assert fit.log_likelihood > alone.log_likelihood


# Laws ---------------------------------------------------------------------------


@pytest.mark.parametrize('seed', range(4))
def test_the_methods_agree(seed):
  fits = [bt.fit(counts(seed), method=method).scores for method in METHODS]
  np.testing.assert_allclose(fits[1], fits[0], atol=1e-9)
  np.testing.assert_allclose(fits[2], fits[0], atol=1e-9)


@pytest.mark.parametrize('seed', range(4))
def test_everyone_wins_as_often_as_expected(seed):
  wins = counts(seed)
  P = bt.probabilities(bt.fit(wins).scores)
  expected = np.sum((wins + wins.T) * P, axis=1)
  np.testing.assert_allclose(expected, wins.sum(axis=1), rtol=1e-9)


def test_a_sweep_never_lowers_the_likelihood():
  wins = counts(1)
  strength, before = np.ones(6), -np.inf
  for _ in range(20):
    after = bt.log_likelihood(np.log(strength), wins)
    assert after > before
    strength, before = bt.mm_sweep(strength, wins), after


def test_other_names_change_nothing():
  wins, order = counts(2), np.array([3, 0, 5, 1, 4, 2])
  there = bt.fit(wins[np.ix_(order, order)]).scores
  np.testing.assert_allclose(there, bt.fit(wins).scores[order], atol=1e-10)


@pytest.mark.parametrize('home', [False, True])
def test_standard_errors_are_the_curvature_of_the_likelihood(home):
  wins, away = counts(3), counts(4) if home else None
  fit = bt.fit(wins, away_wins=away)
  n, h = 6, 1e-3

  def likelihood(x):
    if away is None:
      return bt.log_likelihood(x[:n], wins)
    there = bt.log_likelihood(x[:n], away, -x[n])
    return bt.log_likelihood(x[:n], wins, x[n]) + there

  x, steps = np.append(fit.scores, fit.home), h * np.eye(n + 1)
  curvature = np.array(
    [
      [
        likelihood(x + a + b)
        - likelihood(x + a - b)
        - likelihood(x - a + b)
        + likelihood(x - a - b)
        for b in steps
      ]
      for a in steps
    ]
  ) / (4 * h**2)
  # Differences of log-likelihoods of hundreds of nats carry their rounding.
  found = np.linalg.pinv(-curvature, rcond=1e-4, hermitian=True)
  np.testing.assert_allclose(fit.covariance, found, atol=1e-4 * np.abs(found).max())


def test_a_ridge_draws_scores_together_and_always_has_a_fit():
  never_lost = np.array([[0.0, 3.0], [0.0, 0.0]])
  small, large = (bt.fit(never_lost, ridge=r).scores for r in (0.1, 10.0))
  assert small[0] > large[0] > 0
  # 3 sigmoid(-2 s) = ridge s
  np.testing.assert_allclose(3 / (1 + np.exp(2 * small[0])), 0.1 * small[0], rtol=1e-9)


def test_no_fit_names_the_groups():
  wins = np.zeros((4, 4))
  wins[0, 1] = wins[1, 0] = wins[2, 3] = wins[3, 2] = wins[0, 2] = 1.0
  with pytest.raises(
    InputError, match=r'\[\[0, 1\], \[2, 3\]\]|\[\[2, 3\], \[0, 1\]\]'
  ):
    bt.fit(wins)


@pytest.mark.parametrize(
  ('wins', 'options', 'message'),
  [
    (np.zeros((2, 3)), {}, r'square matrix, got \[2, 3\]'),
    (np.array([[0.0, -1.0], [1.0, 0.0]]), {}, r'wins\[0, 1\] .* got -1'),
    (np.array([[2.0, 1.0], [1.0, 0.0]]), {}, r'wins\[0, 0\] .* got 2'),
    (counts(), {'method': 'zermelo'}, r"Unknown method 'zermelo'"),
    (counts(), {'method': 'mm', 'ridge': 1.0}, 'neither a ridge nor a home effect'),
  ],
)
def test_bad_counts_are_refused(wins, options, message):
  with pytest.raises(InputError, match=message):
    bt.fit(wins, **options)
