"""What a sweep runs, tells and shares, and what it takes up again."""

import json
import subprocess
import sys
import time

from optuna.trial import TrialState
from own_process import environment
import pytest
import told

from experiments import dpo
from experiments.parts import study
from prefjax.errors import Preempted, TrainingError
from prefjax.evaluation import runs
from prefjax.training.metrics import MetricWriter

CONFIG = """
from experiments import points
from experiments.configs.dpo import sentiment

METRIC = 'true_reward/policy'

def get_config(variant=''):
  return sentiment.get_config(variant)
"""
GRID = (
  CONFIG
  + """
def sweep():
  yield from points.grid({'objective.beta': (0.5, 1.0)}, seeds=(0, 1))
"""
)
SEARCH = (
  CONFIG
  + """
def search():
  return {'space': {'objective.beta': ('log', 0.01, 10.0)}, 'trials': 6}
"""
)


@pytest.fixture
def sweep(command, tmp_path, monkeypatch):
  """`sweep(*flags)` with runs that leave their folder and nothing else."""
  started = []

  def run(config, workdir, cache, fails=()):
    started.append(workdir.name)
    beta, seed = config['objective']['beta'], config['seed']
    if workdir.exists():
      return
    if (beta, seed) in run.fails:
      raise run.fails[beta, seed]
    told.leave(workdir, beta=beta, seed=seed)

  run.fails = {}
  monkeypatch.setattr(dpo, 'main', run)
  path = tmp_path / 'swept.py'

  def call(*flags, text=GRID):
    path.write_text(text)
    folders = (f'--workdir={tmp_path}/sweep', f'--cache={tmp_path}/cache')
    return command('sweep', '--experiment=dpo', f'--config={path}', *folders, *flags)

  call.started, call.fails, call.folder = started, run.fails, tmp_path / 'sweep'
  return call


def listed(folder):
  lines = (folder / 'trials.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


NAMES = ['beta_0.5,seed=0', 'beta_0.5,seed=1', 'beta_1,seed=0', 'beta_1,seed=1']


def test_every_point_is_run_once_and_told(sweep):
  result = sweep()
  assert result.code == 0, result.err
  assert sweep.started == NAMES
  rows = listed(sweep.folder)
  assert [row['state'] for row in rows] == ['COMPLETE'] * 4
  assert rows[2]['summary']['kl'] == 1.0
  assert [arm.label for arm in runs.arms([sweep.folder])] == ['beta 0.5', 'beta 1']
  assert 'beta 0.5' in (sweep.folder / 'report' / 'index.html').read_text()
  assert 'experiments.dpo' in (sweep.folder / 'logs' / f'{NAMES[0]}.txt').read_text()
  again = sweep()
  assert again.code == 0
  assert sweep.started == NAMES


def test_a_failed_trial_is_recorded_and_the_rest_go_on(sweep):
  sweep.fails[0.5, 1] = TrainingError('The loss is not finite.')
  sweep.fails[1.0, 0] = ZeroDivisionError('a bug')
  result = sweep()
  assert result.code == 1
  assert sweep.started == NAMES
  assert '2 of 4 trials failed' in result.err
  assert 'beta_0.5,seed=1: The loss is not finite.' in result.err
  rows = listed(sweep.folder)
  assert 'ZeroDivisionError: a bug' in rows[2]['error']
  assert 'test_sweep.py' in rows[2]['error']  # a bug shows its traceback
  assert [row['state'] for row in rows] == ['COMPLETE', 'FAIL', 'FAIL', 'COMPLETE']


def test_an_interrupted_sweep_goes_on_where_it_stopped(sweep):
  sweep.fails[0.5, 1] = Preempted('stopped by SIGTERM')
  assert sweep().code == 143
  assert sweep.started == NAMES[:2]
  sweep.fails.clear()
  assert sweep().code == 0
  assert sweep.started == [*NAMES[:2], *NAMES[2:], NAMES[1]]


def test_a_point_that_the_sweep_has_no_longer_is_told(sweep):
  sweep.fails[0.5, 1] = Preempted('stopped by SIGTERM')
  assert sweep().code == 143
  result = sweep(text=GRID.replace('(0.5, 1.0)', '(1.0,)'))
  assert result.code == 1
  assert 'beta_0.5,seed=1: sweep() of' in result.err and 'no longer' in result.err
  assert sweep.started == [*NAMES[:2], *NAMES[2:]]


def test_a_dry_run_prints_commands_and_leaves_nothing(sweep):
  result = sweep('--dry_run', '--config.train.steps=7')
  assert result.code == 0
  lines = result.out.splitlines()
  assert len(lines) == 4
  for words in ('experiments.dpo', '--config.objective.beta=0.5', '--config.seed=1'):
    assert words in lines[1]
  assert '--config.train.steps=7' in lines[1]
  assert not sweep.folder.exists() and not sweep.started


def test_a_search_asks_its_sampler_as_often_as_it_says(sweep):
  result = sweep(text=SEARCH)
  assert result.code == 0, result.err
  rows = listed(sweep.folder)
  assert [row['name'] for row in rows] == [f'trial{i:04d}' for i in range(6)]
  assert len({row['summary']['kl'] for row in rows}) == 6


def test_a_search_ends_what_is_hopeless(sweep, monkeypatch):
  accuracies = iter([0.9] * 6 + [0.1])

  def run(config, workdir, cache):
    told.leave(workdir)
    with MetricWriter(workdir) as writer:
      writer.write(5, {'eval/accuracy': next(accuracies)})

  monkeypatch.setattr(dpo, 'main', run)
  text = SEARCH.replace("'trials': 6", "'trials': 7, 'prune': 'eval/accuracy'")
  assert sweep(text=text).code == 0
  states = [row['state'] for row in listed(sweep.folder)]
  assert states == ['COMPLETE'] * 6 + ['PRUNED']


@pytest.mark.parametrize(
  ('flags', 'text', 'said'),
  [
    ((), CONFIG, ('neither sweep() nor search()',)),
    ((), GRID.replace('objective.beta', 'objective.bet'), ('objective.bet', 'mean')),
    (('--storage=mysql://nowhere',), GRID, ('--storage=mysql://nowhere',)),
    (('--config.train.stepz=1',), GRID, ('stepz', 'steps')),
    ((), SEARCH.replace('objective.beta', 'objective.b'), ('objective.b',)),
  ],
)
def test_what_is_wrong_is_told_before_anything_runs(sweep, flags, text, said):
  result = sweep(*flags, text=text)
  assert result.code == 2, result.err
  assert 'Traceback' not in result.err
  for words in said:
    assert words in result.err
  assert not sweep.started


def test_another_sweep_in_the_folder_is_refused(sweep):
  sweep()
  result = sweep('--config.train.steps=7')
  assert result.code == 2
  assert 'train.steps' in result.err


def test_a_run_without_the_studys_metric_says_what_it_has(sweep):
  result = sweep(text=GRID.replace('true_reward/policy', 'eval/reward'))
  assert result.code == 1
  assert 'no eval/reward' in result.err and 'true_reward/policy' in result.err


# The queue ------------------------------------------------------------------------


def queue(folder, heartbeat=1):
  url = f'sqlite:///{folder / "study.db"}'
  return study.open_queue('s', url, metric='x', heartbeat=heartbeat, prunes=False)


def test_two_workers_never_claim_one_trial(tmp_path):
  one, two = queue(tmp_path), queue(tmp_path)
  assert (one.created, two.created) == (True, False)
  trials = [{'name': f't{i}'} for i in range(5)]
  one.add(trials), two.add(trials)
  claimed = [(one if i % 2 else two).claim() for i in range(6)]
  names = [claim.trial.user_attrs['name'] for claim in claimed if claim]
  assert sorted(names) == [trial['name'] for trial in trials]
  assert claimed[5] is None


def test_the_trial_of_a_worker_that_is_gone_comes_back(tmp_path):
  one, two = queue(tmp_path), queue(tmp_path)
  one.add([{'name': 'lost', 'params': {'x': 0.5}}, {'name': 'kept'}])
  _, kept = one.claim(), one.claim()
  with one.alive(kept):
    deadline = time.monotonic() + 20
    while (again := two.claim()) is None:
      assert time.monotonic() < deadline
      time.sleep(0.1)
    assert again.trial.user_attrs == {'name': 'lost', 'starts': 1}
    assert again.trial.suggest_float('x', 0, 1) == 0.5
    assert two.claim() is None  # the other worker is alive
  one.study.tell(kept.trial, 1.0)
  two.study.tell(again.trial, 2.0)
  assert not two.open()


def test_a_trial_that_ends_every_worker_is_left(tmp_path):
  one = queue(tmp_path)
  one.add([{'name': 'deadly'}])
  for _ in range(5):
    one.give_back(one.claim())
  assert one.claim() is None
  states = [trial.state for trial in one.trials()]
  assert states == [TrialState.FAIL] * 5


# Whole ----------------------------------------------------------------------------

BETA = 'experiments/configs/dpo/ablations/beta.py:smoke'


def start(folder):
  arguments = (
    *('--experiment=dpo', f'--config={BETA}'),
    *(f'--workdir={folder}/sweep', f'--cache={folder}/cache'),
  )
  return subprocess.Popen(
    [sys.executable, '-m', 'experiments.sweep', *arguments],
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def wait(process, seconds=400):
  out, _ = process.communicate(timeout=seconds)
  assert process.returncode == 0, out
  return out


def once_each(rows):
  """Every point complete, exactly one time."""
  done = [row['name'] for row in rows if row['state'] == 'COMPLETE']
  assert len(done) == len(set(done)) == 12


@pytest.mark.slow
def test_a_sweep_compiles_no_more_than_its_first_trial(tmp_path):
  wait(start(tmp_path))
  rows = listed(tmp_path / 'sweep')
  once_each(rows)
  first, *rest = (row['compilations'] for row in rows)
  assert first > 10
  assert rest == [0] * 11
  assert len(list((tmp_path / 'cache').glob('reference-*/DONE'))) == 1
  assert len(list((tmp_path / 'cache').glob('logps-*'))) == 2  # train and held out
