"""A policy judged in a world small enough to be enumerated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.evaluation import true_reward
from prefjax.rollout.responses import Writer
from prefjax.rollout.sampler import Samples
from prefjax.types import Head

WORDS = ['', '', 'a', 'b', 'c', 'd']  # pad, end, and four words
END, VOCAB, LONGEST = 1, 6, 2


class Letters:
  """One letter, one token; 1 ends a response."""

  bos_id, eos_id, pad_id, vocab_size, fingerprint = None, END, 0, VOCAB, 'letters'

  def encode(self, text):
    return [WORDS.index(letter, 2) for letter in text]

  def decode(self, ids):
    return ''.join(WORDS[i] for i in ids)


class Task:
  """The reward of a response: a counts 1, b counts -1, per letter."""

  def rewards(self, prompts, responses):
    return np.asarray(
      [float(r.count('a') - r.count('b')) for r in responses], np.float64
    )

  def reward(self, prompt, response):
    return self.rewards([prompt], [response])[0]

  def documents(self, seed, count, split='train'):
    raise NotImplementedError

  def prompts(self, seed, count, split='train'):
    raise NotImplementedError


def forward(params, batch, *, adapters=True):
  """A bigram model: the state is a one-hot of the last token."""
  last = batch.prompts[:, None, -1:]
  p, k, _ = batch.responses.shape
  tokens = jnp.concatenate(
    [jnp.broadcast_to(last, (p, k, 1)), batch.responses], axis=-1
  )
  return jax.nn.one_hot(tokens, VOCAB), Head(params)


class Bigrams:
  """Plain ancestral sampling from the bigram table, as a `Sampler`."""

  def stream(self, params, prompts, prompt_length, keys, **options):
    yield np.arange(len(prompts)), sample(params, prompts, keys, **options)


def sample(params, prompts, keys, **options):
  k, t = options['num_responses'], options['max_tokens']
  draws = np.random.default_rng(np.asarray(jax.random.key_data(keys)).sum())
  p = len(prompts)
  tokens = np.zeros((p, k, t), np.int32)
  length = np.zeros((p, k), np.int32)
  probabilities = np.asarray(jax.nn.softmax(params.T, axis=-1), np.float64)
  for i, j in np.ndindex(p, k):
    last = prompts[i, -1]
    for n in range(t):
      row = probabilities[last] / probabilities[last].sum()
      last = draws.choice(VOCAB, p=row)
      tokens[i, j, n] = last
      length[i, j] = n + 1
      if last == END:
        break
  ended = np.take_along_axis(tokens, length[..., None] - 1, axis=-1)[..., 0] == END
  return Samples(tokens, length, np.zeros(tokens.shape), ~ended)


def responses():
  """Every response: ended at once, after one token, or cut at two."""
  ids = [i for i in range(VOCAB) if i != END]
  yield (END,)
  for i in ids:
    for j in range(VOCAB):
      yield (i, j)


def exact(params, other, prompt):
  """E[r] and KL(params || other) by enumeration."""
  p, q = (
    np.asarray(jax.nn.log_softmax(x.T, axis=-1), np.float64) for x in (params, other)
  )
  task, tokenizer, total, kl = Task(), Letters(), 0.0, 0.0
  for response in responses():
    pairs = list(zip((prompt, *response), response, strict=False))
    log_p, log_q = (sum(table[a, b] for a, b in pairs) for table in (p, q))
    total += np.exp(log_p) * task.reward('', tokenizer.decode(response))
    kl += np.exp(log_p) * (log_p - log_q)
  return total, kl


@pytest.fixture(scope='module')
def comparison():
  draw = np.random.default_rng(0)
  reference = jnp.asarray(draw.normal(size=(VOCAB, VOCAB)), jnp.float32)
  policy = reference + jnp.asarray(draw.normal(size=(VOCAB, VOCAB)), jnp.float32) / 3
  writer = Writer(
    sampler=Bigrams(),
    tokenizer=Letters(),
    num_responses=1500,
    max_prompt=2,
    max_tokens=LONGEST,
    prompts_at_once=2,
  )
  judge = true_reward.Judge(
    task=Task(), forward=forward, writer=writer, prompts=['a', 'b', 'cd'], seed=0
  )
  return reference, policy, judge.compare(policy, reference)


def test_rewards_and_kl_are_those_of_the_enumerated_world(comparison):
  reference, policy, found = comparison
  worlds = [exact(policy, reference, prompt) for prompt in (2, 3, 5)]
  rewards, kls = (np.mean(x) for x in zip(*worlds, strict=True))
  base = np.mean([exact(reference, reference, prompt)[0] for prompt in (2, 3, 5)])
  assert float(found.policy.mean) == pytest.approx(rewards, abs=0.04)
  assert float(found.reference.mean) == pytest.approx(base, abs=0.04)
  assert float(found.kl.mean) == pytest.approx(kls, abs=0.01)


def test_the_policy_is_below_the_frontier_and_the_gain_is_paired(comparison):
  _, _, found = comparison
  assert not found.verdict.above
  assert found.gain.mean == pytest.approx(
    float(found.policy.mean - found.reference.mean)
  )


def test_samples_are_the_policys_and_carry_their_reward(comparison):
  _, _, found = comparison
  assert len(found.samples) == 6
  for row in found.samples:
    assert row['reward'] == Task().reward(row['prompt'], row['response'])


def test_the_numbers_of_each_prompt_have_the_means_that_are_told(comparison):
  _, _, found = comparison
  means = {'reward': found.policy, 'reference': found.reference, 'kl': found.kl}
  for name, estimate in means.items():
    assert found.by_prompt[name].shape == (3,)
    assert found.by_prompt[name].mean() == pytest.approx(float(estimate.mean))


def test_the_best_of_n_is_that_of_the_enumerated_reference(comparison):
  reference, _, found = comparison
  table = np.asarray(jax.nn.log_softmax(reference.T, axis=-1), np.float64)
  whole = []
  for prompt in (2, 3, 5):
    chances = {}
    for response in responses():
      pairs = zip((prompt, *response), response, strict=False)
      reward = Task().reward('', Letters().decode(response))
      p = np.exp(sum(table[a, b] for a, b in pairs))
      chances[reward] = chances.get(reward, 0.0) + p
    rewards = np.array(sorted(chances))
    below = np.cumsum([chances[reward] for reward in rewards]) ** 4
    whole.append(rewards @ np.diff(below, prepend=0.0))
  assert float(found.best_of[4].mean) == pytest.approx(np.mean(whole), abs=0.04)
  assert set(found.best_of) == {1, 4, 16, 64, 128}
