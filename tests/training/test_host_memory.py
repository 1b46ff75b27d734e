"""What waits in the host's memory: where it lies, and that nothing else changes."""

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest
import tiny

from prefjax.training import mesh as meshes
from prefjax.training.checkpoints import Checkpoints
from prefjax.training.optimizers import Optimizer
from prefjax.training.step import Step, hyper

VOCAB = 32
CUT = {'data': 2, 'fsdp': 2, 'tensor': 2}


def step(moments='host', mesh=None, optimizer='adamw', objective='dpo'):
  return Step(
    tiny.bag_forward,
    tiny.objective(objective),
    Optimizer(name=optimizer, learning_rate=1e-2, steps=9, clip_norm=1.0),
    mesh=mesh,
    chunk=8,
    moments=moments,
  )


def batch(made, seed=0):
  whole = tiny.batch(seed, vocab=VOCAB)
  return whole if made.mesh is None else meshes.place_batch(whole, made.mesh)


def kinds(tree):
  return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)}


def bits(tree):
  return jax.tree.map(lambda x: np.asarray(x).tobytes(), tree)


def trained(made):
  """Updates on whole batches and on micro-batches."""
  state = made.initial_state(tiny.bag_params(vocab=VOCAB))
  numbers, losses = hyper(made.objective, made.optimizer), []
  for batches in ([batch(made)], [batch(made, 1), batch(made, 2)], [batch(made, 3)]):
    state, metrics = made.update(state, batches, numbers)
    losses.append(float(metrics['loss']))
  return state, losses


@pytest.mark.parametrize('cut', [False, True])
def test_moments_wait_on_the_host_and_nothing_else_does(cut):
  made = step(mesh=meshes.create(CUT) if cut else None)
  for state in (made.initial_state(tiny.bag_params(vocab=VOCAB)), trained(made)[0]):
    assert kinds(tiny.moment(state, 'mu')) == {'pinned_host'}
    assert kinds(tiny.moment(state, 'nu')) == {'pinned_host'}
    assert kinds((state['params'], state['step'])) == {'device'}
    numbers = [x for x in jax.tree.leaves(state['optimizer']) if x.ndim == 0]
    assert numbers
    assert kinds(numbers) == {'device'}


@pytest.mark.parametrize('optimizer', ['adamw', 'rmsprop', 'adafactor'])
@pytest.mark.parametrize('cut', [False, True])
def test_the_memory_changes_no_bit(optimizer, cut):
  mesh = meshes.create(CUT) if cut else None
  found = [trained(step(memory, mesh, optimizer)) for memory in ('host', 'device')]
  (state, losses), (wanted, wanted_losses) = found
  assert losses == wanted_losses
  assert bits(state) == bits(wanted)
  if cut:
    where = (meshes.shardings(wanted, mesh), state)
    for at, leaf in zip(*map(jax.tree.leaves, where), strict=True):
      assert at.spec == leaf.sharding.spec


def test_a_loss_that_couples_its_batch_has_them_there_too():
  state, losses = trained(step(objective='aot'))
  assert kinds(tiny.moment(state, 'mu')) == {'pinned_host'}
  assert losses == trained(step('device', objective='aot'))[1]


def test_no_update_after_the_first_of_a_kind_compiles():
  made = step(mesh=meshes.create(CUT), optimizer='rmsprop')
  jax.clear_caches()  # steps of one kind share their programs
  trained(made)
  trained(made)
  sizes = {name: getattr(made, name)._cache_size() for name in ('_fused', '_apply')}
  assert sizes == {'_fused': 1, '_apply': 1}


def test_the_state_is_donated():
  made = step()
  state = made.initial_state(tiny.bag_params(vocab=VOCAB))
  made.update(state, [batch(made)], hyper(made.objective, made.optimizer))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize('cut', [False, True])
def test_shapes_lie_as_the_state_does(cut):
  made = step(mesh=meshes.create(CUT) if cut else None)
  params = tiny.bag_params(vocab=VOCAB)
  state, shapes = made.initial_state(params), made.state_shapes(params)
  for leaf, shape in zip(*map(jax.tree.leaves, (state, shapes)), strict=True):
    assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)
    assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)


def pointers(tree):
  """Where what waits on the host lies."""
  return {
    leaf.unsafe_buffer_pointer()
    for leaf in jax.tree.leaves(tree)
    if leaf.sharding.memory_kind == 'pinned_host'
  }


def test_what_is_written_is_not_what_an_update_is_given(tmp_path, monkeypatch):
  state, _ = trained(step())
  given, write = set(), ocp.training.Checkpointer.save_checkpointables_async

  def seen(self, number, checkpointables, **rest):
    given.update(pointers(checkpointables['state']))
    return write(self, number, checkpointables, **rest)

  monkeypatch.setattr(ocp.training.Checkpointer, 'save_checkpointables_async', seen)
  with Checkpoints(tmp_path) as saver:
    saver.save(3, state, metadata={})
  assert len(given) == len(pointers(state)) > 0
  assert not given & pointers(state)


@pytest.mark.parametrize('cut', [False, True])
@pytest.mark.parametrize('back', ['host', 'device'])
def test_a_checkpoint_is_read_into_either_memory(tmp_path, back, cut):
  made = step(mesh=meshes.create(CUT) if cut else None)
  numbers = hyper(made.objective, made.optimizer)
  state, _ = trained(made)
  kept = bits(state)
  with Checkpoints(tmp_path) as saver:
    saver.save(3, state, metadata={})
    made.update(state, [batch(made, 4)], numbers)  # while it is written, and donated
  other = step(back, made.mesh)
  with Checkpoints(tmp_path) as saver:
    found = saver.restore(other.initial_state(tiny.bag_params(vocab=VOCAB))).state
  assert bits(found) == kept
  where = 'pinned_host' if back == 'host' else 'device'
  assert kinds(tiny.moment(found, 'mu')) == {where}
  assert kinds(found['params']) == {'device'}
