"""Tensors in the safetensors files of a folder, mapped into memory."""

from collections.abc import Collection
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from prefjax.errors import InputError

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
DTYPES = {'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}
_PICKLES = ('*.bin', '*.pt', '*.pth', '*.ckpt', '*.pkl')


class Stored(NamedTuple):
  """A tensor in a file, which is read where it is looked at."""

  dtype: str
  shape: tuple[int, ...]
  data: np.ndarray  # bytes, mapped into memory

  @property
  def array(self) -> np.ndarray:
    """Its values, without a copy."""
    # With JAX comes ml_dtypes, by which NumPy knows bfloat16.
    return self.data.view(jnp.dtype(DTYPES[self.dtype])).reshape(self.shape)


def read_json(path: Path) -> dict[str, Any]:
  """The object in a JSON file, or an error that names it."""
  if not path.is_file():
    raise InputError(f'There is no {path}.')
  try:
    found = json.loads(path.read_bytes())
  except ValueError as error:
    raise InputError(f'{path} is not JSON: {error}') from error
  if not isinstance(found, dict):
    raise InputError(f'{path} must be a JSON object.')
  return found


def open_folder(folder: Path) -> dict[str, Stored]:
  """Every tensor of a folder by name, none of them read.

  Raises:
    InputError: where a file is missing or broken, or there are pickles alone.
  """
  stored = {}
  for path in _files(folder):
    try:
      # It checks that the header is whole and that the data are what that says.
      with safetensors.safe_open(path, framework='numpy'):
        pass
    except (safetensors.SafetensorError, OSError) as error:
      raise InputError(f'{path} is no whole safetensors file: {error}') from error
    found = _mapped(path)
    twice = set(found) & set(stored)
    if twice:
      raise InputError(f'{path} repeats tensors of another shard: {some(twice)}.')
    stored |= found
  return stored


def _mapped(path):
  """A file is the length of its header, the header, and the tensors' bytes."""
  data = np.memmap(path, np.uint8, mode='r')
  start = 8 + int.from_bytes(data[:8].tobytes(), 'little')
  header = json.loads(data[8:start].tobytes())
  header.pop('__metadata__', None)
  body = data[start:]
  return {
    name: Stored(
      entry['dtype'], tuple(entry['shape']), body[slice(*entry['data_offsets'])]
    )
    for name, entry in header.items()
  }


def _files(folder):
  whole, index = folder / WEIGHTS, folder / INDEX
  if whole.is_file():
    return [whole]
  if not index.is_file():
    pickles = sorted(path.name for kind in _PICKLES for path in folder.glob(kind))
    if pickles:
      raise InputError(
        f'{folder} holds {some(pickles)} and no safetensors. A pickle runs code when '
        'it is read, so prefjax reads none: convert it where you trust it, by '
        'AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder) of '
        'transformers.'
      )
    raise InputError(f'{folder} has neither {WEIGHTS} nor {INDEX}.')
  shards = read_json(index).get('weight_map')
  if not isinstance(shards, dict):
    raise InputError(f'{index} has no weight_map.')
  paths = sorted({folder / str(shard) for shard in shards.values()})
  missing = [path.name for path in paths if not path.is_file()]
  if missing:
    raise InputError(f'{index} names shards that are not there: {some(missing)}.')
  return paths


def some(names: Collection[str], most: int = 8) -> str:
  """The first few names, and how many more there are."""
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return f'{sorted(names)[:most]}{more}'
