"""The trials of a sweep, in an Optuna study that any number of workers share.

Every trial is put into the study once, waiting; a worker claims one, by one write that
the storage lets a single worker win, and says every few seconds that it is alive. The
trial of a worker that no longer does is failed and put back.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import logging
import re
import threading
import time
from typing import Any, NamedTuple
import warnings

from prefjax.errors import InputError

try:
  import optuna
  from optuna.exceptions import TrialPruned
  from optuna.storages import RDBStorage
  from optuna.trial import FrozenTrial, Trial, TrialState
except ImportError as error:
  raise SystemExit(
    "prefjax: sweeps need optuna: pip install 'prefjax[sweep]'"
  ) from error

_GRACE = 3  # heartbeats that are missed by a worker that is gone
_STARTS = 5  # of one trial; one that ends its worker each time is left
_OPEN = (TrialState.WAITING, TrialState.RUNNING)
_FILLED = 'filled'  # attribute of a study: its first worker has put the trials in
_ATTEMPTS = 3  # to open a storage
_PATIENCE = 60  # seconds, with a first worker that may have been killed before
_KINDS = {
  'log': lambda ask, key, *ends: ask.suggest_float(key, *ends, log=True),
  'uniform': lambda ask, key, *ends: ask.suggest_float(key, *ends),
  'int': lambda ask, key, *ends: ask.suggest_int(key, *ends),
  'choice': lambda ask, key, *values: ask.suggest_categorical(key, values),
}


class Claim(NamedTuple):
  """A trial that is this worker's."""

  trial: Trial
  id: int  # in the storage


@dataclasses.dataclass(frozen=True)
class Queue:
  """The trials of one sweep.

  A trial's user attributes: `name`, of its folder; what else it was put in with;
  `starts`, how often it was begun before; at its end what the worker said of it.
  """

  study: optuna.Study
  storage: RDBStorage
  heartbeat: int  # seconds

  created: bool  # by this worker, and by no other

  def add(self, trials: Sequence[Mapping[str, Any]]) -> None:
    """Puts trials into the study, those whose `name` is not in it.

    `params` of a trial are what the sampler finds chosen, the rest its attributes.
    """
    if not self.created:
      self._wait_until_filled()
    there = {trial.user_attrs['name'] for trial in self.trials()}
    for trial in trials:
      if trial['name'] not in there:
        attributes = {k: v for k, v in trial.items() if k != 'params'}
        self.study.enqueue_trial(
          trial.get('params', {}), user_attrs={**attributes, 'starts': 0}
        )
    self.study.set_user_attr(_FILLED, True)

  def _wait_until_filled(self):
    deadline = time.monotonic() + _PATIENCE
    while not self.study.user_attrs.get(_FILLED) and time.monotonic() < deadline:
      time.sleep(0.2)

  def trials(self, *states: TrialState) -> list[FrozenTrial]:
    """The trials in these states, or all of them, in their order."""
    return self.study.get_trials(deepcopy=False, states=states or None)

  def open(self) -> bool:
    """Whether a trial waits or runs, here or on another worker."""
    return bool(self.trials(*_OPEN))

  def claim(self) -> Claim | None:
    """A trial that is now this worker's, or None where none waits."""
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
      optuna.storages.fail_stale_trials(self.study)
    study_id = self.storage.get_study_id_from_name(self.study.study_name)
    for frozen in self.trials(TrialState.WAITING):
      trial_id = self.storage.get_trial_id_from_study_id_trial_number(
        study_id, frozen.number
      )
      try:
        mine = self.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
      except optuna.exceptions.UpdateFinishedTrialError:
        continue
      if mine:
        self.storage.record_heartbeat(trial_id)
        return Claim(Trial(self.study, trial_id), trial_id)
    return None

  @contextlib.contextmanager
  def alive(self, claim: Claim) -> Iterator[None]:
    """Says while it is open that the trial's worker is there."""
    ended = threading.Event()

    def beat():
      while not ended.wait(self.heartbeat):
        self.storage.record_heartbeat(claim.id)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
      yield
    finally:
      ended.set()
      thread.join()

  def give_back(self, claim: Claim) -> None:
    """Leaves a trial to the next worker, which goes on where it stopped."""
    put_back(self.study, self.study.tell(claim.trial, state=TrialState.FAIL))


def put_back(study: optuna.Study, trial: FrozenTrial) -> None:
  """A waiting trial in the place of one whose worker is gone, unless it ends them."""
  attributes = {**trial.user_attrs, 'starts': trial.user_attrs['starts'] + 1}
  if attributes['starts'] < _STARTS:
    study.enqueue_trial(
      {**trial.system_attrs.get('fixed_params', {}), **trial.params},
      user_attrs=attributes,
    )


def open_queue(
  name: str, url: str, *, metric: str, heartbeat: int, prunes: bool
) -> Queue:
  """The study of this name in the storage at `url`, made where there is none.

  Raises:
    InputError: where the storage cannot be opened.
  """
  optuna.logging.set_verbosity(logging.WARNING)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
    storage = _storage(url, heartbeat)
    options = {
      'sampler': optuna.samplers.TPESampler(constant_liar=True),
      'pruner': optuna.pruners.MedianPruner() if prunes else optuna.pruners.NopPruner(),
    }
    direction = 'minimize' if metric.endswith('loss') else 'maximize'
    try:
      study = optuna.create_study(
        storage=storage, study_name=name, direction=direction, **options
      )
      study.set_metric_names([metric])
      return Queue(study, storage, heartbeat, created=True)
    except optuna.exceptions.DuplicatedStudyError:
      study = optuna.load_study(storage=storage, study_name=name, **options)
      return Queue(study, storage, heartbeat, created=False)


def _storage(url, heartbeat):
  # Workers on one file wait for each other; a pool outlives a database's restart.
  patience = {'timeout': 120} if url.startswith('sqlite') else {}
  # Which driver `postgresql://` means differs between versions of SQLAlchemy.
  driver = re.sub('^postgresql://', 'postgresql+psycopg://', url)
  for left in reversed(range(_ATTEMPTS)):
    try:
      return RDBStorage(
        driver,
        engine_kwargs={'pool_pre_ping': True, 'connect_args': patience},
        heartbeat_interval=heartbeat,
        grace_period=_GRACE * heartbeat,
        heartbeat_stale_trial_callback=put_back,
      )
    except Exception as error:
      # Of workers that create the tables at the same moment one fails, once.
      if not left:
        raise InputError(f'--storage={url} cannot be opened: {error}') from error
      time.sleep(1.0)


def suggest(trial: Trial, space: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
  """The sampler's point of a space."""
  out = {}
  for key, (kind, *values) in space.items():
    if kind not in _KINDS:
      raise InputError(f'{key}: a space knows {sorted(_KINDS)}, not {kind!r}.')
    out[key] = _KINDS[kind](trial, key, *values)
  return out


def reporter(trial: Trial, metric: str) -> Callable[[int, Mapping[str, float]], None]:
  """Tells the study how a run does on the way, and ends it where that is hopeless."""

  def tell(step: int, metrics: Mapping[str, float]) -> None:
    if metric in metrics:
      trial.report(metrics[metric], step)
      if trial.should_prune():
        raise TrialPruned(f'{metric}={metrics[metric]:.4g} at step {step}')

  return tell
