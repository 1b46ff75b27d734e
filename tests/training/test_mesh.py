"""Meshes of data shards: the same numbers as on one device, and as pmap gave."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from prefjax.errors import InputError
from prefjax.training import mesh as mesh_lib
from prefjax.training.monitor import Compilations
from prefjax.training.optimizers import Optimizer
from prefjax.training.step import Step, hyper, initial_state

TOLERANCE = {'float64': 1e-10, 'float32': 1e-5}
OPTIMIZER = Optimizer(name='rmsprop', learning_rate=1e-3, steps=10, clip_norm=10.0)
PERMUTED = (3, 6, 0, 5, 1, 7, 4, 2)
MESHES = {
  'data 1': (0,),
  'data 2': (0, 1),
  'data 8': tuple(range(8)),
  'permuted': PERMUTED,
}


@pytest.fixture
def precision(dtype):
  with jax.enable_x64(dtype == 'float64'):
    yield dtype


@functools.cache
def mesh(name):
  if name == 'none':
    return None
  devices = [jax.devices()[i] for i in MESHES[name]]
  return mesh_lib.create({'data': len(devices)}, devices=devices)


@functools.cache
def step(name, objective='sum'):
  return Step(
    tiny.bag_forward,
    tiny.objective(objective),
    OPTIMIZER,
    mesh=mesh(name),
    want=('entropy',),
    chunk=5,
  )


def placed(name, tree):
  return tree if name == 'none' else mesh_lib.place_batch(tree, mesh(name))


def start(name, dtype):
  state = initial_state(tiny.bag_params(dtype=dtype), OPTIMIZER)
  if name == 'none':
    return state
  return jax.device_put(state, mesh_lib.replicated(mesh(name)))


def train(name, dtype):
  """Three updates: one batch whole, one in two micro-batches, one whole."""
  wholes = [tiny.batch(seed, p=16, dtype=np.dtype(dtype)) for seed in range(3)]
  halves = [tiny.take(wholes[1], rows, l=6, t=7) for rows in (range(8), range(8, 16))]
  state, metrics = start(name, dtype), []
  numbers = hyper(step(name).objective, OPTIMIZER)
  for batches in ([wholes[0]], halves, [wholes[2]]):
    batches = [placed(name, batch) for batch in batches]
    state, measured = step(name).update(state, batches, numbers)
    metrics.append(measured)
  return state, metrics


@functools.cache
def on_one_device(dtype):
  return jax.device_get(train('none', dtype))


# Law 4 --------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('name', 'dtype'),
  [*((name, 'float64') for name in MESHES), ('data 8', 'float32')],
)
def test_the_mesh_changes_nothing(name, dtype, precision):
  state, metrics = train(name, dtype)
  expected, measured = on_one_device(dtype)
  tiny.assert_same(measured, metrics, TOLERANCE[dtype])
  tiny.assert_same(expected, state, TOLERANCE[dtype])
  moved = tiny.bag_params(dtype=dtype)
  for key, value in expected['params'].items():
    assert np.abs(value - moved[key]).max() > 1e-3
  # What a step gives lies whole on every device of the mesh.
  for leaf in jax.tree.leaves((state, metrics)):
    assert leaf.sharding.is_fully_replicated
    assert leaf.sharding.device_set == set(mesh(name).devices.flat)


def test_the_same_mesh_gives_the_same_bits():
  one, two = (jax.device_get(train('data 8', 'float32')) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_no_step_after_the_first_compiles():
  fresh = Step(
    tiny.bag_forward,
    tiny.objective('dpo'),
    OPTIMIZER,
    mesh=mesh('data 8'),
    chunk=5,
  )
  state = start('data 8', 'float32')
  numbers = hyper(fresh.objective, OPTIMIZER)
  batch = placed('data 8', tiny.batch())

  def every_function(state):
    state, _ = fresh.update(state, [batch], numbers)
    state, _ = fresh.update(state, [batch, batch], numbers)
    fresh.evaluate(state['params'], [batch], numbers)
    fresh.score(state['params'], batch)
    return state

  state = every_function(state)
  compiled = Compilations()
  every_function(state)
  compiled.stop()
  assert compiled.count == 0


def test_evaluating_and_scoring_on_a_mesh(x64):
  params = tiny.bag_params(dtype=np.float64)
  batch = tiny.batch(dtype=np.float64)
  found = []
  for name in ('none', 'data 8'):
    numbers = hyper(step(name).objective, OPTIMIZER)
    here = params
    if name != 'none':
      here = jax.device_put(params, mesh_lib.replicated(mesh(name)))
    part = placed(name, batch)
    values = step(name).evaluate(here, [part], numbers)
    found.append((values, jax.device_get(step(name).score(here, part).logps)))
  tiny.assert_same(*found, 1e-10)


# pmap ---------------------------------------------------------------------------


@pytest.mark.parametrize('model', ['bag', 'decoder'])
def test_data_8_is_pmap_of_the_same_loss(model, x64):
  if model == 'bag':
    forward, params = tiny.bag_forward, tiny.bag_params(dtype=np.float64)
  else:
    kind = dict(dtype='float64', param_dtype='float64')
    forward, params = tiny.forward(**kind), tiny.params(**kind)
  adamw = Optimizer(name='adamw', learning_rate=1e-3, steps=10)
  goal = tiny.objective('sum')
  batch = tiny.batch(dtype=np.float64)
  sharded = Step(forward, goal, adamw, mesh=mesh('data 8'), chunk=5)
  state = jax.device_put(
    initial_state(params, adamw), mesh_lib.replicated(mesh('data 8'))
  )
  state, metrics = sharded.update(state, [placed('data 8', batch)], hyper(goal, adamw))

  # The sums of each device, their weights added over all of them, the ratio last.
  alone = Step(forward, goal, adamw, chunk=5)

  def on_one(params, batch):
    def total(params):
      mean, _ = goal.build()(alone.outputs(params, batch), batch)
      weight = jax.lax.psum(mean.weight, 'data')
      return jnp.sum(mean.total / weight)

    loss, gradient = jax.value_and_grad(total)(params)
    return jax.lax.psum((loss, gradient), 'data')

  shards = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), batch)
  mapped = jax.pmap(on_one, 'data', in_axes=(None, 0))
  loss, gradient = jax.tree.map(lambda x: x[0], mapped(params, shards))
  tiny.assert_same(
    jax.device_get({'loss': loss, 'gradient': gradient}),
    {'loss': metrics['loss'], 'gradient': tiny.gradient(state)},
    1e-10,
  )


# Placing ------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['data 2', 'data 8', 'permuted'])
def test_the_prompts_are_dealt_over_the_devices_in_order(name):
  whole = tiny.batch()
  batch = placed(name, whole)
  size = 8 // len(MESHES[name])
  assert mesh_lib.data_shards(mesh(name)) == len(MESHES[name])
  for shard in batch.responses.addressable_shards:
    place = MESHES[name].index(shard.device.id)
    part = whole.responses[place * size : (place + 1) * size]
    np.testing.assert_array_equal(shard.data, part)
  assert batch.win_rate is None


@pytest.mark.parametrize('p', [1, 4, 7, 12])
def test_a_batch_that_does_not_divide_is_refused(p):
  whole = tiny.take(tiny.batch(p=12), range(p))
  with pytest.raises(InputError, match=f'{p} prompts do not divide by 8'):
    placed('data 8', whole)


def test_the_default_is_all_devices_on_data():
  assert dict(mesh_lib.create().shape) == {'data': 8}


@pytest.mark.parametrize(
  ('axes', 'message'),
  [
    ({'tensors': 8}, r"unknown axes \['tensors'\]; known are \['data'"),
    ({'data': 4}, 'does not use the 8 devices'),
    ({'data': 16}, 'does not use the 8 devices'),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused(axes, message):
  with pytest.raises(InputError, match=message):
    mesh_lib.create(axes)
