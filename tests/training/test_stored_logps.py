"""The reference's log-probs: prefjax/training/reference.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from prefjax.data.buckets import Cell, Grid
from prefjax.data.pipeline import Batches, assemble
from prefjax.data.records import Pair, Record
from prefjax.training import mesh as mesh_lib
from prefjax.training import reference
from prefjax.training.optimizers import Optimizer
from prefjax.training.step import Step

OPTIMIZER = Optimizer(name='rmsprop', learning_rate=1e-3, steps=10)


def record(i):
  if i == 4:
    return Record('alone', ('xyz',))
  responses = ('hi' * (i % 3 + 1), 'k' * (5 - i % 5))
  return Record('abcdefg'[: i % 7 + 1], responses, (Pair(0, 1, 1.0),))


RECORDS = [record(i) for i in range(11)]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return tiny.prepared(tmp_path_factory.mktemp('data') / 'd', RECORDS)


@pytest.fixture
def batches(data):
  return Batches(
    data=data,
    batch_size=4,
    seed=0,
    grid=Grid((4, 8), (4, 8)),
    max_tokens=48,
  )


@functools.cache
def step(mesh=None):
  return Step(tiny.bag_forward, tiny.objective('dpo'), OPTIMIZER, mesh=mesh, chunk=5)


def directly(data, params):
  """Example by example, by log-softmax over all logits."""
  flat = []
  for i in range(len(data)):
    example = data[i]
    lengths = [len(response) for response in example.responses]
    cell = Cell(1, len(lengths), len(example.prompt), max(lengths))
    batch = assemble([example], cell, pairs=1)
    hidden, head = tiny.bag_forward(params, batch)
    logps = jax.nn.log_softmax(hidden[:, :, :-1] @ head.weight.T)
    for k, response in enumerate(example.responses):
      flat += [float(logps[0, k, j, token]) for j, token in enumerate(response)]
  return np.array(flat)


# What is stored -----------------------------------------------------------------


def test_stored_is_what_the_model_gives(batches, data, tmp_path):
  params = tiny.bag_params()
  found = reference.stored_logps(step(), params, batches, tmp_path / 'r')
  assert found.logps.dtype == np.float32
  expected = directly(data, params)
  assert expected.max() < 0 and len(expected) == data.response_length.sum()
  np.testing.assert_allclose(found.logps, expected, rtol=1e-5, atol=1e-6)


def test_on_a_mesh_too(batches, data):
  mesh = mesh_lib.create({'data': 2}, devices=jax.devices()[:2])
  params = tiny.bag_params()
  batches = dataclasses.replace(batches, shards=2)
  found = reference.compute_logps(
    step(mesh), jax.device_put(params, mesh_lib.replicated(mesh)), batches
  )
  np.testing.assert_allclose(found, directly(data, params), rtol=1e-5, atol=1e-6)


def test_they_come_back_in_batches(batches, data, tmp_path):
  params = tiny.bag_params()
  stored = reference.stored_logps(step(), params, batches, tmp_path / 'r')
  reading = dataclasses.replace(batches, reference=stored, seed=7)
  for n in range(3):
    for batch in reading.at(n):
      own = step().score(params, batch).logps
      np.testing.assert_allclose(batch.reference_logps, own, atol=1e-6)
      assert batch.reference_logps[batch.mask].max() < 0


def test_the_seed_and_stored_values_of_a_run_do_not_matter(batches, tmp_path):
  params = tiny.bag_params()
  first = reference.compute_logps(step(), params, batches)
  other = dataclasses.replace(batches, seed=99)
  np.testing.assert_array_equal(first, reference.compute_logps(step(), params, other))


# Computed once -------------------------------------------------------------------


class Unusable:
  """Stands in for the forward where nothing may be computed."""

  def __call__(self, params, batch, *, adapters=True):
    raise AssertionError('the reference was run again')


def test_the_second_call_computes_nothing(batches, tmp_path):
  params = tiny.bag_params()
  first = reference.stored_logps(step(), params, batches, tmp_path / 'r')
  broken = dataclasses.replace(step(), forward=Unusable())
  again = reference.stored_logps(broken, params, batches, tmp_path / 'r')
  np.testing.assert_array_equal(first.logps, again.logps)
  np.testing.assert_array_equal(first.offset, again.offset)
  with pytest.raises(AssertionError, match='run again'):
    reference.stored_logps(broken, params, batches, tmp_path / 'other')
  # What fails leaves nothing behind that could be taken for the whole.
  assert [path.name for path in tmp_path.iterdir()] == ['r']


# The fingerprint -----------------------------------------------------------------


def test_the_fingerprint_changes_with_any_leaf():
  params = {'a': {'b': jnp.arange(6.0).reshape(2, 3)}, 'c': jnp.ones(2)}
  first = reference.params_fingerprint(params)
  assert first == reference.params_fingerprint(jax.tree.map(np.array, params))
  assert len(first) == 16 and int(first, 16) >= 0
  others = [
    {'a': {'b': params['a']['b']}, 'd': params['c']},  # another path
    {'a': {'b': params['a']['b'].reshape(3, 2)}, 'c': params['c']},
    {'a': {'b': params['a']['b'].at[1, 2].add(1e-6)}, 'c': params['c']},
    {'a': {'b': params['a']['b']}, 'c': jnp.array([1.0, 1.0 + 2e-7])},
    {'a': {'b': params['a']['b']}, 'c': jnp.ones(2, jnp.bfloat16)},
    {'a': {'b': params['a']['b']}},
  ]
  # Six equal zeros in float32 and int32 have equal bytes.
  zeros = [{'a': jnp.zeros(6, dtype)} for dtype in (jnp.float32, jnp.int32)]
  found = [reference.params_fingerprint(tree) for tree in (*others, *zeros)]
  assert len({first, *found}) == 1 + len(others) + len(zeros)


def test_the_fingerprint_reads_the_values_and_not_their_layout():
  x = np.arange(6.0).reshape(2, 3)
  turned = np.asfortranarray(x)
  assert reference.params_fingerprint({'x': x}) == (
    reference.params_fingerprint({'x': turned})
  )
