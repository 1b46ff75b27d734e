"""Splash attention, jax's kernel for TPUs, behind the attention function.

Positions grow with the columns of both blocks, so that its causal mask, shifted by the
keys that lie before the queries, and its segment ids (1 real, 0 padding) say the same
as `attention.visible`. What padding gets may differ; no real token sees it.
"""

import functools
import importlib

import jax
import jax.numpy as jnp

from prefjax.errors import InputError
from prefjax.models.sharding import AXES, spec

_KERNELS = 'jax.experimental.pallas.ops.tpu.splash_attention'
_MULTIPLE = 128  # tokens: the width of the vector unit
_BLOCKS = (512, 256, 128)


def splash(
  query,
  key,
  value,
  query_place,
  key_place,
  *,
  window,
  scale: float,
  soft_cap: float | None = None,
  interpret: bool = False,
):
  """Attention without windows whose memory is linear, on TPU.

  Args:
    interpret: runs the kernel's own steps on any backend, slowly: for tests.

  Raises:
    InputError: for lengths that are no multiples of 128.
  """
  del window  # DecoderConfig refuses models that have one
  t, s = query.shape[1], key.shape[1]
  if t % _MULTIPLE or s % _MULTIPLE:
    raise InputError(
      f'model.attention=splash takes lengths in multiples of {_MULTIPLE}, got {t} '
      f'queries and {s} keys: set data.bucket_multiple={_MULTIPLE}, and '
      'data.max_prompt and data.max_response to multiples of it.'
    )
  local = functools.partial(
    _local, heads=query.shape[2] // key.shape[2], soft_cap=soft_cap, interpret=interpret
  )
  args = (query * scale, key, value, query_place.real, key_place.real)
  if jax.sharding.get_abstract_mesh().axis_names != AXES:
    return local(*args)
  heads, rows = spec('prompts', None, 'heads', None), spec('prompts', None)
  return jax.shard_map(
    local, in_specs=(heads, heads, heads, rows, rows), out_specs=heads, check_vma=False
  )(*args)


def _local(query, key, value, query_real, key_real, *, heads, soft_cap, interpret):
  """Of one device: a kernel a row and key head, `heads` query heads in each."""
  b, t, n, h = query.shape
  kernels = _library()
  kernel = _kernel(heads, t, key.shape[1], soft_cap, interpret)

  def row(query, key, value, query_real, key_real):
    ids = kernels.SegmentIds(q=query_real, kv=key_real)
    return jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=ids))(query, key, value)

  grouped = query.reshape(b, t, n // heads, heads, h).transpose(0, 2, 3, 1, 4)
  turned = (x.transpose(0, 2, 1, 3) for x in (key, value))
  ids = (x.astype(jnp.int32) for x in (query_real, key_real))
  out = jax.vmap(row)(grouped, *turned, *ids)
  return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h).astype(query.dtype)


def _library():
  return importlib.import_module(_KERNELS)  # half a second, for those who want it


@functools.cache
def _kernel(heads, t, s, soft_cap, interpret):
  block_q, block_kv = (next(x for x in _BLOCKS if size % x == 0) for size in (t, s))
  kernels = _library()
  mask = kernels.CausalMask((t, s), offset=s - t)
  with jax.ensure_compile_time_eval():
    return kernels.make_splash_mqa(
      kernels.MultiHeadMask([mask] * heads),
      block_sizes=kernels.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
      ),
      attn_logits_soft_cap=soft_cap,
      head_shards=1,
      q_seq_shards=1,
      interpret=interpret,
    )
