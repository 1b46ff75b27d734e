"""What ends a run before its time: SIGTERM, and numbers that are not finite."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
from pathlib import Path
import signal
import threading
from typing import Any

import jax
import numpy as np

from prefjax.errors import TrainingError
from prefjax.training import processes


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
  """Whether to stop: SIGTERM came to this process, or to any of several.

  To be asked once a step, by all processes: all are told at the same one.
  """
  if not processes.alone():
    yield processes.stop_agreed
    return
  event = threading.Event()
  try:
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
  except ValueError:  # Only the main thread may; elsewhere nothing is caught.
    yield event.is_set
    return
  try:
    yield event.is_set
  finally:
    signal.signal(signal.SIGTERM, before)


def refuse_not_finite(
  values: Mapping[str, float],
  batch: Sequence[Any],
  *,
  step: int,
  folder: Path,
  description: str,
) -> None:
  """Raises TrainingError where loss or gradient is not finite, and saves the batch."""
  wrong = [name for name in ('loss', 'grad_norm') if not math.isfinite(values[name])]
  if wrong:
    mine = '' if processes.first() else f'-{jax.process_index()}'
    path = folder / f'not_finite_{step}{mine}.npz'
    _save(path, batch)
    raise TrainingError(
      f'{description}: {" and ".join(wrong)} of step {step} is not finite '
      f'({", ".join(f"{n}={values[n]}" for n in wrong)}). Its batch is saved in '
      f'{path}; the last checkpoint is from before it. A smaller learning rate or '
      f'optimizer.clip_norm may help.'
    )


def _save(path, batch):
  arrays = {
    f'{i}/{field.name}': np.asarray(getattr(part, field.name))
    for i, part in enumerate(batch)
    for field in dataclasses.fields(part)
    if getattr(part, field.name) is not None
  }
  np.savez(path, **arrays)
