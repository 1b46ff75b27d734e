"""The IPO paper's statements on its bandits, in fewer steps than it took."""

import functools

import jax
import numpy as np
import pytest

from prefjax.objectives import links
from prefjax.tabular import bandits

TAUS = (0.1, 0.5, 1.0, 10.0)
SIZE = dict(seeds=3, steps=3000, record_every=250)
LINKS = {
  'dpo': lambda tau: links.logistic(beta=tau),
  'ipo': lambda tau: links.squared(tau=tau),
}


@functools.cache
def policies(pairs, name):
  """[tau, seed, record, action]."""
  return np.asarray(bandits.train(pairs, LINKS[name], TAUS, **SIZE))


def test_two_actions_have_the_closed_form():
  # One pair, always won: h = 1 / (2 tau), so pi(a) = sigmoid(1 / (2 tau)) of the two.
  found = policies(((0, 1),), 'ipo')[1:, :, -1]  # 0.1 is at 5 nats: not there yet
  share = found[..., 0] / (found[..., 0] + found[..., 1])
  want = 1 / (1 + np.exp(-0.5 / np.array(TAUS[1:])))
  np.testing.assert_allclose(
    share, np.broadcast_to(want[:, None], share.shape), atol=2e-3
  )
  dpo = policies(((0, 1),), 'dpo')[..., 0]
  assert np.all(np.diff(dpo, axis=-1) >= 0)
  assert np.all(dpo[:3, :, -1] > 0.9)  # for a large tau it takes longer


def test_the_first_record_is_the_reference():
  np.testing.assert_allclose(policies(((0, 1),), 'ipo')[:, :, 0], 1 / 3, rtol=1e-6)


def test_dpo_becomes_deterministic_on_a_total_order_for_every_tau():
  found = policies(bandits.TOTAL_ORDER, 'dpo')
  assert np.all(found[:3, :, -1, 0] > 0.95)
  assert np.all(found[:, :, -1, 0] > found[:, :, 2, 0])


def test_ipo_stays_near_the_reference_for_a_large_tau():
  best = policies(bandits.TOTAL_ORDER, 'ipo')[:, :, -1, 0].mean(axis=1)
  assert np.all(np.diff(best) < -0.01)
  # h_ab = h_bc = 1 / (3 tau) and h_ac = 2 / (3 tau): least squares of three pairs.
  tau = np.array(TAUS[1:])
  theta = np.stack([1 / (3 * tau), 0 * tau, -1 / (3 * tau)])
  want = (np.exp(theta) / np.exp(theta).sum(axis=0))[0]
  np.testing.assert_allclose(best[1:], want, atol=0.02)


@pytest.mark.parametrize('name', LINKS)
def test_the_unseen_action_has_no_gradient(name):
  """Only theta_a - theta_b is in the loss, which is least where it is 0."""
  found = policies(bandits.UNSEEN_ACTION, name)
  assert np.abs(found[:, :, -1, 2] - 1 / 3).max() < 0.1


def test_seeds_differ_and_a_seed_is_one():
  found = policies(bandits.TOTAL_ORDER, 'ipo')
  assert np.ptp(found[0, :, 3, 0]) > 0
  again = bandits.train(bandits.TOTAL_ORDER, LINKS['ipo'], TAUS, **SIZE)
  np.testing.assert_array_equal(found, jax.device_get(again))
