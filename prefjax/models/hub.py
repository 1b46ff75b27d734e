"""Reads and writes models in the Hugging Face layout: config.json and safetensors."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from prefjax.errors import InputError
from prefjax.models import config_json, decoder, tensors
from prefjax.models.architectures import Architecture
from prefjax.models.config import DecoderConfig
from prefjax.models.config_json import RUNNING
from prefjax.models.stored import (
  DTYPES,
  INDEX,
  WEIGHTS,
  Stored,
  open_folder,
  read_json,
  some,
)

_CONFIG = 'config.json'
_SHARD = 4 * 10**9  # bytes of a file


def load(
  folder: Path,
  *,
  shardings: Callable[[Any], Any] | None = None,
  **overrides: Any,
) -> tuple[DecoderConfig, dict[str, Any]]:
  """The config and the parameters in `folder`, of `param_dtype`.

  The names, shapes and dtypes of all tensors are checked before the first is read.
  The files are mapped into memory, and of them each device's part alone is read, so
  that a second copy of the model is held nowhere.

  Args:
    folder: of config.json and safetensors.
    shardings: from the tree of shapes to that of where the arrays shall lie; without
      it they are NumPy's.
    **overrides: how the model is run (attention, layout, remat, dtype, param_dtype);
      whatever else they name must be as the checkpoint has it.

  Raises:
    InputError: where a file is missing or broken, the tensors are not those of the
      config.json, or that asks for something prefjax does not know.
  """
  architecture, config = read_config(folder, **overrides)
  leaves = tensors.leaves(architecture, config)
  stored = _with_prefix(open_folder(folder), architecture)
  _check_names(folder, stored, leaves.values(), architecture)
  _check_forms(folder, stored, leaves.values())
  _check_tied(folder, config, stored, architecture)
  parts = [part for leaf in leaves.values() for part in leaf.parts]
  arrays = {part.name: stored[part.name].array for part in parts}
  dtype = jnp.dtype(config.param_dtype)
  if shardings is None:
    flat = {path: leaf.read(arrays, dtype) for path, leaf in leaves.items()}
    return config, traverse_util.unflatten_dict(flat)
  where = traverse_util.flatten_dict(shardings(decoder.create(config)[1]))
  flat = {
    path: jax.make_array_from_callback(
      leaf.shape, where[path], functools.partial(leaf.read, arrays, dtype)
    )
    for path, leaf in leaves.items()
  }
  return config, traverse_util.unflatten_dict(flat)


def read_config(folder: Path, **overrides: Any) -> tuple[Architecture, DecoderConfig]:
  """What `load` would say of the model, without reading a tensor."""
  described = read_json(folder / _CONFIG)
  architecture, config = config_json.read(described, str(folder / _CONFIG))
  decided = dataclasses.asdict(config) | {'family': architecture.family}
  for name, value in overrides.items():
    if name not in decided:
      raise InputError(f'A model has no {name!r}; it has {sorted(decided)}.')
    if name not in RUNNING and value != decided[name]:
      raise InputError(
        f'model.{name} is {value!r}, but the checkpoint in {folder} has '
        f'{decided[name]!r}; it leaves open {list(RUNNING)} alone.'
      )
  running = {name: overrides[name] for name in RUNNING if name in overrides}
  return architecture, dataclasses.replace(config, **running)


def save(
  folder: Path, config: DecoderConfig, params: Any, *, shard: int = _SHARD
) -> None:
  """Writes a model for `load` and for transformers; every bit is kept.

  Weights of more than `shard` bytes go into several files, of which one at a time is
  held in memory.

  Raises:
    InputError: where no known architecture can say what the config says, or the
      parameters are not those of the config.
  """
  architecture, described = config_json.describe(config)
  leaves = tensors.leaves(architecture, config)
  flat = traverse_util.flatten_dict(params)
  shapes = {path: leaf.shape for path, leaf in leaves.items()}
  if {path: np.shape(array) for path, array in flat.items()} != shapes:
    raise InputError('The parameters to be saved are not those of their config.')
  folder.mkdir(parents=True, exist_ok=True)
  arrays = {path: (leaf, flat[path]) for path, leaf in leaves.items()}
  _write_tensors(folder, arrays, list(_shards(arrays, shard)))
  # Last, so that a folder that says what it is has it.
  _write_json(folder / _CONFIG, described)


def _write_tensors(folder, arrays, shards):
  if len(shards) == 1:
    write = functools.partial(_write_shard, shards[0], arrays)
    _write(folder / WEIGHTS, write)
    return
  where = {}
  for i, shard in enumerate(shards, start=1):
    name = f'model-{i:05}-of-{len(shards):05}.safetensors'
    _write(folder / name, functools.partial(_write_shard, shard, arrays))
    where |= dict.fromkeys(shard, name)
  (folder / WEIGHTS).unlink(missing_ok=True)  # of an earlier model
  _write_json(folder / INDEX, {'metadata': {}, 'weight_map': where})


def _shards(arrays, limit):
  """The tensors in order, {name: shape and dtype}, as many at once as fit the limit."""
  size, part, seen = 0, {}, set()
  for leaf, array in arrays.values():
    dtype = np.dtype(array.dtype)
    for each in leaf.parts:
      if each.name in seen:  # a third of one that is counted
        continue
      seen.add(each.name)
      more = int(np.prod(each.tensor_shape)) * dtype.itemsize
      if part and size + more > limit:
        yield part
        size, part = 0, {}
      part[each.name] = each.tensor_shape, dtype
      size += more
  yield part


def _write_shard(shard, arrays, path):
  # The library writes the memory as it lies, whatever the strides say.
  found = {name: np.empty(*form) for name, form in shard.items()}
  for leaf, array in arrays.values():
    if any(each.name in found for each in leaf.parts):
      leaf.write(np.asarray(array), found)
  # Transformers insists on a format.
  save_file(found, path, metadata={'format': 'pt'})


def _write_json(path, value):
  _write(path, lambda file: file.write_text(json.dumps(value, indent=2) + '\n'))


def _write(path, write):
  temporary = path.with_name(f'{path.name}.tmp-{os.getpid()}')
  temporary.touch()
  mode = temporary.stat().st_mode
  write(temporary)
  # Safetensors lets nobody but the writer read what it wrote.
  temporary.chmod(mode)
  temporary.replace(path)


def _with_prefix(stored, architecture):
  """Tensors by their full names; a model saved without its head has shorter ones."""
  prefix = architecture.names['embedding'].partition('.')[0] + '.'
  if any(name.startswith(prefix) for name in stored):
    return stored
  head = _weight(architecture, 'unembedding')
  return {
    name if name == head else prefix + name: tensor for name, tensor in stored.items()
  }


def _weight(architecture, path):
  return f'{architecture.names[path]}.weight'


def _check_names(folder, stored, leaves, architecture):
  wanted = {part.name for leaf in leaves for part in leaf.parts}
  # A head that is not wanted is tied, and a copy; the buffers of old checkpoints are
  # formed by the decoder itself.
  head = _weight(architecture, 'unembedding')
  surplus = {
    name
    for name in set(stored) - wanted
    if name != head and not name.endswith(architecture.buffers)
  }
  missing = wanted - set(stored)
  if missing or surplus:
    raise InputError(
      f'{folder} does not hold what its {_CONFIG} says: it lacks {some(missing)}, and '
      f'has besides {some(surplus)}.'
    )


def _check_forms(folder, stored, leaves: Iterable[tensors.Leaf]):
  for part in (part for leaf in leaves for part in leaf.parts):
    dtype, shape, _ = stored[part.name]
    if shape != part.tensor_shape:
      raise InputError(
        f'{part.name} in {folder} has the shape {shape}; its {_CONFIG} wants '
        f'{part.tensor_shape}.'
      )
    if dtype not in DTYPES:
      raise InputError(
        f'{part.name} in {folder} is {dtype}; weights must be one of {list(DTYPES)}.'
      )


def _check_tied(
  folder, config, stored: Mapping[str, Stored], architecture: Architecture
):
  names = [_weight(architecture, path) for path in ('embedding', 'unembedding')]
  if not config.tied_embeddings or names[1] not in stored:
    return
  embedding, head = (stored[name].array for name in names)
  if not np.array_equal(embedding, head):
    raise InputError(
      f'{folder} says tie_word_embeddings, but its {names[1]} differs from {names[0]}.'
    )
