"""Exact optima over finite sets of responses: by hand, then the papers' identities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from prefjax import objectives
from prefjax.errors import InputError
from prefjax.objectives import links
from prefjax.tabular import games, policies

SEEDS = range(3)

regression_optimum = jax.jit(policies.regression_optimum)


def world(seed, n=5):
  """A reference, a reward, and another policy; log-probs and float64."""
  rng = np.random.default_rng(seed)
  reference, other = (np.log(rng.dirichlet(np.ones(n))) for _ in range(2))
  return jnp.asarray(reference), jnp.asarray(rng.normal(size=n)), jnp.asarray(other)


def log(*probabilities):
  return jnp.log(jnp.asarray(probabilities))


@functools.partial(jax.jit, static_argnums=0)
def slopes(loss, theta, *data):
  value, first = jax.value_and_grad(loss)(theta, *data)
  return value, first, jax.hessian(loss)(theta, *data)


def minimise(loss, start, *data):
  """A local minimum over softmax policies of a smooth loss, to the last digits."""
  found = optimize.minimize(
    lambda theta: slopes(loss, theta, *data)[0],
    start,
    jac=lambda theta: slopes(loss, theta, *data)[1],
    hess=lambda theta: slopes(loss, theta, *data)[2],
    method='trust-exact',
    tol=1e-10,
  )
  theta = found.x
  for _ in range(3):  # beyond where differences of the loss itself are rounding
    _, first, second = slopes(loss, theta, *data)
    theta = theta - np.linalg.pinv(second) @ first
  np.testing.assert_allclose(slopes(loss, theta, *data)[1], 0.0, atol=1e-13)
  return policies.log_policy(jnp.asarray(theta))


# By hand ----------------------------------------------------------------------


def test_log_policy(x64):
  got = policies.log_policy(jnp.log(jnp.asarray([[1.0, 3.0], [10.0, 10.0]])))
  np.testing.assert_allclose(jnp.exp(got), [[0.25, 0.75], [0.5, 0.5]], rtol=1e-12)


@pytest.mark.parametrize(
  ('policy', 'other', 'want'),
  [
    ((0.5, 0.5), (0.25, 0.75), 0.1438410362),  # (log 2 + log 2/3) / 2
    ((1.0, 0.0), (0.5, 0.5), 0.6931471806),
    ((0.5, 0.5), (1.0, 0.0), np.inf),
    ((0.0, 1.0), (0.0, 1.0), 0.0),
  ],
)
def test_kl(x64, policy, other, want):
  np.testing.assert_allclose(policies.kl(log(*policy), log(*other)), want, rtol=1e-9)


def test_kl_has_a_gradient_where_a_response_is_impossible(x64):
  got = jax.grad(policies.kl)(log(1.0, 0.0), log(0.5, 0.5))
  # d/dp of e^p (p - q) = e^p (p - q + 1)
  np.testing.assert_allclose(got, [np.log(2.0) + 1.0, 0.0])


def test_kl_optimum_of_two_responses(x64):
  # e^(r / beta) = (3, 1), so Z = 2 and J = 0.5 log 2
  reference, reward = log(0.5, 0.5), jnp.asarray([0.5 * np.log(3.0), 0.0])
  got = policies.kl_optimum(reference, reward, beta=0.5)
  np.testing.assert_allclose(jnp.exp(got), [0.75, 0.25], rtol=1e-12)
  value = policies.optimal_value(reference, reward, beta=0.5)
  np.testing.assert_allclose(value, 0.5 * np.log(2.0), rtol=1e-12)


@pytest.mark.parametrize('tau', [0.1, 1.0, 10.0])
def test_ipo_of_a_winner_that_always_wins(x64, tau):
  # IPO (arXiv:2310.12036), Section 5.3: sigmoid(0.5 / tau), and no limit for DPO.
  P, even = jnp.asarray([[0.5, 1.0], [0.0, 0.5]]), log(0.5, 0.5)
  got = policies.psi_optimum(even, even, P, tau=tau, psi=policies.identity)
  np.testing.assert_allclose(jnp.exp(got)[0], 1 / (1 + np.exp(-0.5 / tau)), rtol=1e-12)
  with pytest.raises(InputError, match=r'P\[0,1\] = 1\.0'):
    policies.psi_optimum(even, even, P, tau=tau, psi=policies.logit)


@pytest.mark.parametrize('betas', [[1.0, 0.0], [-1.0], [np.nan], [np.inf]])
def test_frontier_refuses_a_beta(betas):
  reference = log(0.5, 0.5)
  with pytest.raises(InputError, match='beta'):
    policies.frontier(reference, reference, np.asarray(betas))


# KL-regularised reward --------------------------------------------------------


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('beta', [0.05, 1.0, 20.0])
def test_any_policy_falls_short_by_its_kl_from_the_optimum(x64, seed, beta):
  reference, reward, policy = world(seed)
  best = policies.kl_optimum(reference, reward, beta=beta)
  value = policies.optimal_value(reference, reward, beta=beta)
  for other, short in ((policy, beta * policies.kl(policy, best)), (best, 0.0)):
    got = policies.objective(other, reference, reward, beta=beta)
    np.testing.assert_allclose(got, value - short, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('seed', SEEDS)
def test_calculus_of_the_frontier(x64, seed):
  reference, reward, _ = world(seed)

  def at(inverse):
    policy = policies.kl_optimum(reference, reward, beta=1.0 / inverse)
    return jnp.exp(policy) @ reward, policies.kl(policy, reference)

  betas = jnp.asarray([0.1, 0.5, 1.0, 5.0])
  got = policies.frontier(reference, reward, betas)
  for k, beta in enumerate(betas):
    (mean, kl), (d_mean, d_kl) = jax.jvp(at, (1.0 / beta,), (jnp.ones(()),))
    probability = jnp.exp(policies.kl_optimum(reference, reward, beta=beta))
    variance = probability @ (reward - mean) ** 2
    np.testing.assert_allclose((got.reward[k], got.kl[k]), (mean, kl), rtol=1e-10)
    np.testing.assert_allclose(d_mean, variance, rtol=1e-7)
    np.testing.assert_allclose(d_kl, variance / beta, rtol=1e-7)
  # dE[r]/dKL = beta at both ends of a chord, and in between in between.
  slopes = jnp.diff(got.reward) / jnp.diff(got.kl)
  assert np.all((betas[:-1] < slopes) & (slopes < betas[1:]))


# Optima of pairwise losses ----------------------------------------------------

logistic, squared = links.logistic, links.squared


def logit(p):
  return np.log(p / (1.0 - p))


@pytest.mark.parametrize(
  ('pair_loss', 'p', 'want'),
  [
    (objectives.on_margin(logistic(beta=0.1)), 0.8, logit(0.8) / 0.1),
    (objectives.on_margin(logistic(beta=2.0)), 0.3, logit(0.3) / 2.0),
    (objectives.on_margin(logistic(beta=2.0)), 0.5, 0.0),
    (
      objectives.smoothed(objectives.on_margin(logistic(beta=0.1)), epsilon=0.1),
      1.0,
      np.log(0.9 / 0.1) / 0.1,
    ),
    (
      objectives.smoothed(objectives.on_margin(logistic(beta=1.0)), epsilon=0.2),
      0.75,
      logit(0.65),  # 0.75 * 0.8 + 0.25 * 0.2
    ),
    (objectives.on_margin(squared(tau=0.1)), 0.8, 0.6 / 0.2),
    (objectives.on_margin(squared(tau=0.5)), 0.3, -0.4),
    (objectives.on_margin(squared(tau=0.5)), 1.0, 1.0),
  ],
)
def test_population_optimum_of_one_pair(x64, pair_loss, p, want):
  slope = jax.jit(jax.grad(lambda h: pair_loss(h, jnp.zeros(()), jnp.asarray(p))))
  got = optimize.brentq(lambda h: float(slope(h)), -40.0, 40.0, xtol=1e-13)
  np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)


def pair_mean(theta, link, strength, counts, preference, reference):
  """The mean loss of all ordered pairs: counts[i, j] have i as the chosen one."""
  pair_loss = objectives.on_margin(link(strength))
  ratio = policies.log_policy(theta) - reference
  first = jnp.broadcast_to(ratio[:, None], counts.shape)
  return jnp.sum(counts * pair_loss(first, first.T, preference)) / counts.sum()


def dpo_mean(theta, beta, *data):
  return pair_mean(theta, lambda beta: logistic(beta=beta), beta, *data)


def ipo_mean(theta, tau, *data):
  return pair_mean(theta, lambda tau: squared(tau=tau), tau, *data)


def zermelo(wins):
  """Bradley-Terry scores by Hunter's minorise-maximise, which shares no code."""
  games_of, strength = wins + wins.T, np.ones(len(wins))
  for _ in range(3000):
    pooled = games_of / (strength[:, None] + strength[None, :])
    strength = wins.sum(axis=1) / pooled.sum(axis=1)
    strength /= strength.sum()
  return np.log(strength)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('beta', [0.1, 1.0])
def test_full_batch_dpo_is_bradley_terry_and_then_rlhf(x64, seed, beta):
  # IPO (arXiv:2310.12036), Prop. 4.
  rng = np.random.default_rng(seed)
  wins = rng.integers(1, 20, size=(4, 4)) * (1.0 - np.eye(4))
  reference, _, _ = world(seed, n=4)
  reward = jnp.asarray(zermelo(wins))
  want = policies.kl_optimum(reference, reward, beta=beta)
  got = minimise(dpo_mean, reference, beta, wins, np.ones((4, 4)), reference)
  np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('tau', [0.1, 1.0])
def test_full_batch_ipo_is_the_psi_optimum(x64, seed, tau):
  # The pairs of IPO's Eq. 17 drawn from mu, with soft labels; its Eq. 6 and Psi = id.
  reference, scores, opponent = world(seed, n=4)
  cyclic = games.cyclic(4, 0.9)
  P = games.mixture(0.6, cyclic, games.bradley_terry(scores))
  drawn = jnp.exp(opponent[:, None] + opponent[None, :])
  want = policies.psi_optimum(reference, opponent, P, tau=tau, psi=policies.identity)
  got = minimise(ipo_mean, reference, tau, drawn, P, reference)
  np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.parametrize('seed', SEEDS)
def test_psi_logit_is_the_reward_of_a_bradley_terry_game(x64, seed):
  # IPO, Prop. 1; whoever the opponent is.
  reference, scores, opponent = world(seed)
  P = games.bradley_terry(scores)
  got = policies.psi_optimum(reference, opponent, P, tau=0.3, psi=policies.logit)
  np.testing.assert_allclose(got, policies.kl_optimum(reference, scores, beta=0.3))


def psi_shortfall(theta, psi_of_pairs, reference, opponent, tau):
  policy = policies.log_policy(theta)
  met = jnp.exp(policy[:, None] + opponent[None, :])
  return tau * policies.kl(policy, reference) - jnp.sum(met * psi_of_pairs)


@pytest.mark.parametrize('psi', [policies.identity, policies.logit, jnp.square])
@pytest.mark.parametrize('seed', range(3))
def test_psi_optimum_maximises_its_objective(x64, psi, seed):
  reference, scores, opponent = world(seed)
  P = games.mixture(0.5, games.cyclic(5, 0.8), games.bradley_terry(scores))
  want = policies.psi_optimum(reference, opponent, P, tau=0.7, psi=psi)
  got = minimise(psi_shortfall, reference, psi(P), reference, opponent, 0.7)
  np.testing.assert_allclose(got, want, rtol=1e-9)


# Regression on targets that no policy meets -------------------------------------


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('scale', [0.1, 1.0, 10.0])
def test_regression_on_a_target_that_a_policy_meets(x64, seed, scale):
  reference, reward, _ = world(seed)
  want = policies.kl_optimum(reference, reward, beta=1.0 / scale)
  got = regression_optimum(reference, want - reference)
  np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)


def regression(theta, reference, target):
  ratio = policies.log_policy(theta) - reference
  return jnp.exp(reference) @ (ratio - target) ** 2


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('shift', [-0.3, 0.05, 0.5, 3.0])
def test_regression_is_where_descent_ends(x64, seed, shift):
  """Too large a target has one minimum; too small a one, that near its reference."""
  reference, reward, policy = world(seed)
  target = reward + shift - policies.optimal_value(reference, reward, beta=1.0)

  got = regression_optimum(reference, target)
  starts = (reference, policy, -policy) if shift > 0 else (reference,)
  for start in starts:
    want = minimise(regression, start, reference, target)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize('shift', [-300.0, -30.0, -3.0, 3.0, 30.0, 300.0])
def test_regression_far_from_any_policy(x64, shift):
  """It stays a policy, where the gradient vanishes and no direction leads down."""
  reference, reward, _ = world(0)
  target = 30.0 * reward + shift
  got = regression_optimum(reference, target)
  np.testing.assert_allclose(jnp.exp(got).sum(), 1.0, rtol=1e-12)
  value, first, second = slopes(regression, got, reference, target)
  np.testing.assert_allclose(first, 0.0, atol=1e-11 * value)
  assert np.linalg.eigvalsh(second).min() > -1e-11 * value
