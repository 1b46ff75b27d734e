"""Responses as groups: whose noise they have, and where their rewards stand."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from prefjax.errors import InputError
from prefjax.models import decoder
from prefjax.rewards.judge import Judged
from prefjax.rollout import responses
from prefjax.rollout.draws import Controls
from prefjax.rollout.groups import Request
from prefjax.rollout.responses import Roller, Writer, left_padded
from prefjax.rollout.sampler import FREE, DecoderSampler, Samples

K, L, T = 3, 4, 5
SEED = 7


def question(position):
  """Prompts `a`, `bb`, `ccc`, ... of 1 to L tokens, in turn."""
  text = 'abcd'[position % L] * (position % L + 1)
  return text, tiny.Letters().encode(text), {'position': position}


def nothing(**groups):
  """A judge that gives every response 0."""
  zeros = np.zeros(groups['length'].shape)
  return lambda: Judged(zeros, zeros > 0, {})


class Scripted:
  """Hands groups over in the parts that a script says; records how it was called.

  Response k of a prompt of n tokens is `lengths[k]` times the token 10 n + k.
  """

  def __init__(self, *parts, lengths=(1, 3, T)):
    self.parts, self.lengths, self.calls = parts, np.array(lengths), []

  def stream(
    self,
    params,
    prompts,
    prompt_length,
    keys,
    *,
    num_responses,
    max_tokens,
    controls=FREE,
  ):
    assert (num_responses, max_tokens) == (K, T)
    self.calls.append((params, prompts, prompt_length, keys, controls))
    for part in self.parts or [range(len(prompts))]:
      index = np.array(part)
      own = (10 * prompt_length[index, None] + np.arange(K)).astype(np.int32)
      length = np.tile(self.lengths, (len(index), 1)).astype(np.int32)
      real = np.arange(T) < length[..., None]
      yield (
        index,
        Samples(
          np.where(real, own[..., None], 0).astype(np.int32),
          length,
          np.where(real, -0.1 * own[..., None], 0.0).astype(np.float32),
          length == T,
        ),
      )


class Numbers(tiny.Letters):
  """A tokenizer whose texts are the ids themselves."""

  def decode(self, ids):
    return ' '.join(map(str, ids))


def roller(sampler, judge=nothing, **changes):
  options = dict(
    sampler=sampler,
    tokenizer=Numbers(),
    question=question,
    judge=judge,
    num_responses=K,
    max_prompt=L,
    max_tokens=T,
    seed=jax.random.key(SEED),
  )
  return Roller(**options | changes)


def first_tries(*positions):
  return [Request(position) for position in positions]


# Prompts ----------------------------------------------------------------------


def test_prompts_are_padded_on_the_left():
  table, length = left_padded([[5, 6], [7], [8, 9, 10]], 3, 99)
  np.testing.assert_array_equal(table, [[99, 5, 6], [99, 99, 7], [8, 9, 10]])
  np.testing.assert_array_equal(length, [2, 1, 3])
  assert table.dtype == length.dtype == np.int32


def test_a_prompt_longer_than_its_bucket_is_an_error_that_says_so():
  said = r'A prompt of 4 tokens is longer than its bucket, data.max_prompt=3\.'
  with pytest.raises(InputError, match=said):
    left_padded([[1], [1, 2, 3, 4]], 3, 0)
  with pytest.raises(InputError, match=said):
    roller(Scripted(), max_prompt=3).sample({}, first_tries(0, 3), 0)


def test_texts_end_with_the_response():
  samples = Samples(
    np.array([[[3, 4, 1], [5, 6, 7]]]),
    np.array([[2, 3]]),
    np.zeros((1, 2, 3)),
    np.zeros((1, 2), bool),
  )
  assert responses.texts(samples, tiny.Letters()) == [['ab', 'cde']]


# Rewards ----------------------------------------------------------------------


def test_a_reward_stands_on_the_last_real_token():
  reward = np.array([[0.5, -1.0, 2.0], [4.0, 8.0, 16.0]])

  def judge(**groups):
    return lambda: Judged(reward, reward > 0.7, {'right': reward})

  found = roller(Scripted(), judge).sample({}, first_tries(0, 1), 3).groups
  np.testing.assert_array_equal(found.length, [[1, 3, T]] * 2)
  np.testing.assert_array_equal(
    found.rewards,
    [
      [[0.5, 0, 0, 0, 0], [0, 0, -1.0, 0, 0], [0, 0, 0, 0, 2.0]],
      [[4.0, 0, 0, 0, 0], [0, 0, 8.0, 0, 0], [0, 0, 0, 0, 16.0]],
    ],
  )
  assert found.rewards.dtype == np.float32
  np.testing.assert_array_equal(found.right, [[False, False, True], [True] * 3])
  assert found.scored.all()
  np.testing.assert_array_equal(found.truncated, [[False, False, True]] * 2)
  np.testing.assert_array_equal(found.born, [3, 3])


def test_a_reward_stands_where_the_judge_placed_it():
  reward = np.array([[1.0, np.nan, 3.0]])
  placed = np.arange(K * T).reshape(1, K, T) / 4
  step = np.arange(K * T, dtype=np.int32).reshape(1, K, T)

  def judge(**groups):
    return lambda: Judged(reward, reward > 0, {}, placed, step)

  found = roller(Scripted(), judge).sample({}, first_tries(0), 0).groups
  np.testing.assert_array_equal(found.rewards[0, [0, 2]], placed[0, [0, 2]])
  assert not found.rewards[0, 1].any()
  np.testing.assert_array_equal(found.step, step)
  plain = roller(Scripted()).sample({}, first_tries(0), 0).groups
  np.testing.assert_array_equal(plain.step, np.full((1, K, T), -1))


def test_a_response_without_a_reward_has_none_and_is_not_right():
  reward = np.array([[np.nan, 1.0, np.nan]])

  def judge(**groups):
    return lambda: Judged(reward, np.ones((1, K), bool), {})

  found = roller(Scripted(), judge).sample({}, first_tries(0), 0).groups
  np.testing.assert_array_equal(found.scored, [[False, True, False]])
  np.testing.assert_array_equal(found.right, [[False, True, False]])
  np.testing.assert_array_equal(found.rewards.sum(axis=-1), [[0.0, 1.0, 0.0]])


# Order ------------------------------------------------------------------------


def by_tokens(**groups):
  """A judge that reads all it is given, and takes the tokens for rewards."""
  for i, record in enumerate(groups['records']):
    position = int(groups['position'][i])
    text, ids, _ = question(position)
    assert record == {'position': position}
    assert groups['texts'][i] == text
    assert groups['prompt_length'][i] == len(ids)
    assert groups['prompts'][i, L - len(ids) :].tolist() == ids
    assert groups['responses'][i] == [
      ' '.join(map(str, tokens[:length]))
      for tokens, length in zip(groups['tokens'][i], groups['length'][i], strict=True)
    ]
  first = groups['tokens'][..., 0].astype(np.float64)
  tries = np.repeat(groups['attempt'][:, None].astype(np.float64), K, axis=1)
  return lambda: Judged(first, first > 21, {'first': first, 'tries': tries})


@pytest.mark.parametrize(
  'parts', [(), ([2, 3], [0, 1]), ([3], [1], [0, 2]), ([3, 2, 1, 0],)]
)
def test_groups_come_in_the_order_of_the_requests(parts):
  requests = [Request(3, 2), Request(0), Request(2, 1), Request(1)]
  found = roller(Scripted(*parts), by_tokens).sample({}, requests, 5)
  groups = found.groups
  assert groups.position.tolist() == [3, 0, 2, 1]
  assert groups.attempt.tolist() == [2, 0, 1, 0]
  assert groups.prompt_length.tolist() == [4, 1, 3, 2]
  first = np.array([[40, 41, 42], [10, 11, 12], [30, 31, 32], [20, 21, 22]])
  np.testing.assert_array_equal(groups.tokens[..., 0], first)
  np.testing.assert_array_equal(groups.rewards.sum(axis=-1), first)
  np.testing.assert_array_equal(groups.right, first > 21)
  np.testing.assert_allclose(groups.logps[..., 0], -0.1 * first, rtol=1e-6)
  np.testing.assert_array_equal(
    groups.prompts, left_padded([question(p)[1] for p in (3, 0, 2, 1)], L, 0)[0]
  )
  assert list(found.values) == ['first', 'tries']
  np.testing.assert_array_equal(found.values['first'], first)
  np.testing.assert_array_equal(found.values['tries'][:, 0], [2, 0, 1, 0])
  assert [row[1] for row in found.texts] == [
    '41 41 41',
    '11 11 11',
    '31 31 31',
    '21 21 21',
  ]


def test_sampling_goes_on_while_groups_are_judged():
  events = []

  def judge(**groups):
    events.append('begins')

    def judged():
      events.append('waits')
      return nothing(**groups)()

    return judged

  roller(Scripted([1], [0], [2]), judge).sample({}, first_tries(0, 1, 2), 0)
  assert events == ['begins'] * 3 + ['waits'] * 3


def test_parameters_and_controls_reach_the_sampler():
  sampler, controls = Scripted(), Controls(temperature=0.5, top_p=0.9)
  roller(sampler, controls=controls).sample({'w': 1}, first_tries(0), 0)
  assert sampler.calls[0][0] == {'w': 1}
  assert sampler.calls[0][-1] is controls


# Noise ------------------------------------------------------------------------


def key_data(keys):
  return [tuple(row) for row in np.asarray(jax.random.key_data(keys)).tolist()]


def test_every_position_and_attempt_has_a_key_of_its_own():
  sampler = Scripted()
  requests = [Request(*x) for x in itertools.product(range(40), range(5))]
  for part in (requests[:130], requests[130:]):
    roller(sampler).sample({}, part, 0)
  found = [row for call in sampler.calls for row in key_data(call[3])]
  assert len(set(found)) == 200
  fold, key = jax.random.fold_in, jax.random.key(SEED)
  own = [fold(fold(key, position), attempt) for position, attempt in requests[::37]]
  assert found[::37] == key_data(jnp.stack(own))
  other = roller(sampler, seed=jax.random.key(SEED + 1))
  other.sample({}, requests, 0)
  assert not set(found) & set(key_data(sampler.calls[-1][3]))


@functools.cache
def decoded():
  """A roller on a decoder of two slots in float64, and the decoder's parameters."""
  types = dict(dtype='float64', param_dtype='float64')
  graph, _ = decoder.create(tiny.config(**types))
  sampler = DecoderSampler(graph=graph, stop_ids=range(3, 9), slots=2, block=3)
  return roller(sampler), tiny.params(scale=0.8, **types)


def drawn(*requests):
  made, params = decoded()
  return made.sample(params, [Request(*x) for x in requests], 0).groups


def same_prompt(position):
  return 'a', [5], {}


def test_neither_two_calls_nor_two_tries_share_noise(x64):
  made, params = decoded()
  made = roller(made.sampler, question=same_prompt)
  calls = [[(0, 0), (1, 0)], [(2, 0), (3, 0)], [(0, 1), (1, 2)]]
  found = [made.sample(params, [Request(*x) for x in call], 0).groups for call in calls]
  # All are to one prompt: of those that reach the limit no two are the same.
  long = np.concatenate([x.tokens[x.truncated] for x in found])
  assert len(np.unique(long, axis=0)) == len(long) > 5


def test_what_is_drawn_does_not_depend_on_the_requests_beside_it(x64):
  alone = [drawn(x) for x in ((5, 0), (2, 1), (11, 0))]
  together = drawn((0, 0), (11, 0), (5, 0), (2, 0), (2, 1), (5, 1))
  for one, place in zip(alone, (2, 4, 1), strict=True):
    for name in ('tokens', 'length', 'truncated', 'prompts'):
      row = getattr(together, name)[place]
      np.testing.assert_array_equal(getattr(one, name)[0], row)
    np.testing.assert_allclose(one.logps[0], together.logps[place], rtol=0, atol=1e-12)
  assert (together.tokens[2] != together.tokens[5]).any()
  assert 0 < together.truncated.sum() < together.truncated.size


def test_the_same_request_draws_the_same_again(x64):
  for x, y in zip(drawn((4, 1), (3, 0)), drawn((4, 1), (3, 0)), strict=True):
    np.testing.assert_array_equal(x, y)


# Writing ----------------------------------------------------------------------


def writer(sampler, prompts_at_once):
  return Writer(
    sampler=sampler,
    tokenizer=tiny.Letters(),
    num_responses=K,
    max_prompt=L,
    max_tokens=T,
    prompts_at_once=prompts_at_once,
  )


@pytest.mark.parametrize('prompts_at_once', [1, 2, 3, 5, 8])
def test_a_writers_noise_is_that_of_the_place_in_the_list(prompts_at_once):
  sampler = Scripted()
  prompts = ['a', 'bb', 'c', 'dd', 'e']
  parts = list(writer(sampler, prompts_at_once).draw({}, prompts, jax.random.key(3)))
  assert [i for part in parts for i in range(5)[part.index]] == [0, 1, 2, 3, 4]
  lengths = np.concatenate([part.prompt_length for part in parts])
  assert lengths.tolist() == [2, 3, 2, 3, 2]  # with BOS
  assert sum(len(part.texts) for part in parts) == 5
  for part in parts:
    shown = part.samples.tokens[..., 0]
    np.testing.assert_array_equal(
      shown, 10 * part.prompt_length[:, None] + np.arange(K)
    )
  # One shape serves all calls, and a place has one key, whatever stands beside it.
  assert {call[1].shape for call in sampler.calls} == {(prompts_at_once, L)}
  keys = [row for call in sampler.calls for row in key_data(call[3])]
  own = [jax.random.fold_in(jax.random.key(3), i) for i in range(5)]
  assert keys[:5] == key_data(jnp.stack(own))
  assert {call[4] for call in sampler.calls} == {FREE}


def test_a_writer_hands_its_controls_on():
  sampler, controls = Scripted(), Controls(temperature=0.7, top_p=0.9)
  own = dataclasses.replace(writer(sampler, 2), controls=controls)
  list(own.draw({}, ['a', 'bb'], jax.random.key(3)))
  assert [call[4] for call in sampler.calls] == [controls]
