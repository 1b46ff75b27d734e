"""Runs every point of a sweep, or searches a space, in as many processes as wanted.

  python -m experiments.sweep --experiment=dpo \
    --config=experiments/configs/dpo/ablations/beta.py

The config says what is swept (`experiments/points.py`). Trials lie in an Optuna study:
in the sweep's folder, or in a database that workers on any number of machines share,
each started with the same command and `--storage=postgresql://...`. Started again, a
sweep goes on; a trial that fails is recorded with its error, and the rest go on. All
trials share what lies in `--cache`, and those of one process what it compiled.
"""

import contextlib
import importlib
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time
import traceback
from typing import Any, NamedTuple

from absl import flags

from experiments import points, report
from experiments.parts import launch, study
from experiments.parts.study import Claim, Queue, Trial, TrialPruned, TrialState
from experiments.points import Point
from prefjax.errors import InputError, Preempted, TrainingError
from prefjax.evaluation import runs
from prefjax.training import metrics
from prefjax.training.files import fingerprint, replacing, write_json
from prefjax.training.monitor import Compilations
from prefjax.training.workdir import open_run

EXPERIMENTS = ('sft', 'dpo', 'rm', 'grpo', 'sppo', 'prm', 'tabular')

_EXPERIMENT = flags.DEFINE_enum('experiment', None, EXPERIMENTS, 'Loop of the trials.')
_STORAGE = flags.DEFINE_string(
  'storage', '', "URL of the study's database; default SQLite in the sweep's folder."
)
_JOBS = flags.DEFINE_integer('jobs', 1, 'Trials side by side on this machine.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Only print the plain commands.')
_HEARTBEAT = flags.DEFINE_integer(
  'heartbeat', 20, 'Seconds between two signs of life of a worker.'
)
_WORKER = flags.DEFINE_bool('worker', False, 'One of the processes of --jobs.')
_POLL = 2.0  # seconds, while others run the last trials


class Sweep(NamedTuple):
  """What is swept: a config's points, or a space to search."""

  experiment: str
  path: str
  folder: Path
  cache: Path
  module: Any
  variant: str
  changed: dict[str, Any]
  points: dict[str, Point]  # by name; empty for a search
  search: dict[str, Any]  # empty for points

  @property
  def metric(self) -> str:
    return getattr(self.module, 'METRIC', points.METRIC)


def main(arguments: list[str]) -> None:
  """Prints the commands, or works the sweep off and reports."""
  if arguments:
    raise InputError(f'Unknown arguments {arguments}; flags begin with --.')
  sweep = asked()
  if _DRY_RUN.value:
    for one in sweep.points.values():
      print(_command(sweep, one))
    return
  opened(sweep)
  queue = open_queue(sweep)
  queue.add(trials(sweep))
  write_points(sweep, queue)
  if _JOBS.value > 1:
    spread(_JOBS.value)
  else:
    launch.configure_jax(sweep.cache)
    work(sweep, queue)
  if not _WORKER.value:
    finish(sweep, queue)


def asked() -> Sweep:
  """The sweep of the flags, every point of it built and so found valid."""
  if _EXPERIMENT.value is None:
    raise InputError(f'--experiment must be one of {", ".join(EXPERIMENTS)}.')
  config, workdir, cache = launch.asked('sweep')
  path, variant = launch.config_file()
  if workdir == Path('runs') / 'sweep' / launch.config_name():
    workdir = workdir.parent / _EXPERIMENT.value / workdir.name
  module, changed = points.load(path), launch.overrides()
  found, search = {}, {}
  if hasattr(module, 'sweep'):
    found = {one.name: one for one in points.points(module, variant, changed)}
  elif hasattr(module, 'search'):
    search = module.search()
    points.override(config, {key: kind[1] for key, kind in search['space'].items()})
  else:
    raise InputError(
      f'{path} has neither sweep() nor search(): see experiments/points.py.'
    )
  return Sweep(
    _EXPERIMENT.value, path, workdir, cache, module, variant, changed, found, search
  )


def opened(sweep: Sweep) -> None:
  """The sweep's folder; refuses that of another one."""
  config = sweep.module.get_config(sweep.variant)
  points.override(config, sweep.changed)
  asked_for = {
    'experiment': sweep.experiment,
    'path': sweep.path,
    'variant': sweep.variant,
    'config': config.to_dict(),
  }
  open_run(sweep.folder, asked_for, devices={})


def open_queue(sweep: Sweep) -> Queue:
  """The study; its name is that of all that every trial has in common."""
  base = fingerprint([sweep.variant, sweep.changed, sweep.search])
  name = f'{sweep.experiment}-{Path(sweep.path).stem}-{base}'
  return study.open_queue(
    name,
    _STORAGE.value or f'sqlite:///{sweep.folder / "study.db"}',
    metric=sweep.metric,
    heartbeat=_HEARTBEAT.value,
    prunes=bool(sweep.search.get('prune')),
  )


def trials(sweep: Sweep) -> list[dict[str, Any]]:
  """What is put into the study: every point, or as many trials as a search has."""
  if sweep.search:
    return [{'name': f'trial{i:04d}'} for i in range(sweep.search['trials'])]
  return [
    {'name': one.name, 'label': one.label, 'params': points.numbers(one)}
    for one in sweep.points.values()
  ]


def spread(jobs: int) -> None:
  """The same command in `jobs` processes, the cores dealt among them."""
  command = [*sys.orig_argv, '--jobs=1', '--worker']
  cores = sorted(os.sched_getaffinity(0))
  workers = []
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  try:
    for i in range(jobs):
      os.sched_setaffinity(0, cores[i::jobs] or cores)
      workers.append(subprocess.Popen(command))
    os.sched_setaffinity(0, cores)
    codes = [worker.wait() for worker in workers]
  finally:
    for worker in workers:
      worker.terminate()
  if any(codes):
    raise TrainingError(f'The workers of --jobs={jobs} ended with exit codes {codes}.')


def work(sweep: Sweep, queue: Queue) -> None:
  """Runs trials until none is left, here or on another worker."""
  while True:
    claim = queue.claim()
    if claim is not None:
      with queue.alive(claim):
        run_trial(sweep, queue, claim)
    elif queue.open():
      time.sleep(_POLL)
    else:
      return


def run_trial(sweep: Sweep, queue: Queue, claim: Claim) -> None:
  """Runs one trial and tells the study how it ended."""
  trial, compiled, began = claim.trial, Compilations(), time.perf_counter()
  try:
    ended, told = _outcome(sweep, trial)
  except (Preempted, KeyboardInterrupt):
    queue.give_back(claim)
    raise
  finally:
    compiled.stop()
  told['seconds'] = round(time.perf_counter() - began, 1)
  told['compilations'] = compiled.count
  told['process'] = os.getpid()
  for key, value in told.items():
    trial.set_user_attr(key, value)
  queue.study.tell(trial, **ended)
  _say(queue, trial.user_attrs['name'], told, ended)


def _outcome(sweep: Sweep, trial: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
  """Runs a trial: what the study is told of its end, and its attributes."""
  try:
    summary = _run(sweep, trial, chosen(sweep, trial))
    if sweep.metric not in summary:
      raise TrainingError(
        f'The run has no {sweep.metric}, the METRIC of {sweep.path}; it has '
        f'{", ".join(summary)}.'
      )
  except TrialPruned as pruned:
    return {'state': TrialState.PRUNED}, {'pruned': str(pruned)}
  except (InputError, TrainingError) as error:
    return {'state': TrialState.FAIL}, {'error': str(error)}
  except Preempted:
    raise
  except Exception:
    return {'state': TrialState.FAIL}, {'error': traceback.format_exc()}
  numbers = {k: v for k, v in summary.items() if isinstance(v, int | float)}
  return {'values': float(summary[sweep.metric])}, {'summary': numbers}


def chosen(sweep: Sweep, trial: Trial) -> Point:
  """The point of a trial."""
  name = trial.user_attrs['name']
  if sweep.search:
    given = study.suggest(trial, sweep.search['space'])
    one = points.point(sweep.module, given, sweep.variant, sweep.changed)
    trial.set_user_attr('label', one.label)
    return one._replace(name=name)
  if name not in sweep.points:
    raise InputError(f'sweep() of {sweep.path} has this point no longer.')
  one, ranges = sweep.points[name], points.ranges(sweep.points.values())
  study.suggest(trial, {key: ranges[key] for key in points.numbers(one)})
  return one


def _run(sweep: Sweep, trial: Trial, one: Point) -> dict[str, Any]:
  """Runs a point in its folder, what it prints in a file; returns its summary."""
  experiment = importlib.import_module(f'experiments.{sweep.experiment}')
  folder, log = sweep.folder / runs.TRIALS / one.name, sweep.folder / 'logs'
  log.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    file = stack.enter_context((log / f'{one.name}.txt').open('a', buffering=1))
    stack.enter_context(contextlib.redirect_stdout(file))
    stack.enter_context(contextlib.redirect_stderr(file))
    if sweep.search.get('prune'):
      tell = study.reporter(trial, sweep.search['prune'])
      stack.enter_context(metrics.watched(tell))
    print(_command(sweep, one))
    experiment.main(one.config.to_dict(), folder, sweep.cache)
  return json.loads((folder / 'DONE').read_text())


def _command(sweep: Sweep, one: Point) -> str:
  folders = (
    f'--workdir={sweep.folder / runs.TRIALS / one.name}',
    f'--cache={sweep.cache}',
  )
  return points.command(sweep.experiment, sweep.path, one, sweep.changed, folders)


def _say(queue, name, told, ended):
  done = sum(trial.state.is_finished() for trial in queue.trials())
  how = ended.get('values', told.get('pruned') or 'FAILED')
  print(
    f'{done}/{len(queue.trials())} {name}: {how} '
    f'({told["seconds"]:.0f} s, {told["compilations"]} compilations)',
    flush=True,
  )


def write_points(sweep: Sweep, queue: Queue) -> None:
  """Writes the names and labels of the trials, so that a report can be made."""
  attributes = (trial.user_attrs for trial in queue.trials())
  labels = {own['name']: own.get('label', '') for own in attributes}
  listed = [{'name': name, 'label': label} for name, label in labels.items()]
  write_json(sweep.folder / runs.POINTS, listed)


def finish(sweep: Sweep, queue: Queue) -> None:
  """Writes what became of the trials, and the report; tells what failed."""
  write_points(sweep, queue)
  found = queue.trials()
  with replacing(sweep.folder / 'trials.jsonl') as file:
    for trial in found:
      row = {'trial': trial.number, 'state': trial.state.name, **trial.user_attrs}
      file.write(json.dumps(row) + '\n')
  if any(trial.state == TrialState.COMPLETE for trial in found):
    print(f'report: {report.write([sweep.folder], sweep.folder / "report")}')
  told = {trial.user_attrs['name']: trial.user_attrs for trial in found}
  errors = {name: own['error'] for name, own in told.items() if 'error' in own}
  if errors:
    lines = ''.join(f'\n  {name}: {error.strip()}' for name, error in errors.items())
    raise TrainingError(f'{len(errors)} of {len(told)} trials failed:{lines}')


if __name__ == '__main__':
  launch.command(main)
