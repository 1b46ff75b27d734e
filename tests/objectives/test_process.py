"""Implicit process rewards, against every continuation of a small token tree."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.objectives import process

V, T = 3, 4


# By hand ------------------------------------------------------------------------


def test_steps_by_hand():
  ratios = jnp.array([[1.0, 2.0, -4.0, 0.5, jnp.nan]])
  step = jnp.array([[0, 0, 1, 3, -1]])
  rewards, present = process.step_rewards(ratios, step, beta=0.5, num_steps=4)
  np.testing.assert_allclose(rewards, [[1.5, -2.0, 0.0, 0.25]])
  np.testing.assert_array_equal(present, [[True, True, False, True]])
  np.testing.assert_allclose(process.values(rewards), [[1.5, -0.5, -0.5, -0.25]])


@pytest.mark.parametrize(
  ('how', 'want'), [('min', -2.0), ('sum', -0.25), ('mean', -0.25 / 3), ('last', 0.25)]
)
def test_aggregation_by_hand(how, want):
  rewards = jnp.array([[1.5, -2.0, -9.0, 0.25], [jnp.nan] * 4])
  present = jnp.array([[True, True, False, True], [False] * 4])
  got = process.aggregate(rewards, present, how)
  np.testing.assert_allclose(got, [want, 0.0], rtol=1e-6)


def test_an_unknown_aggregation_is_refused():
  with pytest.raises(InputError, match="'median'; known are min"):
    process.aggregate(jnp.ones((1, 2)), jnp.ones((1, 2), bool), 'median')


def test_monte_carlo_labels_by_hand():
  outcomes = jnp.array([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, jnp.nan]])
  drawn = jnp.array([[True] * 4, [True, True, False, False]])
  np.testing.assert_allclose(process.hard_labels(outcomes, drawn), [1.0, 0.0])
  np.testing.assert_allclose(process.soft_labels(outcomes, drawn), [0.5, 0.0])


def test_best_of_n_by_hand():
  scores = jnp.array([[1.0, 3.0, 9.0], [2.0, 2.0, 0.0], [jnp.nan] * 3])
  correct = jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
  present = jnp.array([[True, True, False], [True] * 3, [False] * 3])
  np.testing.assert_allclose(process.best_of_n(scores, correct, present), [1, 1, 0])


# A tree -------------------------------------------------------------------------


class Tree:
  """Two random policies over every string of T tokens of V."""

  def __init__(self, seed):
    rng = np.random.default_rng(seed)
    self.strings = list(itertools.product(range(V), repeat=T))
    prefixes = [s for n in range(T) for s in itertools.product(range(V), repeat=n)]
    self.policy, self.reference = (
      {s: np.log(rng.dirichlet(np.ones(V))) for s in prefixes} for _ in range(2)
    )

  def logps(self, table, string):
    return np.array([table[string[:t]][string[t]] for t in range(T)])

  def ratios(self, string):
    return self.logps(self.policy, string) - self.logps(self.reference, string)

  def continuations(self, prefix):
    """(string, its probability under the reference, given the prefix)."""
    for string in self.strings:
      if string[: len(prefix)] == prefix:
        yield string, np.exp(self.logps(self.reference, string)[len(prefix) :].sum())


@pytest.fixture(params=range(3))
def tree(request, x64):
  return Tree(request.param)


def values(tree, string, beta):
  step = jnp.arange(T)[None]
  ratios = jnp.asarray(tree.ratios(string))[None]
  return np.asarray(
    process.values(process.step_rewards(ratios, step, beta=beta, num_steps=T)[0])
  )[0]


def each_prefix():
  return [s for n in range(1, T + 1) for s in itertools.product(range(V), repeat=n)]


@pytest.mark.parametrize('beta', [0.05, 1.0, 20.0])
def test_a_value_is_the_soft_maximum_over_continuations(tree, beta):
  """Proposition 3.1."""
  for prefix in each_prefix():
    total = 0.0
    for string, p in tree.continuations(prefix):
      total += p * np.exp(tree.ratios(string).sum())  # r / beta
      q = values(tree, string, beta)[len(prefix) - 1]
    np.testing.assert_allclose(q, beta * np.log(total), rtol=1e-9, atol=1e-12)


def test_a_value_lies_between_soft_and_hard_estimates(tree):
  """Proposition 3.2, its r held fixed: rising from the mean to the maximum."""
  betas = [1e-3, 0.05, 0.3, 1.0, 5.0, 1e4]
  for prefix in each_prefix():
    rewards, p = zip(
      *((tree.ratios(s).sum(), p) for s, p in tree.continuations(prefix)), strict=True
    )
    rewards, p = np.array(rewards), np.array(p)
    top = rewards.max()
    soft = [
      top + beta * np.log(np.sum(p * np.exp((rewards - top) / beta))) for beta in betas
    ]
    assert np.all(np.diff(soft) <= 1e-12)
    assert p @ rewards - 1e-9 <= soft[-1] <= soft[0] <= top + 1e-9
    np.testing.assert_allclose(soft[0], top, atol=0.02)
    np.testing.assert_allclose(soft[-1], p @ rewards, atol=1e-3)
    drawn = jnp.ones((1, len(p)), bool)
    assert process.hard_labels(jnp.exp(rewards)[None], drawn) >= process.soft_labels(
      jnp.exp(rewards)[None], drawn
    )


def test_expected_rewards_are_divergences(tree):
  """E_ref[r_t] = -beta KL(ref || pi) <= 0 and E_pi[r_t] = beta KL(pi || ref) >= 0."""
  beta = 0.3
  for prefix in tree.policy:
    pi, reference = tree.policy[prefix], tree.reference[prefix]
    strings = [(*prefix, y, *(0,) * (T - len(prefix) - 1)) for y in range(V)]
    rewards = np.array(
      [
        process.step_rewards(
          jnp.asarray(tree.ratios(s))[None], jnp.arange(T)[None], beta=beta, num_steps=T
        )[0][0, len(prefix)]
        for s in strings
      ]
    )
    forward = np.sum(np.exp(reference) * (reference - pi))
    reverse = np.sum(np.exp(pi) * (pi - reference))
    np.testing.assert_allclose(np.exp(reference) @ rewards, -beta * forward, atol=1e-12)
    np.testing.assert_allclose(np.exp(pi) @ rewards, beta * reverse, atol=1e-12)
    assert forward >= 0
    assert reverse >= 0


def test_a_reward_is_bounded_by_the_rate_of_success(tree):
  """E_ref[exp(r / beta)] = 1, so E_ref[r | right] <= beta log(1 / P(right))."""
  strings, p = zip(*tree.continuations(()), strict=True)
  ratios, p = np.array([tree.ratios(s).sum() for s in strings]), np.array(p)
  np.testing.assert_allclose(p @ np.exp(ratios), 1.0, rtol=1e-12)
  right = np.arange(len(p)) % 3 == 0
  share = p[right].sum()
  assert p[right] @ ratios[right] / share <= np.log(1 / share)


@functools.cache
def segmentations():
  return [
    tuple(np.cumsum((0, *cuts))) for cuts in itertools.product((0, 1), repeat=T - 1)
  ]


def test_any_segmentation_adds_up_to_the_outcome(tree):
  for string in tree.strings[::7]:
    ratios = jnp.asarray(tree.ratios(string))[None]
    for step in segmentations():
      rewards, present = process.step_rewards(
        ratios, jnp.asarray(step)[None], beta=0.3, num_steps=T
      )
      outcome = process.aggregate(rewards, present, 'sum')
      np.testing.assert_allclose(outcome[0], 0.3 * tree.ratios(string).sum())
