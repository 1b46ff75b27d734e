"""A file of decided rewards, so that a resumed run never decides one again.

A verifier may time out once and not the next time, and a judge may change its mind; a
run that was killed must still end as it would have. Rewards are written before they
are used, and read back where the same responses to the same prompt come again.
"""

from collections.abc import Mapping
import hashlib
import json
import os
from pathlib import Path
from typing import Any, SupportsInt

import numpy as np

from prefjax.errors import InputError

Key = tuple[int, int, str]  # position, attempt, and a hash of the responses' tokens


def key(
  position: SupportsInt, attempt: SupportsInt, tokens: np.ndarray, length: np.ndarray
) -> Key:
  """What a group's rewards are found by; other responses have another key."""
  digest = hashlib.sha256()
  for row, size in zip(tokens, length, strict=True):
    digest.update(np.asarray(row[:size], np.int64).tobytes() + b'|')
  return int(position), int(attempt), digest.hexdigest()[:16]


class Journal:
  """Rewards by group, in `path`; a last line that a kill tore is not there.

  Of several processes that decide the same, one `writes`.
  """

  def __init__(self, path: Path, *, writes: bool = True):
    self._known = dict(_read(path))
    self._file = path.open('a') if writes else None

  def __enter__(self) -> 'Journal':
    return self

  def __exit__(self, *_: object) -> None:
    if self._file is not None:
      self._file.close()

  def get(self, key: Key) -> dict[str, Any] | None:
    """What was decided for a group, or None."""
    return self._known.get(key)

  def put(self, decided: Mapping[Key, Mapping[str, Any]]) -> None:
    """Writes what was decided, to the disk, before it returns."""
    for (position, attempt, digest), row in decided.items():
      self._known[position, attempt, digest] = dict(row)
      if self._file is None:
        continue
      group = {'position': position, 'attempt': attempt, 'digest': digest}
      self._file.write(json.dumps({**group, **row}) + '\n')
    if self._file is not None:
      self._file.flush()
      os.fsync(self._file.fileno())


def _read(path):
  if not path.exists():
    return
  content = path.read_bytes()
  whole = content[: content.rfind(b'\n') + 1]
  if whole != content:  # a kill tore the last line: the next is not to continue it
    os.truncate(path, len(whole))  # a kill here takes nothing else
  for number, line in enumerate(whole.splitlines(), start=1):
    try:
      row = json.loads(line)
      found = row.pop('position'), row.pop('attempt'), row.pop('digest')
    except (ValueError, KeyError, AttributeError, TypeError) as error:
      raise InputError(
        f'{path}, line {number}, holds no rewards: {error!r}.'
      ) from error
    yield found, row
