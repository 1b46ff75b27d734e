"""Rewards of steps, by hand and on rollouts of a tiny decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from prefjax import logprobs
from prefjax.errors import InputError
from prefjax.models import decoder
from prefjax.objectives import process as implicit
from prefjax.rewards import process, steps
from prefjax.rollout.sampler import DecoderSampler, collect
from prefjax.types import PreferenceBatch


def test_scores_by_hand():
  rewards = jnp.array([[1.5, -2.0, 0.25]])  # accumulated: 1.5, -0.5, -0.25
  present = jnp.ones((1, 3), bool)
  want = {
    ('single', 'min'): -2.0,
    ('single', 'sum'): -0.25,
    ('single', 'mean'): -0.25 / 3,
    ('single', 'last'): 0.25,
    ('accumulated', 'min'): -0.5,
    ('accumulated', 'sum'): 0.75,
    ('accumulated', 'mean'): 0.25,
    ('accumulated', 'last'): -0.25,  # the outcome
  }
  for (form, how), value in want.items():
    got = process.response_scores(rewards, present, form=form, how=how)
    np.testing.assert_allclose(got, [value], rtol=1e-6)
  with pytest.raises(InputError, match="'double'; known are"):
    process.response_scores(rewards, present, form='double', how='min')


def test_rewards_without_a_reference_by_hand():
  logps, reference = jnp.array([[-1.0, -2.0, -3.0]]), jnp.array([[-2.0, -2.0, -1.0]])
  step = jnp.array([[0, 1, 1]])
  options = dict(beta=0.5, num_steps=2)
  rewards, _ = process.implicit_rewards(logps, reference, step, **options)
  np.testing.assert_allclose(rewards, [[0.5, -1.0]])
  rewards, _ = process.implicit_rewards(logps, None, step, **options)
  np.testing.assert_allclose(rewards, [[-0.5, -2.5]])


def test_rewards_stand_on_last_tokens():
  step = jnp.array([[[0, 0, 1, 2, 2, -1], [0, 0, 0, 0, 0, 0]]])
  rewards = jnp.array([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])
  got = process.on_last_tokens(rewards, step)
  want = [[[0.0, 1.0, 2.0, 0.0, 3.0, 0.0], [0.0] * 5 + [4.0]]]
  np.testing.assert_array_equal(got, want)


@pytest.fixture(scope='module')
def rollouts():
  """Samples of one policy, and the log-probs of two on them."""
  graph, _ = decoder.create(tiny.config())
  policy, other = tiny.params(0), tiny.params(1)
  prompts = np.array([[0, 5, 6], [7, 8, 9], [4, 4, 4]], np.int32)
  length = np.array([2, 3, 3], np.int32)
  keys = jax.random.split(jax.random.key(0), 3)
  sampler = DecoderSampler(graph=graph, stop_ids=(2,))
  samples = collect(
    sampler.stream(policy, prompts, length, keys, num_responses=4, max_tokens=12)
  )
  batch = PreferenceBatch(
    prompts=prompts,
    responses=samples.tokens,
    prompt_length=length,
    response_length=samples.length,
    mask=np.arange(12) < samples.length[..., None],
    weight=np.ones((3, 4), np.float32),
  )

  @jax.jit
  def score(params, batch):
    hidden, head = tiny.forward()(params, batch)
    return logprobs.from_hidden(
      hidden[:, :, :-1], head, batch.responses, batch.mask
    ).logps

  return batch, [np.asarray(score(params, batch)) for params in (policy, other)]


@pytest.mark.parametrize('how', ['d', 'ab', 'Step N:', 'token'])
def test_step_rewards_of_rollouts_add_up_to_the_outcome(rollouts, how):
  batch, (reference, policy) = rollouts
  segment = list if how == 'token' else steps.segmenter(how)
  decode = tiny.Letters().decode
  step = steps.batch_steps(batch.responses, batch.response_length, decode, segment)
  real = np.arange(12) < batch.response_length[..., None]
  np.testing.assert_array_equal(step >= 0, real)
  rewards, present = process.implicit_rewards(
    *map(jnp.asarray, (policy, reference, step)),
    beta=0.3,
    num_steps=int(step.max()) + 1,
  )
  total = 0.3 * np.sum(policy - reference, axis=-1, where=real, dtype=np.float64)
  np.testing.assert_allclose(
    process.response_scores(rewards, present, form='single', how='sum'),
    total,
    rtol=2e-6,
    atol=1e-6,
  )
  last = implicit.values(rewards)[..., -1]
  np.testing.assert_allclose(last, total, rtol=2e-6, atol=1e-6)
  placed = process.on_last_tokens(rewards, jnp.asarray(step))
  np.testing.assert_allclose(placed.sum(axis=-1), total, rtol=2e-6, atol=1e-6)
  if how == 'd':  # the segmentation is no trivial one
    assert step.max() > 0
