"""The loss on labelled steps, against the reference and under what must not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

from prefjax import objectives
from prefjax.errors import InputError
from prefjax.types import Outputs, PreferenceBatch

P, K, T = 2, 3, 5


def random_batch(seed=0):
  """Values and a float64 batch: some steps have no label, one response no weight."""
  rng = np.random.default_rng(seed)
  label = np.where(rng.random((P, K, T)) < 0.6, rng.random((P, K, T)), -1.0)
  weight = rng.uniform(0.5, 2.0, (P, K))
  weight[0, 1] = 0.0
  batch = PreferenceBatch(
    prompts=rng.integers(0, 9, (P, 2)),
    responses=rng.integers(0, 9, (P, K, T)),
    prompt_length=np.full(P, 2),
    response_length=np.full((P, K), T),
    mask=rng.random((P, K, T)) < 0.8,
    weight=weight,
    step_label=label,
  )
  return rng.normal(scale=3.0, size=(P, K, T + 1)), batch


def measured(values, batch):
  loss_fn = objectives.create('step_cross_entropy').build()
  return loss_fn(Outputs(values=jnp.asarray(values)), jax.tree.map(jnp.asarray, batch))


def loss(values, batch):
  return measured(values, batch)[0].value()


def reference(values, batch):
  return ref.step_cross_entropy(values, batch.step_label, batch.mask, batch.weight)


def test_by_hand(x64):
  values = np.zeros((1, 1, 4))
  values[0, 0, 1:] = np.log([3.0, 9.0, 1.0])  # probabilities 3/4, 9/10 and 1/2
  batch = PreferenceBatch(
    prompts=np.zeros((1, 2), int),
    responses=np.zeros((1, 1, 3), int),
    prompt_length=np.array([2]),
    response_length=np.array([[3]]),
    mask=np.ones((1, 1, 3), bool),
    weight=np.ones((1, 1)),
    step_label=np.array([[[1.0, -1.0, 0.5]]]),
  )
  found, metrics = measured(values, batch)
  want = (-np.log(0.75) - np.log(0.5)) / 2
  np.testing.assert_allclose(found.value(), want, rtol=1e-12)
  np.testing.assert_allclose(metrics['step_accuracy'].value(), 1.0)
  np.testing.assert_allclose(metrics['step_brier'].value(), 0.25**2 / 2)


@pytest.mark.parametrize('seed', range(3))
def test_value_and_gradient_are_the_papers(x64, seed):
  values, batch = random_batch(seed)
  np.testing.assert_allclose(loss(values, batch), reference(values, batch), rtol=1e-12)
  want = ref.central_difference(lambda x: reference(x, batch), values, h=1e-4)
  got = jax.grad(loss)(jnp.asarray(values), batch)
  np.testing.assert_allclose(got, want, atol=1e-8)


def test_what_does_not_count_may_hold_anything(x64):
  values, batch = random_batch()
  counted = batch.mask & (batch.step_label >= 0) & (batch.weight != 0)[..., None]
  bad = np.where(counted, values[..., 1:], np.nan)
  poisoned = np.concatenate([np.full((P, K, 1), np.inf), bad], axis=-1)
  rubbish = np.where(batch.mask, batch.step_label, np.nan)
  got = loss(poisoned, batch.replace(step_label=rubbish))
  np.testing.assert_allclose(got, loss(values, batch), rtol=1e-14)
  grads = jax.grad(loss)(jnp.asarray(poisoned), batch.replace(step_label=rubbish))
  assert np.isfinite(grads).all()


def test_nothing_labelled_is_a_loss_of_nothing():
  values, batch = random_batch()
  nothing = batch.replace(step_label=np.full((P, K, T), -1.0))
  assert loss(values, nothing) == 0.0
  assert not np.any(jax.grad(loss)(jnp.asarray(values), nothing))


def test_float32_is_finite_at_huge_values():
  values, batch = random_batch()
  huge = np.where(values > 0, 1e4, -1e4).astype(np.float32)
  assert np.isfinite(loss(huge, batch))
  assert np.isfinite(jax.grad(loss)(jnp.asarray(huge), batch)).all()


def test_parts_add_up_to_the_whole(x64):
  values, batch = random_batch()
  parts = [
    measured(values[i : i + 1], jax.tree.map(lambda x, i=i: x[i : i + 1], batch))[0]
    for i in range(P)
  ]
  merged, whole = (parts[0] + parts[1]).value(), loss(values, batch)
  np.testing.assert_allclose(merged, whole, rtol=1e-14)
  # A mean of the responses' means is another loss: steps count, not responses.
  assert abs(np.mean([float(part.value()) for part in parts]) - whole) > 1e-3


def test_a_model_without_values_is_refused():
  _, batch = random_batch()
  with pytest.raises(InputError, match='reads values'):
    objectives.create('step_cross_entropy').build()(Outputs(), batch)
