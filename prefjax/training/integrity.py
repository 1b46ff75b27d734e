"""What a checkpoint says of itself: types, checksums, metadata and metrics.

Orbax casts other dtypes in silence, and flipped bits of larger arrays pass its own
checks; both are caught here.
"""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prefjax.errors import InputError
from prefjax.models.sharding import from_host_memory

_SHOWN = 12  # leaves that an error lists


def record(
  state: Any, metadata: Mapping[str, Any], metrics: Mapping[str, Any] | None
) -> str:
  """All that is checked on restore, as one line of JSON.

  Raises:
    InputError: for a weakly typed leaf, or metadata that JSON changes.
  """
  metrics = {name: float(value) for name, value in (metrics or {}).items()}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    if getattr(leaf, 'weak_type', False):
      raise InputError(
        f'Cannot save the leaf `{_name(path)}`: it is weakly typed and would '
        'be restored strongly typed, which promotes differently, so that a '
        'resumed run would differ. Create it with a dtype.'
      )
  try:
    same = json.loads(json.dumps(metadata)) == metadata
  except (TypeError, ValueError):
    same = False
  if not same:
    raise InputError(
      'The metadata of a checkpoint must be what JSON gives back unchanged '
      f'(str keys; lists, not tuples; no arrays; no NaN), got {metadata}.'
    )
  return json.dumps(
    {
      'leaves': leaf_types(state),
      'checksums': checksums(state),
      'metadata': metadata,
      'metrics': metrics,
    }
  )


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def leaf_types(tree: Any) -> dict[str, str]:
  """The type of each leaf by its path, as `float32[4,3]`."""
  types = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    leaf = leaf if hasattr(leaf, 'dtype') else np.asarray(leaf)
    types[_name(path)] = f'{leaf.dtype}[{",".join(map(str, leaf.shape))}]'
  return types


def checksums(tree: Any) -> list[int]:
  """A checksum of the bits of each leaf, the same under every sharding."""
  sums = [
    _checksum(leaf if isinstance(leaf, jax.Array) else _words(leaf))
    for leaf in jax.tree.leaves(tree)
  ]
  return [int(value) for value in jax.device_get(sums)]


def _words(leaf):
  """The bits of a NumPy leaf, which as a jax array might be rounded."""
  leaf = np.array(leaf, order='C', ndmin=1)
  size = min(leaf.itemsize, 4)
  return jax.device_put(leaf.view(np.dtype(f'uint{8 * size}')))


@jax.jit
def _checksum(leaf):
  """A sum over elements of hash(bits, index) modulo 2^32.

  Being a sum of integers it is the same under every sharding, and it runs
  where the array is. The hash is a bijection of the bits: a change of one
  element is always seen.
  """
  leaf = from_host_memory(leaf)
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  if leaf.dtype == bool:
    leaf = leaf.astype(jnp.uint8)
  size = min(leaf.dtype.itemsize, 4)  # 64 bits become a last axis of 2
  words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f'uint{8 * size}'))
  index, stride = jnp.zeros(words.shape, jnp.uint32), 1
  for axis in reversed(range(words.ndim)):
    step = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    index += step * jnp.uint32(stride % 2**32)
    stride *= words.shape[axis]
  hashed = words.astype(jnp.uint32) + index * jnp.uint32(0x9E3779B9)
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
    hashed = (hashed ^ (hashed >> shift)) * jnp.uint32(factor)
  return jnp.sum(hashed ^ (hashed >> 16), dtype=jnp.uint32)


def verified(state: Any, saved: Sequence[int]) -> Any:
  """The state; raises ValueError if a leaf's bits are not those that were saved."""
  pairs = zip(leaf_types(state), saved, checksums(state), strict=True)
  wrong = [path for path, before, now in pairs if before != now]
  if wrong:
    raise ValueError(f'the bits of {", ".join(wrong[:_SHOWN])} have changed')
  return state


def check_fit(path: Path, saved: Mapping[str, str], abstract: Any) -> None:
  """Refuses a checkpoint of another model, whole as it may be.

  Raises:
    InputError: listing each leaf, wanted and got.
  """
  wanted = leaf_types(abstract)
  lines = [
    f'`{leaf}`: wanted {wanted.get(leaf, "no such leaf")}, '
    f'the checkpoint has {saved.get(leaf, "no such leaf")}'
    for leaf in sorted(wanted.keys() | saved.keys())
    if wanted.get(leaf) != saved.get(leaf)
  ]
  if lines:
    more = f'; and {len(lines) - _SHOWN} more' if lines[_SHOWN:] else ''
    raise InputError(
      f'The checkpoint {path} does not fit the model. '
      f'{"; ".join(lines[:_SHOWN])}{more}. Use the configuration that wrote '
      'it, or another folder.'
    )
