"""Self-play: the papers' statements about exact iterates, each as it is printed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax import objectives
from prefjax.errors import InputError
from prefjax.objectives import links
from prefjax.tabular import dynamics, games, policies
from prefjax.types import Outputs, PreferenceBatch

SEEDS = range(3)
RPS = games.rock_paper_scissors


def random_game(seed, n=5):
  """Preferences without any order, and a policy."""
  rng = np.random.default_rng(seed)
  upper = np.triu(rng.uniform(size=(n, n)), 1)
  P = upper + np.tril(1.0 - upper.T, -1) + 0.5 * np.eye(n)
  return jnp.asarray(P), jnp.asarray(rng.dirichlet(np.ones(n)))


# SPPO and multiplicative weights ------------------------------------------------


def test_multiplicative_weights_by_hand(x64):
  # Against (1/2, 1/4, 1/4) the win rates are 4, 5 and 3 eighths.
  start = np.asarray([0.5, 0.25, 0.25])
  got = dynamics.multiplicative_weights(RPS(), steps=1, start=start, eta=8 * np.log(2))
  np.testing.assert_allclose(jnp.exp(got), [start, np.asarray([8, 8, 2]) / 18])


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('eta', [0.01, 0.3, 1.0, 5.0])
def test_sppo_with_the_exact_log_z_is_multiplicative_weights(x64, seed, eta):
  P, start = random_game(seed)
  want = dynamics.multiplicative_weights(P, steps=10, start=start, eta=eta)
  got = dynamics.sppo(P, steps=10, start=start, eta=eta)
  np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('eta', [50.0, 1e3])
def test_sppo_with_the_exact_log_z_at_a_large_eta(x64, eta):
  """One step, and probabilities: what the best one gains magnifies rounding in logs."""
  for seed in SEEDS:
    P, start = random_game(seed)
    want = dynamics.multiplicative_weights(P, steps=10, start=start, eta=eta)
    got = dynamics.sppo(P, steps=10, start=start, eta=eta)
    np.testing.assert_allclose(jnp.exp(got[1]), jnp.exp(want[1]), atol=1e-12)


def test_the_constant_is_right_to_second_order(x64):
  """Off by log Z - eta / 2, of order eta^2, times a log-ratio, of order eta."""
  P, start = random_game(0)

  def error(eta):
    exact, half = (
      dynamics.sppo(P, steps=10, start=start, eta=eta, log_normaliser=name)[1]
      for name in ('exact', 'half')
    )
    return np.max(np.abs(exact - half))

  np.testing.assert_allclose(error(0.02) / error(0.01), 8.0, rtol=0.02)
  assert error(1.0) > 1e-3


def enumerated(policy, rates):
  """One prompt whose responses are all there are, each of its probability's weight."""
  n = len(policy)
  ones = np.ones((1, n), np.int32)
  return PreferenceBatch(
    prompts=ones[:, :1],
    responses=ones[..., None],
    prompt_length=ones[:, 0],
    response_length=ones,
    mask=np.ones((1, n, 1), bool),
    weight=policy[None],
    win_rate=rates[None],
    reference_logps=jnp.log(policy)[None, :, None],
  )


def sppo_loss(theta, batch, eta, log_normaliser):
  """The training objective of `prefjax.objectives`, its expectation over pi_t exact."""
  name = 'samples' if log_normaliser == 'exact' else log_normaliser
  loss_fn = objectives.create('sppo', eta=eta, log_normaliser=name).build()
  logps = policies.log_policy(theta)[None, :, None]
  return loss_fn(Outputs(logps=logps), batch)[0].value()


NORMALISERS = ['exact', 'half', 'ordered']
gradient = jax.jit(jax.grad(sppo_loss), static_argnums=(2, 3))
hessian = jax.jit(jax.hessian(sppo_loss), static_argnums=(2, 3))


@pytest.mark.parametrize('name', NORMALISERS)
@pytest.mark.parametrize('eta', [0.3, 5.0])
def test_an_iterate_minimises_the_training_objective(x64, name, eta):
  for seed in SEEDS:
    P, start = random_game(seed)
    got = dynamics.sppo(P, steps=10, start=start, eta=eta, log_normaliser=name)[1]
    batch = enumerated(start, games.win_rates(P, start))
    np.testing.assert_allclose(gradient(got, batch, eta, name), 0.0, atol=1e-12)
    assert np.linalg.eigvalsh(hessian(got, batch, eta, name)).min() > -1e-12


def regularised_win_rate(theta, start, rates, eta):
  """E_pi[P(y > pi_t)] - KL(pi || pi_t) / eta, the opponent held fixed."""
  policy = policies.log_policy(theta)
  return policies.objective(policy, jnp.log(start), rates, beta=1.0 / eta)


@pytest.mark.parametrize('seed', SEEDS)
def test_sppo_starts_as_a_policy_gradient(x64, seed):
  """At pi = pi_t its gradient is -2 eta times that of win rate less KL / eta.

  Any constant c for log Z adds 2 c E_{y ~ pi_t}[grad log pi(y)], and so drops out
  where pi is the policy sampled, as the mean score is 0 there, and nowhere else.
  """
  P, start = random_game(seed)
  rates = games.win_rates(P, start)
  batch, theta, eta = enumerated(start, rates), jnp.log(start) + 0.7, 3.0
  want = -2.0 * eta * jax.grad(regularised_win_rate)(theta, start, rates, eta)
  for name in NORMALISERS:
    got = gradient(theta, batch, eta, name)
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-13)
  away = theta + jnp.arange(5.0)
  exact, half = (gradient(away, batch, eta, name) for name in ('exact', 'half'))
  rates_differ = dynamics.exact_log_normaliser(jnp.log(start), rates, eta) - 0.5 * eta
  score = start - jnp.exp(policies.log_policy(away))  # E_{pi_t}[grad log pi]
  np.testing.assert_allclose(exact - half, 2.0 * rates_differ * score, rtol=1e-9)


@pytest.mark.parametrize('n', [2, 7])
@pytest.mark.parametrize('eta', [0.05, 0.3, 1.0, 5.0])
def test_the_average_obeys_its_bound_at_every_step(x64, n, eta):
  """For every y and T; and so does the bound that has log Z's own largest value."""
  T = np.arange(1, 201)
  bound = np.asarray([games.average_bound(n, eta, int(t)) for t in T])
  sharper = dynamics.ordered_log_normaliser(eta) / eta + np.log(n) / (eta * T)
  assert np.all(sharper < bound)
  for seed in SEEDS:
    P, _ = random_game(seed, n)
    iterates = dynamics.multiplicative_weights(
      P, steps=199, start=np.full(n, 1 / n), eta=eta
    )
    average = jnp.exp(games.running_average(iterates))
    assert np.all(games.win_rates(P, average) <= sharper[:, None])
    assert np.all(games.win_rates(P, average) <= bound[:, None])


@pytest.mark.parametrize('eta', [0.1, 0.5])
def test_rock_paper_scissors_converges_on_average_only(x64, eta):
  start, uniform = np.asarray([0.6, 0.3, 0.1]), jnp.full(3, 1 / 3)
  got = dynamics.multiplicative_weights(RPS(), steps=3000, start=start, eta=eta)
  average = jnp.exp(games.running_average(got))
  np.testing.assert_allclose(average[-1], uniform, atol=0.02)
  # Log Z > eta / 2 moves every iterate further from the winner than the one before.
  away = policies.kl(jnp.broadcast_to(jnp.log(uniform), got.shape), got)
  assert np.all(np.diff(away) > 0.0)
  assert games.duality_gap(jnp.exp(got[-1]), RPS()) > 0.5
  assert games.duality_gap(average[-1], RPS()) < 0.02


# Other methods ----------------------------------------------------------------


def methods(P, start, mixture=0.1):
  """Every method's iterates, by name."""
  settings = dict(steps=300, start=start)
  return {
    'mw': dynamics.multiplicative_weights(P, eta=1.0, **settings),
    'half': dynamics.sppo(P, eta=1.0, log_normaliser='half', **settings),
    'ordered': dynamics.sppo(P, eta=1.0, log_normaliser='ordered', **settings),
    'ipo': dynamics.ipo_self_play(P, tau=0.05, **settings),
    'nash_md': dynamics.nash_md(P, eta=1.0, mixture=mixture, **settings),
    'dpo': dynamics.iterative_dpo(P, beta=1.0, **settings),
  }


def test_every_method_finds_the_best_of_a_transitive_game(x64):
  P = games.bradley_terry(np.asarray([0.0, 3.0, 1.0]))
  for name, got in methods(P, np.full(3, 1 / 3), mixture=1e-3).items():
    assert got.shape == (301, 3)
    np.testing.assert_allclose(jnp.exp(got).sum(axis=1), 1.0, rtol=1e-12)
    assert jnp.exp(got[-1, 1]) > 0.98, name


def test_no_method_moves_where_all_preferences_are_fair(x64):
  start = np.asarray([0.5, 0.3, 0.2])
  for name, got in methods(games.cyclic(3, 0.0), start).items():
    np.testing.assert_allclose(jnp.exp(got), [start] * 301, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize('seed', SEEDS)
def test_ipo_self_play_and_its_reference(x64, seed):
  P, start = random_game(seed)
  got = dynamics.ipo_self_play(P, steps=4, start=start, tau=0.2)
  steps = dynamics.multiplicative_weights(P, steps=4, start=start, eta=5.0)
  optimum = dict(P=P, tau=0.2, psi=policies.identity)
  for t in range(4):
    want = policies.psi_optimum(jnp.log(start), got[t], **optimum)
    np.testing.assert_allclose(got[t + 1], want, rtol=1e-12)
    moving = policies.psi_optimum(steps[t], steps[t], **optimum)
    np.testing.assert_allclose(steps[t + 1], moving, rtol=1e-12)


@pytest.mark.parametrize('seed', SEEDS)
def test_nash_md_nears_the_regularised_winner(x64, seed):
  """KL(pi*, pi_{t+1}) <= (1 - eta tau) KL(pi*, pi_t) + 2 eta^2, at every step."""
  P, start = random_game(seed)
  tau, eta = 0.5, 0.05
  # pi* prop. to pi_ref exp(P(y > pi*) / tau): nobody gains, net of the KL.
  winner = jnp.log(start)
  for _ in range(300):
    reply = policies.kl_optimum(
      jnp.log(start), games.win_rates(P, jnp.exp(winner)), beta=tau
    )
    winner = policies.log_policy(0.5 * (winner + reply))
  np.testing.assert_allclose(winner, reply, rtol=1e-12)
  got = dynamics.nash_md(P, steps=300, start=start, eta=eta, mixture=eta * tau)
  kl = policies.kl(jnp.broadcast_to(winner, got.shape), got)
  assert np.all(kl[1:] <= (1.0 - eta * tau) * kl[:-1] + 2.0 * eta**2)
  assert kl[-1] < 0.1 * kl[0]
  free = dynamics.nash_md(P, steps=5, start=start, eta=eta, mixture=0.0)
  want = dynamics.multiplicative_weights(P, steps=5, start=start, eta=eta)
  np.testing.assert_allclose(free, want, rtol=1e-13)


def dpo_loss(theta, P, log_policy, beta):
  """The DPO loss of pairs drawn from a policy, which is the reference too."""
  ratio = policies.log_policy(theta) - log_policy
  first = jnp.broadcast_to(ratio[:, None], P.shape)
  pair_loss = objectives.on_margin(links.logistic(beta=beta))
  drawn = jnp.exp(log_policy[:, None] + log_policy[None, :])
  return jnp.sum(drawn * pair_loss(first, first.T, P))


@pytest.mark.parametrize('seed', SEEDS)
def test_iterative_dpo_minimises_dpo(x64, seed):
  # The loss is convex in the log-ratio: a stationary point is the minimum.
  P, start = random_game(seed)
  got = dynamics.iterative_dpo(P, steps=3, start=start, beta=0.5)
  slope = jax.jit(jax.grad(dpo_loss))
  for before, after in itertools.pairwise(got):
    np.testing.assert_allclose(slope(after, P, before, 0.5), 0.0, atol=1e-13)
    assert np.max(np.abs(slope(before, P, before, 0.5))) > 1e-6


def test_iterative_dpo_of_a_bradley_terry_game_adds_its_scores(x64):
  scores, start = np.asarray([0.0, 1.0, -0.5]), np.asarray([0.2, 0.3, 0.5])
  P = games.bradley_terry(scores)
  got = dynamics.iterative_dpo(P, steps=4, start=start, beta=2.0)
  for t in range(5):
    want = policies.log_policy(jnp.log(start) + t * scores / 2.0)
    np.testing.assert_allclose(got[t], want, rtol=1e-9)


@pytest.mark.parametrize('eta', [1e-3, 1e3])
@pytest.mark.parametrize('name', NORMALISERS)
def test_sppo_in_float32(eta, name):
  start = np.float32([0.5, 0.25, 0.25])
  P = games.mixture(0.5, RPS(), games.bradley_terry(np.float32([1.0, 0.0, 2.0])))
  got = dynamics.sppo(P, steps=3, start=start, eta=eta, log_normaliser=name)
  assert (got.shape, got.dtype) == ((4, 3), jnp.float32)
  np.testing.assert_allclose(jnp.exp(got).sum(axis=1), 1.0, rtol=1e-5)


# Bad input --------------------------------------------------------------------


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(start=[0.5, 0.5, 0.0]), '3 positive probabilities'),
    (dict(start=[0.5, 0.25, 0.125]), 'add up to 1, got 0.875'),
    (dict(steps=-1), '`steps`.*-1'),
    (dict(eta=0.0), '`eta`.*0.0'),
    (dict(mixture=1.5), '`mixture`.*1.5'),
    (dict(P=np.eye(3)), r'P\[0,0\]'),
  ],
)
def test_a_game_that_cannot_be_played(change, message):
  settings = dict(P=RPS(), start=[0.2, 0.3, 0.5], steps=1, eta=1.0, mixture=0.5)
  settings |= change
  start = np.asarray(settings.pop('start'))
  with pytest.raises(InputError, match=message):
    dynamics.nash_md(settings.pop('P'), start=start, **settings)


def test_iterative_dpo_without_a_fit(x64):
  unbeaten = np.asarray([[0.5, 1.0, 1.0], [0.0, 0.5, 0.7], [0.0, 0.3, 0.5]])
  start = np.full(3, 1 / 3)
  with pytest.raises(InputError, match='pairs of step 0'):
    dynamics.iterative_dpo(unbeaten, steps=3, start=start, beta=1.0)
