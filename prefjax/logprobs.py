"""Hidden states to per-token log-probs, without ever holding tokens x vocabulary.

The counted tokens are compacted and go through the unembedding a chunk at a time;
the backward pass recomputes a chunk's logits. Padding therefore costs no head, and
the largest array with a vocabulary axis has `chunk` rows.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from prefjax.errors import InputError
from prefjax.types import Head, Outputs

QUANTITIES = ('logps', 'entropy', 'collision', 'kl')
_CHUNK = 512  # tokens: 256 to 512 measured best, and 5-8x below full logits


class _Static(NamedTuple):
  want: tuple[str, ...]
  soft_cap: float | None
  reference_soft_cap: float | None
  chunk: int
  axes: tuple[str, ...]  # of the mesh, inside shard_map
  split: bool  # the vocabulary lies over other axes of the mesh


def from_logits(
  logits: Float[Array, '*b t v'],
  tokens: Int[Array, '*b t'],
  mask: Bool[Array, '*b t'],
  *,
  temperature: Float[Array, ''] | float = 1.0,
  reference_logits: Float[Array, '*b t v'] | None = None,
) -> Outputs:
  """Every quantity of `Outputs` from logits that a model has already formed, nats.

  For models that do not fit `Forward`, and as the plain statement of what
  `from_hidden` computes in chunks. What `mask` leaves out is 0.
  """
  z = _wide(logits) / temperature
  log_p = jax.nn.log_softmax(z)
  p = jnp.exp(log_p)
  picked = jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
  values = {
    'logps': picked,
    'entropy': -jnp.sum(p * log_p, axis=-1),
    'collision': jnp.sum(p * p, axis=-1),
  }
  if reference_logits is not None:
    log_q = jax.nn.log_softmax(_wide(reference_logits) / temperature)
    log_q = jax.lax.stop_gradient(log_q)
    values['kl'] = jnp.sum(p * (log_p - log_q), axis=-1)
  return Outputs(**{k: jnp.where(mask, v, 0.0) for k, v in values.items()})


def from_hidden(
  hidden: Float[Array, 'p k t d'],
  head: Head,
  tokens: Int[Array, 'p k t'],
  mask: Bool[Array, 'p k t'],
  *,
  want: Sequence[str] = ('logps',),
  temperature: Float[Array, ''] | float = 1.0,
  reference: tuple[Float[Array, 'p k t e'], Head] | None = None,
  chunk: int = _CHUNK,
  mesh: jax.sharding.Mesh | None = None,
  data_axes: Sequence[str] = ('data', 'fsdp'),
) -> Outputs:
  """The wanted quantities of the tokens under `softmax(head(hidden) / temperature)`.

      logps = z_y - log sum_v exp z_v          entropy = -sum_v p_v log p_v
      collision = sum_v p_v^2                  kl = sum_v p_v (log p_v - log q_v)

  in nats, as float32 (float64 where the states are), 0 where `mask` is False. All
  are differentiable in the states and the head; the `reference` (states and head of
  a second model, read by kl alone) is a constant.

  Args:
    hidden: the states that predict the tokens: columns 0 to t-1 of a `Forward`.
    want: names out of `QUANTITIES`.
    temperature: divides the logits, after the soft cap.
    chunk: tokens a chunk, per data shard.
    mesh: where the prompts are sharded over `data_axes` of it, chunks are formed
      inside each shard, and the head's gradient is reduced once after the loop. The
      vocabulary may lie over its other axes: what is sent then is a number a token.
  """
  _check(want, reference)
  if reference is not None and 'kl' not in want:
    reference = None
  hidden_q, head_q = reference if reference is not None else (None, None)
  axes = tuple(a for a in data_axes if mesh is not None and a in mesh.shape)
  static = _Static(
    tuple(want),
    head.soft_cap,
    head_q.soft_cap if head_q is not None else None,
    chunk,
    axes,
    mesh is not None and int(np.prod([mesh.shape[a] for a in axes])) < mesh.size,
  )
  states = (hidden, hidden_q)
  heads = (
    (head.weight, head.bias),
    (head_q.weight, head_q.bias) if head_q is not None else None,
  )
  temperature = jnp.asarray(temperature, _wide_type(hidden))
  op = functools.partial(_flat, static)
  if axes:
    op = _on_shards(op, mesh, axes)
  return Outputs(**op(states, heads, tokens, mask, temperature))


def _check(want, reference):
  unknown = sorted(set(want) - set(QUANTITIES))
  if unknown:
    raise InputError(f'logprobs cannot give {unknown}; it gives {list(QUANTITIES)}.')
  if 'kl' in want and reference is None:
    raise InputError(
      'The exact KL needs the reference model alongside: pass `reference`.'
    )


def _on_shards(op, mesh, axes):
  """Runs the op on each data shard's own tokens; other mesh axes stay automatic."""
  shard, whole = jax.P(axes), jax.P()

  def local(states, heads, tokens, mask, temperature):
    # Cast outside the custom VJP, so that the head's gradient is summed over the
    # shards once, after the loop over chunks, and not in every turn of it.
    heads, temperature = jax.tree.map(
      lambda x: jax.lax.pcast(x, axes, to='varying'), (heads, temperature)
    )
    return op(states, heads, tokens, mask, temperature)

  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(shard, whole, shard, shard, whole),
    out_specs=shard,
    axis_names=set(axes),
  )


def _flat(static, states, heads, tokens, mask, temperature):
  shape = tokens.shape
  flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), states)
  constants = (tokens.reshape(-1), mask.reshape(-1), temperature)
  values = _chunked(static, flat, heads, constants)
  return {name: value.reshape(shape) for name, value in values.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(static, states, heads, constants):
  return _chunked_forward(static, states, heads, constants)[0]


def _chunked_forward(static, states, heads, constants):
  want, chunk = static.want, static.chunk
  tokens, mask, _ = constants
  order, chunks = _compact(mask, chunk)
  zeros = _zeros(static, _wide_type(states[0]), tokens.shape)
  kept = {name: zeros for name in (*want, 'log_total')}

  def body(i, kept):
    rows = jax.lax.dynamic_slice(order, (i * chunk,), (chunk,))
    z, z_q = _logits(static, states, heads, constants, rows)
    new = _values(static, z, z_q, _take(tokens, rows))
    return {name: kept[name].at[rows].set(new[name], mode='drop') for name in kept}

  kept = jax.lax.fori_loop(0, chunks, body, kept)
  values = {name: jnp.where(mask, kept[name], 0.0) for name in want}
  return values, (states, heads, constants, kept)


def _chunked_backward(static, residuals, cotangents):
  want, chunk = static.want, static.chunk
  states, heads, constants, kept = residuals
  hidden, (weight, bias) = states[0], heads[0]
  tokens, mask, _ = constants
  order, chunks = _compact(mask, chunk)
  wide = _wide_type(hidden)
  cotangents = {name: jnp.where(mask, cotangents[name], 0.0) for name in want}
  start = (
    _zeros(static, hidden.dtype, hidden.shape),
    _zeros(static, wide, weight.shape),
    None if bias is None else _zeros(static, wide, bias.shape),
  )

  def body(i, carry):
    d_hidden, d_weight, d_bias = carry
    rows = jax.lax.dynamic_slice(order, (i * chunk,), (chunk,))
    z, z_q = _logits(static, states, heads, constants, rows)
    take = functools.partial(_take, rows=rows)
    d_z = _cotangent(z, z_q, take(tokens), *jax.tree.map(take, (kept, cotangents)))
    d_z = _through_cap(static, d_z, z, constants[2])
    # A row beyond the last has no normaliser: its exp() may be infinite.
    d_z = jnp.where(take(mask)[:, None], d_z, 0.0).astype(hidden.dtype)
    h = _take(hidden, rows)
    part = jnp.matmul(d_z, weight.astype(h.dtype))
    d_hidden = d_hidden.at[rows].set(part, mode='drop')
    d_weight += jnp.matmul(d_z.T, h, preferred_element_type=wide)
    if d_bias is not None:
      d_bias += jnp.sum(d_z, axis=0, dtype=wide)
    return d_hidden, d_weight, d_bias

  d_hidden, d_weight, d_bias = jax.lax.fori_loop(0, chunks, body, start)
  d_head = (
    d_weight.astype(weight.dtype),
    None if bias is None else d_bias.astype(bias.dtype),
  )
  zeros = functools.partial(jax.tree.map, jnp.zeros_like)
  return (d_hidden, zeros(states[1])), (d_head, zeros(heads[1])), None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _compact(mask, chunk):
  """Rows of the counted tokens, then rows beyond the last, and their chunks."""
  order = jnp.argsort(~mask, stable=True).astype(jnp.int32)
  order = jnp.where(mask[order], order, mask.size)
  order = jnp.pad(order, (0, -mask.size % chunk), constant_values=mask.size)
  return order, -(-jnp.sum(mask, dtype=jnp.int32) // chunk)


def _take(x, rows):
  return jnp.take(x, rows, axis=0, mode='fill', fill_value=0)


def _logits(static, states, heads, constants, rows):
  """Logits of a chunk under the policy and, where KL is wanted, the reference."""
  temperature = constants[2]

  def one(hidden, head, soft_cap):
    weight, bias = head
    h = _take(hidden, rows)
    z = jnp.matmul(h, weight.astype(h.dtype).T, preferred_element_type=_wide_type(h))
    z = z if bias is None else z + bias[None]
    z = z if soft_cap is None else soft_cap * jnp.tanh(z / soft_cap)
    return z / temperature

  z = one(states[0], heads[0], static.soft_cap)
  if states[1] is None:
    return z, None
  return z, one(states[1], heads[1], static.reference_soft_cap)


def _values(static, z, z_q, tokens) -> Mapping[str, Any]:
  want = static.want
  log_total = jax.nn.logsumexp(z, axis=-1)
  values = {'log_total': log_total}
  if 'logps' in want:
    values['logps'] = _picked(static, z, tokens) - log_total
  if set(want) - {'logps'}:
    log_p = z - log_total[:, None]
    p = jnp.exp(log_p)
    if 'entropy' in want:
      values['entropy'] = -jnp.sum(p * log_p, axis=-1)
    if 'collision' in want:
      values['collision'] = jnp.sum(p * p, axis=-1)
    if 'kl' in want:
      log_q = jax.nn.log_softmax(z_q)
      values['kl'] = jnp.sum(p * (log_p - log_q), axis=-1)
  return values


def _picked(static, z, tokens):
  """The logit of each row's own token."""
  if not static.split:
    return jnp.take_along_axis(z, tokens[:, None], axis=-1)[:, 0]
  # An index along an axis that is cut would gather the logits; a sum sends numbers.
  own = jnp.arange(z.shape[-1])[None] == tokens[:, None]
  return jnp.sum(jnp.where(own, z, 0.0), axis=-1)


def _cotangent(z, z_q, tokens, kept, given):
  """D z of a chunk; each line is the derivative of one quantity in the logits."""
  log_p = z - kept['log_total'][:, None]
  p = jnp.exp(log_p)
  d_z = jnp.zeros_like(z)
  if 'logps' in given:
    picked = jnp.arange(z.shape[-1])[None] == tokens[:, None]
    d_z += given['logps'][:, None] * (picked - p)
  if 'entropy' in given:
    gap = log_p + kept['entropy'][:, None]
    d_z -= given['entropy'][:, None] * p * gap
  if 'collision' in given:
    gap = p - kept['collision'][:, None]
    d_z += given['collision'][:, None] * 2.0 * p * gap
  if 'kl' in given:
    gap = log_p - jax.nn.log_softmax(z_q) - kept['kl'][:, None]
    d_z += given['kl'][:, None] * p * gap
  return d_z


def _through_cap(static, d_z, z, temperature):
  soft_cap = static.soft_cap
  d_z = d_z / temperature
  if soft_cap is None:
    return d_z
  return d_z * (1.0 - jnp.square(z * temperature / soft_cap))


def _wide_type(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def _wide(x):
  return x.astype(_wide_type(x))


def _zeros(static, dtype, shape):
  """Zeros to start a loop with, of the type that it leaves with inside a shard."""
  zeros = jnp.zeros(shape, dtype)
  return jax.lax.pcast(zeros, static.axes, to='varying') if static.axes else zeros
