"""Where arrays lie on a mesh: one table from logical axes to the axes of the mesh.

`data` and `fsdp` share out the prompts; `fsdp` also cuts every large parameter along
the model's width, and `tensor` along heads, hidden units and the vocabulary. A layer's
parameters are put together over `fsdp` where the layer runs, and nowhere else.
"""

from collections.abc import Iterator
import contextlib
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from prefjax.errors import InputError
from prefjax.models.config import DecoderConfig

AXES = ('data', 'fsdp', 'tensor')
MEMORIES = {'device': None, 'host': 'pinned_host'}  # what jax calls them

RULES: dict[str, Any] = {
  'prompts': ('data', 'fsdp'),
  'width': 'fsdp',
  'heads': 'tensor',
  'hidden': 'tensor',
  'vocabulary': 'tensor',
  'rank': None,
  'layers': None,
  'positions': None,
}

# Of a projection's kernel; its adapters' factors lie as it does, the rank whole.
_PROJECTIONS = {
  'query': ('width', 'heads'),
  'key': ('width', 'heads'),
  'value': ('width', 'heads'),
  'out': ('heads', 'width'),
  'gate': ('width', 'hidden'),
  'up': ('width', 'hidden'),
  'down': ('hidden', 'width'),
}

# A parameter's logical axes by the end of its path; under `layers` one more goes first.
# What is not named here (norms, biases, scalar heads) is small and whole everywhere.
PARAMETERS: dict[str, tuple[str, ...]] = {
  'embedding': ('vocabulary', 'width'),
  'unembedding': ('vocabulary', 'width'),
  'positions': ('positions', 'width'),
  **{f'{part}/kernel': axes for part, axes in _PROJECTIONS.items()},
  **{f'{part}/lora_a': (axes[0], 'rank') for part, axes in _PROJECTIONS.items()},
  **{f'{part}/lora_b': ('rank', axes[1]) for part, axes in _PROJECTIONS.items()},
}


def spec(*axes: str | None) -> jax.P:
  """The partition of an array with these logical axes; None is not cut."""
  return jax.P(*(None if axis is None else RULES[axis] for axis in axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Says where an array inside a compiled function lies; nothing without a mesh."""
  if jax.sharding.get_abstract_mesh().axis_names != AXES:
    return x
  return jax.lax.with_sharding_constraint(x, spec(*axes))


@contextlib.contextmanager
def under(mesh: jax.sharding.Mesh | None) -> Iterator[None]:
  """What is traced inside knows the mesh."""
  with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
    yield


def to_host_memory(tree: Any) -> Any:
  """Inside a compiled function: arrays sent to the host's memory; scalars stay."""
  host = jax.memory.Space.Host
  return jax.tree.map(lambda x: jax.device_put(x, host) if x.ndim else x, tree)


def from_host_memory(tree: Any) -> Any:
  """Inside a compiled function: what lies in the host's memory, on the device."""

  def fetched(x):
    away = jax.typeof(x).memory_space == jax.memory.Space.Host
    return jax.device_put(x, jax.memory.Space.Device) if away else x

  return jax.tree.map(fetched, tree)


def data_shards(mesh: jax.sharding.Mesh | None) -> int:
  """How many parts a batch is dealt into."""
  return 1 if mesh is None else mesh.shape['data'] * mesh.shape['fsdp']


def name(path: Any) -> str:
  """The path of a leaf as `layers/mlp/up/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
  """The logical axes of a parameter, or of what an optimiser keeps of its shape."""
  parts = path.split('/')
  for length in (2, 1):
    axes = PARAMETERS.get('/'.join(parts[-length:]))
    if axes is not None:
      axes = ('layers', *axes) if 'layers' in parts else axes
      # Adafactor's rows and columns are named as their parameter and are none.
      return axes if len(axes) == ndim else (None,) * ndim
  return (None,) * ndim


def shardings(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """Where each leaf of a tree of parameters, or of a training state, is to lie.

  Raises:
    InputError: where the mesh does not divide a leaf.
  """

  def sharding(path, leaf):
    shape, where = np.shape(leaf), spec(*logical_axes(name(path), np.ndim(leaf)))
    for size, axis in zip(shape, where, strict=True):
      if axis is not None and size % mesh.shape[axis]:
        raise InputError(
          f'mesh.{axis}={mesh.shape[axis]} does not divide the parameter '
          f'`{name(path)}` of shape {list(shape)}.'
        )
    return jax.sharding.NamedSharding(mesh, where)

  return jax.tree_util.tree_map_with_path(sharding, tree)


def gathered(params: Any, dtype: str) -> Any:
  """Parameters put together over `fsdp`, and of the type given where they are cut."""

  def whole(path, x):
    axes = logical_axes(name(path), x.ndim)
    if axes == (None,) * x.ndim:
      return x
    kept = (None if RULES[axis] == 'fsdp' else axis for axis in axes)
    return constrain(x.astype(dtype), *kept)

  return jax.tree_util.tree_map_with_path(whole, params)


def check(config: DecoderConfig, mesh: jax.sharding.Mesh) -> None:
  """Refuses a mesh that does not divide a model.

  Raises:
    InputError: naming the axis and what it does not divide.
  """
  sizes = {
    'fsdp': ('width',),
    'tensor': ('num_heads', 'num_kv_heads', 'mlp_width', 'vocab_size'),
  }
  for axis, fields in sizes.items():
    for field in fields:
      size, parts = getattr(config, field), mesh.shape[axis]
      if size % parts:
        pad = ': a larger vocabulary may be padded' if field == 'vocab_size' else ''
        raise InputError(
          f'mesh.{axis}={parts} does not divide model.{field}={size}{pad}.'
        )


def put(x: Any, where: jax.sharding.NamedSharding) -> jax.Array:
  """An array laid out on a mesh; of a host's array, the parts that are its own.

  A host's array must be the same in every process where its parts are.
  """
  addressable = not isinstance(x, jax.Array) or x.is_fully_addressable
  if where.is_fully_addressable or not addressable:
    return jax.device_put(x, where)
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    data = put(np.asarray(jax.random.key_data(x)), where)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
  host = np.asarray(x)
  return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


def on_host(x: Any) -> np.ndarray:
  """The whole array in every process's memory; all processes must ask for it."""
  if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(x)
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))
