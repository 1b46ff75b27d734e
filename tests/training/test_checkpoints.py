"""Checkpoints: exact bits, what remains, damage against misfit, kills."""

import functools
import logging
import os
from pathlib import Path
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prefjax.errors import InputError
from prefjax.training.checkpoints import Checkpoints
from prefjax.training.integrity import checksums


def make_state(seed):
  params = {
    'w': jax.random.normal(jax.random.key(seed), (4, 3)),
    'b': {'c': jnp.full(5, 0.1 + seed, jnp.bfloat16)},
  }
  return {
    'policy': {'params': params, 'opt': optax.adamw(1e-3).init(params)},
    'keys': (jax.random.key(seed), jax.random.split(jax.random.key(seed), 2)),
    'words': jnp.full(3, 2**32 - 1 - seed, jnp.uint32),
    'step': jnp.int32(seed),
    'special': jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45]),
    'rewards': np.arange(4.0) + seed,
    'surplus': jnp.zeros((0, 7), jnp.bfloat16),
    'nothing': {},
  }


def bits(tree):
  def of(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    leaf = np.asarray(leaf)
    return str(leaf.dtype), leaf.shape, leaf.tobytes()

  leaves, structure = jax.tree.flatten(tree)
  return structure, [of(leaf) for leaf in leaves]


def save(folder, steps, **options):
  with Checkpoints(folder, **options) as checkpoints:
    for step in steps:
      assert checkpoints.save(step, make_state(step), metadata={'position': step})


def restore(folder, like=0):
  abstract = make_state(like) if isinstance(like, int) else like
  with Checkpoints(folder) as checkpoints:
    return checkpoints.restore(abstract)


def flip_bit(path, place=0.5):
  data = bytearray(path.read_bytes())
  data[int(len(data) * place)] ^= 16
  path.write_bytes(data)


def misread(path, old, new):
  text = path.read_text()
  before = r'position\": '
  assert before + old in text
  path.write_text(text.replace(before + old, before + new))


def largest(folder):
  files = (path for path in folder.rglob('*') if path.is_file())
  return max(files, key=lambda path: path.stat().st_size)


def test_the_round_trip_is_exact_to_the_bit(tmp_path):
  metadata = {'position': [3, {'seed': 2**63}], 'name': 'é', 'none': None}
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore(make_state(0)) is None
    checkpoints.save(7, make_state(7), metadata=metadata)
  got = restore(tmp_path)
  assert (got.step, got.metadata, got.notes) == (7, metadata, [])
  assert bits(got.state) == bits(make_state(7))
  assert isinstance(got.state['rewards'], np.ndarray)


def test_an_abstract_state_places_the_arrays(tmp_path):
  mesh = jax.make_mesh(
    (jax.device_count(),), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  sharding = jax.NamedSharding(mesh, jax.P('data'))
  values = np.arange(4.0 * jax.device_count(), dtype=np.float32)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {'w': jnp.asarray(values)}, metadata={})
  abstract = jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=sharding)
  got = restore(tmp_path, {'w': abstract}).state['w']
  assert got.sharding == sharding
  np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize(
  ('mode', 'losses', 'remain'),
  [
    ('min', [5.0, 1.0, 3.0, 2.0, 4.0], [20, 40, 50]),
    ('max', [9.0, 1.0, 3.0, 2.0, 4.0], [10, 40, 50]),
    ('min', [float('nan'), 1.0, 3.0, 2.0, 4.0], [20, 40, 50]),
    ('min', [5.0, 4.0, 3.0, 2.0, 1.0], [40, 50]),
  ],
)
def test_the_newest_two_and_the_best_remain(tmp_path, mode, losses, remain):
  state = {'w': jnp.ones(2)}
  for step, loss in zip(range(10, 60, 10), losses, strict=True):
    with Checkpoints(tmp_path, keep=2, best='loss', mode=mode) as checkpoints:
      checkpoints.restore(state)  # The best is known across restarts.
      checkpoints.save(step, state, metadata={}, metrics={'loss': np.float32(loss)})
  assert checkpoints.steps() == remain


def test_saves_only_what_is_due_and_each_step_once(tmp_path):
  state = {'w': jnp.ones(2)}
  with Checkpoints(tmp_path, keep=9, save_every=3) as checkpoints:
    started = [checkpoints.save(s, state, metadata={}) for s in range(1, 8)]
    assert started == [False, False, True, False, False, True, False]
    assert checkpoints.save(7, state, metadata={}, force=True)
    assert not checkpoints.save(7, state, metadata={}, force=True)
    checkpoints.wait()
    assert (checkpoints.steps(), checkpoints.latest()) == ([3, 6, 7], 7)
  with (
    Checkpoints(tmp_path) as fresh,
    pytest.raises(InputError, match=r'Cannot save step 1 .* step 7 is there'),
  ):
    fresh.save(1, state, metadata={})


DAMAGE = {
  'flipped bit': lambda step: flip_bit(largest(step / 'state')),
  'truncated': lambda step: os.truncate(largest(step / 'state'), 100),
  'no state': lambda step: shutil.rmtree(step / 'state'),
  'empty': lambda step: [shutil.rmtree(step), step.mkdir()],
  'position': lambda step: misread(step / '_CHECKPOINT_METADATA', '40', '48'),
  'structure': lambda step: flip_bit(step / 'state' / '_METADATA'),
}


@pytest.mark.parametrize('damage', DAMAGE.values(), ids=DAMAGE)
def test_falls_back_from_damage_and_says_so(tmp_path, damage, caplog, capfd):
  save(tmp_path, [30, 40])
  damage(tmp_path / '40')
  with Checkpoints(tmp_path) as checkpoints:
    got = checkpoints.restore(make_state(0))
    assert got.step == 30
    assert bits(got.state) == bits(make_state(30))
    [note] = got.notes
    assert note.startswith('Checkpoint 40 is unreadable (')
    assert note.endswith('renamed 40.corrupt; fell back to 30.')
    warned = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert [record.getMessage() for record in warned] == [note]
    checkpoints.save(40, make_state(41), metadata={})
  assert (tmp_path / '40.corrupt').is_dir()
  assert bits(restore(tmp_path).state) == bits(make_state(41))
  assert capfd.readouterr().err == ''


@pytest.mark.parametrize('place', [0.01, 0.5, 0.99])
def test_one_bit_of_a_large_array_is_seen(tmp_path, place):
  # Orbax has checksums for arrays of a few kilobytes only.
  states = [{'w': jax.random.normal(jax.random.key(i), (400, 300))} for i in (0, 1)]
  with Checkpoints(tmp_path) as checkpoints:
    for step, state in enumerate(states):
      checkpoints.save(step, state, metadata={})
  flip_bit(largest(tmp_path / '1' / 'state'), place)
  got = restore(tmp_path, states[0])
  assert got.step == 0
  assert bits(got.state) == bits(states[0])


@pytest.mark.parametrize(
  'dtype', ['float32', 'bfloat16', 'int8', 'uint32', 'bool', 'float64']
)
def test_the_checksum_sees_each_bit_and_each_place(dtype):
  leaf = np.zeros((3, 5), dtype)
  seen = {checksums([leaf])[0]}
  raw = leaf.view(np.uint8)
  for index in np.ndindex(raw.shape):
    for bit in (0,) if dtype == 'bool' else range(8):
      raw[index] ^= 1 << bit
      seen.add(checksums([leaf])[0])
      if dtype != 'float64':  # The same for a jax array, whatever its devices.
        assert checksums([jnp.asarray(leaf)]) == checksums([leaf])
      raw[index] ^= 1 << bit
  assert len(seen) == 1 + raw.size * (1 if dtype == 'bool' else 8)


def test_the_checksum_does_not_depend_on_the_sharding():
  values = jax.random.normal(jax.random.key(0), (8, 6))
  mesh = jax.make_mesh((4,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  for spec in (jax.P('x'), jax.P()):
    placed = jax.device_put(values, jax.NamedSharding(mesh, spec))
    assert checksums([placed]) == checksums([np.asarray(values)])


def test_damage_everywhere_is_an_error_and_moves_nothing(tmp_path):
  save(tmp_path, [30, 40])
  for step in ('30', '40'):
    flip_bit(largest(tmp_path / step / 'state'))
  for _ in range(2):  # A second start must not begin anew in silence.
    with pytest.raises(InputError, match=r'can be read .40: .*; 30: '):
      restore(tmp_path)


def test_a_machine_out_of_memory_is_not_damage(tmp_path, monkeypatch):
  save(tmp_path, [30, 40])

  def exhausted(*unused):
    raise RuntimeError('RESOURCE_EXHAUSTED: out of memory')

  monkeypatch.setattr(
    'prefjax.training.checkpoints.ocp.load_checkpointables', exhausted
  )
  with pytest.raises(RuntimeError, match='RESOURCE_EXHAUSTED'):
    restore(tmp_path)
  assert Checkpoints(tmp_path).steps() == [30, 40]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'w': jnp.zeros((2, 3))}, r'`a/w`: wanted float32\[2,3\], .* \[3,2\]'),
    ({'w': jnp.zeros((3, 2), jnp.bfloat16)}, r'`a/w`: wanted bfloat16\[3,2\]'),
    ({'w': np.zeros((3, 2))}, r'`a/w`: wanted float64\[3,2\]'),
    ({'extra': jnp.zeros(1)}, '`a/extra`: wanted .*has no such leaf'),
    ({'b': None}, '`a/b`: wanted no such leaf, .* has int32'),
  ],
)
def test_what_does_not_fit_is_an_error_not_damage(tmp_path, change, message):
  state = {'w': jnp.zeros((3, 2)), 'b': jnp.zeros(1, jnp.int32)}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(30, {'a': state}, metadata={})
    checkpoints.save(40, {'a': state}, metadata={})
  message = message.replace(r' \[3,2\]', r' float32\[3,2\]')
  with pytest.raises(InputError, match=f'40 does not fit the model. {message}'):
    restore(tmp_path, {'a': {**state, **change}})
  assert Checkpoints(tmp_path).steps() == [30, 40]


@pytest.mark.parametrize(
  ('state', 'metadata', 'metrics', 'message'),
  [
    ({'lr': jnp.asarray(0.1)}, {}, {'loss': 1.0}, '`lr`: it is weakly typed'),
    ({}, {'shape': (1, 2)}, {'loss': 1.0}, r'unchanged .*got .*\(1, 2\)'),
    ({}, {'n': np.int64(1)}, {'loss': 1.0}, 'unchanged'),
    ({}, {}, {'accuracy': 1.0}, r'`loss`, which is not .*accuracy'),
  ],
)
def test_what_cannot_be_saved(tmp_path, state, metadata, metrics, message):
  state = {'w': jnp.ones(1), **state}
  with (
    Checkpoints(tmp_path, best='loss') as checkpoints,
    pytest.raises(InputError, match=message),
  ):
    checkpoints.save(1, state, metadata=metadata, metrics=metrics)
  assert checkpoints.steps() == []


def test_a_state_may_be_donated_or_overwritten_while_it_is_saved(tmp_path):
  @functools.partial(jax.jit, donate_argnums=0)
  def update(state):
    return jax.tree.map(lambda leaf: leaf * 1.5 + 1, state)

  def make(step):
    keys = jax.random.split(jax.random.key(step), 4)
    return {f'w{i}': jax.random.normal(k, (600, 500)) for i, k in enumerate(keys)}

  with Checkpoints(tmp_path, keep=20) as checkpoints:
    for step in range(6):
      state = jax.block_until_ready(make(step))
      host = np.full(200_000, float(step))
      checkpoints.save(step, {'state': state, 'host': host}, metadata={})
      host[:] = -1.0
      for _ in range(3):
        state = update(state)
      jax.block_until_ready(state)
      checkpoints.wait()
      got = Checkpoints(tmp_path).restore({'state': state, 'host': host}).state
      assert bits(got['state']) == bits(make(step))
      np.testing.assert_array_equal(got['host'], np.full(200_000, float(step)))


def large_state(step):
  return {
    f'w{i}': jnp.full((1024, 1024), i + 100 * step, jnp.float32) for i in range(24)
  }


def save_until_killed(folder):
  with Checkpoints(Path(folder)) as checkpoints:
    checkpoints.save(1, large_state(1), metadata={'position': 1})
    checkpoints.wait()
    state = jax.block_until_ready(large_state(2))
    checkpoints.save(2, state, metadata={'position': 2})
    print('saving', flush=True)
    time.sleep(60)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(3))
def test_a_kill_in_a_save_leaves_the_one_before(tmp_path, seed):
  child = subprocess.Popen(
    [sys.executable, __file__, str(tmp_path)],
    stdout=subprocess.PIPE,
    env=dict(
      os.environ, JAX_PLATFORMS='cpu', PYTHONPATH=str(Path(__file__).parents[2])
    ),
  )
  with child:
    assert child.stdout.readline() == b'saving\n'
    time.sleep(random.Random(seed).uniform(0.0, 0.1))
    child.send_signal(signal.SIGKILL)
  with Checkpoints(tmp_path) as checkpoints:
    got = checkpoints.restore(large_state(0))
    assert got.notes == []
    assert got.metadata == {'position': got.step}
    assert bits(got.state) == bits(large_state(got.step))
    if got.step == 1:
      assert checkpoints.save(2, large_state(2), metadata={'position': 2})
  assert bits(restore(tmp_path, large_state(0)).state) == bits(large_state(2))


if __name__ == '__main__':
  save_until_killed(sys.argv[1])
