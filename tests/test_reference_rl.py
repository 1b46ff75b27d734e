"""The reference of reinforcement learning against numbers worked out by hand."""

from itertools import combinations

import numpy as np
import pytest
import reference as ref
import reference_rl as rl

NAN = np.nan
LOG = np.log
ROOT2 = np.sqrt(2.0)


def outcome_batch(outcomes, length=2, extra=1):
  """One prompt of responses of `length` tokens, the outcome on the last one.

  Column `length` and what follows hold NaN, as does the filling response at the
  end, whose weight is 0.
  """
  k = len(outcomes)
  rewards = np.full((1, k + 1, length + extra), NAN)
  rewards[0, :k, :length] = 0.0
  rewards[0, :k, length - 1] = outcomes
  mask = np.ones(rewards.shape, bool)
  mask[..., length:] = False
  weight = np.ones((1, k + 1))
  weight[0, k] = 0.0
  return rewards, mask, weight, np.full((1, k + 1), length)


def random_batch(seed=0, p=3, k=4, t=5):
  """Prompts of responses of 1 to t tokens, one in six of which does not count."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, t + 1, (p, k))
  real = np.arange(t) < lengths[..., None]
  mask = real & (rng.random((p, k, t)) < 5 / 6)
  mask[..., 0] = True
  last = np.arange(t) == lengths[..., None] - 1
  rewards = np.where(last, rng.normal(size=(p, k, 1)), 0.0)
  logps, old_logps, reference_logps = -rng.exponential(size=(3, p, k, t))
  return {
    'logps': logps,
    'old_logps': logps + 0.3 * (old_logps + 1.0),
    'reference_logps': reference_logps,
    'rewards': rewards,
    'mask': mask,
    'weight': rng.uniform(0.5, 2.0, (p, k)),
    'lengths': lengths,
  }


def first(values):
  """The advantage of each response, read at its first token."""
  return values[0, :, 0]


# Rewards ----------------------------------------------------------------------


def test_outcomes_sum_real_tokens_whether_they_count_or_not():
  rewards = np.array([[[1.0, 2.0, 4.0, NAN], [8.0, NAN, NAN, NAN]]])
  mask = np.array([[[1, 1, 0, 0], [1, 0, 0, 0]]], bool)
  args = rewards, mask, np.ones((1, 2)), np.array([[3, 1]])
  assert rl.outcomes(*args).tolist() == [[7.0, 8.0]]
  assert rl.returns_to_go(*args).tolist() == [[[7, 6, 0, 0], [8, 0, 0, 0]]]


def test_absent_responses():
  """No weight, or no counted token: either one is absent."""
  mask = np.array([[[1, 1], [1, 0], [0, 0]], [[0, 0], [1, 1], [0, 0]]], bool)
  weight = np.array([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
  assert rl.present(mask, weight).tolist() == [[True, False, False], [False] * 3]
  assert list(rl.groups(mask, weight)) == [(0, [0])]
  assert list(rl.tokens(mask, weight)) == [(0, 0, 0), (0, 0, 1)]


def test_kl_in_rewards():
  rewards, mask, weight, _ = outcome_batch([1.0])
  logps = np.array([[[-1.0, -2.0, NAN], [NAN] * 3]])
  reference_logps = np.array([[[-2.0, -1.5, NAN], [NAN] * 3]])
  value = rl.kl_in_rewards(rewards, logps, reference_logps, mask, weight, beta=0.1)
  assert value[0, 0, :2] == pytest.approx([-0.1, 1.05])
  assert np.isnan(value[0, 0, 2]) and np.isnan(value[0, 1]).all()
  assert rewards[0, 0, 1] == 1.0


def test_soft_overlong():
  """Statement 7: continuous, non-increasing, 0 at L_max - L_cache, -1 at L_max."""
  options = {'max_length': 20480, 'cache': 4096}
  assert rl.soft_overlong(0, **options) == 0.0
  assert rl.soft_overlong(16384, **options) == 0.0
  assert rl.soft_overlong(16385, **options) == -1 / 4096
  assert rl.soft_overlong(18432, **options) == -0.5
  assert rl.soft_overlong(20480, **options) == -1.0
  assert rl.soft_overlong(20481, **options) == -1.0
  values = [rl.soft_overlong(n, **options) for n in range(16000, 21000)]
  steps = np.diff(values)
  assert np.all(steps <= 0.0) and np.all(steps >= -1 / 4096)


# Advantages -------------------------------------------------------------------


@pytest.mark.parametrize('right', [1, 2, 4, 7])
def test_binary_rewards(right):
  """Statement 1: sqrt((1 - p) / p) and -sqrt(p / (1 - p)) where ddof is 0."""
  p = right / 8
  batch = outcome_batch([1.0] * right + [0.0] * (8 - right))
  value = first(rl.group_normalised(*batch, ddof=0, eps=0.0))
  assert value[:right] == pytest.approx(np.sqrt((1 - p) / p))
  assert value[right:8] == pytest.approx(-np.sqrt(p / (1 - p)))
  assert value[8] == 0.0


def test_groups_of_two():
  """Statement 1: +-1 where ddof is 0, +-1 / sqrt 2 where it is 1."""
  batch = outcome_batch([3.0, 5.0])
  value = rl.group_normalised(*batch, ddof=0, eps=0.0)
  assert first(value) == pytest.approx([-1.0, 1.0, 0.0])
  value = rl.group_normalised(*batch, ddof=1, eps=0.0)
  assert first(value) == pytest.approx([-1 / ROOT2, 1 / ROOT2, 0.0])
  value = rl.group_normalised(*batch, ddof=0, eps=0.25)
  assert first(value) == pytest.approx([-0.8, 0.8, 0.0])
  assert value[0, 0].tolist() == [value[0, 0, 0]] * 2 + [0.0]


GROUPED = {
  'normalised': lambda *batch: rl.group_normalised(*batch, ddof=1, eps=0.0),
  'centred': rl.group_centred,
  'leave_one_out': rl.leave_one_out,
}


@pytest.mark.parametrize('name', GROUPED)
def test_group_advantages_sum_to_zero_and_scale(name):
  """Statement 1: a R + b changes nothing for GRPO, and scales the others by a."""
  rewards, *rest = outcome_batch([1.0, -2.0, 0.5, 4.0])
  value = first(GROUPED[name](rewards, *rest))
  assert sum(value) == pytest.approx(0.0, abs=1e-12)
  shifted = np.array(rewards)
  shifted[0, :4, 1] = 3.0 * rewards[0, :4, 1] + 7.0
  scale = 1.0 if name == 'normalised' else 3.0
  assert first(GROUPED[name](shifted, *rest)) == pytest.approx(scale * value)


@pytest.mark.parametrize('size', [2, 3, 4, 16])
def test_leave_one_out_is_a_multiple_of_centred(size):
  """Statement 2: RLOO = G / (G - 1) Dr. GRPO."""
  outcomes = np.random.default_rng(size).normal(size=size)
  batch = outcome_batch(outcomes)
  expected = size / (size - 1) * rl.group_centred(*batch)
  assert rl.leave_one_out(*batch) == pytest.approx(expected, abs=1e-12)


def test_centred_and_leave_one_out_by_hand():
  batch = outcome_batch([1.0, 2.0, 6.0])
  assert first(rl.group_centred(*batch)) == pytest.approx([-2, -1, 3, 0])
  assert first(rl.leave_one_out(*batch)) == pytest.approx([-3, -1.5, 4.5, 0])


@pytest.mark.parametrize('name', GROUPED)
@pytest.mark.parametrize('outcomes', [[0.7], [0.1, 0.1, 0.1]])
def test_groups_without_variance_have_no_advantage(name, outcomes):
  """A group of one too: its std with ddof 1 is taken as 0, and 0 / eps is 0."""
  batch = outcome_batch(outcomes)
  assert np.all(np.abs(GROUPED[name](*batch)) < 1e-15)
  assert np.all(rl.group_normalised(*batch, ddof=1, eps=0.0) == 0.0)


@pytest.mark.parametrize('name', GROUPED)
def test_prompts_do_not_see_each_other(name):
  one, two = outcome_batch([1.0, 0.0]), outcome_batch([5.0, -4.0])
  both = [np.concatenate(pair) for pair in zip(one, two, strict=True)]
  value = GROUPED[name](*both)
  assert np.array_equal(value[:1], GROUPED[name](*one))
  assert np.array_equal(value[1:], GROUPED[name](*two))


@pytest.mark.parametrize('name', GROUPED)
def test_a_response_without_counted_tokens_is_no_member(name):
  rewards, mask, weight, lengths = outcome_batch([1.0, 0.0, 9.0])
  mask[0, 2] = False
  value = first(GROUPED[name](rewards, mask, weight, lengths))
  pair = first(GROUPED[name](*outcome_batch([1.0, 0.0])))
  assert value == pytest.approx([pair[0], pair[1], 0.0, 0.0])


@pytest.mark.parametrize('name', GROUPED)
def test_weights_do_not_enter_a_group_mean(name):
  rewards, mask, weight, lengths = outcome_batch([1.0, 0.0, 9.0])
  heavy = weight * np.array([[5.0, 1.0, 0.25, 1.0]])
  value = GROUPED[name](rewards, mask, heavy, lengths)
  assert np.array_equal(value, GROUPED[name](rewards, mask, weight, lengths))


def test_mixed_groups_are_those_with_an_advantage():
  """Statement 5: what dynamic sampling keeps has a std that is not 0."""
  cases = [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
  batches = zip(*map(outcome_batch, cases), strict=True)
  batch = [np.concatenate(parts) for parts in batches]
  kept = rl.mixed(*batch)
  assert kept.tolist() == [False, False, True, True]
  value = rl.group_normalised(*batch, ddof=1, eps=1e-6)
  assert np.all(value[~kept] == 0.0)
  assert np.all(value[kept][:, :2, :2] != 0.0)


def test_whiten():
  mask = np.array([[[1, 1], [1, 0]], [[1, 1], [0, 0]]], bool)
  weight = np.array([[1.0, 7.0], [0.0, 1.0]])
  advantages = np.array([[[1.0, 2.0], [6.0, NAN]], [[NAN, NAN], [NAN, NAN]]])
  value = rl.whiten(advantages, mask, weight, eps=0.0)
  std = np.sqrt((4 + 1 + 9) / 3)
  assert value.ravel()[:4] == pytest.approx(np.array([-2, -1, 3, 0]) / std)
  assert np.all(value[1] == 0.0)
  value = rl.whiten(advantages, mask, weight, eps=0.5, ddof=1)
  assert value[0, 0, 0] == pytest.approx(-2 / (np.sqrt(7) + 0.5))
  assert np.all(rl.whiten(advantages, mask, 0 * weight, eps=0.0) == 0.0)


def test_batch_normalised_by_hand():
  """Returns 1, 1 (two tokens) and 0 (one token): mean 2/3, std sqrt(2)/3."""
  rewards = np.array([[[0.0, 1.0], [0.0, NAN]]])
  mask = np.array([[[1, 1], [1, 0]]], bool)
  batch = rewards, mask, np.ones((1, 2)), np.array([[2, 1]])
  value = rl.batch_normalised(*batch, ddof=0, eps=0.0, centre_group=False)
  assert value == pytest.approx(np.array([[[1, 1], [-2, 0]]]) / ROOT2)
  # One prompt: the group's mean is a shift, and whitening removes shifts.
  centred = rl.batch_normalised(*batch, ddof=0, eps=0.0, centre_group=True)
  assert centred == pytest.approx(value)


def test_batch_normalised_uses_returns_to_go():
  """Rewards -1, 0, 4: returns 3, 4, 4 with mean 11/3 and std sqrt(2)/3."""
  batch = np.array([[[-1.0, 0.0, 4.0]]]), np.ones((1, 1, 3), bool)
  rest = np.ones((1, 1)), np.array([[3]])
  value = rl.batch_normalised(*batch, *rest, ddof=0, eps=0.0, centre_group=False)
  assert value.ravel() == pytest.approx(np.array([-2, 1, 1]) / ROOT2)


def test_batch_normalised_baseline():
  """Groups (0, 2) and (10, 14) centred: -1, 1, -2, 2, over one-token responses."""
  rewards = np.array([[0.0, 2.0], [10.0, 14.0]])[..., None]
  batch = rewards, np.ones((2, 2, 1), bool), np.ones((2, 2)), np.ones((2, 2), int)
  value = rl.batch_normalised(*batch, ddof=0, eps=0.0, centre_group=True)
  assert value.ravel() == pytest.approx(np.array([-1, 1, -2, 2]) / np.sqrt(2.5))
  value = rl.batch_normalised(*batch, ddof=1, eps=0.0, centre_group=False)
  std = np.sqrt((6.5**2 + 4.5**2 + 3.5**2 + 7.5**2) / 3)
  assert value.ravel() == pytest.approx(np.array([-6.5, -4.5, 3.5, 7.5]) / std)


def test_process_by_hand():
  """Steps 1, 3 of one response and 5 of the other: mean 3, std sqrt(8/3)."""
  step_end = np.array([[[0, 1, 0, 1], [0, 1, 0, 0]]], bool)
  rewards = np.array([[[NAN, 1.0, NAN, 3.0], [NAN, 5.0, NAN, NAN]]])
  mask = np.array([[[1, 1, 1, 1], [1, 1, 0, 0]]], bool)
  weight = np.ones((1, 2))
  value = rl.process(rewards, step_end, mask, weight, ddof=0, eps=0.0)
  unit = 2 / np.sqrt(8 / 3)
  expected = np.array([[[-1, -1, 0, 0], [1, 1, 0, 0]]]) * unit
  assert value == pytest.approx(expected, abs=1e-12)
  rewards[0, 0, 3] = 6.0  # now mean 4, deviations -3, 2, 1
  value = rl.process(rewards, step_end, mask, weight, ddof=1, eps=0.0)
  expected = np.array([[[-1, -1, 2, 2], [1, 1, 0, 0]]]) / np.sqrt(7)
  assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(('ddof', 'eps'), [(0, 0.0), (1, 1e-6)])
def test_one_step_of_process_is_the_outcome(ddof, eps):
  """Statement 9: one step a response, ending at its last token."""
  batch = random_batch(1)
  rewards, mask, weight = batch['rewards'], batch['mask'], batch['weight']
  last = np.arange(mask.shape[-1]) == batch['lengths'][..., None] - 1
  value = rl.process(rewards, last, mask, weight, ddof=ddof, eps=eps)
  outcome = rl.group_normalised(
    rewards, mask, weight, batch['lengths'], ddof=ddof, eps=eps
  )
  assert value == pytest.approx(outcome, abs=1e-12)


def test_process_without_steps():
  mask = np.ones((1, 2, 3), bool)
  batch = np.full((1, 2, 3), NAN), np.zeros((1, 2, 3), bool), mask, np.ones((1, 2))
  assert np.all(rl.process(*batch, ddof=1, eps=0.0) == 0.0)


def critic_batch(truncated):
  rewards = np.array([[[1.0, 0.0, 2.0, NAN]]])
  values = np.array([[[0.5, 1.0, 1.5, 4.0, NAN]]])
  mask = np.array([[[1, 1, 1, 0]]], bool)
  return rewards, values, mask, np.array([[3]]), np.array([[truncated]])


def test_gae_by_hand():
  """Gamma 1/2: deltas 1, -1/4, 1/2 where it ended; the last is 5/2 if cut."""
  advantages, returns = rl.gae(*critic_batch(False), gamma=0.5, lam=0.5)
  # -1/4 + 1/4 * 1/2 = -1/8, then 1 - 1/32.
  assert advantages.ravel() == pytest.approx([1 - 1 / 32, -1 / 8, 1 / 2, 0])
  assert returns.ravel() == pytest.approx([1.5 - 1 / 32, 7 / 8, 2, 0])
  advantages, _ = rl.gae(*critic_batch(True), gamma=0.5, lam=0.5)
  # -1/4 + 1/4 * 5/2 = 3/8, then 1 + 3/32.
  assert advantages.ravel() == pytest.approx([1 + 3 / 32, 3 / 8, 5 / 2, 0])


def test_gae_ends():
  """Lambda 1 gives discounted returns, lambda 0 one-step targets."""
  _, returns = rl.gae(*critic_batch(False), gamma=0.5, lam=1.0)
  assert returns.ravel() == pytest.approx([1.5, 1, 2, 0])
  _, returns = rl.gae(*critic_batch(True), gamma=0.5, lam=1.0)
  assert returns.ravel() == pytest.approx([2, 2, 4, 0])
  _, returns = rl.gae(*critic_batch(False), gamma=0.5, lam=0.0)
  assert returns.ravel() == pytest.approx([1.5, 0.75, 2, 0])


def test_gae_runs_through_tokens_that_do_not_count():
  rewards, values, mask, *rest = critic_batch(False)
  whole, _ = rl.gae(rewards, values, mask, *rest, gamma=0.5, lam=0.5)
  mask[0, 0, 1] = False
  advantages, returns = rl.gae(rewards, values, mask, *rest, gamma=0.5, lam=0.5)
  assert advantages.ravel() == pytest.approx(whole.ravel() * [1, 0, 1, 1])
  assert returns[0, 0, 1] == 0.0


# Ratios and surrogates --------------------------------------------------------


def test_log_ratios():
  logps = np.array([[[-1.0, -2.0, NAN], [-3.0, np.inf, np.inf]]])
  old_logps = np.array([[[-2.0, -1.5, NAN], [-3.5, np.inf, np.inf]]])
  mask = np.array([[[1, 1, 0], [1, 0, 0]]], bool)
  batch = logps, old_logps, mask, np.ones((1, 2))
  assert rl.token_log_ratios(*batch).tolist() == [[[1, -0.5, 0], [0.5, 0, 0]]]
  expected = [[[0.25, 0.25, 0], [0.5, 0, 0]]]
  assert rl.sequence_log_ratios(*batch).tolist() == expected


@pytest.mark.parametrize(
  ('rho', 'advantage', 'expected'),
  [
    (1.0, 2.0, -2.0),
    (1.25, 2.0, -2.5),
    (1.5, 2.0, -2.56),
    (0.5, 2.0, -1.0),
    (1.5, -2.0, 3.0),
    (0.9, -2.0, 1.8),
    (0.5, -2.0, 1.6),
    (5.0, -2.0, 10.0),
  ],
)
def test_clipped(rho, advantage, expected):
  """With bounds 0.2 and 0.28."""
  options = {'low': 0.2, 'high': 0.28}
  assert rl.clipped(LOG(rho), advantage, **options) == pytest.approx(expected)
  capped = 6.0 if rho == 5.0 else expected
  value = rl.dual_clipped(LOG(rho), advantage, **options, cap=3.0)
  assert value == pytest.approx(capped)


def slope(term, at):
  return float(ref.central_difference(lambda x: term(float(x)), at, h=1e-6))


@pytest.mark.parametrize('rho', [0.3, 0.79, 0.81, 1.0, 1.19, 1.21, 1.27, 1.29, 4.0])
@pytest.mark.parametrize('advantage', [1.5, -1.5])
def test_asymmetric_clip(rho, advantage):
  """Statement 8: no gradient iff rho > 1 + high, or rho < 1 - low where A < 0."""
  value = slope(lambda x: rl.clipped(x, advantage, low=0.2, high=0.28), LOG(rho))
  cut = rho > 1.28 if advantage > 0 else rho < 0.8
  assert value == pytest.approx(0.0 if cut else -rho * advantage, abs=1e-8)


def test_clip_bounds_probabilities():
  """At eps 0.2 a token of 0.01 rises to 0.012 at most, one of 0.9 to 1.08."""
  for old, top in [(0.01, 0.012), (0.9, 1.08)]:
    best = -rl.clipped(LOG(5.0), 1.0, low=0.2, high=0.2) * old
    assert best == pytest.approx(top)


@pytest.mark.parametrize('advantage', [2.0, -2.0])
def test_dual_clip_ends_the_gradient_above_the_cap(advantage):
  options = {'low': 0.2, 'high': 0.2, 'cap': 3.0}
  for rho in (1.5, 2.9, 3.1, 10.0):
    value = slope(lambda x: rl.dual_clipped(x, advantage, **options), LOG(rho))
    alive = advantage < 0 and rho < 3.0
    assert value == pytest.approx(-rho * advantage if alive else 0.0, abs=1e-7)


@pytest.mark.parametrize('advantage', [2.0, -2.0])
def test_all_surrogates_agree_on_policy(advantage):
  """Statement 4: at rho = 1 the gradient of the objective is A grad log pi."""
  old = -1.3
  terms = {
    'plain': lambda x: rl.plain(x - old, advantage),
    'clipped': lambda x: rl.clipped(x - old, advantage, low=0.2, high=0.28),
    'dual': lambda x: rl.dual_clipped(x - old, advantage, low=0.2, high=0.2, cap=3.0),
    'cispo': lambda x: rl.cispo_term(0.0, advantage, x, high=0.28),
    'reinforce': lambda x: rl.reinforce(advantage, x),
  }
  for name, term in terms.items():
    assert slope(term, old) == pytest.approx(-advantage, abs=1e-8), name
  assert rl.cispo_slope(0.0, advantage, high=0.28) == -advantage


@pytest.mark.parametrize('rho', [0.1, 1.0, 1.2, 5.0])
def test_cispo_always_has_a_gradient(rho):
  value = rl.cispo_term(LOG(rho), 2.0, -3.0, high=0.28)
  assert value == pytest.approx(6.0 * min(rho, 1.28))
  found = slope(lambda x: rl.cispo_term(LOG(rho), 2.0, x, high=0.28), -3.0)
  assert found == pytest.approx(-2.0 * min(rho, 1.28))
  assert found == pytest.approx(rl.cispo_slope(LOG(rho), 2.0, high=0.28))


# KL ---------------------------------------------------------------------------


def test_kl_estimates_by_hand():
  assert [k(0.0) for k in (rl.k1, rl.k2, rl.k3)] == [0.0, 0.0, 0.0]
  assert rl.k1(-0.5) == -0.5
  assert rl.k2(-0.5) == 0.125
  assert rl.k3(LOG(2.0)) == pytest.approx(LOG(2.0) - 0.5)
  assert rl.k3(-LOG(2.0)) == pytest.approx(1.0 - LOG(2.0))


def test_k3_is_zero_only_where_equal():
  """Statement 3."""
  for d in np.linspace(-3.0, 3.0, 61):
    assert rl.k3(d) >= 0.0
    assert (rl.k3(d) < 1e-12) == (abs(d) < 1e-6)


def vocabulary():
  """The logits of a policy and of its reference over six tokens."""
  return np.random.default_rng(0).normal(size=(2, 6))


@pytest.mark.parametrize('name', ['k1', 'k3'])
def test_kl_estimates_are_unbiased(name):
  """Statement 3: enumerated over the vocabulary, the mean is KL(pi || ref)."""
  logits, other = vocabulary()
  d = ref.log_softmax(logits) - ref.log_softmax(other)
  mean = sum(np.exp(ref.log_softmax(logits)) * getattr(rl, name)(d))
  assert mean == pytest.approx(ref.kl(logits, other), rel=1e-12)


def estimate_gradient(estimate):
  """The gradient of the mean estimate of tokens that the policy drew already."""
  logits, other = vocabulary()
  drawn = np.exp(ref.log_softmax(logits))

  def loss(z):
    return np.sum(drawn * estimate(ref.log_softmax(z) - ref.log_softmax(other)))

  return ref.central_difference(loss, logits)


def test_gradients_of_the_estimates_as_losses():
  """Statement 3: k3 follows KL(ref || pi), k2 KL(pi || ref), k1 nothing."""
  logits, other = vocabulary()
  forward = ref.central_difference(lambda z: ref.kl(other, z), logits)
  reverse = ref.central_difference(lambda z: ref.kl(z, other), logits)
  assert estimate_gradient(rl.k3) == pytest.approx(forward, abs=1e-9)
  assert estimate_gradient(rl.k2) == pytest.approx(reverse, abs=1e-9)
  assert estimate_gradient(rl.k1) == pytest.approx(np.zeros(6), abs=1e-9)
  assert np.max(np.abs(forward - reverse)) > 0.05


# Aggregation ------------------------------------------------------------------


def long_and_short():
  """Prompt 0: lengths 100 and 10; prompt 1: length 5, and one without a token."""
  lengths = np.array([[100, 10], [5, 0]])
  mask = np.arange(100) < lengths[..., None]
  values = np.where(mask, np.array([[1.0, 2.0], [3.0, NAN]])[..., None], NAN)
  return values, mask


AGGREGATIONS = {
  'token_mean': rl.token_mean,
  'mean_of_sequence_means': rl.mean_of_sequence_means,
  'group_token_mean': rl.group_token_mean,
  'sum_over_length': lambda *args: rl.sum_over_length(*args, length=128),
}


def test_aggregations_of_one_prompt_by_hand():
  values, mask = (x[:1] for x in long_and_short())
  weight = np.ones((1, 2))
  result = {name: f(values, mask, weight) for name, f in AGGREGATIONS.items()}
  assert result == {
    'token_mean': pytest.approx(120 / 110),
    'mean_of_sequence_means': pytest.approx(3 / 2),
    'group_token_mean': pytest.approx(120 / 110),
    'sum_over_length': pytest.approx(120 / 128 / 2),
  }


def test_aggregations_by_hand():
  values, mask = long_and_short()
  weight = np.ones((2, 2))
  result = {name: f(values, mask, weight) for name, f in AGGREGATIONS.items()}
  assert result == {
    'token_mean': pytest.approx(135 / 115),
    'mean_of_sequence_means': pytest.approx(6 / 3),
    'group_token_mean': pytest.approx((120 / 110 + 3) / 2),
    'sum_over_length': pytest.approx(135 / 128 / 3),
  }


def test_weighted_aggregations_by_hand():
  """Weights 2, 1 and 4; the response without a token has a weight, and no share."""
  values, mask = long_and_short()
  weight = np.array([[2.0, 1.0], [4.0, 8.0]])
  result = {name: f(values, mask, weight) for name, f in AGGREGATIONS.items()}
  assert result == {
    'token_mean': pytest.approx((200 + 20 + 60) / (200 + 10 + 20)),
    'mean_of_sequence_means': pytest.approx((2 + 2 + 12) / 7),
    'group_token_mean': pytest.approx((220 / 210 + 3) / 2),
    'sum_over_length': pytest.approx((200 + 20 + 60) / 128 / 7),
  }


@pytest.mark.parametrize('name', AGGREGATIONS)
def test_aggregations_without_weight(name):
  values, mask = long_and_short()
  aggregate = AGGREGATIONS[name]
  assert aggregate(values, mask, np.zeros((2, 2))) == 0.0
  assert aggregate(values, 0 * mask, np.ones((2, 2))) == 0.0
  only = np.array([[0.0, 0.5], [0.0, 1.0]])
  expected = 20 / 128 if name == 'sum_over_length' else 2.0
  assert aggregate(values, mask, only) == pytest.approx(expected)


@pytest.mark.parametrize('name', AGGREGATIONS)
def test_only_the_proportions_of_the_weights_matter(name):
  batch = random_batch(2)
  args = batch['logps'], batch['mask'], batch['weight']
  value = AGGREGATIONS[name](*args)
  assert AGGREGATIONS[name](*args[:2], 3 * args[2]) == pytest.approx(value)


@pytest.mark.parametrize('name', AGGREGATIONS)
def test_token_weights(name):
  """A token's m w over the denominator; 2 prompts and 7 responses are left."""
  batch = random_batch(3)
  mask, w = batch['mask'], batch['weight']
  w[1] = 0.0
  w[0, 2] = 0.0
  found = ref.central_difference(
    lambda x: AGGREGATIONS[name](x, mask, w), np.zeros(mask.shape)
  )
  length = mask.sum(axis=-1)
  share = {
    'token_mean': w / (w * length).sum(),
    'mean_of_sequence_means': w / length / w.sum(),
    'group_token_mean': w / np.maximum((w * length).sum(1, keepdims=True), 1e-9) / 2,
    'sum_over_length': w / 128 / w.sum(),
  }[name]
  assert found == pytest.approx(share[..., None] * mask, abs=1e-9)


def test_token_mean_is_the_mean_of_means_of_equal_lengths():
  """Statement 6, and a response's weight in a token mean is its length."""
  rng = np.random.default_rng(4)
  mask, weight = np.ones((2, 3, 5), bool), rng.uniform(0.5, 2.0, (2, 3))
  values = rng.normal(size=mask.shape)
  token = rl.token_mean(values, mask, weight)
  assert token == pytest.approx(rl.mean_of_sequence_means(values, mask, weight))
  values, mask = long_and_short()
  lengths = mask.sum(axis=-1).astype(float)
  by_length = rl.mean_of_sequence_means(values, mask, lengths)
  ones = np.ones((2, 2))
  assert rl.token_mean(values, mask, ones) == pytest.approx(by_length)
  assert rl.mean_of_sequence_means(values, mask, ones) != pytest.approx(by_length)


# Objectives -------------------------------------------------------------------


def small_batch():
  """Two responses: ratios 1.5 and 1 with outcome 1, ratio 0.5 with outcome 0.

  Their logps are -1 and -2, and -4; those of the reference differ by log 2 at the
  first token of each. What does not count holds NaN.
  """
  logps = np.array([[[-1.0, -2.0], [-4.0, NAN]]])
  ratios = np.array([[[LOG(1.5), 0.0], [LOG(0.5), NAN]]])
  return {
    'logps': logps,
    'old_logps': logps - ratios,
    'reference_logps': logps - np.array([[[LOG(2.0), 0.0], [-LOG(2.0), NAN]]]),
    'rewards': np.array([[[0.0, 1.0], [0.0, NAN]]]),
    'mask': np.array([[[1, 1], [1, 0]]], bool),
    'weight': np.ones((1, 2)),
    'lengths': np.array([[2, 1]]),
  }


NORMAL = {'ddof': 0, 'eps': 0.0}
BOUNDS = {'low': 0.2, 'high': 0.28}
OBJECTIVES = {
  'grpo': (rl.grpo, {**NORMAL, 'clip': 0.2, 'beta': 0.1}),
  'dr_grpo': (rl.dr_grpo, {'clip': 0.2, 'length': 8}),
  'dapo': (rl.dapo, {**NORMAL, **BOUNDS}),
  'dapo_code': (rl.dapo, {**NORMAL, **BOUNDS, 'aggregate': rl.token_mean}),
  'gspo': (rl.gspo, {**NORMAL, **BOUNDS}),
  'cispo': (rl.cispo, {**NORMAL, 'high': 0.28}),
  'rloo': (rl.rloo, {}),
  'reinforce_pp': (rl.reinforce_pp, {**NORMAL, **BOUNDS, 'centre_group': False}),
  'reinforce_pp_baseline': (
    rl.reinforce_pp,
    {**NORMAL, **BOUNDS, 'centre_group': True},
  ),
}


def evaluate(name, batch, **more):
  loss, options = OBJECTIVES[name]
  unused = set() if name == 'grpo' else {'reference_logps'}
  if name == 'rloo':
    unused |= {'old_logps'}
  kept = {key: value for key, value in batch.items() if key not in unused}
  return loss(**kept, **options, **more)


BY_HAND = {
  # Advantages 1 and -1. KL: log 2 - 1/2 and 0, and 1 - log 2.
  'grpo': ((-1.2 - 1.0) / 2 + 0.8) / 2
  + 0.1 * ((LOG(2.0) - 0.5) / 2 + 1.0 - LOG(2.0)) / 2,
  'dr_grpo': 0.5 * (-1.2 - 1.0 + 0.8) / 8 / 2,
  'dapo': (-1.28 - 1.0 + 0.8) / 3,
  'dapo_code': (-1.28 - 1.0 + 0.8) / 3,
  'gspo': (-np.sqrt(1.5) + 0.8) / 2,
  'cispo': (1.28 * 1.0 + 1.0 * 2.0 - 0.5 * 4.0) / 3,
  'rloo': (3.0 - 4.0) / 2,
  'reinforce_pp': (-1.28 - 1.0 + 0.8 * 2.0) / ROOT2 / 3,
  'reinforce_pp_baseline': (-1.28 - 1.0 + 0.8 * 2.0) / ROOT2 / 3,
}


@pytest.mark.parametrize('name', OBJECTIVES)
def test_objective_is_the_number_by_hand(name):
  assert evaluate(name, small_batch()) == pytest.approx(BY_HAND[name])


def test_gspo_clips_the_whole_response():
  batch = small_batch()
  batch['old_logps'] = batch['logps'] - LOG(1.5)
  # Both ratios are 1.5: cut at 1.28 where A = 1, kept where A = -1.
  assert evaluate('gspo', batch) == pytest.approx((-1.28 + 1.5) / 2)


def with_filling(batch):
  """The batch, a filling response a prompt, and a filling prompt, all garbage."""
  filled = {}
  for name, value in batch.items():
    fill = {'mask': True, 'weight': 0, 'lengths': value.shape[-1]}.get(name, NAN)
    pad = [(0, 1), (0, 1)] + [(0, 0)] * (value.ndim - 2)
    filled[name] = np.pad(value, pad, constant_values=fill)
  return filled


@pytest.mark.parametrize('name', OBJECTIVES)
def test_filling_changes_nothing(name):
  batch = random_batch(5)
  value = evaluate(name, batch)
  assert evaluate(name, with_filling(batch)) == pytest.approx(value, rel=1e-14)
  dirty = dict(batch)
  for key in ('logps', 'old_logps', 'reference_logps'):
    dirty[key] = np.where(batch['mask'], batch[key], np.inf)
  assert evaluate(name, dirty) == value
  empty = {**batch, 'weight': np.zeros_like(batch['weight'])}
  assert evaluate(name, empty) == 0.0


def gradient(name, batch):
  """With respect to the logps; CISPO's factor is held."""
  held = {'factor_logps': batch['logps']} if name == 'cispo' else {}
  return ref.central_difference(
    lambda x: evaluate(name, {**batch, 'logps': x}, **held), batch['logps']
  )


@pytest.mark.parametrize('name', OBJECTIVES)
def test_gradients_stay_in_the_mask(name):
  batch = random_batch(6)
  found = gradient(name, batch)
  assert np.all(found[~batch['mask']] == 0.0)
  assert np.any(found != 0.0)


def test_cispo_gradient():
  batch = random_batch(7)
  arrays = {key: value for key, value in batch.items() if key != 'reference_logps'}
  expected = rl.cispo_gradient(**arrays, **OBJECTIVES['cispo'][1])
  assert gradient('cispo', batch) == pytest.approx(expected, abs=1e-9)
  free = ref.central_difference(
    lambda x: evaluate('cispo', {**batch, 'logps': x}), batch['logps']
  )
  assert free != pytest.approx(expected, abs=1e-3)


def on_policy(batch):
  return {**batch, 'old_logps': batch['logps']}


def test_on_policy_gradients():
  """Statement 4: -A / T_i / N a token for GRPO and for GSPO, whatever the clip."""
  batch = on_policy(random_batch(8))
  batch['weight'] = np.ones_like(batch['weight'])
  mask = batch['mask']
  arrays = batch['rewards'], mask, batch['weight'], batch['lengths']
  advantages = rl.group_normalised(*arrays, **NORMAL)
  expected = -advantages / mask.sum(axis=-1, keepdims=True) / batch['weight'].size
  free = {**batch, **NORMAL, 'clip': 0.2, 'beta': 0.0}
  found = ref.central_difference(
    lambda x: rl.grpo(**{**free, 'logps': x}), batch['logps']
  )
  assert found == pytest.approx(expected, abs=1e-9)
  # Within a response GSPO gives each token the mean of A, which is constant.
  assert gradient('gspo', batch) == pytest.approx(expected, abs=1e-9)
  tokens = -advantages / mask.sum(axis=(1, 2), keepdims=True) / len(mask)
  assert gradient('dapo', batch) == pytest.approx(tokens, abs=1e-9)
  assert gradient('cispo', batch) == pytest.approx(tokens, abs=1e-9)


def test_responses_of_one_token():
  """Statement 4: there CISPO, GRPO (no KL) and GSPO are the same on policy.

  Off policy GSPO still is DAPO; CISPO differs where the others are clipped.
  """
  batch = random_batch(9, t=1)
  batch['weight'] = np.ones_like(batch['weight'])
  policy = on_policy(batch)
  same = gradient('dapo', policy)
  for name in ('dapo_code', 'gspo', 'cispo'):
    assert gradient(name, policy) == pytest.approx(same, abs=1e-9)
  same = gradient('dapo', batch)
  assert gradient('gspo', batch) == pytest.approx(same, abs=1e-9)
  assert np.any(same == 0.0)
  assert np.all(gradient('cispo', batch) != 0.0)


def test_grpo_coefficient_with_kl():
  """GRPO, Eq. 21: on policy, A + beta (pi_ref / pi - 1) times grad log pi."""
  batch = on_policy(random_batch(10))
  batch['weight'] = np.ones_like(batch['weight'])
  mask = batch['mask']
  arrays = batch['rewards'], mask, batch['weight'], batch['lengths']
  ratio = np.exp(batch['reference_logps'] - batch['logps'])
  coefficient = rl.group_normalised(*arrays, **NORMAL) + 0.1 * (ratio - 1.0)
  share = mask / mask.sum(axis=-1, keepdims=True) / batch['weight'].size
  found = gradient('grpo', batch)
  assert found == pytest.approx(-coefficient * share, abs=1e-8)


def test_groups_without_variance_keep_their_kl():
  """Statement 5: no gradient of the policy loss, beta (1 - pi_ref / pi) of the KL.

  Prompts whose outcomes differ still have one under REINFORCE++.
  """
  batch = random_batch(11)
  last = np.arange(5) == batch['lengths'][..., None] - 1
  batch['rewards'] = np.where(last, np.arange(3.0)[:, None, None], 0.0)
  for name in OBJECTIVES:
    still = name in ('grpo', 'reinforce_pp')
    assert np.any(gradient(name, batch) != 0.0) == still, name
  free = {**batch, **NORMAL, 'clip': 0.2, 'beta': 0.0}
  assert rl.grpo(**free) == 0.0
  mask, weight = batch['mask'], batch['weight']
  ratio = np.exp(batch['reference_logps'] - batch['logps'])
  share = weight / mask.sum(axis=-1) / weight.sum()
  expected = 0.1 * (1.0 - ratio) * share[..., None] * mask
  assert gradient('grpo', batch) == pytest.approx(expected, abs=1e-8)


def test_rloo_gradient():
  """-(1 / k) A of every token of response i; lengths divide nothing."""
  batch = random_batch(12)
  batch['weight'] = np.ones_like(batch['weight'])
  arrays = batch['rewards'], batch['mask'], batch['weight'], batch['lengths']
  expected = -rl.leave_one_out(*arrays) / batch['weight'].size
  assert gradient('rloo', batch) == pytest.approx(expected, abs=1e-9)


def test_prompts_of_dapo_share_equally():
  """The printed formula is a mean of prompts, the code one of tokens."""
  batch = random_batch(13, p=2)
  values = []
  for i in range(2):
    alone = {key: value[i : i + 1] for key, value in batch.items()}
    values.append(evaluate('dapo', alone))
  assert evaluate('dapo', batch) == pytest.approx(sum(values) / 2)
  assert evaluate('dapo_code', batch) != pytest.approx(sum(values) / 2)


def test_ppo():
  batch = small_batch()
  advantages = np.array([[[2.0, -1.0], [-3.0, NAN]]])
  arrays = (
    batch['logps'],
    batch['old_logps'],
    advantages,
    batch['mask'],
    np.array([[2.0, 1.0]]),
  )
  value = rl.ppo(*arrays, low=0.2, high=0.2)
  assert value == pytest.approx((2 * (-2.4 + 1.0) + 2.4) / 5)
  arrays = arrays[0], arrays[0] - LOG(4.0), *arrays[2:]
  value = rl.ppo(*arrays, low=0.2, high=0.2)
  assert value == pytest.approx((2 * (-2.4 + 4.0) + 12.0) / 5)
  value = rl.ppo(*arrays, low=0.2, high=0.2, cap=3.0)
  assert value == pytest.approx((2 * (-2.4 + 3.0) + 9.0) / 5)


def test_ppo_value():
  """V - R is 1, 1/2 and 1/2; of V kept near the old one it is 3/2, 1/2 and 2."""
  mask = np.array([[[1, 1], [1, 0]]], bool)
  values = np.array([[[1.0, 2.0, NAN], [3.0, NAN, NAN]]])
  old_values = np.array([[[0.0, 2.25, NAN], [5.0, NAN, NAN]]])
  returns = np.array([[[2.0, 1.5], [2.5, NAN]]])
  batch = values, old_values, returns, mask, np.array([[1.0, 2.0]])
  value = rl.ppo_value(*batch, clip=0.5)
  assert value == pytest.approx(0.5 * (1.5**2 + 0.5**2 + 2 * 2.0**2) / 4)
  unclipped = rl.ppo_value(*batch, clip=np.inf)
  assert unclipped == pytest.approx(0.5 * (1 + 0.25 + 2 * 0.25) / 4)


def test_ppo_value_gradient_ends_where_the_clipped_error_is_larger():
  one = np.ones((1, 1))
  mask = np.ones((1, 1, 1), bool)

  def loss(x, target):
    values = np.array([[[float(x), 0.0]]])
    old_values = np.zeros((1, 1, 2))
    returns = np.array([[[target]]])
    return rl.ppo_value(values, old_values, returns, mask, one, clip=0.5)

  for x, target, expected in [(0.2, 1, -0.8), (0.8, 1, 0.0), (0.8, -1, 1.8)]:
    found = ref.central_difference(lambda v, r=target: loss(v, r), x)
    assert float(found) == pytest.approx(expected, abs=1e-9)


# Evaluation -------------------------------------------------------------------


def test_pass_at_k():
  assert rl.pass_at_k(10, 0, 5) == rl.pass_at_k(5, 0, 5) == 0.0
  assert rl.pass_at_k(10, 3, 1) == pytest.approx(0.3)
  assert rl.pass_at_k(5, 2, 2) == pytest.approx(0.7)  # 1 - 3 / 10
  assert rl.pass_at_k(5, 2, 4) == 1.0
  assert rl.pass_at_k(5, 1, 5) == 1.0


@pytest.mark.parametrize('k', range(1, 7))
def test_pass_at_k_is_the_mean_over_subsets(k):
  samples = [1, 0, 0, 1, 0, 0]
  passed = [any(subset) for subset in combinations(samples, k)]
  assert rl.pass_at_k(6, 2, k) == pytest.approx(np.mean(passed))


def test_maj_at_k():
  assert rl.maj_at_k(['4'], '4') == 1.0
  assert rl.maj_at_k(['4', '5', '4'], '4') == 1.0
  assert rl.maj_at_k(['5', '4', '5'], '4') == 0.0
  assert rl.maj_at_k(['5', '4'], '4') == 0.5
  assert rl.maj_at_k(['5', '4', '3'], '2') == 0.0
