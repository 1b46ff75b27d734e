"""The mesh of devices, and where batches and parameters live on it."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from prefjax.errors import InputError

AXES = ('data',)


def create(
  axes: Mapping[str, int] | None = None, *, devices: Any = None
) -> jax.sharding.Mesh:
  """A mesh with Auto axes; `data=N` is what pmap did. Default: all devices on data.

  Raises:
    InputError: for an unknown axis or sizes that do not use every device.
  """
  devices = jax.devices() if devices is None else list(devices)
  axes = dict(axes or {'data': len(devices)})
  unknown = sorted(set(axes) - set(AXES))
  if unknown:
    raise InputError(f'mesh has unknown axes {unknown}; known are {list(AXES)}.')
  if int(np.prod(list(axes.values()))) != len(devices):
    raise InputError(
      f'mesh {axes} does not use the {len(devices)} devices that are here.'
    )
  auto = (jax.sharding.AxisType.Auto,) * len(axes)
  return jax.make_mesh(
    tuple(axes.values()), tuple(axes), axis_types=auto, devices=devices
  )


def data_shards(mesh: jax.sharding.Mesh) -> int:
  """How many parts a batch is dealt into."""
  return mesh.shape['data']


def place_batch(batch: Any, mesh: jax.sharding.Mesh) -> Any:
  """A host batch on the devices, its prompts dealt over the data axis.

  Raises:
    InputError: where the prompts do not divide by the shards; never a silent
      replication.
  """
  shards = data_shards(mesh)
  sharding = jax.sharding.NamedSharding(mesh, jax.P('data'))

  def place(x):
    if x.shape[0] % shards:
      raise InputError(f'{x.shape[0]} prompts do not divide by {shards} data shards.')
    return jax.device_put(x, sharding)

  return jax.tree.map(place, batch)


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """The sharding of what every device holds whole."""
  return jax.sharding.NamedSharding(mesh, jax.P())
