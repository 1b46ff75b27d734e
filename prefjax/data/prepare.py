"""Prepared data: token ids on disk with an index of lengths, written once."""

from collections import Counter
from collections.abc import Iterable, Sequence
import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path
import shutil
import socket
import time
from typing import Any

from array_record.python import array_record_data_source, array_record_module
from flax import serialization
from jaxtyping import Int32
import numpy as np

from prefjax.data import encoding
from prefjax.data.encoding import Example
from prefjax.data.records import Record, Skipped
from prefjax.data.tokenizers import Tokenizer
from prefjax.errors import InputError

_RECORDS = 'examples.array_record'
_LENGTHS = 'lengths.npz'
_COUNTS = 'counts.json'
_SETTINGS = 'settings.json'
_ABANDONED = 24 * 3600  # seconds after which another machine's folder is dead


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
  """A prepared data set: `prepared[i]` is an Example; lengths are in memory."""

  counts: dict[str, int]
  settings: dict[str, Any]
  prompt_length: Int32[np.ndarray, ' n']
  response_length: Int32[np.ndarray, 'n k']  # 0 is no response
  num_pairs: Int32[np.ndarray, ' n']
  _source: array_record_data_source.ArrayRecordDataSource

  def __len__(self) -> int:
    return len(self.prompt_length)

  @functools.cached_property
  def digest(self) -> str:
    """A hash of every token, for what is computed from this data and stored."""
    digest = hashlib.sha256()
    for start in range(0, len(self), 1024):
      for data in self._source.__getitems__(
        list(range(start, min(start + 1024, len(self))))
      ):
        digest.update(data)
    return digest.hexdigest()[:16]

  def __getitem__(self, index: int) -> Example:
    return self.read([index])[0]

  def read(self, indices: Sequence[int] | np.ndarray) -> list[Example]:
    """The examples at these indices, in one read (much faster than one by one).

    Raises:
      IndexError: an index outside the data set (negative: from the end).
    """
    size = len(self)
    keys = [range(size)[int(index)] for index in indices]
    # ArrayRecord refuses to read nothing.
    found = self._source.__getitems__(keys) if keys else []
    return [_unpack(data) for data in found]


def prepare(
  records: Iterable[Record | Skipped],
  tokenizer: Tokenizer,
  *,
  directory: Path,
  max_prompt: int,
  max_response: int,
) -> Prepared:
  """Encodes the records into `directory`, or opens it where that was done.

  The folder appears whole, by one rename, or not at all; what killed runs left
  is removed. The caller names it after the data and the tokenizer.

  Raises:
    InputError: no record at all, a record that cannot be encoded, or a folder
      that was prepared with another tokenizer or other limits.
  """
  encoding.check_limits(max_prompt, max_response)
  settings = {
    'tokenizer': tokenizer.fingerprint,
    'max_prompt': max_prompt,
    'max_response': max_response,
  }
  _remove_abandoned(directory)
  if not directory.exists():
    temporary = directory.with_name(_temporary_name(directory))
    temporary.mkdir(parents=True)
    try:
      _write_all(records, tokenizer, settings, temporary)
      _publish(temporary, directory)
    finally:
      shutil.rmtree(temporary, ignore_errors=True)
  prepared = open_prepared(directory)
  if prepared.settings != settings:
    raise InputError(
      f'`{directory}` was prepared with {prepared.settings}, but {settings} is '
      'asked for; name another folder or remove this one.'
    )
  return prepared


def open_prepared(directory: Path) -> Prepared:
  """Opens what `prepare` wrote.

  Raises:
    InputError: the folder is missing or lacks one of its files.
  """
  names = (_RECORDS, _LENGTHS, _COUNTS, _SETTINGS)
  missing = [name for name in names if not (directory / name).is_file()]
  if missing:
    raise InputError(
      f'`{directory}` is not a folder of prepared data: it lacks '
      f'{", ".join(missing)}. Remove it and start again to prepare it anew.'
    )
  with np.load(directory / _LENGTHS, allow_pickle=False) as lengths:
    return Prepared(
      counts=json.loads((directory / _COUNTS).read_text()),
      settings=json.loads((directory / _SETTINGS).read_text()),
      prompt_length=lengths['prompt_length'],
      response_length=lengths['response_length'],
      num_pairs=lengths['pairs'],
      _source=array_record_data_source.ArrayRecordDataSource(str(directory / _RECORDS)),
    )


def _write_all(records, tokenizer, settings, folder):
  limits = {name: settings[name] for name in ('max_prompt', 'max_response')}
  counts = Counter(dict.fromkeys(encoding.COUNTS, 0))
  lengths = []
  # One record a group: any one can be read without decompressing others.
  writer = array_record_module.ArrayRecordWriter(str(folder / _RECORDS), 'group_size:1')
  try:
    for record in records:
      if isinstance(record, Skipped):
        counts[f'skipped_{record.reason}'] += 1
        continue
      example = encoding.encode(record, tokenizer, counts=counts, **limits)
      writer.write(_pack(example))
      lengths.append(_lengths(example))
  finally:
    writer.close()
  if not lengths:
    raise InputError(
      f'The data set has no record to train on; counted: {dict(counts)}.'
    )
  np.savez(folder / _LENGTHS, **_columns(lengths))
  (folder / _COUNTS).write_text(json.dumps(counts, indent=2, sort_keys=True))
  (folder / _SETTINGS).write_text(json.dumps(settings, indent=2))


def _lengths(example):
  responses = [len(ids) for ids in example.responses]
  return len(example.prompt), responses, len(example.chosen)


def _columns(lengths):
  prompts, responses, pairs = zip(*lengths, strict=True)
  table = np.zeros((len(responses), max(map(len, responses))), np.int32)
  for row, values in zip(table, responses, strict=True):
    row[: len(values)] = values
  return {
    'prompt_length': np.array(prompts, np.int32),
    'response_length': table,
    'pairs': np.array(pairs, np.int32),
  }


def _pack(example: Example) -> bytes:
  fields = {
    'prompt': example.prompt,
    'tokens': np.concatenate(example.responses),
    'response_length': np.array([len(r) for r in example.responses], np.int32),
    'chosen': example.chosen,
    'rejected': example.rejected,
    'preference': example.preference,
    'labels': example.labels,
    'win_rates': example.win_rates,
    **_packed_steps(example),
  }
  given = {key: value for key, value in fields.items() if value is not None}
  return serialization.msgpack_serialize(given)


def _packed_steps(example):
  if example.steps is None:
    return {}
  fields = {
    'steps': np.concatenate(example.steps),
    'num_steps': np.array([len(sizes) for sizes in example.steps], np.int32),
  }
  if example.step_labels is not None:
    fields['step_labels'] = np.concatenate(example.step_labels)
  return fields


def _unpack(data: bytes) -> Example:
  fields = serialization.msgpack_restore(data)
  fields['responses'] = _split(fields.pop('tokens'), fields.pop('response_length'))
  counts = fields.pop('num_steps', None)
  for name in ('steps', 'step_labels'):
    if name in fields:
      fields[name] = _split(fields[name], counts)
  return Example(**fields)


def _split(flat, sizes):
  return tuple(np.split(flat, np.cumsum(sizes)[:-1]))


def _publish(temporary: Path, directory: Path) -> None:
  for file in (*temporary.iterdir(), temporary):
    _sync(file)
  try:
    temporary.rename(directory)
  except OSError:
    # Another process was first: its folder holds the same examples.
    if not directory.is_dir():
      raise
  _sync(directory.parent)


def _sync(path: Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _temporary_name(directory: Path) -> str:
  return f'{directory.name}.tmp-{socket.gethostname()}-{os.getpid()}'


def _remove_abandoned(directory: Path) -> None:
  if not directory.parent.is_dir():
    return
  for folder in directory.parent.iterdir():
    if folder.name.startswith(f'{directory.name}.tmp-') and _is_dead(folder):
      shutil.rmtree(folder, ignore_errors=True)


def _last_written(folder: Path) -> float:
  try:
    return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
  except FileNotFoundError:  # its owner is renaming it just now
    return time.time()


def _is_dead(folder: Path) -> bool:
  _, _, owner = folder.name.rpartition('.tmp-')
  host, _, process = owner.rpartition('-')
  if host != socket.gethostname() or not process.isdigit():
    # Several machines share a cache: the other one may still be writing.
    return time.time() - _last_written(folder) > _ABANDONED
  try:
    os.kill(int(process), 0)
  except ProcessLookupError:
    return True
  except PermissionError:
    return False
  return int(process) == os.getpid()  # an earlier process of the same number
