"""Runs an experiment's command line inside the test's process."""

import os
from pathlib import Path
import sys
from typing import NamedTuple

from absl import flags
import pytest

from experiments import (
  check,
  dpo,
  grpo,
  plan,
  prm,
  report,
  rm,
  sft,
  sppo,
  sweep,
  tabular,
)
from experiments.parts import launch

MAINS = {
  'dpo': dpo.main,
  'grpo': grpo.main,
  'prm': prm.main,
  'rm': rm.main,
  'sft': sft.main,
  'sppo': sppo.main,
  'check': check.main,
  'plan': plan.main,
  'tabular': tabular.main,
}
COMMANDS = {'report': report.main, 'sweep': sweep.main}
OWN = {
  *('config', 'workdir', 'cache', 'out', 'publish', 'topology', 'search'),
  *('experiment', 'storage', 'jobs', 'dry_run', 'heartbeat', 'worker'),
}


class Result(NamedTuple):
  """How a command ended."""

  code: int
  out: str
  err: str


@pytest.fixture
def command(monkeypatch, capfd):
  """`command('dpo', '--config=...', ...)` as `python -m experiments.dpo ...`."""

  def run(name, *arguments):
    monkeypatch.setattr(sys, 'argv', [f'experiments.{name}', *arguments])
    # The test's process has used devices already: it can join no others.
    monkeypatch.setattr(launch.processes, 'start', lambda *_, **__: None)
    flags.FLAGS.unparse_flags()
    for flag in list(flags.FLAGS):
      if flag.startswith('config.'):  # the last command's overrides
        delattr(flags.FLAGS, flag)
      elif flag in OWN:
        flags.FLAGS[flag].unparse()
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
      if name in COMMANDS:
        launch.command(COMMANDS[name])
      else:
        launch.run(MAINS[name], name)
    return Result(ended.value.code or 0, *capfd.readouterr())

  return run


@pytest.fixture(scope='session')
def shared(tmp_path_factory):
  """A folder that xdist's workers have in common."""
  own = tmp_path_factory.getbasetemp()
  return own.parent if 'PYTEST_XDIST_WORKER' in os.environ else own


@pytest.fixture(scope='session')
def cache(shared):
  """One cache for all tests: they share references and compiled programs."""
  folder = shared / 'cache'
  folder.mkdir(exist_ok=True)
  return folder


@pytest.fixture
def data_dir(monkeypatch):
  """The folder of real data, or a skip."""
  folder = Path(os.environ.get('PREFJAX_DATA', 'data')).absolute()
  if not folder.is_dir():
    pytest.skip(f'no real data in {folder}: see docs/data.md')
  monkeypatch.setenv('PREFJAX_DATA', str(folder))
  return folder
