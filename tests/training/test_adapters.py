"""Training adapters beside frozen weights: the step, its mesh, and what it leaves."""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from prefjax.models import decoder, lora
from prefjax.models.lora import Lora
from prefjax.training import mesh as mesh_lib
from prefjax.training.optimizers import Optimizer
from prefjax.training.step import Step, hyper

SPEC = Lora(rank=2, alpha=3.0, targets=('layers.attention.*', 'layers.mlp.down'))
ADAMW = Optimizer(name='adamw', learning_rate=1e-2, steps=10)
RAISED = tuple(sorted(dict(dtype='float64', param_dtype='float64').items()))


CUT = tuple(sorted(dict(vocab_size=32, num_kv_heads=2).items()))
MESHES = {'data': dict(data=8), 'fsdp and tensor': dict(fsdp=4, tensor=2)}


@functools.cache
def step(objective, changes=(), mesh=None):
  config = tiny.config(**dict(changes))
  found = None if mesh is None else mesh_lib.create(MESHES[mesh])
  base = tiny.params(**dict(changes))
  return Step(
    lora.forward(config, SPEC),
    tiny.objective(objective),
    ADAMW,
    mesh=found,
    frozen=base if found is None else mesh_lib.place(base, found),
  )


def adapters(changes=(), scale=0.2):
  rng = np.random.default_rng(1)
  shapes = lora.create(tiny.config(**dict(changes)), SPEC)[1]
  return jax.tree.map(
    lambda x: jnp.asarray(scale * rng.standard_normal(x.shape), x.dtype), shapes
  )


def halves(batch):
  return [tiny.take(batch, rows, l=6, t=7) for rows in (range(4), range(4, 8))]


@pytest.mark.parametrize(
  'objective', ['sum', pytest.param('aot', marks=pytest.mark.slow)]
)
def test_gradients_are_those_of_all_weights_by_the_chain_rule(objective, x64):
  """With W' = W + s A B: dA = s dW' B^T and dB = s A^T dW', whatever the objective."""
  adapted = step(objective, RAISED)
  more, batch = adapters(RAISED), tiny.batch(dtype=np.float64)
  parts = halves(batch)
  found = tiny.gradient(tiny.updated(adapted, more, parts)[0])
  plain = Step(
    decoder.forward(decoder.create(tiny.config(**dict(RAISED)))[0]),
    tiny.objective(objective),
    ADAMW,
  )
  merged = lora.merged(lora.joined(adapted.frozen, more), SPEC)
  full = tiny.gradient(tiny.updated(plain, merged, parts)[0])
  full = traverse_util.flatten_dict(full)
  flat = traverse_util.flatten_dict(more)
  wanted = {}
  for path in flat:
    slope = 1.5 * full[(*path[:-1], 'kernel')]
    if path[-1] == lora.A:
      wanted[path] = slope @ flat[(*path[:-1], lora.B)].swapaxes(1, 2)
    else:
      wanted[path] = flat[(*path[:-1], lora.A)].swapaxes(1, 2) @ slope
  tiny.assert_same(found, traverse_util.unflatten_dict(wanted), 1e-10)


def test_the_base_is_left_and_the_state_is_of_adapters_alone():
  made = step('dpo')
  before = jax.tree.map(lambda x: np.asarray(x).tobytes(), made.frozen)
  state = made.initial_state(adapters())
  start = jax.tree.map(np.array, state['params'])
  numbers = hyper(made.objective, ADAMW)
  for n in range(2):
    state, metrics = made.update(state, [tiny.batch(n)], numbers)
  assert np.isfinite(float(metrics['loss']))
  assert jax.tree.map(lambda x: np.asarray(x).tobytes(), made.frozen) == before
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start, state['params'])
  assert jax.tree.all(moved)
  count = sum(x.size for x in jax.tree.leaves(start))
  held = sum(x.size for x in jax.tree.leaves(state['optimizer']))
  assert 2 * count <= held < 2 * count + 8


def test_the_reference_is_the_base_and_first_all_log_ratios_are_zero():
  made, batch = step('dpo'), tiny.batch()
  first = lora.initial_params(tiny.config(), SPEC, jax.random.key(1))
  plain = Step(tiny.forward(), tiny.objective('dpo'), ADAMW)
  batch = batch.replace(reference_logps=plain.score(made.frozen, batch).logps)
  values = made.evaluate(first, [batch], hyper(made.objective, ADAMW))
  assert values['margin'] == values['chosen_drift'] == values['rejected_drift'] == 0.0
  np.testing.assert_allclose(values['loss'], np.log(2), atol=1e-6)


@pytest.mark.parametrize(
  'mesh', [pytest.param('data', marks=pytest.mark.slow), 'fsdp and tensor']
)
def test_meshes_say_what_one_device_says(mesh):
  batch = tiny.batch(vocab=32)
  state, metrics = tiny.updated(step('dpo', CUT), adapters(CUT), [batch])
  sharded = step('dpo', CUT, mesh)
  state_there = sharded.initial_state(adapters(CUT))
  batch = mesh_lib.place_batch(batch, sharded.mesh)
  numbers = hyper(sharded.objective, ADAMW)
  other, same = jax.device_get(sharded.update(state_there, [batch], numbers))
  tiny.assert_same(tiny.gradient(state), tiny.gradient(other), 1e-5)
  np.testing.assert_allclose(same['loss'], metrics['loss'], rtol=1e-5)
