"""What ends a run before its time: SIGTERM, and numbers that are not finite."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
from pathlib import Path
import signal
import threading
from typing import Any

import numpy as np

from prefjax.errors import TrainingError


@contextlib.contextmanager
def stop_signal() -> Iterator[threading.Event]:
  """An event that SIGTERM sets, where this thread may install a handler."""
  event = threading.Event()
  try:
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
  except ValueError:  # Only the main thread may; elsewhere nothing is caught.
    yield event
    return
  try:
    yield event
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
    path = folder / f'not_finite_{step}.npz'
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
