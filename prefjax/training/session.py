"""What every loop opens and goes on from: checkpoints, metrics, progress, a signal."""

from collections.abc import Callable, Collection
import contextlib
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from prefjax.errors import InputError
from prefjax.training import guards
from prefjax.training import metrics as metrics_lib
from prefjax.training.checkpoints import Checkpoints
from prefjax.training.metrics import MetricWriter
from prefjax.training.monitor import Compilations
from prefjax.training.progress import Progress


class Session(NamedTuple):
  """What a loop writes to and listens to while it trains."""

  writer: MetricWriter
  progress: Progress
  stop: Callable[[], bool]  # whether SIGTERM came
  compiled: Compilations


class Resumed(NamedTuple):
  """Where a loop begins."""

  state: Any
  start: int  # steps or iterations that are done
  evaluation: dict[str, float]  # the last one


def check_plan(plan: Any, may_be_zero: Collection[str]) -> None:
  """Refuses a plan (a dataclass of counts) with a count below 1, or below 0.

  Raises:
    InputError: naming the key.
  """
  for field in dataclasses.fields(plan):
    least, count = int(field.name not in may_be_zero), getattr(plan, field.name)
    if field.type is int and count < least:
      raise InputError(f'train.{field.name} must be at least {least}, got {count}.')


def opened(
  stack: contextlib.ExitStack,
  folder: Path,
  *,
  start: int,
  total: int,
  description: str,
  wandb_project: str | None,
) -> Session:
  """Opens a session of `total` steps, of which `start` are done; `stack` closes it."""
  purge = start + 1 if start else None
  writer = MetricWriter(folder, purge_step=purge, wandb_project=wandb_project)
  stack.enter_context(writer)
  progress = stack.enter_context(Progress(total, description))
  stop = stack.enter_context(guards.stop_signal())
  compiled = Compilations()
  stack.callback(compiled.stop)
  return Session(writer, progress, stop, compiled)


def resumed(
  saver: Checkpoints,
  state: Any,
  folder: Path,
  *,
  say: Callable[[str], None],
  going_on: str,
) -> Resumed:
  """The newest checkpoint like `state`, or `state` itself where there is none.

  What was written after it is cut off. `going_on` is said before its number.
  """
  found = saver.restore(state)
  for note in () if found is None else found.notes:
    say(note)
  metrics_lib.truncate(folder, -1 if found is None else found.step)
  if found is None:
    return Resumed(state, 0, {})
  say(f'{going_on} {found.step}')
  return Resumed(found.state, found.step, found.metadata.get('evaluation', {}))
