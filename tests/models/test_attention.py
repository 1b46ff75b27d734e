import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.models.attention import Place, blocked, dense

P, L, T, N, M, H = 3, 5, 4, 4, 2, 6  # prompts, tokens, query and key heads
LENGTHS, RESPONSES = np.array([5, 3, 1]), np.array([4, 2, 0])
NO_WINDOW = np.iinfo(np.int32).max


def places():
  """A right-padded response after a left-padded prompt: queries and keys."""
  column = np.arange(L) - (L - LENGTHS[:, None])
  prompt = Place(np.maximum(column, 0), column >= 0)
  real = np.arange(T) < RESPONSES[:, None]
  own = Place(np.where(real, LENGTHS[:, None] + np.arange(T), 0), real)
  both = (np.concatenate(pair, axis=1) for pair in zip(prompt, own, strict=True))
  return as_jax(own), as_jax(Place(*both)), as_jax(prompt)


def as_jax(place):
  return Place(jnp.asarray(place.position), jnp.asarray(place.real))


def tensors(rng, queries, keys, dtype=jnp.float64):
  shapes = (P, queries, N, H), (P, keys, M, H), (P, keys, M, H)
  return tuple(jnp.asarray(rng.normal(size=s), dtype) for s in shapes)


def loop(query, key, value, query_place, key_place, *, window, scale, soft_cap):
  """One query, one head, one key at a time."""
  query, key, value, query_place, key_place = jax.tree.map(
    np.asarray, (query, key, value, query_place, key_place)
  )
  out = np.zeros_like(query)
  for b, t, n in np.ndindex(query.shape[:3]):
    group = n // (query.shape[2] // key.shape[2])
    scores, values = [], []
    for s in range(key.shape[1]):
      distance = int(query_place.position[b, t] - key_place.position[b, s])
      same = bool(query_place.real[b, t]) == bool(key_place.real[b, s])
      if same and 0 <= distance < window:
        score = scale * query[b, t, n] @ key[b, s, group]
        if soft_cap is not None:
          score = soft_cap * np.tanh(score / soft_cap)
        scores.append(score)
        values.append(value[b, s, group])
    weights = np.exp(np.array(scores) - max(scores))
    out[b, t, n] = weights @ np.array(values) / weights.sum()
  return out


OPTIONS = [
  dict(window=NO_WINDOW, scale=0.4, soft_cap=None),
  dict(window=3, scale=0.4, soft_cap=None),
  dict(window=1, scale=0.4, soft_cap=None),
  dict(window=NO_WINDOW, scale=2.0, soft_cap=1.5),
  dict(window=3, scale=2.0, soft_cap=1.5),
]


@functools.partial(jax.jit, static_argnames=('attend', 'scale', 'soft_cap'))
def run(attend, window, scale, soft_cap, places, cotangent, qkv):
  """The output and all gradients; the window is traced."""
  rest = dict(window=window, scale=scale, soft_cap=soft_cap)
  out, pull = jax.vjp(lambda *x: attend(*x, *places, **rest), *qkv)
  return out, pull(cotangent)


def test_dense_is_a_loop_over_tokens(x64):
  own, both, prompt = places()
  rng = np.random.default_rng(0)
  for query_place, key_place, sizes in (
    (prompt, prompt, (L, L)),
    (own, both, (T, L + T)),
  ):
    qkv = tensors(rng, *sizes)
    for options in OPTIONS:
      args = (*options.values(), (query_place, key_place), qkv[0], qkv)
      got, _ = run(dense, *args)
      wanted = loop(*qkv, query_place, key_place, **options)
      np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize('block', [1, 3, 4, 50])
def test_blocked_is_dense_in_value_and_gradients(block, x64):
  own, both, _ = places()
  qkv = tensors(np.random.default_rng(1), T, L + T)
  cotangent = tensors(np.random.default_rng(2), T, 1)[0]
  attend = functools.partial(blocked, block=block)
  for options in OPTIONS:
    args = (*options.values(), (own, both), cotangent, qkv)
    wanted, got = run(dense, *args), run(attend, *args)
    assert np.abs(wanted[1][2]).max() > 1e-2
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10),
      got,
      wanted,
    )


def test_blocked_is_close_to_dense_in_bfloat16():
  own, both, _ = places()
  exact = tensors(np.random.default_rng(4), T, L + T, jnp.float32)
  short = tuple(x.astype(jnp.bfloat16) for x in exact)
  args = (*OPTIONS[0].values(), (own, both))
  got = run(functools.partial(blocked, block=4), *args, short[0], short)
  wanted = run(dense, *args, exact[0], exact)
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    assert x.dtype == jnp.bfloat16
    np.testing.assert_allclose(x.astype(jnp.float32), y, rtol=0, atol=6e-2)


def compiled_gradient(attend, rows, tokens, width):
  """The compiled value and gradient of a causal row of `tokens`."""
  shapes = [(rows, tokens, heads, width) for heads in (2, 1, 1)]
  qkv = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  position = jnp.broadcast_to(jnp.arange(tokens), (rows, tokens))
  place = Place(position, position >= 0)

  def loss(qkv):
    return jnp.sum(attend(*qkv, place, place, window=NO_WINDOW, scale=1.0) ** 2)

  return jax.jit(jax.value_and_grad(loss)).lower(qkv).compile()


def test_blocked_holds_no_square_array():
  tokens, block = 4096, 512
  linear = compiled_gradient(functools.partial(blocked, block=block), 1, tokens, 8)
  square = f'{tokens},{tokens}'
  assert square not in linear.as_text()
  bytes_of_block = 4 * 2 * tokens * block
  held = linear.memory_analysis().temp_size_in_bytes
  assert held < 6 * bytes_of_block < 4 * 2 * tokens**2
  # The check sees such an array where there is one.
  assert square in compiled_gradient(dense, 1, tokens, 8).as_text()


@pytest.mark.parametrize('attend', [dense, functools.partial(blocked, block=4)])
def test_padding_reaches_no_real_token_and_stays_finite(attend, x64):
  own, both, _ = places()
  query, key, value = tensors(np.random.default_rng(5), T, L + T)
  noise = 100 * np.random.default_rng(6).normal(size=key.shape)
  noise = jnp.asarray(np.where(both.real[:, :, None, None], 0.0, noise))
  real = jnp.broadcast_to(own.real[:, :, None, None], query.shape)
  args = (*OPTIONS[0].values(), (own, both))
  counted = real.astype(query.dtype)
  out, grads = run(attend, *args, counted, (query, key, value))
  perturbed, _ = run(attend, *args, counted, (query, key + noise, value + noise))
  np.testing.assert_array_equal(out[own.real], perturbed[own.real])
  assert not np.allclose(out[~own.real], perturbed[~own.real])
  # What is asked of real tokens has no gradient in padding.
  for grad in grads[1:]:
    assert np.abs(grad[both.real]).max() > 0
    np.testing.assert_array_equal(grad[~both.real], 0.0)
  # And nothing is NaN anywhere, whatever is asked.
  everything = run(attend, *args, jnp.ones_like(query), (query, key, value))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(everything))
