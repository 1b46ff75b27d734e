"""Files and folders that are whole or absent, and what identifies their content.

What is written goes under a temporary name and is renamed, so that a process killed at
any instant leaves nothing half done.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import fcntl
import hashlib
import json
import math
import os
from pathlib import Path
import shutil
import socket
from typing import IO, Any

import numpy as np

from prefjax.training import processes


def jsonable(obj: Any) -> Any:
  """The same in plain JSON types; not-a-number and infinities become strings.

  Floats keep every bit: JSON text holds the shortest decimal that reads back as
  the same float64.
  """
  if isinstance(obj, Mapping):
    return {str(key): jsonable(value) for key, value in obj.items()}
  if isinstance(obj, list | tuple):
    return [jsonable(value) for value in obj]
  if obj is None or isinstance(obj, str | bool | int):
    return obj
  if isinstance(obj, os.PathLike):
    return os.fspath(obj)
  if isinstance(obj, float):
    return float(obj) if math.isfinite(obj) else repr(float(obj))
  array = np.asarray(obj)
  if array.dtype == object:
    raise TypeError(f'JSON has no place for {obj!r} of {type(obj)}.')
  # bfloat16 is no NumPy type: its items become Python floats by a cast only.
  exact = array.astype(float) if array.dtype.kind in 'fV' else array
  return jsonable(exact.tolist())


def fingerprint(obj: Any) -> str:
  """16 hex digits of SHA-256 over canonical JSON (its keys in sorted order)."""
  text = json.dumps(jsonable(obj), sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, obj: Any) -> None:
  """Writes a JSON file that is complete or, after a kill, as it was before."""
  with replacing(path) as file:
    json.dump(jsonable(obj), file, indent=2)
    file.write('\n')


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
  """A text file under a temporary name, renamed to `path` at the end."""
  unfinished = temporary(path)
  with unfinished.open('w') as file:
    yield file
    file.flush()
    os.fsync(file.fileno())
  unfinished.replace(path)


def temporary(path: Path) -> Path:
  """Where a file lies until it is whole."""
  return path.with_name(path.name + '.tmp')


def built(directory: Path, build: Callable[[Path], None]) -> Path:
  """Returns `directory`; where missing, `build` fills it, whole or not at all.

  `build` gets an empty folder beside `directory`, renamed when it returns. Of
  runs that build the same directory at once, the first to end wins; of the processes
  of one run all build, since what is built may need them all, and one renames.
  """
  if processes.shared(directory.exists):
    return directory
  # The host is in the name because machines may share a cache, and a process id
  # says nothing about who is alive on another one.
  prefix = f'{directory.name}.tmp-{socket.gethostname()}-'
  unfinished = directory.with_name(f'{prefix}{os.getpid()}')
  _remove_stale(directory.parent, prefix)
  unfinished.mkdir(parents=True)
  try:
    build(unfinished)
    processes.shared(lambda: _publish(unfinished, directory))
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
  return directory


def _publish(unfinished, directory):
  try:
    unfinished.rename(directory)
  except OSError:
    if not directory.exists():  # else another run was first
      raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
  """Waits until no other run of this machine is inside for the same path.

  The lock is a file beside `path`; the system frees it when its holder ends. Of the
  processes of one run the first holds it, for all.
  """
  with contextlib.ExitStack() as held:

    def lock() -> None:
      path.parent.mkdir(parents=True, exist_ok=True)
      file = held.enter_context(path.with_name(f'{path.name}.lock').open('w'))
      fcntl.flock(file, fcntl.LOCK_EX)

    processes.shared(lock)
    yield


def _remove_stale(parent, prefix):
  found = parent.iterdir() if parent.exists() else ()
  for entry in found:
    pid = entry.name.removeprefix(prefix)
    if entry.name.startswith(prefix) and pid.isdigit() and _ended(int(pid)):
      shutil.rmtree(entry, ignore_errors=True)


def _ended(pid):
  # A folder with our own id was left by an earlier process that had it.
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return True
  except PermissionError:
    return False
  return pid == os.getpid()
