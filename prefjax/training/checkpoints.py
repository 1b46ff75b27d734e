"""Checkpoints of a training run: the one module that knows orbax.

Beside the arrays a checkpoint carries a record: the type and checksum of every
leaf, the metadata and the metrics. It tells a checkpoint that does not fit the
model (an error) from one that is damaged (fall back to an older one). Orbax
alone reports both alike, casts a wrong dtype silently, and loads a file in
which bits have flipped without a word, as soon as an array has a few kilobytes.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import errno
import gc
import json
import logging
import math
from pathlib import Path
import sys
from typing import Any, Literal, NamedTuple
import warnings
import zlib

import jax
from jax.experimental import multihost_utils
import numpy as np
from orbax.checkpoint import v1 as ocp

from prefjax.errors import InputError
from prefjax.models.sharding import MEMORIES
from prefjax.training import integrity

_LOG = logging.getLogger(__name__)


class Restored(NamedTuple):
  """What `Checkpoints.restore` found."""

  step: int
  state: Any  # the arrays, placed as the abstract state says
  metadata: dict[str, Any]  # as it was given to `save`
  notes: list[str]  # one sentence for each damaged checkpoint passed over


class Checkpoints:
  """The checkpoints of one run, in `folder/<step>`.

  Keeps the newest `keep` and, where `best` names a metric, the best by it
  (the earliest of equals; a metric that is not finite is never best). With
  several processes, all of them make the same calls in the same order.

  Args:
    folder: where the checkpoints lie; shared by all processes.
    keep: how many of the newest remain.
    best: the metric by which one more remains.
    mode: whether the smallest or the largest `best` is the best.
    save_every: `save` does nothing at the steps between, unless forced.
  """

  def __init__(
    self,
    folder: Path,
    *,
    keep: int = 2,
    best: str | None = None,
    mode: Literal['min', 'max'] = 'min',
    save_every: int = 1,
  ):
    if keep < 1 or save_every < 1:
      raise InputError(
        'Checkpoints need keep >= 1 and save_every >= 1, got '
        f'keep={keep} and save_every={save_every}.'
      )
    self._folder = folder.absolute()  # orbax refuses relative paths
    self._keep = keep
    self._best = best
    self._sign = 1.0 if mode == 'min' else -1.0
    self._save_every = save_every
    self._last: int | None = None  # the step last saved or restored
    self._scores: dict[int, float] = {}
    self._writer: ocp.training.Checkpointer | None = None

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *unused: Any) -> None:
    self.close()

  def due(self, step: int) -> bool:
    """Whether `save` would save at this step without being forced."""
    return step % self._save_every == 0 and step != self._last

  def save(
    self,
    step: int,
    state: Any,
    *,
    metadata: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    force: bool = False,
  ) -> bool:
    """Starts to save; the caller may donate or overwrite `state` on return.

    Waits for the save before, and raises here what went wrong in it.

    Args:
      step: the checkpoint's number, larger than those before.
      state: a pytree of arrays.
      metadata: what else a resumed run needs, as JSON.
      metrics: numbers, among them the one named by `best`.
      force: save between the intervals too, as at a run's end.

    Returns:
      Whether a save was started: False where the step is not due, or is the
      step just saved or restored.

    Raises:
      InputError: on a step out of order, a weakly typed leaf, metadata that
        JSON changes, or metrics that lack `best`.
    """
    if step == self._last or not (force or self.due(step)):
      return False
    record = integrity.record(state, metadata, metrics)
    if self._best and metrics is not None and self._best not in metrics:
      raise InputError(
        f'Checkpoints are kept by the metric `{self._best}`, which is not '
        f'among the metrics given: {sorted(metrics)}.'
      )
    last = self.latest() if self._last is None else self._last
    if last is not None and step <= last:
      raise InputError(
        f'Cannot save step {step} in {self._folder}: step {last} is there '
        'already. Restore it before training on, or choose another folder.'
      )
    writer = self._writer or self._open()
    if self._best and metrics is not None:
      self._note(step, metrics)
    writer.save_checkpointables_async(
      step,
      {'state': jax.tree.map(_stored, state)},
      force=True,  # `due` has decided
      custom_metadata={'record': record, 'crc32': zlib.crc32(record.encode())},
    )
    self._last = step
    return True

  def wait(self) -> None:
    """Returns once the save under way has ended; raises what it raised."""
    if self._writer is not None:
      self._writer.wait()

  def close(self) -> None:
    """Waits, and frees what orbax holds; a later `save` opens it again."""
    writer, self._writer = self._writer, None
    if writer is not None:
      writer.close()

  def steps(self) -> list[int]:
    """The steps whose save has ended, ascending; damaged ones among them."""
    if not self._folder.is_dir():
      return []
    found = (path for path in self._folder.iterdir() if path.is_dir())
    return sorted(int(path.name) for path in found if path.name.isdecimal())

  def latest(self) -> int | None:
    """The last of `steps`."""
    return max(self.steps(), default=None)

  def restore(self, abstract: Any) -> Restored | None:
    """Loads the newest readable checkpoint; None where there is none at all.

    Damaged checkpoints on the way are passed over with a warning, and renamed
    `<step>.corrupt` so that training can save their steps again.

    Args:
      abstract: the state wanted: `jax.ShapeDtypeStruct`s with shardings, or
        arrays to be replaced by others like them.

    Raises:
      InputError: if the checkpoint does not fit `abstract`, naming each leaf,
        or if there are checkpoints and all of them are damaged.
    """
    self.close()
    damaged: dict[int, str] = {}
    for step in reversed(self.steps()):
      found = self._read(step, abstract)
      if not isinstance(found, str):
        state, metadata = found
        notes = self._move_aside(damaged, step)
        self._last = step
        return Restored(step, state, metadata, notes)
      damaged[step] = found
    if damaged:
      reasons = '; '.join(f'{step}: {why}' for step, why in damaged.items())
      raise InputError(
        f'None of the checkpoints in {self._folder} can be read ({reasons}). '
        'Put a good copy in their place, or remove the folder to start anew.'
      )
    return None

  def _read(self, step, abstract) -> tuple[Any, Any] | str:
    """The state and metadata of a step, or why they cannot be read."""
    path = self._folder / str(step)
    record = _agreed(_read_record, path)
    if isinstance(record, str):
      return record
    integrity.check_fit(path, record['leaves'], abstract)
    state = _agreed(_read_state, path, abstract)
    if not isinstance(state, str):
      state = _agreed(integrity.verified, state, record['checksums'])
    if isinstance(state, str):
      return state
    return state, record['metadata']

  def _move_aside(self, damaged: dict[int, str], good: int) -> list[str]:
    notes = []
    for step, why in damaged.items():
      source = self._folder / str(step)
      target, copies = source.with_name(f'{step}.corrupt'), 1
      while target.exists():
        copies += 1
        target = source.with_name(f'{step}.corrupt-{copies}')
      if jax.process_index() == 0:
        source.rename(target)
      notes.append(
        f'Checkpoint {step} is unreadable ({why}) and was renamed '
        f'{target.name}; fell back to {good}.'
      )
      _LOG.warning('%s', notes[-1])
    if damaged and jax.process_count() > 1:
      multihost_utils.sync_global_devices('prefjax checkpoints moved aside')
    return notes

  def _note(self, step, metrics):
    score = self._sign * float(metrics[self._best])
    if math.isfinite(score):
      self._scores[step] = score

  def _open(self):
    """Opens orbax's writer, late: only after `restore` moved damage away."""
    training = ocp.training
    keep = [training.preservation_policies.LatestN(self._keep)]
    if self._best is not None:
      keep.append(_Best(self._scores))
      for step in self.steps():
        record = _attempt(_read_record, self._folder / str(step))
        if not isinstance(record, str) and self._best in record['metrics']:
          self._note(step, record['metrics'])
    self._writer = training.Checkpointer(
      self._folder,
      # Both policies always: by default orbax saves when it likes to and
      # keeps everything.
      save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(
        self._save_every
      ),
      preservation_policy=training.preservation_policies.AnyPreservationPolicy(keep),
    )
    return self._writer


class _Best:
  """Preserves the step of least score.

  Not orbax's `BestN`, whose metrics lie in a file of each checkpoint: one
  damaged such file and the whole folder cannot be opened any more.
  """

  def __init__(self, scores: Mapping[int, float]):
    self._scores = scores

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    del context
    scored = [c.step for c in checkpoints if c.step in self._scores]
    best = min(scored, key=lambda s: (self._scores[s], s), default=None)
    return [c.step == best for c in checkpoints]


def _stored(leaf):
  """What orbax is given: no empty arrays (it refuses them), no scalars."""
  if np.size(leaf) == 0:
    return None
  if not isinstance(leaf, jax.Array):
    return np.array(leaf)
  if leaf.sharding.memory_kind == MEMORIES['host']:
    # Orbax writes these from where they are, and the next update is given them.
    return jax.device_put(leaf, leaf.sharding, may_alias=False)
  return leaf


def _wanted(leaf):
  if np.size(leaf) == 0:
    return None
  if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
    return np.asarray(leaf)
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))


def _sharding(leaf):
  # Without one, orbax would take the sharding, and so the devices, of the run
  # that saved.
  return leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _refilled(leaf, loaded):
  if loaded is not None:
    return loaded
  empty = np.zeros(np.shape(leaf), leaf.dtype)
  if isinstance(leaf, np.ndarray):
    return empty
  return jax.make_array_from_callback(
    leaf.shape, _sharding(leaf), lambda index: empty[index]
  )


def _read_record(path) -> dict[str, Any]:
  saved = ocp.checkpointables_metadata(path).custom_metadata or {}
  record = str(saved.get('record'))
  if zlib.crc32(record.encode()) != saved.get('crc32'):
    raise ValueError('its record is missing or fails its checksum')
  return json.loads(record)


def _read_state(path, abstract):
  loaded = ocp.load_checkpointables(path, {'state': jax.tree.map(_wanted, abstract)})
  return jax.tree.map(_refilled, abstract, loaded['state'])


def _attempt(read, *args) -> Any:
  """What `read` returns, or a string: why the checkpoint is unreadable."""
  # This process alone: orbax would have the others wait for one that failed.
  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
  with _quiet(), ocp.Context(multiprocessing_options=alone):
    try:
      return read(*args)
    except Exception as error:
      why = _why_damaged(error)
      if why is None:
        raise
    gc.collect()  # orbax's abandoned coroutines complain here, unheard
    return why


def _why_damaged(error) -> str | None:
  """The first cause; None where the machine is to blame, not the files."""
  while True:
    if (
      isinstance(error, (MemoryError, PermissionError))
      or getattr(error, 'errno', None) in (errno.EMFILE, errno.ENFILE)
      or 'RESOURCE_EXHAUSTED' in str(error)
    ):
      return None
    cause = error.__cause__ or error.__context__
    if cause is None:
      return ' '.join(f'{type(error).__name__}: {error}'.split())[:240]
    error = cause


def _agreed(read, *args) -> Any:
  """`_attempt`, failing in every process if it fails in one."""
  result = _attempt(read, *args)
  if jax.process_count() == 1:
    return result
  ok = np.asarray(not isinstance(result, str))
  if np.all(multihost_utils.process_allgather(ok)) or not ok:
    return result
  return 'another process cannot read it'


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps in what orbax prints on a damaged checkpoint: we say it shorter."""
  loggers = [logging.getLogger(name) for name in ('absl', 'asyncio')]
  levels = [logger.level for logger in loggers]
  hook = sys.unraisablehook
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', RuntimeWarning)
    for logger in loggers:
      logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda unused: None
    try:
      yield
    finally:
      sys.unraisablehook = hook
      for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
