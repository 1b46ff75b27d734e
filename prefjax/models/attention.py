"""Attention by position: a dense reference and one whose memory is linear.

Both take the same arguments, so that a kernel can stand behind them. A query sees a
key when the key is not later, lies within the window, and both are real or both
padding: a row is then never fully masked, and padding never reaches a real token.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Finite, so that exp(score - max) of a block without a visible key is no NaN.
_MASKED = -1e30
_BLOCK = 512


class Place(NamedTuple):
  """Where tokens stand: positions from the prompt's first real token, and realness."""

  position: Int[Array, 'b t']  # tokens; 0 on padding
  real: Bool[Array, 'b t']


Query = Float[Array, 'b t n h']
Key = Float[Array, 'b s m h']
Attention = Callable[..., Query]


def visible(
  query: Place, key: Place, window: Int[Array, ''] | int
) -> Bool[Array, 'b t s']:
  """Which keys a query may look at; `window` counts positions, itself included."""
  distance = query.position[:, :, None] - key.position[:, None, :]
  same = query.real[:, :, None] == key.real[:, None, :]
  return same & (distance >= 0) & (distance < window)


def _rows(x: Array, heads: int) -> Array:
  """[b, t, n, h] as [b, m, r t, h]: one matrix a key head, r query heads in its rows.

  Batched products of plain matrices run at twice the speed of einsums over the
  layout of the projections, on CPU.
  """
  b, t, n, h = x.shape
  grouped = x.reshape(b, t, heads, n // heads, h)
  return jnp.moveaxis(grouped, 1, 3).reshape(b, heads, n // heads * t, h)


def _unrows(x: Array, t: int) -> Array:
  """The inverse of `_rows`."""
  b, m, rows, h = x.shape
  split = x.reshape(b, m, rows // t, t, h)
  return jnp.moveaxis(split, 3, 1).reshape(b, t, m * (rows // t), h)


def _scores(query, key, scale, soft_cap):
  """Scaled scores [b, m, r t, s] of rows [b, m, r t, h] and keys [b, m, s, h]."""
  turned = jnp.swapaxes(key, -1, -2)
  scores = jnp.matmul(query, turned, preferred_element_type=_wide(query)) * scale
  return scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)


def _masked(scores, query_place, key_place, window):
  """Scores with what is not visible at the bottom; the mask is shared by heads."""
  b, m, rows, s = scores.shape
  t = query_place.position.shape[1]
  seen = visible(query_place, key_place, window)[:, None, None]
  split = scores.reshape(b, m, rows // t, t, s)
  return jnp.where(seen, split, _MASKED).reshape(scores.shape)


def _wide(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def dense(
  query: Query,
  key: Key,
  value: Key,
  query_place: Place,
  key_place: Place,
  *,
  window: Int[Array, ''] | int,
  scale: float,
  soft_cap: float | None = None,
) -> Query:
  """Softmax attention with every score held: the reference for all others."""
  heads = key.shape[2]
  key, value = _rows(key, heads), _rows(value, heads)
  scores = _scores(_rows(query, heads), key, scale, soft_cap)
  scores = _masked(scores, query_place, key_place, window)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return _unrows(jnp.matmul(weights, value), query.shape[1])


def blocked(
  query: Query,
  key: Key,
  value: Key,
  query_place: Place,
  key_place: Place,
  *,
  window: Int[Array, ''] | int,
  scale: float,
  soft_cap: float | None = None,
  block: int = _BLOCK,
) -> Query:
  """Softmax attention over blocks of keys, holding scores of one block at a time.

  Online softmax (Milakov and Gimelshein, arXiv:1805.02867) forwards; backwards the
  scores are recomputed from the saved log-sum-exp (Dao et al., arXiv:2205.14135,
  Algorithm 4).
  """
  size = key.shape[1]
  block = min(block, size)
  padding = -size % block
  if padding:
    widths = ((0, 0), (0, padding), (0, 0), (0, 0))
    key, value = jnp.pad(key, widths), jnp.pad(value, widths)
    # Added keys lie after every query, so that none sees them.
    key_place = Place(
      jnp.pad(
        key_place.position,
        widths[:2],
        constant_values=jnp.iinfo(key_place.position.dtype).max // 2,
      ),
      jnp.pad(key_place.real, widths[:2]),
    )
  places = (query_place, key_place, jnp.asarray(window))
  static = (scale, soft_cap, block)
  return _blocked(static, query, key, value, places)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked(static, query, key, value, places):
  return _blocked_forward(static, query, key, value, places)[0]


def _in_blocks(key, value, key_place, block):
  """Keys, values [b, m, s, h] and places with the block axis first, for a scan."""

  def cut(x, axis):
    shape = (*x.shape[:axis], -1, block, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)

  places = Place(cut(key_place.position, 1), cut(key_place.real, 1))
  return cut(key, 2), cut(value, 2), places


def _blocked_forward(static, query, key, value, places):
  scale, soft_cap, block = static
  query_place, key_place, window = places
  t, heads = query.shape[1], key.shape[2]
  rows = _rows(query, heads)
  wide = _wide(query)

  def body(carry, xs):
    top, total, mixed = carry
    key, value, place = xs
    scores = _scores(rows, key, scale, soft_cap)
    scores = _masked(scores, query_place, place, window)
    new_top = jnp.maximum(top, scores.max(axis=-1))
    # Where nothing was visible yet, the top is the mask's value and the weights are
    # 1; the first visible key shrinks them to 0.
    weights = jnp.exp(scores - new_top[..., None])
    shrink = jnp.exp(top - new_top)
    part = jnp.matmul(weights, value, preferred_element_type=wide)
    total = total * shrink + weights.sum(axis=-1)
    return (new_top, total, mixed * shrink[..., None] + part), None

  start = (
    jnp.full(rows.shape[:-1], _MASKED, wide),
    jnp.zeros(rows.shape[:-1], wide),
    jnp.zeros(rows.shape, wide),
  )
  xs = _in_blocks(_rows(key, heads), _rows(value, heads), key_place, block)
  (top, total, mixed), _ = jax.lax.scan(body, start, xs)
  out = mixed / total[..., None]
  residuals = (query, key, value, places, out, top + jnp.log(total))
  return _unrows(out, t).astype(query.dtype), residuals


def _blocked_backward(static, residuals, cotangent):
  scale, soft_cap, block = static
  query, key, value, places, out, log_total = residuals
  query_place, key_place, window = places
  t, heads = query.shape[1], key.shape[2]
  rows, d_out = _rows(query, heads), _rows(cotangent, heads)
  wide = _wide(query)
  shared = jnp.sum(d_out.astype(wide) * out, axis=-1)

  def body(d_rows, xs):
    key, value, place = xs
    scores = _scores(rows, key, scale, soft_cap)
    visible_scores = _masked(scores, query_place, place, window)
    weights = jnp.exp(visible_scores - log_total[..., None])
    d_value = jnp.matmul(jnp.swapaxes(weights, -1, -2), d_out)
    d_weights = jnp.matmul(
      d_out, jnp.swapaxes(value, -1, -2), preferred_element_type=wide
    )
    d_scores = weights * (d_weights - shared[..., None]) * scale
    if soft_cap is not None:
      d_scores = d_scores * (1.0 - jnp.square(scores / soft_cap))
    d_key = jnp.matmul(jnp.swapaxes(d_scores, -1, -2), rows)
    return d_rows + jnp.matmul(d_scores, key), (d_key, d_value)

  xs = _in_blocks(_rows(key, heads), _rows(value, heads), key_place, block)
  start = jnp.zeros(rows.shape, wide)
  d_rows, parts = jax.lax.scan(body, start, xs)
  size = key.shape[1]

  def joined(x):
    """[blocks, b, m, block, h] as [b, s, m, h]."""
    x = jnp.moveaxis(x, 0, 2)
    return _unrows(x.reshape(*x.shape[:2], size, x.shape[-1]), size)

  d_key, d_value = (
    joined(x).astype(like.dtype) for x, like in zip(parts, (key, value), strict=True)
  )
  return _unrows(d_rows, t).astype(query.dtype), d_key, d_value, None


_blocked.defvjp(_blocked_forward, _blocked_backward)

IMPLEMENTATIONS: dict[str, Attention] = {'dense': dense, 'blocked': blocked}
