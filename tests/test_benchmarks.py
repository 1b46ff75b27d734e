"""The benchmarks at a size for tests: that they run, and say what they measured."""

import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[1]
PEERS = Path(os.environ.get('PREFJAX_DATA', ROOT.parent / 'shared' / 'data')).parent
WORKLOAD = PEERS / 'peers' / 'workload.py'
SMALL = dict(
  vocab=64, hidden=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=16, steps=2
)
SMALL |= dict(warmup=1, batch=2, prompt=8, response=8)


def lines(name, *flags):
  done = subprocess.run(
    [sys.executable, '-m', f'benchmarks.{name}', *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in done.stdout.splitlines() if line[:1] == '{']


@pytest.mark.slow
@pytest.mark.skipif(not WORKLOAD.exists(), reason='the workload is not beside it')
@pytest.mark.parametrize('name', ['dpo', 'generate', 'grpo'])
def test_the_workload_of_the_peers(name):
  sizes = SMALL | ({} if name == 'dpo' else {'group': 2})
  flags = (f'--{key}={value}' for key, value in sizes.items())
  (line,) = lines(name, f'--workload={WORKLOAD}', *flags)
  assert line['task'] == name
  assert line['step_ms_median'] > 0


@pytest.mark.slow
def test_an_accelerator_without_a_data_sheet():
  shared, plain, sampled = lines('accelerator', '--tiny')
  assert (shared['layout'], plain['layout']) == ('shared', 'plain')
  assert sampled['task'] == 'generate'
  for line in (shared, plain, sampled):
    assert line['ms'] > 0
    assert 'share_of_bound' not in line
