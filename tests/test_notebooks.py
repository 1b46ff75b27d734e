"""Notebooks: stripped in the repository, and each runs to its end."""

import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

NOTEBOOKS = sorted(Path('notebooks').glob('*.ipynb'))
LIMIT = 300  # seconds; all of them together are to take no more


def cells(path):
  return json.loads(path.read_text())['cells']


def test_there_are_notebooks():
  assert len(NOTEBOOKS) >= 7


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_kept(path):
  code = [cell for cell in cells(path) if cell['cell_type'] == 'code']
  assert code
  for cell in code:
    assert cell['outputs'] == [] and cell['execution_count'] is None


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_it_begins_with_a_heading(path):
  first = cells(path)[0]
  assert first['cell_type'] == 'markdown'
  assert ''.join(first['source']).startswith('# ')


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  environment |= {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(Path.cwd())}
  environment['JUPYTER_RUNTIME_DIR'] = str(tmp_path)
  done = subprocess.run(
    [Path(sys.executable).with_name('jupyter-execute'), path],
    env=environment,
    capture_output=True,
    text=True,
    timeout=LIMIT,
    check=False,
  )
  assert done.returncode == 0, done.stderr
