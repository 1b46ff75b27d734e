"""The folder of a run: what it was asked, where it ran, and whether it is done."""

from collections.abc import Iterable, Mapping
import dataclasses
from importlib import metadata
import json
import os
from pathlib import Path
import platform
import subprocess
from typing import Any

import prefjax
from prefjax.errors import InputError
from prefjax.training import processes
from prefjax.training.files import jsonable, temporary, write_json

_CONFIG = 'config.json'
_DONE = 'DONE'
PLACES = ('mesh', 'memory')  # in a config: where a run computes, not what
_PARTS = ('config', 'environment', 'fingerprints')
# Other bits of the same arithmetic: XLA divides its reductions by the number of
# cores, and every version of these compiles to its own order of operations.
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax')
_DECIDES_BITS = (*_PACKAGES, 'usable_cores', 'devices', 'git', *PLACES)


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
    x['environment'] | {place: x['config'].get(place) for place in PLACES}
    for x in (asked, stored)
  )
  warnings = _environment_warnings(here, there)
  return {'resumed': True, 'warnings': warnings}


def _refuse_foreign(workdir):
  if workdir.exists() and not workdir.is_dir():
    raise InputError(f'The workdir {workdir} is a file; a folder is needed.')
  # A start that was killed while it wrote its config leaves the temporary only.
  left = {_CONFIG, temporary(Path(_CONFIG)).name}
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
  """A config without what says where it runs: it goes on where other devices are."""
  return {key: value for key, value in config.items() if key not in PLACES}


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


def append_samples(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """Appends one JSON line a row; its `step` is what `truncate` cuts by."""
  if not processes.first():
    return
  lines = [json.dumps(jsonable(row)) + '\n' for row in rows]
  with path.open('a') as file:
    file.writelines(lines)
