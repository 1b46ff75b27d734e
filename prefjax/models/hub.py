"""Reads and writes models in the Hugging Face layout: config.json and safetensors."""

from collections.abc import Collection
import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from flax import traverse_util
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from prefjax.errors import InputError
from prefjax.models import architectures, decoder
from prefjax.models.architectures import NAMES, RUNNING
from prefjax.models.config import DecoderConfig

_CONFIG = 'config.json'
_WEIGHTS = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'
_EMBEDDING = f'{NAMES["embedding"]}.weight'
_HEAD = f'{NAMES["unembedding"]}.weight'
_DTYPES = ('F64', 'F32', 'F16', 'BF16')


class _Leaf(NamedTuple):
  """An array of ours and the tensors it is made of: one a layer, or just one."""

  names: tuple[str, ...]
  shape: tuple[int, ...]
  stacked: bool
  kernel: bool  # [inputs, outputs] here, [outputs, inputs] there

  @property
  def tensor_shape(self) -> tuple[int, ...]:
    shape = self.shape[1:] if self.stacked else self.shape
    return shape[::-1] if self.kernel else shape

  def views(self, array):
    """By tensor name, the part of the array that it is, laid out as it is."""
    parts = array if self.stacked else array[None]
    parts = [part.T if self.kernel else part for part in parts]
    return dict(zip(self.names, parts, strict=True))


def load(folder: Path, **overrides: Any) -> tuple[DecoderConfig, dict[str, Any]]:
  """The config and the parameters in `folder`, as NumPy arrays of `param_dtype`.

  `overrides` say how the model is run (attention, layout, remat, dtype, param_dtype);
  whatever else they name must be as the checkpoint has it. The names, shapes and dtypes
  of all tensors are checked before the first is read.

  Raises:
    InputError: where a file is missing or broken, the tensors are not those of the
      config.json, or that asks for something prefjax does not know.
  """
  config = _config(folder, overrides)
  leaves = _leaves(config)
  flat = {}
  with contextlib.ExitStack() as stack:
    tensors = _open(folder, stack)
    _check_names(folder, tensors, leaves.values())
    _check_forms(folder, tensors, leaves.values())
    _check_tied(folder, config, tensors)
    for path, leaf in leaves.items():
      flat[path] = np.empty(leaf.shape, jnp.dtype(config.param_dtype))
      for name, view in leaf.views(flat[path]).items():
        # With JAX comes ml_dtypes, by which NumPy knows bfloat16.
        view[...] = tensors[name].get_tensor(name)
  return config, traverse_util.unflatten_dict(flat)


def save(folder: Path, config: DecoderConfig, params: Any) -> None:
  """Writes a model for `load` and for transformers; every bit is kept.

  Raises:
    InputError: where no known architecture can say what the config says, or the
      parameters are not those of the config.
  """
  described = architectures.describe(config)
  leaves, flat = _leaves(config), traverse_util.flatten_dict(params)
  shapes = {path: leaf.shape for path, leaf in leaves.items()}
  if {path: np.shape(array) for path, array in flat.items()} != shapes:
    raise InputError('The parameters to be saved are not those of their config.')
  tensors = {
    # The library writes the memory as it lies, whatever the strides say.
    name: np.ascontiguousarray(view)
    for path, leaf in leaves.items()
    for name, view in leaf.views(np.asarray(flat[path])).items()
  }
  folder.mkdir(parents=True, exist_ok=True)
  files = {name: folder / f'{name}.tmp-{os.getpid()}' for name in (_WEIGHTS, _CONFIG)}
  files[_CONFIG].write_text(json.dumps(described, indent=2) + '\n')
  # Transformers insists on a format.
  save_file(tensors, files[_WEIGHTS], metadata={'format': 'pt'})
  # The library lets nobody but the writer read them.
  files[_WEIGHTS].chmod(files[_CONFIG].stat().st_mode)
  for name, temporary in files.items():
    temporary.replace(folder / name)


def _config(folder, overrides):
  described = _json(folder / _CONFIG)
  family, config = architectures.read(described, str(folder / _CONFIG))
  decided = dataclasses.asdict(config) | {'family': family}
  for name, value in overrides.items():
    if name not in decided:
      raise InputError(f'A model has no {name!r}; it has {sorted(decided)}.')
    if name not in RUNNING and value != decided[name]:
      raise InputError(
        f'model.{name} is {value!r}, but the checkpoint in {folder} has '
        f'{decided[name]!r}; it leaves open {list(RUNNING)} alone.'
      )
  running = {name: overrides[name] for name in RUNNING if name in overrides}
  return dataclasses.replace(config, **running)


def _leaves(config: DecoderConfig) -> dict[tuple[str, ...], _Leaf]:
  leaves = {}
  for path, array in traverse_util.flatten_dict(decoder.create(config)[1]).items():
    # A table is an array itself; all else is a folder of kernel, scale or bias.
    part = '.'.join(path[:-1] or path)
    name = f'{NAMES[part]}.{"bias" if path[-1] == "bias" else "weight"}'
    stacked = path[0] == 'layers'
    if stacked:
      layers = range(config.num_layers)
      names = tuple(f'{NAMES["layers"]}.{layer}.{name}' for layer in layers)
    else:
      names = (name,)
    leaves[path] = _Leaf(names, array.shape, stacked, path[-1] == 'kernel')
  return leaves


def _json(path):
  if not path.is_file():
    raise InputError(f'There is no {path}.')
  try:
    found = json.loads(path.read_bytes())
  except ValueError as error:
    raise InputError(f'{path} is not JSON: {error}') from error
  if not isinstance(found, dict):
    raise InputError(f'{path} must be a JSON object.')
  return found


def _open(folder, stack):
  """By tensor name, the open file that has it."""
  tensors = {}
  for path in _files(folder):
    try:
      file = stack.enter_context(safetensors.safe_open(path, framework='numpy'))
    except (safetensors.SafetensorError, OSError) as error:
      raise InputError(f'{path} is no whole safetensors file: {error}') from error
    twice = set(file.keys()) & set(tensors)
    if twice:
      raise InputError(f'{path} repeats tensors of another shard: {_some(twice)}.')
    tensors |= dict.fromkeys(file.keys(), file)
  return tensors


def _files(folder):
  whole, index = folder / _WEIGHTS, folder / _INDEX
  if whole.is_file():
    return [whole]
  if not index.is_file():
    raise InputError(f'{folder} has neither {_WEIGHTS} nor {_INDEX}.')
  shards = _json(index).get('weight_map')
  if not isinstance(shards, dict):
    raise InputError(f'{index} has no weight_map.')
  paths = sorted({folder / str(shard) for shard in shards.values()})
  missing = [path.name for path in paths if not path.is_file()]
  if missing:
    raise InputError(f'{index} names shards that are not there: {_some(missing)}.')
  return paths


def _check_names(folder, tensors, leaves):
  wanted = {name for leaf in leaves for name in leaf.names}
  # A head that is not wanted is tied, and a copy; old checkpoints have tables of
  # angles, which the decoder forms by itself.
  surplus = {
    name
    for name in set(tensors) - wanted
    if name != _HEAD and not name.endswith('.rotary_emb.inv_freq')
  }
  missing = wanted - set(tensors)
  if missing or surplus:
    raise InputError(
      f'{folder} does not hold what its {_CONFIG} says: it lacks {_some(missing)}, and '
      f'has besides {_some(surplus)}.'
    )


def _check_forms(folder, tensors, leaves):
  for leaf in leaves:
    for name in leaf.names:
      header = tensors[name].get_slice(name)
      shape, dtype = tuple(header.get_shape()), header.get_dtype()
      if shape != leaf.tensor_shape:
        raise InputError(
          f'{name} in {folder} has the shape {shape}; its {_CONFIG} wants '
          f'{leaf.tensor_shape}.'
        )
      if dtype not in _DTYPES:
        raise InputError(
          f'{name} in {folder} is {dtype}; weights must be one of {list(_DTYPES)}.'
        )


def _check_tied(folder, config, tensors):
  if not config.tied_embeddings or _HEAD not in tensors:
    return
  embedding, head = (tensors[name].get_tensor(name) for name in (_EMBEDDING, _HEAD))
  if not np.array_equal(embedding, head):
    raise InputError(
      f'{folder} says tie_word_embeddings, but its {_HEAD} differs from {_EMBEDDING}.'
    )


def _some(names: Collection[str], most: int = 8) -> str:
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return f'{sorted(names)[:most]}{more}'
