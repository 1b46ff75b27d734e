"""Steps of responses, by hand and on rollouts of a tiny decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from prefjax import logprobs
from prefjax.errors import InputError
from prefjax.models import decoder
from prefjax.objectives import process as implicit
from prefjax.rewards import process
from prefjax.rollout.sampler import DecoderSampler, collect
from prefjax.tasks import arithmetic
from prefjax.types import PreferenceBatch

# Text ---------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('text', 'steps'),
  [
    ('a;b', ['a;', 'b']),
    ('a;b;', ['a;', 'b;']),  # nothing begins behind the last separator
    ('a', ['a']),
    ('', []),
    (';', [';']),
    ('a;;b', ['a;;', 'b']),  # an empty step
    ('a; ;\n;b', ['a; ;\n;', 'b']),
    (' ;a;b', [' ;a;', 'b']),  # none before it: it goes to the next
    ('a;b=1', ['a;', 'b=1']),  # cut off by a limit
  ],
)
def test_a_separator_ends_a_step(text, steps):
  assert process.segmenter(';')(text) == steps


def test_blank_lines_may_be_many():
  text = 'First.\n\n\n\nSecond,\nstill.\n\n'
  assert process.segmenter('\n\n')(text) == ['First.\n\n\n\n', 'Second,\nstill.\n\n']


@pytest.mark.parametrize(
  ('text', 'steps'),
  [
    ('Step 1: a\n\nStep 2: b', ['Step 1: a\n\n', 'Step 2: b']),
    ('\n Step 1: a\nStep 2:', ['\n Step 1: a\n', 'Step 2:']),
    ('So:\nStep 1: a', ['So:\n', 'Step 1: a']),
    ('By Step 1: no', ['By Step 1: no']),  # a mention, not a heading
    ('no step', ['no step']),
    ('', []),
  ],
)
def test_a_number_begins_a_step(text, steps):
  assert process.segmenter('Step N:')(text) == steps


def test_no_separator_is_refused():
  with pytest.raises(InputError, match="'Step N:'; got none"):
    process.segmenter('')


def test_random_text_is_kept_whole():
  rng = np.random.default_rng(0)
  for _ in range(300):
    text = ''.join(rng.choice(list('a; \n'), rng.integers(0, 9)))
    for how in (';', '\n', 'Step N:'):
      steps = process.segmenter(how)(text)
      assert ''.join(steps) == text
      assert all(steps)


# Tokens -------------------------------------------------------------------------


class Pieces:
  """Tokens that are a few characters each; 0 is EOS, which has no text."""

  texts = ('', 'a', 'b', ';', 'b;c', ';;', 'x;y;z')

  @classmethod
  def decode(cls, ids):
    return ''.join(cls.texts[i] for i in ids)


@pytest.mark.parametrize(
  ('ids', 'steps'),
  [
    ([1, 3, 2, 0], [0, 0, 1, 1]),
    ([1, 4, 1, 3, 1], [0, 0, 1, 1, 2]),  # `b;c` begins in the first step
    ([1, 5, 2], [0, 0, 1]),
    ([6, 1], [0, 2]),  # a step without a token of its own
    ([1, 3, 0], [0, 0, 0]),
    ([0], [0]),
    ([], []),
  ],
)
def test_a_token_belongs_to_the_step_of_its_first_character(ids, steps):
  found = process.token_steps(ids, Pieces.decode, process.segmenter(';'))
  np.testing.assert_array_equal(found, steps)


def test_bytes_of_a_character_belong_together():
  data = 'naïve\n你好\n!'.encode()

  def decode(ids):
    return bytes(ids).decode(errors='replace')

  found = process.token_steps(list(data), decode, process.segmenter('\n'))
  np.testing.assert_array_equal(found, [0] * 7 + [1] * 7 + [2])


def test_a_segmentation_that_loses_text_is_refused():
  with pytest.raises(InputError, match='2 steps of 2 characters from a text of 3'):
    process.token_steps([1, 3, 2], Pieces.decode, lambda text: ['a', 'b'])


def test_steps_of_a_batch():
  tokens = np.array([[[1, 3, 2, 0], [1, 5, 9, 9]], [[9] * 4, [2, 2, 2, 2]]])
  length = np.array([[4, 2], [0, 4]])
  found = process.batch_steps(tokens, length, Pieces.decode, process.segmenter(';'))
  want = [[[0, 0, 1, 1], [0, 0, -1, -1]], [[-1] * 4, [0] * 4]]
  np.testing.assert_array_equal(found, want)


def test_the_steps_of_a_task_will_do():
  text = '7+8=15;15-3=12'
  found = process.token_steps(
    [ord(c) for c in text], lambda ids: ''.join(map(chr, ids)), arithmetic.steps
  )
  np.testing.assert_array_equal(found, [0] * 7 + [1] * 7)


# Rewards ------------------------------------------------------------------------


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
  segment = list if how == 'token' else process.segmenter(how)
  decode = tiny.Letters().decode
  step = process.batch_steps(batch.responses, batch.response_length, decode, segment)
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
