"""Verifiers run in processes of their own, each sample within a time limit."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
import dataclasses
import json
import math
from typing import Any

from jaxtyping import Float64
import numpy as np
import pebble

from prefjax.errors import InputError
from prefjax.rewards import base, worker

# Imported by the server that workers are forked from, so that one that was killed is
# soon replaced. A user's own modules are not: they may not be safe to fork.
_PRELOAD = ['prefjax.rewards.worker']
_MOST_SAMPLES = 64  # of a task
_TASKS_PER_WORKER = 4  # at least, so that the workers end together
_POLL = 1.0  # seconds between looks at whether a silent pool still lives


@dataclasses.dataclass(frozen=True)
class Scores:
  """What the verifiers made of a batch, in its order."""

  values: dict[str, Float64[np.ndarray, ' n']]  # NaN: not applicable, or failed
  failures: dict[str, dict[str, int]]  # how many samples 'raised' or 'timed_out'
  errors: dict[str, str]  # the first failure of a verifier that had one
  # Of verifiers of steps, those of each sample; None where `values` has NaN.
  steps: dict[str, list[base.Steps | None]] = dataclasses.field(default_factory=dict)


class Scorer:
  """Scores responses by verifiers, each sample in a process that may fail.

  `verifiers` maps a name to a verifier, or to the import path of one
  (prefjax.rewards.base.find). A sample that takes longer than `seconds` is ended with
  its process, about a tenth of a second late. With 0 `workers` scoring happens in this
  process: no time limit, and no protection from a verifier that ends it.

  Whatever a verifier does costs its own sample only: NaN, and counted. A process that
  dies while it scores is not proof enough against a sample, since a system kills
  processes too; the sample is tried once more, alone.

  Use it as a context manager: at its end the processes are gone.

  Raises:
    InputError: an unknown verifier, one defined in the main program (which a worker
      does not import), or a number out of range.
  """

  def __init__(self, verifiers: Mapping[str, str], *, seconds: float, workers: int):
    if not 0 < seconds < math.inf:
      raise InputError(f'seconds must be positive and finite, got {seconds}.')
    if workers < 0:
      raise InputError(f'workers must not be negative, got {workers}.')
    for path in verifiers.values():
      if path.startswith('__main__.'):
        raise InputError(f'A verifier needs a module of its own, got {path!r}.')
      base.find(path)
    self.verifiers = dict(verifiers)
    self.seconds = seconds
    self.workers = workers
    self._pool = self._open() if workers else None
    self._closed = False

  def __enter__(self) -> 'Scorer':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Ends the processes, whatever they are doing."""
    self._closed = True
    if self._pool:
      self._pool.stop()
      self._pool.join()

  def submit(
    self,
    prompts: Sequence[str],
    responses: Sequence[str],
    records: Sequence[Mapping[str, Any]],
  ) -> 'Pending':
    """Starts to score; `Pending.result` waits for it.

    Raises:
      InputError: sequences of different lengths, or a record that is not plain JSON.
    """
    lengths = len(prompts), len(responses), len(records)
    if len(set(lengths)) > 1:
      raise InputError(
        f'Each response needs its prompt and its record: got {lengths[0]} prompts, '
        f'{lengths[1]} responses and {lengths[2]} records.'
      )
    return Pending(self, list(zip(prompts, responses, records, strict=True)))

  def _schedule(
    self, name: str, samples: str
  ) -> tuple[futures.Future, pebble.ProcessPool | None]:
    """The future of a task, and the pool that it depends on."""
    path = self.verifiers[name]
    if self._closed:
      raise RuntimeError('The scorer is closed.')
    if not self.workers:
      future = futures.Future()
      future.set_result(worker.score(path, samples, math.inf))
      return future, None
    if not self._pool.active:  # as when the system killed a worker that was idle
      self._pool.stop()
      self._pool.join()
      self._pool = self._open()
    task = worker.score_guarded, (path, samples, self.seconds)
    return self._pool.schedule(*task, timeout=self.seconds), self._pool

  def _open(self) -> pebble.ProcessPool:
    context = worker.Context()
    context.set_forkserver_preload(_PRELOAD + self._own_modules())
    return pebble.ProcessPool(
      max_workers=self.workers,
      initializer=worker.load,
      initargs=[list(self.verifiers.values())],
      context=context,
    )

  def _own_modules(self) -> list[str]:
    paths = (base.VERIFIERS.get(path, '') for path in self.verifiers.values())
    return sorted({path.rpartition('.')[0] for path in paths if path})


@dataclasses.dataclass(frozen=True)
class _Task:
  name: str  # of the verifier
  indices: range  # of the samples
  again: bool = False  # alone, after a failure that may not have been its own


class Pending:
  """Scores on their way."""

  def __init__(self, scorer: Scorer, samples: Sequence[worker.Sample]):
    self._scorer = scorer
    self._samples = samples
    self._outcomes = {name: [None] * len(samples) for name in scorer.verifiers}
    self._running = {}
    size = math.ceil(len(samples) / (max(1, scorer.workers) * _TASKS_PER_WORKER))
    size = min(max(1, size), _MOST_SAMPLES)
    for first in range(0, len(samples), size):
      indices = range(first, min(first + size, len(samples)))
      for name in scorer.verifiers:
        self._send(_Task(name, indices))

  def result(self) -> Scores:
    """Waits for the scores.

    Raises:
      RuntimeError: the scorer was closed before they were there.
    """
    while self._running:
      done = futures.wait(self._running, _POLL, futures.FIRST_COMPLETED).done
      for future in done or self._lost():
        task, _ = self._running.pop(future)
        self._settle(task, future)
    return _scores(self._outcomes)

  def _send(self, task: _Task) -> None:
    try:
      samples = json.dumps([self._samples[index] for index in task.indices])
    except (TypeError, ValueError) as error:
      raise InputError(
        f'Records are sent to other processes: one of {task.indices} is not plain '
        f'JSON ({error}).'
      ) from error
    future, pool = self._scorer._schedule(task.name, samples)
    self._running[future] = task, pool

  def _lost(self) -> Iterable[futures.Future]:
    """Futures that nobody will complete, for their pool has ended."""
    return [f for f, (_, pool) in self._running.items() if not pool.active]

  def _settle(self, task: _Task, future: futures.Future) -> None:
    error = future.exception() if future.done() else BrokenProcessPool('lost')
    timed_out = isinstance(error, TimeoutError)
    outcomes = self._outcomes[task.name]
    if error is None:
      got = future.result()
      outcomes[task.indices.start : task.indices.start + len(got)] = got
      rest = task.indices[len(got) :]
      if rest:
        self._send(_Task(task.name, rest))
    elif len(task.indices) == 1 and (timed_out or task.again):
      failure = 'timed_out' if timed_out else 'raised'
      reason = self._reason(error)
      outcomes[task.indices.start] = worker.Outcome(math.nan, failure, reason)
    else:
      for index in task.indices:
        self._send(_Task(task.name, range(index, index + 1), again=True))

  def _reason(self, error: BaseException) -> str:
    match error:
      case TimeoutError():
        return f'took longer than {self._scorer.seconds} s'
      case pebble.ProcessExpired():
        return f'ended its process, exit code {error.exitcode}'
      case _:
        return repr(error)


def _scores(outcomes: Mapping[str, Sequence[worker.Outcome]]) -> Scores:
  values, failures, errors, steps = {}, {}, {}, {}
  for name, row in outcomes.items():
    kinds = [outcome.failure for outcome in row]
    values[name] = np.array([outcome.value for outcome in row], np.float64)
    failures[name] = {kind: kinds.count(kind) for kind in ('raised', 'timed_out')}
    first = next((i for i, kind in enumerate(kinds) if kind), None)
    if first is not None:
      errors[name] = f'sample {first}: {row[first].error}'
    if any(outcome.steps is not None for outcome in row):
      steps[name] = [outcome.steps for outcome in row]
  return Scores(values, failures, errors, steps)
