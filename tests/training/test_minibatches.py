"""A rollout cut into micro-batches: nothing is lost, and nothing changes."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny

from prefjax import objectives
from prefjax.data.buckets import Grid
from prefjax.errors import InputError
from prefjax.models import heads
from prefjax.objectives.policy_gradient import group_tokens
from prefjax.training.minibatches import Cutter, gathered, taken
from prefjax.training.optimizers import Optimizer
from prefjax.training.step import Step
from prefjax.types import RolloutBatch, check_batch

P, K, L, T = 6, 4, 6, 7
GRID = Grid((3, 8), (4, 9))  # shorter and longer than the rollout's own arrays
ADAMW = Optimizer(name='adamw', learning_rate=1e-2, steps=10)
TOKENS = (
  'responses',
  'mask',
  'reference_logps',
  'old_logps',
  'step',
  'rewards',
  'implicit',
  'advantages',
  'returns',
  'correction',
)
PAIRS = ('chosen', 'rejected', 'preference', 'pair_weight')


def rollout(seed=0, p=P, dtype=np.float64):
  """A ragged rollout with every field but pairs; prompt 0 has a missing response."""
  base = tiny.batch(seed, p, K, L, T, dtype=dtype)
  rng = np.random.default_rng(seed + 1)
  column = np.arange(T)
  exists = column < base.response_length[..., None]

  def on_tokens(x):
    return np.where(exists, x, 0.0).astype(dtype)

  normal = functools.partial(rng.standard_normal, (p, K, T))
  states = np.arange(T + 1) <= base.response_length[..., None]
  fields = {
    field.name: getattr(base, field.name)
    for field in dataclasses.fields(base)
    if field.name not in PAIRS
  }
  batch = RolloutBatch(
    **fields
    | dict(
      win_rate=rng.random((p, K)).astype(dtype),
      old_logps=on_tokens(-3.4 + 0.4 * normal()),
      reference_logps=on_tokens(-3.4 + 0.4 * normal()),
      step=np.where(exists, column // 3, -1).astype(np.int32),
      truncated=base.response_length == T,
      rewards=on_tokens(normal()),
      implicit=on_tokens(normal()),
      advantages=on_tokens(normal()),
      returns=on_tokens(normal()),
      values=np.where(states, rng.standard_normal((p, K, T + 1)), 0.0).astype(dtype),
      correction=on_tokens(rng.uniform(0.5, 2.0, (p, K, T))),
    )
  )
  return batch.replace(group_tokens=np.asarray(group_tokens(batch)).astype(dtype))


def filled(batch):
  return {
    field.name: getattr(batch, field.name)
    for field in dataclasses.fields(batch)
    if getattr(batch, field.name) is not None
  }


def on_tokens_of(batch):
  return {name: getattr(batch, name) for name in (*TOKENS, 'values')}


# Nothing is lost --------------------------------------------------------------


def test_a_part_by_hand():
  batch = RolloutBatch(
    prompts=np.array([[0, 5, 6], [0, 0, 7]]),
    responses=np.array([[[3, 4, 0], [5, 0, 0]], [[6, 7, 8], [9, 9, 0]]]),
    prompt_length=np.array([2, 1]),
    response_length=np.array([[2, 1], [3, 2]]),
    mask=np.array([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [0, 1, 0]]], bool),
    weight=np.array([[1.0, 2.0], [3.0, 4.0]]),
    values=np.arange(16.0).reshape(2, 2, 4),
    step=np.array([[[0, 1, -1], [0, -1, -1]], [[0, 0, 1], [0, 1, -1]]]),
    group_tokens=np.array([4.0, 13.0]),
  )
  part = taken(batch, np.array([1, -1]), slice(1, 2), 2, 4)
  expected = dict(
    prompts=[[0, 7], [0, 0]],
    responses=[[[9, 9, 0, 0]], [[0] * 4]],
    prompt_length=[1, 1],
    response_length=[[2], [0]],
    mask=[[[False, True, False, False]], [[False] * 4]],
    weight=[[4.0], [0.0]],
    values=[[[12.0, 13.0, 14.0, 15.0, 0.0]], [[0.0] * 5]],
    step=[[[0, 1, -1, -1]], [[-1] * 4]],
    group_tokens=[13.0, 0.0],
  )
  assert filled(part).keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(getattr(part, name), value, err_msg=name)
  wide = taken(batch, np.array([0]), slice(0, 2), 5, 2)
  np.testing.assert_array_equal(wide.prompts, [[0, 0, 0, 5, 6]])
  np.testing.assert_array_equal(wide.responses, [[[3, 4], [5, 0]]])
  np.testing.assert_array_equal(wide.values, [[[0, 1, 2], [4, 5, 6]]])


@pytest.mark.parametrize('shards', [1, 2, 4])
@pytest.mark.parametrize('at_once', [0, 1, 2, 4])
@pytest.mark.parametrize('max_tokens', [60, 200])
def test_what_is_cut_and_put_together_is_the_rollout(shards, at_once, max_tokens):
  batch = rollout(dtype=np.float32)
  cutter = Cutter(grid=GRID, max_tokens=max_tokens, at_once=at_once, shards=shards)
  parts = cutter.cut(batch, np.arange(P))
  found = gathered(parts, on_tokens_of, batch)
  assert found.keys() == {*TOKENS, 'values'}
  for name, value in found.items():
    whole = getattr(batch, name)
    if name == 'step':  # its value outside is -1, and `gathered` fills with 0
      whole, value = (np.where(batch.mask, x, 0) for x in (whole, value))
    np.testing.assert_array_equal(value, whole, err_msg=name)
    assert value.dtype == whole.dtype


@pytest.mark.parametrize('shards', [1, 2, 4])
@pytest.mark.parametrize('at_once', [0, 1, 2])
def test_each_response_is_in_one_part_with_all_that_is_known_of_it(shards, at_once):
  batch = rollout(dtype=np.float32)
  cutter = Cutter(grid=GRID, max_tokens=60, at_once=at_once, shards=shards)
  parts = cutter.cut(batch, np.arange(P))
  seen = np.zeros((P, K), int)
  for part in parts:
    check_batch(part.batch)
    p, k, t = part.batch.responses.shape
    l = part.batch.prompts.shape[1]
    assert p % shards == 0
    assert k == (at_once or K)
    assert l in GRID.prompt
    assert t in GRID.response
    assert p == shards or p * (l + k * t) <= 60 * shards
    real = part.rows >= 0
    rows = part.rows[real]
    seen[rows, part.columns] += 1
    for name, x in filled(part.batch).items():
      assert x.dtype == getattr(batch, name).dtype, name
      if name in ('prompt_length', 'group_tokens'):
        np.testing.assert_array_equal(x[real], getattr(batch, name)[rows])
      elif name not in (*TOKENS, 'values', 'prompts'):
        whole = getattr(batch, name)[rows][:, part.columns]
        np.testing.assert_array_equal(x[real], whole, err_msg=name)
    for row, whole, n in zip(
      part.batch.prompts[real],
      batch.prompts[rows],
      batch.prompt_length[rows],
      strict=True,
    ):
      np.testing.assert_array_equal(row[l - n :], whole[L - n :])
      assert not row[: l - n].any()
    filling = jax.tree.map(lambda x, none=~real: x[none], part.batch)
    for name in ('weight', 'mask', 'response_length', 'group_tokens', 'advantages'):
      assert not getattr(filling, name).any()
    assert (filling.prompt_length == 1).all()
    assert (filling.step == -1).all()
  np.testing.assert_array_equal(seen, 1)


def test_a_minibatch_holds_its_own_prompts_alone():
  batch, rows = rollout(dtype=np.float32), np.array([4, 1, 3])
  cutter = Cutter(grid=GRID, max_tokens=60, at_once=2, shards=2)
  parts = cutter.cut(batch, rows)
  found = gathered(parts, lambda part: {'x': part.old_logps}, batch)['x']
  np.testing.assert_array_equal(found[rows], batch.old_logps[rows])
  assert not found[[0, 2, 5]].any()
  held = np.concatenate([part.rows for part in parts])
  assert sorted(held[held >= 0].tolist()) == [1, 1, 3, 3, 4, 4]


def test_the_longest_come_first():
  parts = Cutter(grid=GRID, max_tokens=60).cut(rollout(), np.arange(P))
  widths = [part.batch.responses.shape[-1] for part in parts]
  assert len(parts) > 1
  assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize('at_once', [0, 1, 2])
def test_the_tokens_of_a_group_stay_those_of_the_whole_group(at_once):
  batch = rollout()
  cutter = Cutter(grid=GRID, max_tokens=60, at_once=at_once)
  for part in cutter.cut(batch, np.arange(P)):
    real = part.rows >= 0
    whole = batch.group_tokens[part.rows[real]]
    np.testing.assert_array_equal(part.batch.group_tokens[real], whole)
    own = np.asarray(group_tokens(part.batch))[real]
    assert (own <= whole * (1 + 1e-12)).all()
    assert (own < whole).any() == (at_once > 0)


# Groups that cannot be cut so -------------------------------------------------


@pytest.mark.parametrize('at_once', [3, 5, 8, -1])
def test_a_group_is_cut_evenly_or_not_at_all(at_once):
  cutter = Cutter(grid=GRID, max_tokens=200, at_once=at_once)
  said = f'rollout.responses_at_once={at_once} must divide the 4 responses'
  with pytest.raises(InputError, match=said):
    cutter.cut(rollout(), np.arange(P))


def test_pairs_hold_a_group_together():
  whole = tiny.batch(0, P, K, L, T)
  pairs = {name: getattr(whole, name) for name in PAIRS}
  batch = rollout(dtype=np.float32).replace(**pairs)
  for at_once in (1, 2):
    with pytest.raises(InputError, match='pairs need a whole group'):
      Cutter(grid=GRID, max_tokens=200, at_once=at_once).cut(batch, np.arange(P))
  for at_once in (0, K):
    cutter = Cutter(grid=GRID, max_tokens=60, at_once=at_once, shards=4)
    for part in cutter.cut(batch, np.arange(P)):
      real = part.rows >= 0
      for name, x in pairs.items():
        found = getattr(part.batch, name)
        np.testing.assert_array_equal(found[real], x[part.rows[real]])
        assert not found[~real].any()


# A law: the gradient on the parts is that on the whole ------------------------


OBJECTIVES = {
  'grpo': dict(name='grpo', kl_coef=0.1),
  'dapo': dict(name='dapo', aggregate='group_token_mean'),
  'critic': dict(name='critic', value_clip=0.3),
}
FEW = Grid((8,), (4, 9))  # cells, each of which compiles
CUTTERS = {
  'halves': Cutter(grid=FEW, max_tokens=60, at_once=2),
  'singles': Cutter(grid=FEW, max_tokens=40, at_once=1, shards=4),
}


@functools.cache
def step(name):
  forward = tiny.bag_forward if name != 'critic' else heads.forward(tiny.bag_forward)
  return Step(forward, objectives.create(**OBJECTIVES[name]), ADAMW, chunk=16)


def params(name):
  found = tiny.bag_params(dtype=np.float64)
  if name != 'critic':
    return found
  scalar = np.random.default_rng(3).standard_normal(9)
  return heads.with_scalar(found, 8) | {heads.SCALAR: jax.numpy.asarray(scalar)}


def credited(name):
  """The rollout with the advantages of whole groups, as the loop has it."""
  batch = rollout()
  if name == 'critic':
    return batch
  objective = objectives.create(**OBJECTIVES[name]).build()
  return jax.tree.map(np.asarray, jax.jit(objective.credit)(batch))


def observed(name, batches):
  state, metrics = tiny.updated(step(name), params(name), batches)
  return {'gradient': tiny.gradient(state), 'metrics': metrics}


@functools.cache
def whole(name):
  return observed(name, [credited(name)])


@pytest.mark.parametrize(
  ('name', 'cut'),
  [*((name, 'halves') for name in OBJECTIVES), ('dapo', 'singles')],
)
def test_the_gradient_on_the_parts_is_that_on_the_whole(name, cut, x64):
  parts = CUTTERS[cut].cut(credited(name), np.arange(P))
  assert len(parts) > 3
  tiny.assert_same(whole(name), observed(name, [part.batch for part in parts]), 1e-10)


def test_what_is_compared_is_worth_comparing(x64):
  for name in OBJECTIVES:
    found = whole(name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found['gradient']):
      # A critic's loss does not read the words that a head would give.
      if name != 'critic' or 'unembedding' not in jax.tree_util.keystr(path):
        assert np.abs(leaf).max() > 1e-3, (name, path)
  for name in ('grpo', 'dapo'):
    assert whole(name)['metrics']['clipped_low'] > 0
    assert whole(name)['metrics']['clipped_high'] > 0


def test_with_the_tokens_of_a_part_a_cut_group_has_another_gradient(x64):
  parts = CUTTERS['halves'].cut(credited('dapo'), np.arange(P))
  own = [
    part.batch.replace(group_tokens=np.asarray(group_tokens(part.batch)))
    for part in parts
  ]
  found = observed('dapo', own)
  gaps = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), found['gradient'], whole('dapo')['gradient']
  )
  assert max(jax.tree.leaves(gaps)) > 1e-4
