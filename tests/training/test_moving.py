"""A reference that follows the policy: TR-DPO's hard and soft updates."""

import functools

import jax
import numpy as np
import pytest
import tiny

from prefjax.data.buckets import Grid
from prefjax.data.pipeline import Batches
from prefjax.data.records import Pair, Record
from prefjax.errors import InputError
from prefjax.training import metrics
from prefjax.training.loop import Loop, MovingReference, Plan
from prefjax.training.optimizers import Optimizer
from prefjax.training.step import Step

RECORDS = [
  Record('abcdefg'[: i % 7 + 1], ('hi' * (i % 3 + 1), 'k' * (5 - i % 5)), (Pair(0, 1),))
  for i in range(8)
]


@pytest.fixture(scope='module')
def batches(tmp_path_factory):
  data = tiny.prepared(tmp_path_factory.mktemp('data') / 'd', RECORDS)
  grid = Grid((8,), (8,))
  return Batches(data=data, batch_size=4, seed=0, grid=grid, max_tokens=1000)


@functools.cache
def step():
  optimizer = Optimizer(name='adamw', learning_rate=3e-2, steps=6)
  return Step(tiny.bag_forward, tiny.objective('dpo'), optimizer)


def trained(folder, batches, moving, steps=6, **changes):
  folder.mkdir(exist_ok=True)
  loop = Loop(
    step=step(),
    batches=batches,
    held_out=batches,
    plan=Plan(steps=steps, save_every=2, eval_every=3),
    folder=folder,
    clock=metrics.PhaseClock(),
    description='dpo',
    moving=moving,
    say=lambda text: None,
    **changes,
  )
  params, _ = loop.run(tiny.bag_params())
  rows = metrics.read(folder / 'metrics.jsonl')
  clean = [{k: v for k, v in r.items() if not k.startswith('time/')} for r in rows]
  return jax.tree.map(np.asarray, params), clean


def losses(rows):
  return [row['loss'] for row in rows if 'loss' in row]


def test_one_that_takes_everything_every_update_is_always_the_policy(tmp_path, batches):
  _, rows = trained(tmp_path / 'run', batches, MovingReference(every=1))
  np.testing.assert_allclose(losses(rows), np.log(2), atol=1e-5)
  held_out = [row['eval/loss'] for row in rows if 'eval/loss' in row]
  np.testing.assert_allclose(held_out, np.log(2), atol=1e-5)


def test_a_hard_update_starts_anew_where_it_is_due(tmp_path, batches):
  _, rows = trained(tmp_path / 'run', batches, MovingReference(every=3))
  found = np.asarray(losses(rows))
  still = np.isclose(found, np.log(2), atol=1e-5)
  assert still.tolist() == [True, False, False, True, False, False]


def test_a_soft_update_by_hand(tmp_path, batches, monkeypatch):
  seen, moved = [], Loop._moved

  def spying(self, state, n):
    found = moved(self, state, n)
    seen.append((state, found))
    return found

  monkeypatch.setattr(Loop, '_moved', spying)
  trained(tmp_path / 'run', batches, MovingReference(every=2, mix=0.25), steps=2)
  (_, first), (before, after) = seen
  np.testing.assert_array_equal(first['reference']['mix'], tiny.bag_params()['mix'])
  policy, old = before['policy']['params']['mix'], first['reference']['mix']
  np.testing.assert_allclose(
    after['reference']['mix'], 0.25 * policy + 0.75 * old, rtol=1e-6
  )


@pytest.mark.parametrize('mix', [1.0, 0.5])
def test_it_may_wait_in_the_memory_of_the_host(tmp_path, batches, monkeypatch, mix):
  moving, kinds, save = MovingReference(every=2, mix=mix), set(), Loop._save

  def seen(self, saver, state, *args):
    kinds.update(x.sharding.memory_kind for x in jax.tree.leaves(state['reference']))
    save(self, saver, state, *args)

  monkeypatch.setattr(Loop, '_save', seen)
  there = trained(tmp_path / 'host', batches, moving, reference_memory='host')
  assert kinds == {'pinned_host'}
  here = trained(tmp_path / 'device', batches, moving)
  assert there[1] == here[1]
  jax.tree.map(np.testing.assert_array_equal, there[0], here[0])


def test_stopped_and_resumed_it_ends_with_the_same_bits(tmp_path, batches, monkeypatch):
  moving = MovingReference(every=2, mix=0.5)
  whole = trained(tmp_path / 'whole', batches, moving)
  settle, calls = Loop._settle, []

  def dying(self, *args):
    calls.append(None)
    if len(calls) == 4:
      raise KeyboardInterrupt
    return settle(self, *args)

  monkeypatch.setattr(Loop, '_settle', dying)
  with pytest.raises(KeyboardInterrupt):
    trained(tmp_path / 'run', batches, moving)
  monkeypatch.setattr(Loop, '_settle', settle)
  params, rows = trained(tmp_path / 'run', batches, moving)
  assert rows == whole[1]
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(whole[0]), strict=True):
    np.testing.assert_array_equal(a, b)


def test_numbers_out_of_range_are_refused():
  with pytest.raises(InputError, match='move_every must be at least 1'):
    MovingReference(every=0)
  with pytest.raises(InputError, match='move_mix must lie in'):
    MovingReference(every=1, mix=0.0)
