"""What a scoring process does, and how it is started without the program above it."""

from collections.abc import Sequence
import contextlib
import json
import math
from multiprocessing import context, spawn
import numbers
import operator
import signal
import threading
import time
import traceback
from typing import Any, NamedTuple

import numpy as np

from prefjax.rewards import base

Sample = Sequence[Any]  # prompt, response, record

_ALARM_AFTER = 5  # seconds beyond the limit
_ERROR_CHARACTERS = 200
_starting = threading.Lock()


class Outcome(NamedTuple):
  """What came of one sample."""

  value: float
  failure: str = ''  # 'raised' or 'timed_out'
  error: str = ''
  steps: base.Steps | None = None  # of a verifier of steps; `value` is their sum


def load(paths: Sequence[str]) -> None:
  """Imports the verifiers, so that no sample's time is spent on it."""
  # The kernel's own handlers end a process whatever it does; pebble's, in Python,
  # would wait for C code that hangs.
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  for path in paths:
    base.find(path)


def score_guarded(path: str, samples: str, seconds: float) -> list[Outcome]:
  """`score` in a process that ends itself if its parent is not there to do so.

  A parent that was killed enforces no limit any more, and a verifier that hangs in C
  code lets no Python run: the kernel's alarm ends it all the same.
  """
  signal.alarm(math.ceil(seconds) + _ALARM_AFTER)
  try:
    return score(path, samples, seconds)
  finally:
    signal.alarm(0)


def score(path: str, samples: str, seconds: float) -> list[Outcome]:
  """The outcomes of the first samples: all that begin within half of the limit.

  The other half is left to the last one, so that many slow samples in one task are
  not mistaken for one that hangs.
  """
  verifier = base.find(path)
  started = time.monotonic()
  outcomes = []
  for sample in json.loads(samples):
    outcomes.append(_outcome(verifier, sample))
    if time.monotonic() - started > seconds / 2:
      break
  return outcomes


def _outcome(verifier: base.Verifier, sample: Sample) -> Outcome:
  try:
    found = verifier(*sample)
    if base.is_stepwise(verifier) and found is not None:
      steps = _checked(found, len(sample[1]))
      return Outcome(math.fsum(reward for _, reward in steps), steps=steps)
    return Outcome(_number(found))
  except KeyboardInterrupt:
    raise
  except BaseException as error:  # sys.exit() too is the verifier's failure
    line = traceback.format_exception_only(error)[-1].strip()
    return Outcome(math.nan, 'raised', line[:_ERROR_CHARACTERS])


def _number(value: Any) -> float:
  if value is None:
    return math.nan
  if not isinstance(value, numbers.Real | np.bool_):
    raise TypeError(f'A verifier must return a number, got {type(value).__name__}.')
  if math.isinf(value):
    raise ValueError('A verifier must return a finite number, got an infinity.')
  return float(value)


def _checked(found: base.Steps, size: int) -> list[tuple[int, float]]:
  """The steps of a text of `size` characters, refused where they are none."""
  steps = [(operator.index(end), _number(reward)) for end, reward in found]
  ends = [end for end, _ in steps]
  if ends != sorted(set(ends)) or not all(0 <= end <= size for end in ends):
    raise ValueError(f'Ends of steps must ascend within [0, {size}], got {ends}.')
  if any(math.isnan(reward) for _, reward in steps):
    raise ValueError('Every step needs a reward, got NaN.')
  return steps


class _Process(context.ForkServerProcess):
  """A process that does not import the program that started it.

  multiprocessing imports the parent's main module in each child, so that what was
  defined there can be sent: here a whole training program with jax, for every
  worker and again after each that was killed. Verifiers have import paths, so
  nothing is needed of it.
  """

  def start(self):
    with _without_main():
      super().start()


class Context(context.ForkServerContext):
  """Forks from a small server: safe beside jax's threads, and soon replaced."""

  Process = _Process


@contextlib.contextmanager
def _without_main():
  """Leaves the main module out of what this thread tells a new process."""
  thread = threading.get_ident()
  with _starting:
    prepare = spawn.get_preparation_data

    def without_main(name):
      data = prepare(name)
      if threading.get_ident() == thread:
        data = {k: v for k, v in data.items() if not k.startswith('init_main')}
      return data

    spawn.get_preparation_data = without_main
    try:
      yield
    finally:
      spawn.get_preparation_data = prepare
