"""kill -9 at seeded moments of its phases: the run ends with the same bits.

In three phases at smoke size. In every phase at full size, as the closing figures of a
release were made:

  PREFJAX_KILLS=full pytest -m slow tests/experiments/test_kills.py
"""

from collections.abc import Callable, Iterator
import contextlib
import os
from pathlib import Path
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from own_process import environment
import pytest
from test_runs import lasting

from prefjax.evaluation.runs import EVALUATION
from prefjax.training import metrics

FULL = os.environ.get('PREFJAX_KILLS') == 'full'
CONFIGS = {
  'dpo': f'experiments/configs/dpo/sentiment.py{"" if FULL else ":smoke"}',
  'grpo': 'tests/experiments/busy.py',
  'prm': 'tests/experiments/short.py',
  'sppo': f'experiments/configs/sppo/cycle.py:sppo{"" if FULL else ",smoke"}',
}
LIMIT = 1200 if FULL else 300  # seconds of one start


def lines(path: Path) -> int:
  return path.read_bytes().count(b'\n') if path.exists() else 0


# When a phase is under way, by what it leaves in the cache or in the run's folder.
Seen = Callable[[Path, Path], bool]
_DPO: dict[str, Seen] = {
  'preparing': lambda cache, run: any(cache.glob('data-*/*.tmp-*')),
  'reference training': lambda cache, run: any(
    lines(path) > 3 for path in cache.glob('reference-*/metrics.jsonl')
  ),
  'scoring': lambda cache, run: any(cache.glob('logps-*.tmp-*')),
  'training': lambda cache, run: lines(run / 'metrics.jsonl') > 5,
  'saving': lambda cache, run: any((run / 'checkpoints').glob('*tmp*')),
  'evaluating': lambda cache, run: any((run / 'final').glob('[0-9]*')),
  'reporting': lambda cache, run: (run / EVALUATION).exists(),
}
_GRPO: dict[str, Seen] = {
  'rolling out': lambda cache, run: lines(run / 'rewards.jsonl') > 8,
  'refilling': lambda cache, run: lines(run / 'rewards.jsonl') > 60,
  'updating': lambda cache, run: lines(run / 'samples.jsonl') > 3,
  'saving': _DPO['saving'],
}
_PRM: dict[str, Seen] = {
  'rolling out': lambda cache, run: any(cache.glob('pool-*/*/*.tmp-*')),
  'training': lambda cache, run: lines(run / 'dpo' / 'metrics.jsonl') > 1,
  'continuing': lambda cache, run: any(cache.glob('continued-*/*.tmp-*')),
  'scoring': lambda cache, run: any((run / 'mc_soft').glob('scores-*.tmp-*')),
}
_SPPO: dict[str, Seen] = {
  'sampling': lambda cache, run: any(run.glob('iteration-1/responses.jsonl.tmp')),
  'training': lambda cache, run: lines(run / 'iteration-1' / 'metrics.jsonl') > 3,
  'second iteration': lambda cache, run: (
    lines(run / 'iteration-2' / 'metrics.jsonl') > 3
  ),
  'comparing': lambda cache, run: (run / 'compared.jsonl').exists(),
}
PHASES = {'dpo': _DPO, 'grpo': _GRPO, 'prm': _PRM, 'sppo': _SPPO}
AGAIN = ('reference training', 'training', 'saving') if FULL else ()
DELAYS = {'reference training': 12.0, 'training': 12.0, 'evaluating': 3.0}  # seconds


def models_of(run: Path) -> dict:
  """What must be bit-identical of a run of several models."""
  found = {name: (run / name).read_text() for name in ('DONE', 'tables.json')}
  for model in ('dpo', 'mc_soft'):
    found[model] = [
      {k: v for k, v in row.items() if not k.startswith('time/')}
      for row in metrics.read(run / model / 'metrics.jsonl')
    ]
    with np.load(run / model / 'scores-pool' / 'steps.npz') as file:
      found[f'{model} scores'] = {key: file[key].tobytes() for key in file}
  return found


@contextlib.contextmanager
def started(folder: Path, name: str) -> Iterator[subprocess.Popen]:
  """A run, which does not outlive the block."""
  process = subprocess.Popen(
    [
      sys.executable,
      '-m',
      f'experiments.{name}',
      f'--config={CONFIGS[name]}',
      f'--workdir={folder / "run"}',
      f'--cache={folder / "cache"}',
    ],
    env=environment(PYTHONPATH=str(Path(__file__).parent)),  # of busy.py's verifier
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  with process:
    try:
      yield process
    finally:
      process.kill()


def finish(folder: Path, name: str) -> None:
  with started(folder, name) as process:
    out, _ = process.communicate(timeout=LIMIT)
  assert process.returncode == 0, out


def kill_in(phase: str, folder: Path, name: str, draw: random.Random) -> None:
  """Starts the run and kills it a moment after the phase is seen to begin."""
  with started(folder, name) as process:
    deadline = time.monotonic() + LIMIT
    while not PHASES[name][phase](folder / 'cache', folder / 'run'):
      assert process.poll() is None, f'ended before {phase}: {process.stdout.read()}'
      assert time.monotonic() < deadline, f'never came to {phase}'
      time.sleep(0.001)
    time.sleep(draw.uniform(0, DELAYS.get(phase, 0.02) if FULL else 0.02))
    process.kill()
    process.communicate()
  assert process.returncode == -signal.SIGKILL, f'ended before the kill in {phase}'
  print(f'killed in {phase}')


@pytest.mark.slow
@pytest.mark.parametrize('name', CONFIGS)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, name):
  finish(tmp_path / 'whole', name)
  if not FULL:  # it would only compile the same programs again
    xla = Path('cache', 'xla')
    shutil.copytree(tmp_path / 'whole' / xla, tmp_path / 'killed' / xla)
  draw = random.Random(0)
  phases = list(PHASES[name])
  again = [phase for phase in AGAIN if phase in phases]
  chosen = (*phases, *again) if FULL else draw.sample(phases, 3)
  for phase in sorted(chosen, key=phases.index):
    kill_in(phase, tmp_path / 'killed', name, draw)
  finish(tmp_path / 'killed', name)
  keeps = models_of if name == 'prm' else lasting
  assert keeps(tmp_path / 'killed' / 'run') == keeps(tmp_path / 'whole' / 'run')
