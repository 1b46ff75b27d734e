"""cuDNN's fused attention, for GPUs, behind the attention function.

Its causal mask has no offset, and its mask of padding wants the padding at the right:
it serves the rows of the plain layout, and nothing else.
"""

import functools

import jax
import jax.numpy as jnp

from prefjax.models.sharding import AXES, spec


def cudnn(
  query,
  key,
  value,
  query_place,
  key_place,
  *,
  window,
  scale: float,
  soft_cap: float | None = None,
  implementation: str = 'cudnn',
):
  """Attention of right-padded rows to themselves, whose memory is linear, on GPU.

  Padding gets 0. There is no window and no soft-cap: `DecoderConfig` refuses both.

  Args:
    implementation: of `jax.nn.dot_product_attention`; `xla` runs anywhere, for tests.
  """
  del key_place, window, soft_cap
  real = query_place.real
  # A row that only fills has one token, so that no softmax is empty.
  length = jnp.maximum(real.sum(axis=1, dtype=jnp.int32), 1)
  local = functools.partial(_local, scale=scale, implementation=implementation)
  t = query.shape[1]
  even = ((0, 0), (0, t % 2), (0, 0), (0, 0))  # jax refuses gradients of odd lengths
  args = (*(jnp.pad(x, even) for x in (query, key, value)), length)
  if jax.sharding.get_abstract_mesh().axis_names == AXES:
    heads, rows = spec('prompts', None, 'heads', None), spec('prompts')
    local = jax.shard_map(
      local, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )
  return jnp.where(real[:, :, None, None], local(*args)[:, :t], 0)


def _local(query, key, value, length, *, scale, implementation):
  """Of one device."""
  return jax.nn.dot_product_attention(
    query,
    key,
    value,
    scale=scale,
    is_causal=True,
    query_seq_lengths=length,
    key_value_seq_lengths=length,
    implementation=implementation,
  )
