"""Preference games by hand, then what holds in every one of them."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from prefjax.errors import InputError
from prefjax.tabular import dynamics, games, policies

SEEDS = range(3)
UNIFORM = np.full(3, 1 / 3)


def random_game(seed, n=5):
  """Preferences without any order, and a policy."""
  rng = np.random.default_rng(seed)
  upper = np.triu(rng.uniform(size=(n, n)), 1)
  P = upper + np.tril(1.0 - upper.T, -1) + 0.5 * np.eye(n)
  return jnp.asarray(P), jnp.asarray(rng.dirichlet(np.ones(n)))


# By hand ----------------------------------------------------------------------


def test_rock_paper_scissors():
  want = [[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]]
  np.testing.assert_array_equal(games.rock_paper_scissors(), want)


@pytest.mark.parametrize(
  ('n', 'strength', 'first'),
  [
    (1, 1.0, [0.5]),
    (2, 1.0, [0.5, 0.5]),
    (4, 0.5, [0.5, 0.25, 0.5, 0.75]),
    (5, 1.0, [0.5, 0.0, 0.0, 1.0, 1.0]),
    (5, 0.0, [0.5] * 5),
  ],
)
def test_cyclic(n, strength, first):
  got = games.cyclic(n, strength)
  np.testing.assert_array_equal(got, [np.roll(first, k) for k in range(n)])
  games.check_preferences(got)


def test_bradley_terry(x64):
  got = games.bradley_terry(np.log([1.0, 3.0, 9.0]))
  want = [[0.5, 0.25, 0.1], [0.75, 0.5, 0.25], [0.9, 0.75, 0.5]]
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_mixture():
  got = games.mixture(0.25, games.rock_paper_scissors(), games.cyclic(3, 0.0))
  want = [[0.5, 0.375, 0.625], [0.625, 0.5, 0.375], [0.375, 0.625, 0.5]]
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_scalar_fit_doubles_scores_and_loses_cycles(x64):
  got = games.scalar_fit(games.bradley_terry(np.log([1.0, 3.0])))
  np.testing.assert_allclose(got[1], [0.9, 0.5], rtol=1e-12)  # odds of 9
  got = games.scalar_fit(games.cyclic(5, 0.9))
  np.testing.assert_allclose(got, np.full((5, 5), 0.5), rtol=1e-12)


@pytest.mark.parametrize(
  ('policy', 'rates', 'gap'),
  [
    ([1.0, 0.0, 0.0], [0.5, 1.0, 0.0], 1.0),
    (UNIFORM, [0.5, 0.5, 0.5], 0.0),
    ([0.5, 0.25, 0.25], [0.5, 0.625, 0.375], 0.25),
  ],
)
def test_win_rates_and_gap_in_rock_paper_scissors(x64, policy, rates, gap):
  P, policy = games.rock_paper_scissors(), np.asarray(policy)
  np.testing.assert_allclose(games.win_rates(P, policy), rates, atol=1e-15)
  np.testing.assert_allclose(games.duality_gap(policy, P), gap, atol=1e-15)
  several = np.stack([policy, UNIFORM])
  np.testing.assert_allclose(games.duality_gap(several, P), [gap, 0.0], atol=1e-15)


def test_running_average(x64):
  iterates = jnp.log(jnp.asarray([[0.5, 0.5], [0.1, 0.9], [0.9, 0.1]]))
  got = jnp.exp(games.running_average(iterates))
  np.testing.assert_allclose(got, [[0.5, 0.5], [0.3, 0.7], [0.5, 0.5]])


def test_average_bound(x64):
  # 1 - (1 - 1/2) / (2 log 2) + log 4 / (10 log 2)
  got = games.average_bound(4, np.log(2.0), 10)
  np.testing.assert_allclose(got, 1.2 - 0.25 / np.log(2.0), rtol=1e-12)


def test_float32_keeps_its_type():
  P = games.mixture(0.5, games.rock_paper_scissors(), games.bradley_terry(UNIFORM))
  assert games.check_preferences(P).dtype == jnp.float32
  assert games.von_neumann_winner(P).dtype == jnp.float32


# Bad input --------------------------------------------------------------------


@pytest.mark.parametrize(
  ('P', 'message'),
  [
    ([[0.5, 0.7], [0.4, 0.5]], r'P\[0,1\] .* add up to 1, got 0\.7'),
    ([[0.5, 1.5], [-0.5, 0.5]], r'P\[0,1\] must be in \[0, 1\], got 1\.5'),
    ([[0.4, 0.5], [0.5, 0.5]], r'P\[0,0\] .* add up to 1, got 0\.4'),
    ([[0.5, np.nan], [0.5, 0.5]], r'P\[0,1\] must be in'),
  ],
)
def test_a_matrix_that_is_no_game(P, message):
  with pytest.raises(InputError, match=message):
    games.check_preferences(np.asarray(P))
  with pytest.raises(InputError, match=message):
    games.von_neumann_winner(np.asarray(P))


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: games.cyclic(3, 1.5), 'strength'),
    (lambda: games.mixture(-0.1, jnp.eye(2), jnp.eye(2)), 'weight'),
    (lambda: games.scalar_fit(games.rock_paper_scissors()), r'P\[0,1\] = 0\.0'),
  ],
)
def test_numbers_out_of_range(make, message):
  with pytest.raises(InputError, match=message):
    make()


# In every game ----------------------------------------------------------------


@pytest.mark.parametrize('seed', SEEDS)
def test_a_policy_beats_itself_half_the_time(x64, seed):
  P, policy = random_game(seed)
  np.testing.assert_allclose(policy @ games.win_rates(P, policy), 0.5, rtol=1e-14)


@pytest.mark.parametrize('seed', SEEDS)
def test_the_gap_is_that_of_both_players(x64, seed):
  P, policy = random_game(seed)
  best, worst = np.max(P @ policy), np.min(policy @ P)
  got = games.duality_gap(policy, P)
  np.testing.assert_allclose(got, best - worst, rtol=1e-12)
  assert got > 1e-3


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('n', [2, 5, 8])
def test_no_gap_at_the_von_neumann_winner(x64, seed, n):
  P, _ = random_game(seed, n)
  winner = games.von_neumann_winner(P)
  np.testing.assert_allclose(winner.sum(), 1.0, rtol=1e-9)
  assert np.all(winner >= 0.0)
  np.testing.assert_allclose(games.duality_gap(winner, P), 0.0, atol=1e-9)


@pytest.mark.parametrize(
  ('P', 'want'),
  [
    (games.rock_paper_scissors(), UNIFORM),
    (games.cyclic(5, 0.3), np.full(5, 0.2)),
    (games.bradley_terry(np.asarray([0.0, 2.0, 1.0])), [0.0, 1.0, 0.0]),
    # Rock wins by twice the margin of the others: paper, which beats it, gains.
    ([[0.5, 0.25, 1.0], [0.75, 0.5, 0.25], [0.0, 0.75, 0.5]], [0.25, 0.5, 0.25]),
  ],
)
def test_von_neumann_winners_known(x64, P, want):
  got = games.von_neumann_winner(np.asarray(P, np.float64))
  np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize('seed', SEEDS)
def test_bradley_terry_fit_keeps_win_rates(x64, seed):
  P, policy = random_game(seed)
  scores = games.bradley_terry_fit(P, jnp.log(policy))
  fitted = games.bradley_terry(scores)
  want = games.win_rates(P, policy)
  np.testing.assert_allclose(games.win_rates(fitted, policy), want, rtol=1e-10)
  np.testing.assert_allclose(policy @ scores, 0.0, atol=1e-12)


@pytest.mark.parametrize('seed', SEEDS)
def test_bradley_terry_fit_of_its_own_game(x64, seed):
  """From far away, and where nearly all pairs pit one response against itself."""
  rng = np.random.default_rng(seed)
  scores = jnp.asarray(rng.uniform(-9.0, 9.0, size=6))
  drawn = policies.log_policy(jnp.asarray([0.0, -90.0, -5.0, -2.0, -300.0, -20.0]))
  got = games.bradley_terry_fit(games.bradley_terry(scores), drawn)
  np.testing.assert_allclose(got - got[0], scores - scores[0], rtol=1e-8, atol=1e-8)


def test_bradley_terry_fit_that_does_not_exist(x64):
  P = np.asarray([[0.5, 1.0, 1.0], [0.0, 0.5, 0.7], [0.0, 0.3, 0.5]])
  assert np.all(np.isnan(games.bradley_terry_fit(P, jnp.log(UNIFORM))))


# Log-normalisers of SPPO ------------------------------------------------------


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('eta', [0.01, 0.3, 1.0, 5.0, 50.0])
def test_log_z_lies_between_the_two_constants(x64, seed, eta):
  P, policy = random_game(seed)
  rates = games.win_rates(P, policy)
  got = dynamics.exact_log_normaliser(jnp.log(policy), rates, eta)
  assert dynamics.half_log_normaliser(eta) < got
  assert got < dynamics.ordered_log_normaliser(eta)
  # The third derivative in eta is a third cumulant of a variable in [0, 1].
  second_order = 0.5 * eta + 0.5 * eta**2 * (policy @ (rates - 0.5) ** 2)
  assert abs(got - second_order) <= eta**3 / (36 * np.sqrt(3)) + 1e-15


@pytest.mark.parametrize('eta', [1e-9, 1e-3, 0.059, 0.061, 1.0, 30.0])
def test_ordered_log_normaliser_is_an_integral(x64, eta):
  less, _ = integrate.quad(lambda q: np.expm1(eta * (q - 1.0)), 0.0, 1.0)
  got = dynamics.ordered_log_normaliser(eta)
  np.testing.assert_allclose(got, eta + np.log1p(less), rtol=1e-13)


@pytest.mark.parametrize(
  ('eta', 'share'),
  # SPPO, App. A, and papers.md 2.1
  [(1e-30, 0.5), (1.0, 0.541), (5.0, 0.677), (10.0, 0.770), (1e3, 0.993)],
)
def test_ordered_log_normaliser_in_float32(eta, share):
  got = dynamics.ordered_log_normaliser(jnp.float32(eta)) / jnp.float32(eta)
  np.testing.assert_allclose(got, share, atol=5e-4)
  assert dynamics.ordered_log_normaliser(0.0) == 0.0


@pytest.mark.parametrize('eta', [0.5, 5.0])
def test_the_worlds_that_the_constants_are_exact_in(x64, eta):
  n = 2000
  even = jnp.full(n, -np.log(n))
  ranked = jnp.asarray(np.tri(n, k=-1) + 0.5 * np.eye(n))
  fair = jnp.full((n, n), 0.5)
  for P, constant in (
    (ranked, dynamics.ordered_log_normaliser(eta)),
    (fair, dynamics.half_log_normaliser(eta)),
  ):
    rates = games.win_rates(P, jnp.exp(even))
    got = dynamics.exact_log_normaliser(even, rates, eta)
    np.testing.assert_allclose(got, constant, rtol=1e-6)
