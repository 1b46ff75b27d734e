"""Files that are whole or absent, whoever is killed, and what tells contents apart."""

import fcntl
import json
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.training import files


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
  path = tmp_path / 'a.json'
  files.write_json(path, {'a': 1})
  with pytest.raises(TypeError, match='object'):
    files.write_json(path, {'a': object()})
  with pytest.raises(RuntimeError), files.replacing(path) as file:
    file.write('half')
    raise RuntimeError
  assert json.loads(path.read_text()) == {'a': 1}


def test_a_file_is_replaced_and_never_rewritten(tmp_path):
  path = tmp_path / 'a.json'
  files.write_json(path, {'a': 1})
  with path.open() as reader:  # who began before has the old one, whole
    files.write_json(path, {'a': 2})
    assert json.load(reader) == {'a': 1}
  assert json.loads(path.read_text()) == {'a': 2}
  assert list(tmp_path.iterdir()) == [path]


def test_jsonable():
  got = files.jsonable(
    {
      'f32': np.float32(0.1),
      'bf16': jnp.bfloat16(1.5),
      'array': np.arange(2),
      'jax': jnp.float32(2.5),
      'inf': [float('-inf'), np.float64('nan')],
      1: True,
    }
  )
  assert json.dumps(got) == (
    '{"f32": 0.10000000149011612, "bf16": 1.5, "array": [0, 1], "jax": 2.5,'
    ' "inf": ["-inf", "nan"], "1": true}'
  )


def test_fingerprint():
  # printf '{"a":[1,2],"b":0.1}' | sha256sum
  assert files.fingerprint({'b': 0.1, 'a': (1, 2)}) == '587ce26b49ad1da2'
  assert files.fingerprint({'b': 0.1, 'a': [2, 1]}) != '587ce26b49ad1da2'


def test_built_builds_once(tmp_path):
  calls = []

  def build(folder):
    calls.append(folder)
    (folder / 'x').write_text('1')

  target = tmp_path / 'cache' / 'abc'
  assert files.built(target, build) == target
  assert files.built(target, build) == target
  assert len(calls) == 1 and calls[0] != target
  assert [p.name for p in target.parent.iterdir()] == ['abc']


def test_built_leaves_nothing_when_building_fails(tmp_path):
  def fails(folder):
    (folder / 'x').write_text('1')
    raise OSError('disk full')

  with pytest.raises(OSError, match='disk full'):
    files.built(tmp_path / 'abc', fails)
  assert not list(tmp_path.iterdir())


def test_built_lets_the_first_of_two_win(tmp_path):
  def slower(folder):
    (folder / 'x').write_text('second')
    (tmp_path / 'abc').mkdir()
    (tmp_path / 'abc' / 'x').write_text('first')

  target = files.built(tmp_path / 'abc', slower)
  assert (target / 'x').read_text() == 'first'
  assert [p.name for p in tmp_path.iterdir()] == ['abc']


KILLED = """
import sys, time
from pathlib import Path
from prefjax.training import files
def build(folder):
  (folder / 'half').write_text('x')
  time.sleep(60)
files.built(Path(sys.argv[1]), build)
"""


def test_built_killed_in_the_middle(tmp_path):
  target = tmp_path / 'abc'
  other = subprocess.Popen([sys.executable, '-c', KILLED, str(target)])
  try:
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob('*/half')):
      assert time.monotonic() < deadline and other.poll() is None
      time.sleep(0.02)
    files.built(tmp_path / 'abc', lambda folder: None).rmdir()
    assert list(tmp_path.glob('*/half')), 'a living builder was disturbed'
  finally:
    other.kill()
    other.wait()
  assert not target.exists()
  files.built(target, lambda folder: (folder / 'whole').write_text('y'))
  assert [p.name for p in tmp_path.iterdir()] == ['abc']
  assert [p.name for p in target.iterdir()] == ['whole']


HOLDING = """
import sys, time
from pathlib import Path
from prefjax.training import files
path = Path(sys.argv[1])
with files.locked(path):
  path.write_text('mine')
  time.sleep(60)
"""


def test_a_lock_is_held_by_one_process_and_freed_by_its_end(tmp_path):
  path = tmp_path / 'reference'
  other = subprocess.Popen([sys.executable, '-c', HOLDING, str(path)])
  try:
    deadline = time.monotonic() + 60
    while not path.exists():
      assert time.monotonic() < deadline and other.poll() is None
      time.sleep(0.02)
    with (
      path.with_name('reference.lock').open() as file,
      pytest.raises(BlockingIOError),
    ):
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  finally:
    other.kill()
    other.wait()
  with files.locked(path):
    pass
