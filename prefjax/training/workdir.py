"""The folder of a run: what it was asked, where it ran, and whether it is done.

Every file here is complete or absent: it is written under a temporary name and
renamed, so that a run killed at any instant can be started again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import dataclasses
import fcntl
import hashlib
from importlib import metadata
import json
import math
import os
from pathlib import Path
import platform
import shutil
import socket
import subprocess
from typing import IO, Any

import numpy as np

import prefjax
from prefjax.errors import InputError
from prefjax.training import processes

_CONFIG = 'config.json'
_DONE = 'DONE'
_PARTS = ('config', 'environment', 'fingerprints')
# Other bits of the same arithmetic: XLA divides its reductions by the number of
# cores, and every version of these compiles to its own order of operations.
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax')
_DECIDES_BITS = (*_PACKAGES, 'usable_cores', 'devices', 'git', 'mesh')


@dataclasses.dataclass(frozen=True)
class Run:
  """An opened run's folder.

  Attributes:
    folder: where the run writes.
    resumed: the folder already held this run.
    warnings: why a resumed run may not be bit-identical.
  """

  folder: Path
  resumed: bool
  warnings: tuple[str, ...] = ()

  @property
  def finished(self) -> bool:
    """Whether the run reached its end, in this process or in an earlier one."""
    return processes.shared(lambda: (self.folder / _DONE).exists())

  @property
  def summary(self) -> dict[str, Any]:
    """The final metrics of a finished run."""
    return processes.shared(lambda: json.loads((self.folder / _DONE).read_text()))

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Marks the run as finished and keeps its final metrics."""
    processes.shared(lambda: write_json(self.folder / _DONE, summary))


def open_run(
  workdir: Path,
  config: Mapping[str, Any],
  *,
  devices: Mapping[str, Any],
  fingerprints: Mapping[str, str] | None = None,
  resume_ok: bool = True,
) -> Run:
  """Creates the folder, or opens it again for the same run.

  Args:
    workdir: the folder; new, empty, or of an earlier start of the same run.
    config: the resolved config.
    devices: what the run computes on: backend, kinds, count.
    fingerprints: of what the config names but does not hold (data, tokenizer).
    resume_ok: False refuses a folder that already holds a run.

  Raises:
    InputError: the folder holds something else, or a run that was asked for
      something else; the message lists the differences.
  """
  values = (config, environment(devices), fingerprints or {})
  found = processes.shared(lambda: _opened(workdir, values, resume_ok))
  return Run(workdir, resumed=found['resumed'], warnings=tuple(found['warnings']))


def _opened(workdir, values, resume_ok):
  asked = jsonable(dict(zip(_PARTS, values, strict=True)))
  path = workdir / _CONFIG
  if not path.exists():
    _refuse_foreign(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, asked)
    return {'resumed': False, 'warnings': []}
  if not resume_ok:
    raise InputError(f'{workdir} already holds a run; choose another --workdir.')
  stored = _read_config(path)
  _refuse_other_run(workdir, asked, stored)
  here, there = (
    {**x['environment'], 'mesh': x['config'].get('mesh')} for x in (asked, stored)
  )
  warnings = _environment_warnings(here, there)
  return {'resumed': True, 'warnings': warnings}


def _refuse_foreign(workdir):
  if workdir.exists() and not workdir.is_dir():
    raise InputError(f'The workdir {workdir} is a file; a folder is needed.')
  # A start that was killed while it wrote its config leaves the temporary only.
  left = {_CONFIG, _temporary(Path(_CONFIG)).name}
  found = os.listdir(workdir) if workdir.exists() else ()
  others = sorted(set(found) - left)
  if others:
    raise InputError(
      f'The workdir {workdir} holds {", ".join(others[:3])} but no {_CONFIG}:'
      ' it is not the folder of a run; choose another --workdir.'
    )


def _read_config(path):
  try:
    stored = json.loads(path.read_text())
    return {part: stored[part] for part in _PARTS}
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"{path} is not a run's config ({error!r}); choose another --workdir."
    ) from error


def _refuse_other_run(workdir, asked, stored):
  lines = differences(*(_decisive(x['config']) for x in (asked, stored)))
  here, there = ({'fingerprints': x['fingerprints']} for x in (asked, stored))
  lines += differences(here, there)
  if lines:
    listed = '\n'.join(f'  {line}' for line in lines)
    raise InputError(
      f'{workdir} holds a run that differs from this one; choose another'
      f' --workdir. The differences (this run -> the run there):\n{listed}'
    )


def _decisive(config):
  """A config without its mesh: a run goes on where other devices are."""
  return {key: value for key, value in config.items() if key != 'mesh'}


def _environment_warnings(here, there):
  return tuple(
    f'Resumed in another environment, {line} (now -> when the run began): the'
    ' end will not be bit-identical to an uninterrupted run.'
    for key in _DECIDES_BITS
    for line in differences({key: here.get(key)}, {key: there.get(key)})
  )


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
  """Lines `dotted.key: here -> there`, one a value that differs."""
  here, there = dict(_leaves(here)), dict(_leaves(there))
  keys = [*here, *(key for key in there if key not in here)]
  shown = ((key, here.get(key, 'absent'), there.get(key, 'absent')) for key in keys)
  return [f'{key}: {a} -> {b}' for key, a, b in shown if a != b]


def _leaves(obj, prefix=''):
  for key, value in obj.items():
    if isinstance(value, dict) and value:
      yield from _leaves(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', json.dumps(value)


def environment(devices: Mapping[str, Any]) -> dict[str, Any]:
  """Where a run computes: versions, devices, usable cores and commit."""
  return {
    'prefjax': prefjax.__version__,
    'python': platform.python_version(),
    **{name: metadata.version(name) for name in _PACKAGES},
    'devices': dict(devices),
    'usable_cores': len(os.sched_getaffinity(0)),
    'git': _commit(),
  }


def _commit():
  """The commit of a checkout and whether it was changed; None if installed."""
  # An installed prefjax may lie inside somebody else's repository: it is in a
  # checkout only where git tracks this file.
  if _git('ls-files', '--error-unmatch', Path(__file__).name) is None:
    return None
  changes = _git('--no-optional-locks', 'status', '--porcelain')
  return {'commit': _git('rev-parse', 'HEAD'), 'dirty': bool(changes)}


def _git(*args):
  command = ['git', '-C', str(Path(__file__).parent), *args]
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
  except OSError:  # git is not installed
    return None
  return done.stdout.strip() if done.returncode == 0 else None


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
  temporary = _temporary(path)
  with temporary.open('w') as file:
    yield file
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def _temporary(path):
  return path.with_name(path.name + '.tmp')


def append_samples(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """Appends one JSON line a row; its `step` is what `truncate` cuts by."""
  if not processes.first():
    return
  lines = [json.dumps(jsonable(row)) + '\n' for row in rows]
  with path.open('a') as file:
    file.writelines(lines)


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
  temporary = directory.with_name(f'{prefix}{os.getpid()}')
  _remove_stale(directory.parent, prefix)
  temporary.mkdir(parents=True)
  try:
    build(temporary)
    processes.shared(lambda: _publish(temporary, directory))
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return directory


def _publish(temporary, directory):
  try:
    temporary.rename(directory)
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
