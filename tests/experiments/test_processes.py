"""Runs of several processes: as one, stopped, killed, and gone on elsewhere."""

import json
import os
from pathlib import Path
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
from own_process import environment
import pytest
from test_runs import lasting

from prefjax.training.files import locked, write_json

# Long enough that a signal, which jax looks for once a second, comes in between.
RUNS = {
  'dpo': (
    '--config=experiments/configs/dpo/sentiment.py:smoke',
    '--config.train.steps=80',
    '--config.train.save_every=10',
    '--config.train.eval_every=40',
    '--config.optimizer.learning_rate=1e-5',
  ),
  'grpo': (
    '--config=tests/experiments/busy.py',
    '--config.train.iterations=8',
    '--config.memory.optimizer=host',
    '--config.memory.reference=host',
  ),
}
SEEN = {'dpo': 12, 'grpo': 3}  # lines of metrics before a run is disturbed
LIMIT = 240  # seconds of one start
HEARTBEAT = 10  # seconds
TOLERANCE = 2e-5
CUT = ('--config.mesh.data=2', '--config.mesh.fsdp=2', '--config.mesh.tensor=2')


def free_port() -> int:
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


def start(folder: Path, name: str, *flags: str, processes=2) -> list[subprocess.Popen]:
  """A run of `processes` with eight devices together."""
  own = environment(
    JAX_NUM_CPU_DEVICES=str(8 // processes),
    NPROC='64',
    PYTHONPATH=f'{Path(__file__).parent}{os.pathsep}{os.getcwd()}',
  )
  port = free_port()
  joined = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={processes}']
  return [
    subprocess.Popen(
      [
        sys.executable,
        '-m',
        f'experiments.{name}',
        *RUNS[name],
        f'--workdir={folder / "run"}',
        f'--cache={folder / "cache"}',
        f'--heartbeat_seconds={HEARTBEAT}',
        *flags,
        *([*joined, f'--process_id={i}'] if processes > 1 else ['--num_processes=1']),
      ],
      env=own,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(processes)
  ]


def ended(run: list[subprocess.Popen]) -> list[str]:
  """What the processes of a run wrote, once all have ended."""
  try:
    return [process.communicate(timeout=LIMIT)[0] for process in run]
  finally:
    for process in run:
      process.kill()
      process.wait()


def finish(folder: Path, name: str, *flags: str, processes=2) -> list[str]:
  run = start(folder, name, *flags, processes=processes)
  written = ended(run)
  assert [process.returncode for process in run] == [0] * processes, written
  return written


def wait_for(path: Path, lines: int, run: list[subprocess.Popen]) -> None:
  """Until a run has written so many lines of metrics."""
  deadline = time.monotonic() + LIMIT
  while not path.exists() or path.read_bytes().count(b'\n') < lines:
    assert all(process.poll() is None for process in run), ended(run)
    assert time.monotonic() < deadline
    time.sleep(0.01)


def with_cache(folder: Path, other: Path) -> None:
  """The same reference and pairs: a rounding decides what a policy draws."""
  shutil.copytree(folder / 'cache', other / 'cache')


def assert_close(folder: Path, other: Path) -> None:
  """The same run to float tolerance: metrics of every step, and parameters."""
  one, two = lasting(folder), lasting(other)
  assert [row['step'] for row in one['metrics']] == [
    row['step'] for row in two['metrics']
  ]
  for here, there in zip(one['metrics'], two['metrics'], strict=True):
    for key in here.keys() & {'loss', 'eval/loss', 'grad_norm', 'reward', 'tokens'}:
      assert here[key] == pytest.approx(there[key], rel=1e-3, abs=TOLERANCE), key
  for key, data in one['parameters'].items():
    # Adam moves what has hardly any gradient by the sign of a rounding.
    a, b = (np.frombuffer(x, np.float32) for x in (data, two['parameters'][key]))
    assert np.linalg.norm(a - b) <= 1e-3 * np.linalg.norm(b), key


@pytest.fixture(scope='module', params=RUNS)
def whole(request, shared):
  """A run of two processes that nothing disturbed, made once for all tests."""
  name = request.param
  folder = shared / f'whole-{name}'
  with locked(folder):
    written = folder / 'written.json'
    if not written.exists():
      shutil.rmtree(folder, ignore_errors=True)  # of a test that failed
      write_json(written, finish(folder, name, *CUT))
  return name, folder, json.loads(written.read_text())


@pytest.mark.slow
def test_two_processes_are_the_run_of_one(whole, tmp_path):
  name, folder, written = whole
  # The first alone speaks and writes.
  assert 'report: ' in written[0]
  assert 'report: ' not in written[1]
  assert 'fsdp 2, tensor 2; whole on each' in written[0]
  with_cache(folder, tmp_path)
  finish(tmp_path, name, *CUT, processes=1)
  assert_close(folder / 'run', tmp_path / 'run')


@pytest.mark.slow
def test_sigterm_at_one_saves_everywhere_at_one_step(whole, tmp_path):
  name, folder, _ = whole
  with_cache(folder, tmp_path)
  run = start(tmp_path, name, *CUT)
  wait_for(tmp_path / 'run' / 'metrics.jsonl', SEEN[name], run)
  run[1].send_signal(signal.SIGTERM)
  written = ended(run)
  assert [process.returncode for process in run] == [143, 143], written
  saved = [
    text[text.index('stopped by SIGTERM') :].split('is saved')[0] for text in written
  ]
  assert saved[0] == saved[1]
  finish(tmp_path, name, *CUT)
  assert lasting(tmp_path / 'run') == lasting(folder / 'run')


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_goes_on_elsewhere(
  whole, tmp_path, victim
):
  name, folder, _ = whole
  if (name, victim) == ('grpo', 0):
    pytest.skip('which of them dies is tried with dpo')
  with_cache(folder, tmp_path)
  run = start(tmp_path, name, *CUT)
  wait_for(tmp_path / 'run' / 'metrics.jsonl', SEEN[name], run)
  run[victim].kill()
  since = time.monotonic()
  ended(run)
  assert time.monotonic() - since < 4 * HEARTBEAT
  assert run[1 - victim].returncode != 0
  # On one process and another mesh: the same run to float tolerance.
  finish(tmp_path, name, '--config.mesh.data=4', '--config.mesh.tensor=2', processes=1)
  assert_close(tmp_path / 'run', folder / 'run')
