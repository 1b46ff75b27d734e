"""Reward and preference models: what is no row of the table of laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax import objectives
from prefjax.errors import InputError
from prefjax.objectives import reward
from prefjax.types import Outputs, PreferenceBatch


def batch(preference=1.0, chosen=0, rejected=1):
  return jax.tree.map(
    jnp.asarray,
    PreferenceBatch(
      prompts=np.zeros((1, 1), np.int32),
      responses=np.zeros((1, 3, 2), np.int32),
      prompt_length=np.ones(1, np.int32),
      response_length=np.array([[2, 1, 1]], np.int32),
      mask=np.ones((1, 3, 2), bool),
      weight=np.ones((1, 3), np.float32),
      chosen=np.full((1, 1), chosen, np.int32),
      rejected=np.full((1, 1), rejected, np.int32),
      preference=np.full((1, 1), preference, np.float32),
      pair_weight=np.ones((1, 1), np.float32),
    ),
  )


def evaluate(scores, batch, **hyper):
  outputs = Outputs(logps=jnp.zeros((1, 3, 2)), scores=jnp.asarray([scores]))
  loss, measured = objectives.create('bradley_terry', **hyper).build()(outputs, batch)
  return float(loss.value()), {key: float(m.value()) for key, m in measured.items()}


@pytest.mark.parametrize(
  ('hyper', 'preference', 'want'),
  # scores 3 and 1: log(1 + e^-2), with margin 1 log(1 + e^-1), and 0.1 (3 + 1)^2
  [
    ({}, 1.0, 0.126928),
    ({'margin': 1.0}, 1.0, 0.313262),
    ({'centre_coefficient': 0.1}, 1.0, 1.726928),
    ({}, 0.25, 1.626928),  # 0.25 * 0.126928 + 0.75 * 2.126928
  ],
)
def test_the_loss_by_hand(hyper, preference, want):
  loss, _ = evaluate([3.0, 1.0, 7.0], batch(preference), **hyper)
  np.testing.assert_allclose(loss, want, rtol=1e-5)


def test_centring_alone_fixes_the_level():
  def loss(shift, **hyper):
    return evaluate([3.0 + shift, 1.0 + shift, 0.0], batch(), **hyper)[0]

  np.testing.assert_allclose(loss(5.0), loss(0.0), rtol=1e-5)
  assert loss(5.0, centre_coefficient=0.1) > loss(0.0, centre_coefficient=0.1) + 1


def test_metrics_by_hand():
  _, found = evaluate([3.0, 1.0, 7.0], batch())
  assert found['accuracy'] == 1.0
  np.testing.assert_allclose(found['brier'], (1 - 0.880797) ** 2, rtol=1e-4)
  assert found['longer_scored_higher'] == 1.0  # 2 tokens against 1
  # Pairs of one length say nothing of length.
  assert evaluate([3.0, 1.0, 7.0], batch(chosen=2))[1]['longer_scored_higher'] == 0.0


def test_a_model_without_scores_is_refused():
  with pytest.raises(InputError, match='this model gives none'):
    loss = objectives.create('bradley_terry').build()
    loss(Outputs(logps=jnp.zeros((1, 3, 2))), batch())


def test_calibration_by_hand():
  # Two bins: 0.2 and 0.4 with mean outcome 1/2, 0.9 with outcome 1 and weight 2.
  error = reward.expected_calibration_error(
    *map(jnp.asarray, ([0.2, 0.4, 0.9], [0.0, 1.0, 1.0], [1.0, 1.0, 2.0])), bins=2
  )
  np.testing.assert_allclose(error, (2 * 0.2 + 2 * 0.1) / 4, rtol=1e-6)


def test_length_correlation_by_hand():
  ones = jnp.ones(3)
  length = jnp.array([1.0, 2.0, 3.0])
  np.testing.assert_allclose(
    reward.length_correlation(5.0 - 2.0 * length, length, ones), -1.0, rtol=1e-6
  )
  assert reward.length_correlation(ones, length, ones) == 0.0
  np.testing.assert_allclose(
    reward.length_correlation(
      jnp.array([1.0, 2.0, 9.0]), length, jnp.array([1.0, 1.0, 0.0])
    ),
    1.0,
    rtol=1e-6,
  )


# Ordered pairs --------------------------------------------------------------------


def test_a_preference_model_is_antisymmetric_and_may_hold_a_cycle():
  logits = reward.antisymmetric(
    jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3)))
  )
  total = jax.nn.sigmoid(logits) + jax.nn.sigmoid(jnp.swapaxes(logits, 1, 2))
  np.testing.assert_allclose(total, 1.0, rtol=1e-6)
  cycle = jnp.array([[[0.0, 2.0, -2.0], [-2.0, 0.0, 2.0], [2.0, -2.0, 0.0]]])
  np.testing.assert_allclose(reward.antisymmetric(0.5 * cycle), cycle)


def test_the_preference_loss_by_hand():
  logits = jnp.array([[[0.0, 2.0, 0.0], [-2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
  loss, found = reward.preference_loss(logits, batch(0.25))
  np.testing.assert_allclose(loss.value(), 1.626928, rtol=1e-5)
  assert found['accuracy'].value() == 1.0
  swapped, _ = reward.preference_loss(logits, batch(0.75, chosen=1, rejected=0))
  np.testing.assert_allclose(swapped.value(), loss.value(), rtol=1e-6)


def test_win_rates_by_hand():
  big = 50.0  # 0 beats 1 for sure; 2 is no response
  logits = jnp.array([[[0.0, big, 9.0], [-big, 0.0, 9.0], [jnp.nan, 9.0, 0.0]]])
  found = reward.win_rates(logits, jnp.array([[1.0, 1.0, 0.0]]))
  np.testing.assert_allclose(found[0, :2], [0.75, 0.25], atol=1e-6)
