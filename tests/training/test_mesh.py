"""Meshes in any product of their axes: the numbers of one device, and of pmap."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from prefjax.errors import InputError
from prefjax.models import sharding
from prefjax.training import mesh as mesh_lib
from prefjax.training.monitor import Compilations
from prefjax.training.optimizers import Optimizer
from prefjax.training.step import Step, hyper

TOLERANCE = {'float64': 1e-10, 'float32': 1e-5}
OPTIMIZER = Optimizer(name='rmsprop', learning_rate=1e-3, steps=10, clip_norm=10.0)
PERMUTED = (3, 6, 0, 5, 1, 7, 4, 2)
ALL = tuple(range(8))
# Axes, and the devices in their order.
MESHES = {
  'data 8': ({'data': 8}, ALL),
  'permuted': ({'data': 8}, PERMUTED),
  'fsdp 8': ({'fsdp': 8}, ALL),
  'tensor 2 x fsdp 4': ({'fsdp': 4, 'tensor': 2}, ALL),
  'all three': ({'data': 2, 'fsdp': 2, 'tensor': 2}, PERMUTED),
}
# Sizes that every mesh divides.
MODEL = dict(vocab_size=32, num_heads=4, num_kv_heads=2)
DOUBLE = dict(dtype='float64', param_dtype='float64')


@pytest.fixture
def precision(dtype):
  with jax.enable_x64(dtype == 'float64'):
    yield dtype


@functools.cache
def mesh(name):
  if name == 'none':
    return None
  axes, devices = MESHES[name]
  return mesh_lib.create(axes, devices=[jax.devices()[i] for i in devices])


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


def bag(dtype):
  return tiny.bag_params(vocab=MODEL['vocab_size'], dtype=dtype)


def train(name, dtype):
  """Three updates: one batch whole, one in two micro-batches, one whole."""
  wholes = [tiny.batch(seed, p=16, dtype=np.dtype(dtype)) for seed in range(3)]
  halves = [tiny.take(wholes[1], rows, l=6, t=7) for rows in (range(8), range(8, 16))]
  state, metrics = step(name).initial_state(bag(dtype)), []
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
  [(name, 'float32' if name == 'data 8' else 'float64') for name in MESHES],
)
def test_the_mesh_changes_nothing(name, dtype, precision):
  state, metrics = train(name, dtype)
  expected, measured = on_one_device(dtype)
  tiny.assert_same(measured, metrics, TOLERANCE[dtype])
  tiny.assert_same(expected, state, TOLERANCE[dtype])
  moved = bag(dtype)
  for key, value in expected['params'].items():
    assert np.abs(value - moved[key]).max() > 1e-3
  # What a step gives lies as what it was given, its numbers whole on every device.
  where = sharding.shardings(state, mesh(name))
  for leaf, wanted in zip(*map(jax.tree.leaves, (state, where)), strict=True):
    assert leaf.sharding == wanted
  for leaf in jax.tree.leaves(metrics):
    assert leaf.sharding.is_fully_replicated


@functools.cache
def decoder_step(name):
  return Step(
    tiny.forward(**MODEL, **DOUBLE),
    tiny.objective('sum'),
    OPTIMIZER,
    mesh=mesh(name),
    want=('entropy',),
    chunk=5,
  )


def decoder_update(name):
  state = decoder_step(name).initial_state(tiny.params(**MODEL, **DOUBLE))
  numbers = hyper(decoder_step(name).objective, OPTIMIZER)
  batch = placed(name, tiny.batch(dtype=np.float64))
  return decoder_step(name).update(state, [batch], numbers)


@pytest.mark.parametrize(
  'name', [pytest.param('fsdp 8', marks=pytest.mark.slow), 'all three']
)
def test_the_mesh_changes_nothing_of_a_decoder(name, x64):
  state, metrics = decoder_update(name)
  expected, measured = jax.device_get(decoder_update('none'))
  tiny.assert_same(measured, metrics, 1e-10)
  tiny.assert_same(expected, state, 1e-10)
  up = state['params']['layers']['mlp']['up']['kernel']
  shards = mesh(name).shape
  assert up.sharding.spec == jax.P(None, 'fsdp', 'tensor')
  assert up.addressable_shards[0].data.shape == (
    2,
    8 // shards['fsdp'],
    12 // shards['tensor'],
  )


def test_the_same_mesh_gives_the_same_bits():
  one, two = (jax.device_get(train('data 8', 'float32')) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_no_step_after_the_first_compiles():
  fresh = Step(
    tiny.bag_forward,
    tiny.objective('dpo'),
    OPTIMIZER,
    mesh=mesh('tensor 2 x fsdp 4'),
    chunk=5,
  )
  state = fresh.initial_state(bag('float32'))
  numbers = hyper(fresh.objective, OPTIMIZER)
  batch = placed('tensor 2 x fsdp 4', tiny.batch())

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
  params = bag(np.float64)
  batch = tiny.batch(dtype=np.float64)
  found = []
  for name in ('none', 'all three'):
    numbers = hyper(step(name).objective, OPTIMIZER)
    here = params
    if name != 'none':
      here = mesh_lib.place(params, mesh(name))
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
  state = sharded.initial_state(params)
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


@pytest.mark.parametrize('name', ['data 8', 'permuted', 'fsdp 8', 'all three'])
def test_the_prompts_are_dealt_over_the_devices_in_order(name):
  whole = tiny.batch()
  batch = placed(name, whole)
  axes, devices = MESHES[name]
  copies = axes.get('tensor', 1)
  shards = len(devices) // copies
  size = 8 // shards
  assert mesh_lib.data_shards(mesh(name)) == shards
  for shard in batch.responses.addressable_shards:
    place = devices.index(shard.device.id) // copies
    part = whole.responses[place * size : (place + 1) * size]
    np.testing.assert_array_equal(shard.data, part)
  assert batch.win_rate is None


@pytest.mark.parametrize('p', [1, 4, 7, 12])
def test_a_batch_that_does_not_divide_is_refused(p):
  whole = tiny.take(tiny.batch(p=12), range(p))
  with pytest.raises(InputError, match=f'{p} prompts do not divide by 8'):
    placed('data 8', whole)


@dataclasses.dataclass(frozen=True)
class Chip:
  """What laying out a mesh reads of a TPU."""

  coords: tuple[int, int, int]
  core_on_chip: int = 0
  process_index: int = 0
  platform: str = 'tpu'
  device_kind: str = 'TPU v5'


def test_an_axis_may_be_longer_than_those_of_the_torus():
  chips = [Chip(at) for at in itertools.product(range(4), repeat=3)]
  made = mesh_lib.create({'fsdp': 8, 'tensor': 8}, devices=chips)
  assert made.devices.shape == (1, 8, 8)
  assert set(made.devices.flat) == set(chips)


def test_the_default_is_all_devices_on_data():
  assert dict(mesh_lib.create().shape) == {'data': 8, 'fsdp': 1, 'tensor': 1}


@pytest.mark.parametrize(
  ('axes', 'message'),
  [
    ({'tensors': 8}, r"unknown axes \['tensors'\]; known are \['data', 'fsdp', 'tenso"),
    ({'data': 4}, 'does not use the 8 devices'),
    ({'data': 16}, 'does not use the 8 devices'),
    ({'data': 8, 'fsdp': 0}, 'does not use the 8 devices'),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused(axes, message):
  with pytest.raises(InputError, match=message):
    mesh_lib.create(axes)


@pytest.mark.parametrize(
  ('axes', 'changes', 'message'),
  [
    ({'fsdp': 8}, dict(width=12), r'mesh.fsdp=8 does not divide model.width=12\.'),
    ({'tensor': 8}, {}, r'mesh.tensor=8 does not divide model.num_heads=4\.'),
    (
      {'data': 2, 'tensor': 4},
      {},
      r'mesh.tensor=4 does not divide model.num_kv_heads=2\.',
    ),
    (
      {'data': 4, 'tensor': 2},
      dict(vocab_size=29),
      'mesh.tensor=2 does not divide model.vocab_size=29: a larger vocabulary may be',
    ),
  ],
)
def test_a_mesh_that_does_not_divide_the_model_is_refused(axes, changes, message):
  with pytest.raises(InputError, match=message):
    sharding.check(tiny.config(**MODEL | changes), mesh_lib.create(axes))


def test_a_run_says_how_its_parameters_lie():
  params = mesh_lib.place(tiny.params(**MODEL), mesh('tensor 2 x fsdp 4'))
  said = mesh_lib.placement(params, mesh('tensor 2 x fsdp 4'))
  total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  # Two layers with two norms each, and one at the end: whole everywhere.
  norms = 5 * 8 * 4
  assert said.startswith(
    f'parameters: {total} bytes, {(total - norms) // 8 + norms} a device on data 1, '
    'fsdp 4, tensor 2; whole on each: layers/attention_norm/scale 64,'
  )


def test_parameters_that_lie_otherwise_are_refused():
  params = tiny.params(**MODEL)
  whole = jax.device_put(params, mesh_lib.replicated(mesh('fsdp 8')))
  with pytest.raises(InputError, match=r'`embedding` lies as .* which is not'):
    mesh_lib.placement(whole, mesh('fsdp 8'))
  large = {'mine': jnp.zeros((2**13, 2**11))}
  with pytest.raises(InputError, match='whole of `mine`, 67108864 bytes'):
    mesh_lib.placement(mesh_lib.place(large, mesh('fsdp 8')), mesh('fsdp 8'))


def test_of_a_moment_every_shape_but_its_parameters_is_whole():
  # Adafactor's rows and columns of a stacked kernel are no kernels.
  tree = {'layers': {'up': {'kernel': np.zeros((2, 8))}}, 'embedding': np.zeros(32)}
  for leaf in jax.tree.leaves(sharding.shardings(tree, mesh('all three'))):
    assert leaf.is_fully_replicated
