import dataclasses

import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.evaluation import frontier as frontiers

BETAS = np.array([0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 3.0, 30.0])


def optimum(ref, r, beta):
  w = ref * np.exp((r - r.max(-1, keepdims=True)) / beta)
  return w / w.sum(-1, keepdims=True)


def reward_and_kl(policy, ref, r):
  kl = np.sum(policy * np.log(policy / ref), axis=-1)
  return np.sum(policy * r, axis=-1), kl


def log_z(ref, r, beta):
  return np.log(np.sum(ref * np.exp(r / beta), axis=-1))


@pytest.fixture(scope='module')
def world():
  """12 prompts of 50 responses; (ref, policy, rewards), each [12, 50]."""
  rng = np.random.default_rng(0)
  ref = rng.dirichlet(np.ones(50), 12)
  r = rng.uniform(-1, 1, (12, 50))
  policy = optimum(ref, r + 0.3 * rng.normal(size=r.shape), 0.25)
  return ref, policy, r


@pytest.fixture(scope='module')
def exact(world):
  """(ref, r, frontier) without any noise: the samples enumerate the world.

  Every response is listed equally often, as if drawn from the even mixture of
  the reference and of what fills it up to the uniform distribution.
  """
  r, n, copies = world[2], 50, 100
  ref = np.random.default_rng(1).uniform(0.1, 1.0, r.shape)
  ref /= ref.sum(-1, keepdims=True)
  logps = np.log(np.stack([ref, 2 / n - ref], axis=-1))
  return (
    ref,
    r,
    frontiers.frontier(
      np.tile(r, (1, copies)),
      np.tile(logps, (1, copies, 1)),
      np.array([n * copies // 2] * 2),
      BETAS,
    ),
  )


def sampled(world, counts, betas=BETAS, seed=0):
  """The frontier of counts[0] draws of the reference, [1] by the policy.

  Returns (frontier, [p, n] rewards, [p, n, 2] logps).
  """
  rng = np.random.default_rng(seed)
  policies, r = world[:2], world[2]
  drawn = np.concatenate(
    [
      np.stack([rng.choice(row.size, count, p=row) for row in policy])
      for policy, count in zip(policies, counts, strict=True)
    ],
    axis=1,
  )
  logps = np.stack([np.take_along_axis(np.log(x), drawn, 1) for x in policies], axis=-1)
  rewards = np.take_along_axis(r, drawn, 1)
  return (
    frontiers.frontier(rewards, logps, np.array(counts), betas),
    rewards,
    logps,
  )


def test_an_enumerated_world_is_exact(exact):
  ref, r, frontier = exact
  for i, beta in enumerate(BETAS):
    reward, kl = reward_and_kl(optimum(ref, r, beta), ref, r)
    value = beta * log_z(ref, r, beta)
    np.testing.assert_allclose(frontier.reward[i], reward.mean(), rtol=1e-10)
    np.testing.assert_allclose(frontier.kl[i], kl.mean(), rtol=1e-10)
    np.testing.assert_allclose(frontier.value[i], value, rtol=1e-10)
    error = reward.std(ddof=1) / np.sqrt(12)
    np.testing.assert_allclose(frontier.reward_se[i], error, rtol=1e-9)
    error = kl.std(ddof=1) / np.sqrt(12)
    np.testing.assert_allclose(frontier.kl_se[i], error, rtol=1e-9)


def test_samples_estimate_the_world(world):
  # Standard errors from 40 estimates; n = 1000 leaves a bias well below them.
  ref, _, r = world
  runs = [sampled(world, (500, 500), seed=seed)[0] for seed in range(40)]
  for i, beta in enumerate(BETAS):
    reward, kl = reward_and_kl(optimum(ref, r, beta), ref, r)
    for name, true in (('reward', reward.mean()), ('kl', kl.mean())):
      estimates = np.array([getattr(run, name)[i] for run in runs])
      error = estimates.std(ddof=1) / np.sqrt(40)
      assert abs(estimates.mean() - true) < 4 * error + 1e-4
      assert abs(estimates.mean() - true) < 0.01


def test_weights_that_forget_the_mixture_are_wrong(world):
  """As if all samples had come from the policy, or all from the reference."""
  ref, _, r = world
  right, rewards, logps = sampled(world, (2000, 2000))
  true, _ = reward_and_kl(optimum(ref, r, 0.5), ref, r)
  at = int(np.flatnonzero(BETAS == 0.5)[0])
  assert abs(right.reward[at] - true.mean()) < 0.01
  for counts in ((0, 4000), (4000, 0)):
    wrong = frontiers.frontier(rewards, logps, np.array(counts), BETAS)
    assert abs(wrong.reward[at] - true.mean()) > 0.05


def test_two_samples_by_hand():
  # Of both: ref 1/2 and 1/4, policy 1/4 and 3/4, so q = 3/8 and 1/2 and
  # ref / q = 4/3 and 1/2. With r = (log 2, 0) and beta = 1: w = 8/3 and 1/2.
  rewards = np.log([[2.0, 1.0]] * 2)
  logps = np.log([[[1 / 2, 1 / 4], [1 / 4, 3 / 4]]] * 2)
  got = frontiers.frontier(rewards, logps, np.array([1, 1]), np.ones(1))
  w = np.array([8 / 3, 1 / 2])
  np.testing.assert_allclose(got.reward, np.log(2) * w[0] / w.sum())
  np.testing.assert_allclose(got.ess, w.sum() ** 2 / (w @ w))
  np.testing.assert_allclose(got.mean_ess, got.ess)
  # Two points: the regression is their slope. The mean of ref / q is 11 / 12.
  slope = (w[0] - w[1]) / w.mean() / ((4 / 3 - 1 / 2) / (11 / 12))
  value = np.log(w.mean()) - slope * np.log(11 / 12)
  np.testing.assert_allclose(got.value, value, rtol=1e-6)
  np.testing.assert_allclose(got.kl, got.reward - got.value.mean(), rtol=1e-12)


def test_effective_samples_by_hand():
  # One policy: w = exp(r / beta). Equal rewards: all n; one dominant reward: 1.
  rewards = np.array([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
  logps = np.full((2, 4, 1), -3.0)
  got = frontiers.frontier(
    rewards, logps, np.array([4]), np.array([1e-3, 1 / np.log(3), 1e9])
  )
  middle = (3 + 3) ** 2 / (9 + 3)
  np.testing.assert_allclose(got.ess, [1, middle, 4], rtol=1e-6)
  np.testing.assert_allclose(got.mean_ess, [2.5, (4 + middle) / 2, 4])
  assert not got.drawn.any()


def test_drawn_asks_for_100_at_every_prompt(world):
  frontier, *_ = sampled(world, (200, 200))
  np.testing.assert_array_equal(frontier.drawn, frontier.ess >= 100)
  assert frontier.drawn.any()
  assert not frontier.drawn.all()
  assert np.all(frontier.mean_ess >= frontier.ess)


def test_reward_and_kl_fall_as_beta_rises_with_slope_beta(world):
  grid = 0.3 * (1 + 1e-3 * np.arange(-3, 4))
  for betas in (BETAS, grid):
    frontier, *_ = sampled(world, (2000, 0), betas)
    assert np.all(np.diff(frontier.reward) < 0)
    assert np.all(np.diff(frontier.kl) < 0)
  slope = np.diff(frontier.reward) / np.diff(frontier.kl)
  middle = (grid[1:] + grid[:-1]) / 2
  np.testing.assert_allclose(slope, middle, rtol=1e-6)


def test_the_control_variate_holds_large_betas_still(world):
  # As beta grows the frontier ends at the reference: no KL, its mean reward.
  frontier, *_ = sampled(world, (200, 200), np.array([1e4]))
  assert abs(frontier.kl[0]) < 1e-6
  assert abs(frontier.value.mean() - frontier.reward[0]) < 0.02
  plain = 1e4 * np.log(np.mean(np.exp(_log_base(world)), axis=-1))
  assert np.abs(plain).mean() > 10


def _log_base(world):
  _, _, logps = sampled(world, (200, 200))
  return logps[..., 0] - np.logaddexp(*np.moveaxis(logps, -1, 0)) + np.log(2)


def test_policy_and_reference_may_be_one(world):
  # Step 0: ref / q is 1 up to rounding, which must not be regressed on.
  ref, _, r = world
  rng = np.random.default_rng(0)
  drawn = np.stack([rng.choice(50, 400, p=row) for row in ref])
  logp = np.take_along_axis(np.log(ref), drawn, 1)
  rewards = np.take_along_axis(r, drawn, 1)
  noisy = logp + 1e-6 * rng.uniform(0, 1, logp.shape)
  counts = np.array([200, 200])
  clean, rounded = (
    frontiers.frontier(rewards, np.stack([logp, x], -1), counts, BETAS)
    for x in (logp, noisy)
  )
  np.testing.assert_allclose(clean.value, rounded.value, atol=3e-5)
  alone = frontiers.frontier(rewards, logp[..., None], np.array([400]), BETAS)
  np.testing.assert_allclose(clean.value, alone.value, rtol=1e-10)


def test_no_policy_is_above_the_exact_frontier(exact):
  ref, r, frontier = exact
  rng = np.random.default_rng(2)
  for _ in range(50):
    lean = rng.normal(0, 3) * r + rng.normal(0, 1, r.shape)
    reward, kl = reward_and_kl(optimum(ref, lean, 1.0), ref, r)
    assert frontier.excess(kl.mean(), reward.mean()) < 0
    assert not frontiers.judge(frontier, kl, reward).above


def test_the_excess_is_beta_kl_to_the_optimum(exact):
  ref, r, frontier = exact
  policy = optimum(ref, r + 0.2 * np.sin(7 * r), 0.3)
  reward, kl = reward_and_kl(policy, ref, r)
  verdict = frontiers.judge(frontier, kl, reward)
  gaps = [-beta * reward_and_kl(policy, optimum(ref, r, beta), r)[1] for beta in BETAS]
  tightest = int(np.argmax([np.mean(gap) for gap in gaps]))
  gap = gaps[tightest]
  assert verdict.beta == BETAS[tightest]
  assert verdict.excess == pytest.approx(gap.mean(), rel=1e-8)
  assert verdict.standard_error == pytest.approx(gap.std(ddof=1) / np.sqrt(12))
  assert verdict.z == pytest.approx(verdict.excess / verdict.standard_error)
  assert verdict.excess == pytest.approx(
    frontier.excess(kl.mean(), reward.mean()), rel=1e-8
  )


def test_the_optimum_lies_on_the_frontier(exact):
  ref, r, frontier = exact
  for beta in BETAS[1:-1]:
    reward, kl = reward_and_kl(optimum(ref, r, beta), ref, r)
    assert abs(frontier.excess(kl.mean(), reward.mean())) < 1e-10
    verdict = frontiers.judge(frontier, kl, reward)
    assert (verdict.above, verdict.drawn) == (False, True)
    assert verdict.beta == beta
    # A hair more reward than there is, at every prompt, is caught.
    assert frontiers.judge(frontier, kl, reward + 1e-6).above


def test_above_means_by_more_than_three_standard_errors(exact):
  ref, r, frontier = exact
  reward, kl = reward_and_kl(optimum(ref, r, 0.5), ref, r)
  noise = np.where(np.arange(12) % 2, 0.01, -0.01)
  error = noise.std(ddof=1) / np.sqrt(12)
  for z in (-5.0, 2.9, 3.1):
    verdict = frontiers.judge(frontier, kl, reward + noise + z * error)
    assert verdict.z == pytest.approx(z, abs=1e-6)
    assert verdict.standard_error == pytest.approx(error)
    assert verdict.above is (z > 3)
  # With no spread at all, rounding must not pass for a discovery.
  assert not frontiers.judge(frontier, kl, reward + 1e-12).above


def test_reward_at_is_concave_and_touches_the_drawn_points(exact):
  frontier = exact[2]
  drawn = frontier.drawn
  np.testing.assert_allclose(
    frontier.reward_at(frontier.kl[drawn]), frontier.reward[drawn], atol=1e-12
  )
  kl = np.linspace(0, frontier.kl.max(), 200)
  steps = np.diff(frontier.reward_at(kl))
  assert np.all(steps > 0)
  assert np.all(np.diff(steps) < 1e-12)
  assert np.shape(frontier.reward_at(0.5)) == ()


def test_the_verdict_knows_where_the_frontier_is_drawn(world):
  frontier, *_ = sampled(world, (200, 200))
  known = frontier.kl[frontier.drawn]
  for kl, drawn in (
    (known.max() + 0.01, False),
    (known.max() - 0.01, True),
    (known.min() - 0.001, False),
  ):
    verdict = frontiers.judge(frontier, np.full(12, kl), np.zeros(12))
    assert verdict.drawn is drawn
    assert verdict.kl == pytest.approx(kl)


def test_undrawn_betas_do_not_bound(exact):
  frontier = exact[2]
  low = frontier.value.copy()
  low[0] -= 10.0  # as an estimate from one effective sample may be
  ess = frontier.ess.copy()
  ess[0] = 99.0
  assert frontier.drawn.all()
  wrong = dataclasses.replace(frontier, value=low)
  right = dataclasses.replace(wrong, ess=ess)
  assert wrong.reward_at(1.0) < -5 < right.reward_at(1.0)
  verdict = frontiers.judge(right, np.ones(12), np.zeros(12))
  assert verdict.beta > BETAS[0]


def test_a_sampled_policy_is_rarely_judged_above(world):
  """Figures of the policy estimated from the samples that draw the frontier."""
  ref, policy, r = world
  exact_reward, exact_kl = reward_and_kl(policy, ref, r)
  verdicts = []
  for seed in range(40):
    frontier, rewards, logps = sampled(world, (500, 500), seed=seed)
    kl = np.mean((logps[..., 1] - logps[..., 0])[:, 500:], axis=1)
    verdicts.append(frontiers.judge(frontier, kl, rewards[:, 500:].mean(1)))
  assert not any(verdict.above for verdict in verdicts)
  truth = min(
    np.mean(exact_reward - beta * exact_kl - beta * log_z(ref, r, beta))
    for beta in [verdicts[0].beta]
  )
  got = np.array([verdict.excess for verdict in verdicts])
  assert abs(got.mean() - truth) < 4 * got.std() / np.sqrt(40) + 0.002


def test_a_wrong_kl_is_judged_above(world):
  # The mean over tokens in the place of their sum, of responses of ten tokens.
  ref, policy, r = world
  reward, kl = reward_and_kl(policy, ref, r)
  frontier, *_ = sampled(world, (500, 500))
  assert not frontiers.judge(frontier, kl, reward).above
  assert frontiers.judge(frontier, kl / 10, reward).above


def test_the_reference_may_be_any_of_the_policies(world):
  frontier, rewards, logps = sampled(world, (300, 100))
  turned = frontiers.frontier(
    rewards, logps[..., ::-1], np.array([100, 300]), BETAS, reference=1
  )
  for field in dataclasses.fields(frontier):
    np.testing.assert_allclose(
      getattr(turned, field.name), getattr(frontier, field.name), rtol=1e-9
    )


def test_a_policy_may_give_a_sample_no_probability(world):
  _, rewards, logps = sampled(world, (300, 100))
  logps[:, :50, 1] = -np.inf  # the reference drew them
  got = frontiers.frontier(rewards, logps, np.array([300, 100]), BETAS)
  assert np.all(np.isfinite(got.value))


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    ({'counts': np.array([2, 1])}, r'4 samples.*\[2, 1\]'),
    ({'counts': np.array([5, -1])}, '4 samples'),
    ({'betas': np.array([1.0, 0.0])}, 'beta must be positive'),
    ({'betas': np.array([np.inf])}, 'beta must be positive'),
    ({'reference': 2}, '2 policies, got 2'),
    ({'rewards': np.full((3, 4), np.nan)}, 'reward must be finite'),
    ({'logps': np.full((3, 4, 2), np.nan)}, 'NaN'),
    ({'logps': np.full((3, 4, 2), [0.0, -np.inf])}, 'that drew'),
    ({'logps': np.full((3, 4, 2), [-np.inf, 0.0])}, 'reference can write'),
  ],
)
def test_what_cannot_be_estimated_is_refused(change, match):
  arguments = {
    'rewards': np.zeros((3, 4)),
    'logps': np.full((3, 4, 2), -1.0),
    'counts': np.array([0, 4]),
    'betas': np.ones(1),
  }
  frontiers.frontier(**arguments)
  with pytest.raises(InputError, match=match):
    frontiers.frontier(**(arguments | change))


def test_one_prompt_and_no_drawn_beta_are_refused(world):
  one = tuple(x[:1] for x in world)
  with pytest.raises(InputError, match='at least 2 values'):
    sampled(one, (4, 4))
  frontier, *_ = sampled(world, (10, 10))
  with pytest.raises(InputError, match='No beta has 100 effective'):
    frontier.reward_at(1.0)
  with pytest.raises(InputError, match='12 prompts, got 11'):
    frontiers.judge(frontier, np.zeros(11), np.zeros(11))
