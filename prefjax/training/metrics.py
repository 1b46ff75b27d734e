"""Metrics of a run: a JSONL file that is the record, and views made from it.

Two kinds of numbers go through here. Metrics are a function of the config: a
run that was killed and resumed writes the same bits as one that was not. Clock
fields (seconds, tokens/s, MFU) are not, and all have the prefix `time/`.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import importlib
import json
from pathlib import Path
import time
from typing import Any

import tensorboardX

from prefjax.errors import InputError
from prefjax.training import files, processes

METRICS = 'metrics.jsonl'
SAMPLES = 'samples.jsonl'
PHASES = (
  'data',
  'compile',
  'rollout',
  'reward',
  'reference',
  'train',
  'checkpoint',
  'evaluate',
  'report',
)
_NOT_FINITE = ('nan', 'inf', '-inf')
_FLUSH_SECONDS = 10  # of TensorBoard: what a kill can take from its curves


_WATCHING: list[Callable[[int, Mapping[str, float]], None]] = []


@contextlib.contextmanager
def watched(tell: Callable[[int, Mapping[str, float]], None]) -> Iterator[None]:
  """Has `tell(step, metrics)` called for all that is written; it may end the run."""
  _WATCHING.append(tell)
  try:
    yield
  finally:
    _WATCHING.remove(tell)


class MetricWriter:
  """Writes metrics to `metrics.jsonl`, TensorBoard and, where asked, wandb.

  All that belongs to a step is written before the checkpoint of that step: a
  resume keeps what was written up to the checkpoint's step, and never writes
  that step again. Of several processes the first alone writes.
  """

  def __init__(
    self,
    folder: Path,
    *,
    purge_step: int | None = None,
    wandb_project: str | None = None,
  ):
    """Opens the files of a run's folder.

    Args:
      folder: the run's folder.
      purge_step: of a resumed run, the first step that is written again:
        TensorBoard hides what it had of it and of later ones (`truncate` cuts
        the files themselves).
      wandb_project: a Weights & Biases project to log to as well.
    """
    self._writes = processes.first()
    if not self._writes:
      return
    self._wandb = _start_wandb(wandb_project, folder) if wandb_project else None
    self._file = (folder / METRICS).open('a')
    self._tensorboard = tensorboardX.SummaryWriter(
      str(folder / 'tensorboard'),
      purge_step=purge_step,
      flush_secs=_FLUSH_SECONDS,
    )

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Writes one line; names of wall-clock numbers begin with `time/`."""
    if 'step' in metrics:
      raise ValueError('`step` is not a metric: it is the first argument.')
    if not self._writes:
      return
    numbers = {name: _number(value) for name, value in sorted(metrics.items())}
    for tell in _WATCHING:
      tell(step, numbers)
    line = json.dumps(files.jsonable({'step': step, **numbers}))
    self._file.write(line + '\n')
    self._file.flush()
    for name, value in numbers.items():
      self._tensorboard.add_scalar(name, value, step)
    if self._wandb is not None:
      self._wandb.log(numbers, step=step)

  def close(self) -> None:
    """Closes every file; what was written is on disk already or now."""
    if not self._writes:
      return
    self._file.close()
    self._tensorboard.close()
    if self._wandb is not None:
      self._wandb.finish()

  def __enter__(self) -> 'MetricWriter':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def _number(value):
  return value if isinstance(value, int) else float(value)


def _start_wandb(project, folder):
  try:
    wandb = importlib.import_module('wandb')
  except ImportError as error:
    raise InputError(
      f'The wandb project {project!r} is asked for, but wandb is not installed:'
      ' install it (pip install wandb) or leave the project out.'
    ) from error
  # The id is the folder's, so that a resumed run goes on with its curves; wandb
  # drops a step that it has seen, and on resume it would say the same again.
  folder = folder.resolve()
  return wandb.init(
    project=project,
    name=folder.name,
    id=files.fingerprint(folder),
    dir=str(folder),
    resume='allow',
  )


def truncate(folder: Path, step: int) -> None:
  """Cuts metrics and samples back to what was written up to `step`, included.

  A last line that a kill tore in the middle goes too. `step` -1 leaves nothing.
  """
  if not processes.first():
    return
  for path in (folder / METRICS, folder / SAMPLES):
    if path.exists():
      with files.replacing(path) as file:
        file.writelines(line for line, row in _lines(path) if _step(path, row) <= step)


def _step(path, row):
  if not isinstance(row, dict) or not isinstance(row.get('step'), int):
    raise InputError(f'{path} has a line without a `step`: {row}.')
  return row['step']


def read(path: Path) -> list[dict[str, Any]]:
  """The lines of a metrics file, floats as they were; not a torn last one."""
  return [
    {name: _restored(value) for name, value in row.items()} for _, row in _lines(path)
  ]


def _restored(value):
  is_float = isinstance(value, str) and value in _NOT_FINITE
  return float(value) if is_float else value


def _lines(path):
  """Each complete line as its text and its object."""
  with path.open() as file:
    for number, line in enumerate(file, start=1):
      if not line.endswith('\n'):
        return  # a write was killed in the middle
      try:
        row = json.loads(line)
      except ValueError as error:
        raise InputError(f'{path}, line {number}, is not JSON: {error}.') from error
      yield line, row


class PhaseClock:
  """Sums the seconds that a run spends in each of its phases.

  `with clock('train'): ...`; a phase inside another pauses the outer one, so
  that the phases add up to no more than the wall-clock.
  """

  def __init__(self):
    self._seconds: dict[str, float] = {}
    self._open: list[str] = []
    self._since = 0.0

  @contextlib.contextmanager
  def __call__(self, phase: str) -> Iterator[None]:
    """Counts what runs inside as `phase`, one of PHASES."""
    if phase not in PHASES:
      raise ValueError(f'Unknown phase {phase!r}; expected one of {PHASES}.')
    self._count()
    self._open.append(phase)
    try:
      yield
    finally:
      self._count()
      self._open.pop()

  def seconds(self) -> dict[str, float]:
    """Seconds so far by phase, in the order of PHASES, without unused ones."""
    self._count()
    return {p: self._seconds[p] for p in PHASES if p in self._seconds}

  def _count(self):
    now = time.perf_counter()
    if self._open:
      phase = self._open[-1]
      self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
    self._since = now
