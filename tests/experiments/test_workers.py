"""Workers side by side, on one machine or on one PostgreSQL: one of them is killed."""

import collections
import contextlib
import os
from pathlib import Path
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from own_process import environment
import psycopg
import pytest
from test_sweep import listed

from prefjax.evaluation import runs

# What a trial does here is to wait: which worker runs it is all that matters.
EXPERIMENT = """
import os, sys, time
from experiments import dpo, sweep
from experiments.parts import launch
import told

def run(config, workdir, cache):
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / 'worker').write_text(str(os.getpid()))
  time.sleep(1.0)
  told.leave(workdir, beta=config['objective']['beta'], seed=config['seed'])

dpo.main = run
launch.command(sweep.main)
"""
CONFIG = """
from experiments import points
from experiments.configs.dpo import sentiment

METRIC = 'kl'
get_config = sentiment.get_config

def sweep():
  yield from points.grid({'objective.beta': (0.1, 0.5, 1.0)}, seeds=(0, 1, 2))
"""


def binaries():
  """The folder of Debian's newest PostgreSQL, or a skip."""
  found = sorted(Path('/usr/lib/postgresql').glob('*/bin/initdb'))
  if not found:
    pytest.skip('PostgreSQL is not installed: apt-get install postgresql')
  return found[-1].parent


@pytest.fixture
def database():
  """The URL of a database that lives as long as the test."""
  where = binaries()
  folder = Path(tempfile.mkdtemp(prefix='prefjax-postgres-'))
  as_server = ['runuser', '-u', 'postgres', '--'] if os.getuid() == 0 else []
  if as_server:
    shutil.chown(folder, 'postgres')
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]

  def server(program, *arguments):
    command = [*as_server, where / program, '-D', folder / 'data', *arguments]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)

  server('initdb', '--auth=trust', '--username=study', '--no-sync')
  options = f'-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off'
  server('pg_ctl', '-w', '-l', folder / 'log', '-o', options, 'start')
  try:
    yield f'postgresql://study@127.0.0.1:{port}/postgres'
  finally:
    with contextlib.suppress(subprocess.CalledProcessError):
      server('pg_ctl', '-m', 'immediate', 'stop')
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start(tmp_path):
  """`start(*flags)` begins a worker, which does not outlive the test."""
  script, config = tmp_path / 'worker.py', tmp_path / 'swept.py'
  script.write_text(EXPERIMENT), config.write_text(CONFIG)
  path = os.pathsep.join(map(str, (Path.cwd(), Path.cwd() / 'tests')))
  with contextlib.ExitStack() as stack:

    def begin(*flags):
      process = subprocess.Popen(
        [
          *(sys.executable, script, '--experiment=dpo', f'--config={config}'),
          *(f'--workdir={tmp_path}/sweep', f'--cache={tmp_path}/cache'),
          *('--heartbeat=1', *flags),
        ],
        env=environment(PYTHONPATH=path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
      stack.enter_context(process)
      stack.callback(process.kill)
      return process

    yield begin


def running(url):
  """Trials that run now, by the database itself."""
  with psycopg.connect(url) as connection:
    found = connection.execute("select count(*) from trials where state = 'RUNNING'")
    return found.fetchone()[0]


def begun_trials(folder):
  return (folder / 'sweep' / runs.TRIALS).glob('*/worker')


def both_ended_one(folder):
  """Two workers have begun a second trial, and so have told of the first."""
  begun = collections.Counter(path.read_text() for path in begun_trials(folder))
  return sum(count > 1 for pid, count in begun.items() if pid) == 2


def wait_for(ready, *processes):
  deadline = time.monotonic() + 120
  while not ready():
    assert time.monotonic() < deadline
    for process in processes:
      assert process.poll() is None, process.stdout.read()
    time.sleep(0.02)


def ended_once(folder):
  """The trials that ended: each point once, and what was lost a second time begun."""
  rows = listed(folder / 'sweep')
  ended = [row for row in rows if row['state'] == 'COMPLETE']
  assert len({row['name'] for row in ended}) == len(ended) == 9
  (lost,) = (row for row in rows if row['state'] == 'FAIL')
  (again,) = (row for row in ended if row['name'] == lost['name'])
  assert again['starts'] == 1
  return ended


@pytest.mark.slow
def test_two_workers_split_the_trials_and_one_is_killed(tmp_path, start, database):
  workers = [start(f'--storage={database}') for _ in range(2)]
  wait_for(lambda: both_ended_one(tmp_path) and running(database) == 2, *workers)
  workers[0].send_signal(signal.SIGKILL)  # in the middle of a trial
  out, _ = workers[1].communicate(timeout=120)
  assert workers[1].returncode == 0, out
  workers[0].communicate()
  ended = ended_once(tmp_path)
  assert {row['process'] for row in ended} == {worker.pid for worker in workers}


@pytest.mark.slow
def test_jobs_side_by_side_of_which_one_is_killed(tmp_path, start):
  parent = start('--jobs=2')
  wait_for(lambda: both_ended_one(tmp_path), parent)
  children = Path(f'/proc/{parent.pid}/task/{parent.pid}/children').read_text().split()
  begun = max(begun_trials(tmp_path), key=lambda path: path.stat().st_mtime)
  time.sleep(0.5)  # into the middle of that trial, of a second each
  os.kill(int(begun.read_text()), signal.SIGKILL)
  out, _ = parent.communicate(timeout=120)
  assert parent.returncode == 1 and '-9' in out
  out, _ = start().communicate(timeout=120)
  assert 'report:' in out
  ended = ended_once(tmp_path)
  assert {str(row['process']) for row in ended} == set(children)
