"""From responses to rewards: what is summed, what is right, what is decided once."""

import contextlib

import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.rewards.journal import Journal
from prefjax.rewards.judge import Judge, Sampled
from prefjax.rewards.pool import Scorer

NAN = np.nan
K, L, T = 3, 2, 120


def scorer(**verifiers):
  return Scorer(verifiers, seconds=1.0, workers=0)


def sampled(*rows, answers=None, length=None, first=0, attempt=0):
  """Groups of these texts; the tokens of a text are told apart by its place."""
  n = len(rows)
  answers = ['42'] * n if answers is None else answers
  tokens = np.zeros((n, K, T), np.int32)
  tokens[..., 0] = first + np.arange(n * K).reshape(n, K) + 3
  length = np.full((n, K), 7) if length is None else np.array(length)
  return Sampled(
    position=np.arange(n) + 10,
    attempt=np.full(n, attempt),
    texts=[f'prompt {i}' for i in range(n)],
    records=[{} if answer is None else {'answer': answer} for answer in answers],
    responses=[list(row) for row in rows],
    prompts=np.full((n, L), 5, np.int32),
    prompt_length=np.arange(n) % L + 1,
    tokens=tokens,
    length=length,
  )


# By hand ----------------------------------------------------------------------


def test_rewards_are_weighted_and_the_gate_is_not(hostile):
  judge = Judge(
    scorer=scorer(right='exact_answer', size=hostile),
    weights={'size': 0.5, 'right': 2.0},
    gate='right',
  )
  found = judge.submit(sampled(['42', '41', ' 42 '], ['7', '42', '1234']))()
  # exact_answer strips; the size of a text is its number of characters.
  np.testing.assert_array_equal(found.reward, [[3.0, 1.0, 4.0], [0.5, 3.0, 2.0]])
  np.testing.assert_array_equal(found.right, [[1, 0, 1], [0, 1, 0]])
  np.testing.assert_array_equal(found.values['right'], [[1, 0, 1], [0, 1, 0]])
  np.testing.assert_array_equal(found.values['size'], [[2, 2, 4], [1, 2, 4]])
  assert found.right.dtype == bool


@pytest.mark.parametrize('threshold', [1.5, 2.0, 4.0])
def test_right_is_what_reaches_the_threshold(hostile, threshold):
  judge = Judge(
    scorer=scorer(size=hostile),
    weights={'size': -1.0},  # what it weighs does not move the gate
    gate='size',
    threshold=threshold,
  )
  found = judge.submit(sampled(['a', 'bb', 'cccc']))()
  np.testing.assert_array_equal(found.right, [np.array([1, 2, 4]) >= threshold])
  np.testing.assert_array_equal(found.reward, [[-1.0, -2.0, -4.0]])


def test_overlong_responses_are_punished_by_their_tokens():
  judge = Judge(
    scorer=scorer(right='exact_answer'),
    weights={'right': 1.0, 'overlong': 2.0},
    gate='right',
    overlong=(100, 10),
  )
  # Two characters each: it is the tokens that are counted.
  groups = sampled(
    ['42', '42', '41'], ['42', '42', '42'], length=[[90, 91, 95], [100, 101, 1]]
  )
  found = judge.submit(groups)()
  overlong = [[0.0, -0.1, -0.5], [-1.0, -1.0, 0.0]]
  np.testing.assert_allclose(found.values['overlong'], overlong, rtol=1e-15)
  np.testing.assert_allclose(
    found.reward, [[1.0, 0.8, -1.0], [-1.0, -1.0, 1.0]], rtol=1e-15
  )
  np.testing.assert_array_equal(found.right, [[1, 1, 0], [1, 1, 1]])


def test_what_no_reward_applies_to_has_none_however_long_it_is(hostile):
  judge = Judge(
    scorer=scorer(right='exact_answer'),
    weights={'right': 1.0, 'overlong': 1.0},
    gate='right',
    overlong=(100, 10),
  )
  groups = sampled(['42'] * 3, ['42'] * 3, answers=[None, '42'], length=[[95] * 3] * 2)
  found = judge.submit(groups)()
  np.testing.assert_array_equal(found.reward, [[NAN] * 3, [0.5] * 3])
  np.testing.assert_array_equal(found.right, [[False] * 3, [True] * 3])
  for values in found.values.values():
    assert np.isnan(values).tolist() == [[True] * 3, [False] * 3]
  # A verifier that fails on a response costs that response alone.
  judge = Judge(scorer=scorer(size=hostile), weights={'size': 1.0}, gate='size')
  found = judge.submit(sampled(['a', 'raise', 'none']))()
  np.testing.assert_array_equal(found.reward, [[1.0, NAN, NAN]])
  np.testing.assert_array_equal(found.right, [[True, False, False]])


# Models -----------------------------------------------------------------------


class Model:
  """A reward model that gives a group's first tokens, and records what it was shown."""

  def __init__(self, *missing):
    self.missing, self.shown = missing, []

  def __call__(self, prompts, prompt_length, tokens, length):
    assert prompts.shape == (len(tokens), L)
    assert prompt_length.shape == (len(tokens),)
    assert length.shape == tokens.shape[:2]
    self.shown.append(tokens[..., 0].tolist())
    found = tokens[..., 0].astype(np.float32) / 10
    return np.where(np.isin(tokens[..., 0], self.missing), np.float32('nan'), found)


def test_models_judge_beside_verifiers():
  judge = Judge(
    scorer=scorer(right='exact_answer'),
    weights={'right': 1.0, 'model': 10.0},
    gate='right',
    models={'model': Model(5)},
  )
  found = judge.submit(sampled(['42', '41', '41'], ['1', '42', '1']))()
  model = np.array([[0.3, 0.4, NAN], [0.6, 0.7, 0.8]], np.float32).astype(np.float64)
  np.testing.assert_array_equal(found.values['model'], model)
  np.testing.assert_allclose(found.reward, [[4, 4, 0], [6, 8, 8]], rtol=1e-6)
  np.testing.assert_array_equal(found.right, [[1, 0, 0], [0, 1, 0]])


def test_a_model_may_be_all_there_is():
  judge = Judge(
    scorer=scorer(),
    weights={'model': 1.0},
    gate='model',
    threshold=0.35,
    models={'model': Model()},
  )
  found = judge.submit(sampled(['', '', '']))()
  np.testing.assert_allclose(found.reward, [[0.3, 0.4, 0.5]], rtol=1e-6)
  np.testing.assert_array_equal(found.right, [[False, True, True]])


# Decided once -----------------------------------------------------------------


@pytest.fixture
def changing(hostile, tmp_path):
  """Makes judges that say something else every time, and write down what they said."""
  with contextlib.ExitStack() as stack:

    def make(name, model):
      return Judge(
        scorer=scorer(now='hostile.change', then='exact_answer'),
        weights={'now': 1.0, 'then': 1.0, 'model': 1.0},
        gate='then',
        models={'model': model},
        decided=stack.enter_context(Journal(tmp_path / name)),
      )

    yield make


def test_what_was_decided_is_not_decided_again(changing):
  model = Model(4)
  groups = sampled(['42', '1', '2'], ['3', '42', '5'], answers=['42', None])
  judge = changing('a.jsonl', model)
  first = judge.submit(groups)()
  again = judge.submit(groups)()
  resumed = changing('a.jsonl', model).submit(groups)()
  for found in (again, resumed):
    np.testing.assert_array_equal(found.reward, first.reward)
    np.testing.assert_array_equal(found.right, first.right)
    assert list(found.values) == list(first.values)
    for name, values in first.values.items():
      np.testing.assert_array_equal(found.values[name], values)
  assert len(model.shown) == 1
  other = changing('b.jsonl', model).submit(groups)()
  assert (other.values['now'] != first.values['now']).all()


def test_only_what_is_new_is_decided(changing):
  model = Model()
  judge = changing('a.jsonl', model)
  both = sampled(['42', '1', '2'], ['3', '42', '5'])
  second = Sampled(*(x[1:] for x in both))
  first = judge.submit(second)()
  found = judge.submit(both)()
  assert model.shown == [[[6, 7, 8]], [[3, 4, 5]]]
  np.testing.assert_array_equal(found.reward[1:], first.reward)
  np.testing.assert_array_equal(found.values['then'], [[1, 0, 0], [0, 1, 0]])
  # Another try of the same prompt, and other tokens under it, are new.
  judge.submit(sampled(['42', '1', '2'], attempt=1))()
  judge.submit(sampled(['42', '1', '2'], first=50))()
  assert model.shown[2:] == [[[3, 4, 5]], [[53, 54, 55]]]


def test_without_a_journal_everything_is_decided_anew(hostile):
  judge = Judge(scorer=scorer(now='hostile.change'), weights={'now': 1.0}, gate='now')
  groups = sampled(['a', 'b', 'c'])
  first, second = judge.submit(groups)(), judge.submit(groups)()
  assert (first.reward != second.reward).all()


def test_rewards_are_written_before_they_are_used(changing, tmp_path):
  judge = changing('a.jsonl', Model())
  first = judge.submit(sampled(['42', '1', '2']))
  assert (tmp_path / 'a.jsonl').read_text() == ''
  first()
  assert (tmp_path / 'a.jsonl').read_text().count('\n') == 1
  # Where they cannot be written there are none.
  judge.decided.__exit__()
  pending = judge.submit(sampled(['42', '1', '2'], attempt=1))
  with pytest.raises(ValueError, match='closed file'):
    pending()


# What does not match ----------------------------------------------------------


@pytest.mark.parametrize(
  ('changes', 'match'),
  [
    (dict(weights={}), r"rewards are \['right'\], weights \[\]"),
    (dict(weights={'wrong': 1.0}), r"rewards are \['right'\], weights \['wrong'\]"),
    (dict(weights={'right': 1.0, 'overlong': 1.0}), r"weights \['overlong', 'right'\]"),
    (dict(overlong=(100, 10)), r"rewards are \['overlong', 'right'\], weights \['r"),
    (dict(models={'m': Model()}), r"rewards are \['m', 'right'\], weights \['right'\]"),
    (dict(models={'right': Model()}), r"'overlong' and 'length': got \['right', 'r"),
    (
      dict(models={'overlong': Model()}, weights={'right': 1.0, 'overlong': 1.0}),
      r"'overlong' and 'length': got \['overlong', 'right'\]",
    ),
    (dict(gate='other'), r"must be a verifier or a model, \['right'\], got 'other'"),
    (
      dict(
        gate='overlong',
        overlong=(100, 10),
        weights={'right': 1.0, 'overlong': 1.0},
      ),
      "got 'overlong'",
    ),
    (
      dict(overlong=(10, 11), weights={'right': 1.0, 'overlong': 1.0}),
      r'cache must lie in \[1, longest\] = \[1, 10\] tokens, got 11',
    ),
  ],
)
def test_rewards_weights_and_gate_must_match(changes, match):
  options = dict(scorer=scorer(right='exact_answer'), weights={'right': 1.0})
  with pytest.raises(InputError, match=match):
    Judge(**options | dict(gate='right') | changes)
