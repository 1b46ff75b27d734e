"""The mesh of devices, and where batches and training states live on it."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
from jax.experimental import mesh_utils
import numpy as np

from prefjax.errors import InputError
from prefjax.models import sharding
from prefjax.models.sharding import (
  AXES,
  MEMORIES,
  data_shards,
  on_host,
  shardings,
  under,
)

__all__ = ['data_shards', 'on_host']

# Of a parameter that no rule cuts, bytes: norms of the largest models have a tenth.
_MOST_WHOLE = 2**25
_SHOWN = 3  # of the largest whole parameters


def create(
  axes: Mapping[str, int] | None = None, *, devices: Any = None
) -> jax.sharding.Mesh:
  """A mesh with Auto axes `data`, `fsdp`, `tensor`; `data=N` alone is what pmap did.

  Default: all devices on data. An axis that is not given has size 1.

  Raises:
    InputError: for an unknown axis or sizes that do not use every device.
  """
  devices = jax.devices() if devices is None else list(devices)
  axes = dict(axes or {'data': len(devices)})
  unknown = sorted(set(axes) - set(AXES))
  if unknown:
    raise InputError(f'mesh has unknown axes {unknown}; known are {list(AXES)}.')
  sizes = tuple(axes.get(axis, 1) for axis in AXES)
  if min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
    raise InputError(
      f'mesh {axes} does not use the {len(devices)} devices that are here.'
    )
  # A torus of 4x4x4 has no axis of 8: one of its own is cut.
  laid_out = mesh_utils.create_device_mesh(
    sizes, devices, allow_split_physical_axes=True
  )
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  return jax.sharding.Mesh(laid_out, AXES, axis_types=auto)


def batch_shardings(batch: Any, mesh: jax.sharding.Mesh) -> Any:
  """Where the arrays of a batch lie: their prompts dealt over the data axes."""
  where = jax.sharding.NamedSharding(mesh, sharding.spec('prompts'))
  return jax.tree.map(lambda x: where, batch)


def place_batch(batch: Any, mesh: jax.sharding.Mesh) -> Any:
  """A host batch on the devices, its prompts dealt over the data axes.

  With several processes each gives its devices' prompts alone; the others' rows may
  hold anything.

  Raises:
    InputError: where the prompts do not divide by the shards; never a silent
      replication.
  """
  shards = data_shards(mesh)

  def place(x, where):
    if x.shape[0] % shards:
      raise InputError(f'{x.shape[0]} prompts do not divide by {shards} data shards.')
    return sharding.put(x, where)

  return jax.tree.map(place, batch, batch_shardings(batch, mesh))


def rows_here(mesh: jax.sharding.Mesh | None) -> Callable[[int], np.ndarray] | None:
  """Of p prompts, which ones lie on this process's devices; None where all do."""
  if mesh is None or not mesh.is_multi_process:
    return None
  where = jax.sharding.NamedSharding(mesh, sharding.spec('prompts'))

  @functools.cache
  def here(p: int) -> np.ndarray:
    found = np.zeros(p, bool)
    for (index,) in where.addressable_devices_indices_map((p,)).values():
      found[index] = True
    return found

  return here


def place(tree: Any, mesh: jax.sharding.Mesh | None, *, memory: str = 'device') -> Any:
  """Parameters where the table of `sharding` has them, in a device's memory.

  With `memory='host'` they wait in the memory of its host; nothing that is compiled
  takes them from there.
  """
  kind = MEMORIES[memory]
  if mesh is None:
    device = jax.local_devices()[0]
    where = jax.sharding.SingleDeviceSharding(device, memory_kind=kind)
    return jax.device_put(tree, where)
  placed = shardings(tree, mesh)
  if kind is not None:
    placed = jax.tree.map(lambda x: x.with_memory_kind(kind), placed)
  return jax.tree.map(sharding.put, tree, placed)


def laid(tree: Any, mesh: jax.sharding.Mesh | None, where: Any = shardings) -> Any:
  """The shapes of a tree where `place` would put it; nothing is allocated."""
  if mesh is None:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
  return jax.tree.map(
    lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
    tree,
    where(tree, mesh),
  )


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """The sharding of what every device holds whole."""
  return jax.sharding.NamedSharding(mesh, jax.P())


def placement(params: Any, mesh: jax.sharding.Mesh) -> str:
  """How parameters lie, in a line: bytes a device, and the largest that are whole.

  Raises:
    InputError: where one lies otherwise than the table says, or one that no rule cuts
      is large on a mesh that cuts parameters.
  """
  whole, local = {}, 0
  wanted = jax.tree.leaves(shardings(params, mesh))
  for (path, leaf), where in zip(
    jax.tree_util.tree_leaves_with_path(params), wanted, strict=True
  ):
    if not where.is_equivalent_to(leaf.sharding, leaf.ndim):
      raise InputError(
        f'The parameter `{sharding.name(path)}` lies as {leaf.sharding}, which is not '
        f'{where} as sharding.PARAMETERS says.'
      )
    size = int(np.prod(where.shard_shape(leaf.shape))) * leaf.dtype.itemsize
    local += size
    if size == leaf.nbytes:
      whole[sharding.name(path)] = size
  largest = sorted(whole.items(), key=lambda item: -item[1])[:_SHOWN]
  cuts = mesh.shape['fsdp'] * mesh.shape['tensor'] > 1
  if cuts and largest and largest[0][1] > _MOST_WHOLE:
    raise InputError(
      f'Every device would hold the whole of `{largest[0][0]}`, {largest[0][1]} bytes: '
      'give it its axes in prefjax.models.sharding.PARAMETERS.'
    )
  total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  sizes = ', '.join(f'{axis} {mesh.shape[axis]}' for axis in AXES)
  listed = ', '.join(f'{path} {size}' for path, size in largest) or 'none'
  return (
    f'parameters: {total} bytes, {local} a device on {sizes}; whole on each: {listed}'
  )


class Jitted:
  """A jitted function on a mesh whose outputs lie where the table says.

  Fixed, because a step's output is the next one's input, and another sharding there
  would compile the step again. `where` gives the shardings of a tree of outputs; what
  the function sent to host memory stays there.
  """

  def __init__(
    self,
    function: Callable[..., Any],
    mesh: jax.sharding.Mesh | None,
    where: Callable[[Any, jax.sharding.Mesh], Any] = shardings,
    **options: Any,
  ):
    self._function, self._mesh, self._options = function, mesh, options
    self._where = where
    self._jitted: Any = None

  def __call__(self, *args: Any) -> Any:
    with under(self._mesh):
      return self._of(args)(*args)

  def lower(self, *args: Any) -> Any:
    """As of a jitted function; shapes will do."""
    with under(self._mesh):
      return self._of(args).lower(*args)

  def _cache_size(self) -> int:
    """As of a jitted function: how often it was compiled."""
    return 0 if self._jitted is None else self._jitted._cache_size()

  def shapes(self, *args: Any) -> Any:
    """The shapes of the outputs, where they lie."""
    with under(self._mesh):
      found, where = self._placement(args)
    return jax.tree.map(
      lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), found, where
    )

  def _of(self, args):
    if self._jitted is None:
      options = dict(self._options)
      if self._mesh is not None:
        _, options['out_shardings'] = self._placement(args)
      self._jitted = jax.jit(self._function, **options)
    return self._jitted

  def _placement(self, args):
    """The outputs' shapes, and where they lie."""
    traced = jax.jit(self._function).trace(*args)
    if self._mesh is None:
      here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
      where = jax.tree.map(lambda x: here, traced.out_info)
    else:
      where = self._where(traced.out_info, self._mesh)
    leaves, tree = jax.tree.flatten(where)
    host = [x.memory_space == jax.memory.Space.Host for x in traced.jaxpr.out_avals]
    return traced.out_info, tree.unflatten(
      x.with_memory_kind(MEMORIES['host']) if away else x
      for x, away in zip(leaves, host, strict=True)
    )
