"""Rewards of single steps: which token earns what, and what is refused."""

import json

import numpy as np
import pytest

from prefjax.rewards import base, verifiers, worker
from prefjax.rewards.journal import Journal
from prefjax.rewards.judge import Judge, Sampled
from prefjax.rewards.pool import Scorer

NAN = np.nan


# Verifiers --------------------------------------------------------------------


def test_digits_earn_their_reward_one_by_one():
  prompt = '8,3:9,4\n'  # 7,2,6,1
  three = [(end, 1 / 8) for end in (1, 2, 3)]
  assert verifiers.digits_steps(prompt, '7,25', {}) == three
  assert verifiers.digits_steps(prompt, '1', {}) == []
  assert verifiers.digits_steps('no sequence', '1', {}) is None
  for response in ('7,2,6,1', '7,2,6,1,9', '7,2', ''):
    sample = json.dumps([[prompt, response, {}]])
    (found,) = worker.score('digits_steps', sample, 1.0)
    assert found.value == pytest.approx(verifiers.digits(prompt, response, {}))


@base.stepwise
def words(prompt, response, record):
  """Every word is a step of its length; `none`, `raise` and what is no list."""
  if response == 'none':
    return None
  if response == 'back':
    return [(3, 1.0), (2, 1.0)]
  if response == 'far':
    return [(4, 1.0)]
  if response == 'nan':
    return [(1, NAN)]
  if response == 'raise':
    raise KeyError('step')
  ends, at = [], 0
  for word in response.split(' '):
    at += len(word)
    ends.append((at, float(len(word))))
    at += 1
  return ends


@pytest.mark.parametrize(
  ('response', 'error'),
  [
    ('back', 'must ascend'),
    ('far', 'within [0, 3]'),
    ('nan', 'got NaN'),
    ('raise', 'KeyError'),
  ],
)
def test_what_is_no_list_of_steps_costs_its_sample(response, error):
  with Scorer({'words': f'{__name__}.words'}, seconds=1.0, workers=0) as scorer:
    found = scorer.submit([''] * 2, [response, 'a bc'], [{}] * 2).result()
  np.testing.assert_array_equal(found.values['words'], [NAN, 3.0])
  assert found.steps['words'] == [None, [(1, 1.0), (4, 2.0)]]
  assert error in found.errors['words']


def test_only_what_says_so_judges_steps():
  assert base.is_stepwise(base.find('steps:arithmetic'))
  assert not base.is_stepwise(base.find('task:arithmetic'))
  with pytest.raises(base.InputError, match=r"'sentiment' does not.*\['arithmetic'\]"):
    base.find('steps:sentiment')


# The judge --------------------------------------------------------------------


def sampled(*texts):
  """One group of these texts, a token a character and EOS at the end."""
  length = np.array([[len(text) + 1 for text in texts]])
  tokens = np.zeros((1, len(texts), 8), np.int32)
  for row, text in zip(tokens[0], texts, strict=True):
    row[: len(text)] = [ord(x) for x in text]
  return Sampled(
    position=np.array([4]),
    attempt=np.array([0]),
    texts=[''],
    records=[{'answer': 'ab c'}],
    responses=[list(texts)],
    prompts=np.full((1, 2), 5, np.int32),
    prompt_length=np.array([1]),
    tokens=tokens,
    length=length,
  )


def decode(ids):
  return ''.join(chr(i) for i in ids if i)


def judge(**changes):
  options = dict(
    scorer=Scorer(
      {'right': 'exact_answer', 'words': f'{__name__}.words'}, seconds=1.0, workers=0
    ),
    weights={'right': 10.0, 'words': 0.5},
    gate='right',
    decode=decode,
  )
  return Judge(**options | changes)


def test_every_reward_stands_where_it_was_earned():
  found = judge().submit(sampled('ab c', 'ab', 'none', ''))()
  np.testing.assert_array_equal(found.reward, [[11.5, 1.0, 0.0, 0.0]])
  np.testing.assert_array_equal(found.values['words'], [[3.0, 2.0, NAN, 0.0]])
  want = np.zeros((1, 4, 8))
  want[0, 0, [1, 3, 4]] = 1.0, 0.5, 10.0  # the answer's on EOS
  want[0, 1, 1] = 1.0
  np.testing.assert_array_equal(found.placed, want)
  # What stands on the last token is a step of its own; what has no step is one.
  one = [[0, 0, 1, 1, 2], [0, 0, 1], [0] * 5, [0]]
  for row, numbers in zip(found.step[0], one, strict=True):
    np.testing.assert_array_equal(row, numbers + [-1] * (8 - len(numbers)))
  np.testing.assert_allclose(found.placed.sum(axis=-1), found.reward)


def test_the_token_that_stops_a_response_earns_nothing_of_its_steps():
  weights = {'right': 0.0, 'words': 1.0}
  found = judge(weights=weights).submit(sampled('ab c', 'none'))()
  want = np.zeros((1, 2, 8))
  want[0, 0, [1, 3]] = 2.0, 1.0
  np.testing.assert_array_equal(found.placed, want)
  step = [[0, 0, 1, 1, -1, -1, -1, -1], [0] * 5 + [-1] * 3]  # a response without any
  np.testing.assert_array_equal(found.step, [step])


def test_what_length_costs_is_paid_at_the_end():
  weights = {'right': 0.0, 'words': 1.0, 'overlong': 1.0}
  found = judge(weights=weights, overlong=(5, 2)).submit(sampled('ab c'))()
  np.testing.assert_array_equal(found.placed, [[[0, 2, 0, 1, -1, 0, 0, 0]]])
  np.testing.assert_array_equal(found.reward, [[2.0]])


class Process:
  """A process reward model: every second token ends a step and earns its place."""

  stepwise = True

  def __call__(self, prompts, prompt_length, tokens, length):
    place = np.broadcast_to(np.arange(tokens.shape[-1]), tokens.shape)
    ends = (place % 2 == 1) & (place < length[..., None])
    return np.where(ends, place, NAN)


def test_a_model_of_steps_plugs_in():
  found = judge(
    scorer=Scorer({'right': 'exact_answer'}, seconds=1.0, workers=0),
    weights={'right': 10.0, 'model': 2.0},
    models={'model': Process()},
  ).submit(sampled('ab c', 'a'))()
  np.testing.assert_array_equal(found.values['model'], [[4.0, 1.0]])
  want = [[0, 2, 0, 6, 10, 0, 0, 0], [0, 2, 0, 0, 0, 0, 0, 0]]
  np.testing.assert_array_equal(found.placed, [want])
  step = [[0, 0, 1, 1, 2, -1, -1, -1], [0, 0, -1, -1, -1, -1, -1, -1]]
  np.testing.assert_array_equal(found.step, [step])


def test_steps_are_decided_once(tmp_path):
  groups = sampled('ab c', 'none', 'raise')
  with Journal(tmp_path / 'a.jsonl') as written:
    first = judge(decided=written).submit(groups)()
  with Journal(tmp_path / 'a.jsonl') as written:
    # Without a decoder no step could be placed again.
    again = judge(decided=written, decode=None).submit(groups)()
  for a, b in zip(first, again, strict=True):
    if not isinstance(a, dict):
      np.testing.assert_array_equal(a, b)


def test_without_rewards_of_steps_nothing_is_placed():
  found = judge(
    scorer=Scorer({'right': 'exact_answer'}, seconds=1.0, workers=0),
    weights={'right': 1.0},
  ).submit(sampled('ab c'))()
  assert found.placed is None
  assert found.step is None
