"""Sampling with the training forward: prefill once a prompt, then decode.

The keys and values of a prompt are shared by its k responses and never copied. A row's
noise depends on its own key and on how many tokens it has, on nothing else, so what is
drawn for a prompt does not depend on the batch it stands in.
"""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from prefjax.models import attention, decoder
from prefjax.types import Head

_BLOCK = 256  # tokens of a block of the two-level inverse CDF


class Samples(NamedTuple):
  """Sampled responses; a response ends with its stop token or is truncated."""

  tokens: Int[Array, 'p k t']  # pad_id beyond the length
  length: Int[Array, 'p k']  # tokens, the stop token included
  logps: Float[Array, 'p k t']  # of the behaviour policy, nats; 0 beyond
  truncated: Bool[Array, 'p k']  # ended by the length limit


@runtime_checkable
class Sampler(Protocol):
  """What draws responses; a server can stand behind it."""

  def __call__(
    self,
    params: Any,
    prompts: Int[Array, 'p l'],
    prompt_length: Int[Array, ' p'],
    keys: Key[Array, ' p'],
    *,
    num_responses: int,
    max_tokens: int,
    temperature: float = 1.0,
    greedy: bool = False,
  ) -> Samples: ...


class _Row(NamedTuple):
  """What the decoding loop carries."""

  index: Any  # [] tokens drawn so far
  token: Any  # [p, k] the last one
  done: Any  # [p, k]
  tokens: Any  # [p, k, t]
  logps: Any  # [p, k, t]
  length: Any  # [p, k]
  cache: Any  # keys and values [layers, p, k, t, m, h]


def sampler(
  graph: nnx.GraphDef, *, stop_ids: Sequence[int], pad_id: int = 0
) -> Sampler:
  """A jitted sampler of a decoder. Compiles once a shape; temperature is traced."""

  @functools.partial(jax.jit, static_argnames=('num_responses', 'max_tokens', 'greedy'))
  def sample(
    params,
    prompts,
    prompt_length,
    keys,
    temperature,
    *,
    num_responses,
    max_tokens,
    greedy,
  ):
    model = nnx.merge(graph, params)
    return _sample(
      model,
      prompts,
      prompt_length,
      keys,
      k=num_responses,
      t=max_tokens,
      temperature=temperature,
      greedy=greedy,
      stop_ids=jnp.asarray(tuple(stop_ids), jnp.int32),
      pad_id=pad_id,
    )

  def call(
    params,
    prompts,
    prompt_length,
    keys,
    *,
    num_responses,
    max_tokens,
    temperature=1.0,
    greedy=False,
  ):
    return sample(
      params,
      prompts,
      prompt_length,
      keys,
      jnp.asarray(temperature, jnp.float32),
      num_responses=num_responses,
      max_tokens=max_tokens,
      greedy=greedy,
    )

  return call


def _sample(
  model, prompts, prompt_length, keys, *, k, t, temperature, greedy, stop_ids, pad_id
):
  prompt = decoder.left_padded(prompt_length, prompts.shape[1])
  mixer = functools.partial(_prefill, model.attend, prompt)
  x = model.embed(prompts, prompt.position)
  x, _, shared = model.run_layers(x, prompt.position, mixer)
  row_keys = jax.vmap(
    lambda key: jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(k))
  )(keys)
  call = _Call(
    model,
    prompt,
    prompt_length,
    shared,
    row_keys,
    temperature,
    greedy,
    stop_ids,
    pad_id,
  )
  row = call.write(_empty_row(call, k, t, x.dtype), jnp.repeat(x[:, -1:], k, axis=1))
  row = jax.lax.while_loop(
    lambda row: (row.index < t) & ~row.done.all(), call.advance, row
  )
  return Samples(row.tokens, row.length, row.logps, ~row.done)


class _Call(NamedTuple):
  """What stays the same while the rows of one call are decoded."""

  model: Any
  prompt: attention.Place
  prompt_length: Any  # [p]
  shared: Any  # the prompts' keys and values [layers, p, l, m, h]
  row_keys: Any  # [p, k]
  temperature: Any
  greedy: bool
  stop_ids: Any
  pad_id: int

  def advance(self, row: _Row) -> _Row:
    """Runs the last tokens and draws the next."""
    k, t = row.tokens.shape[1:]
    position = jnp.repeat(self.prompt_length[:, None] + row.index - 1, k, axis=1)
    places = _places(self.prompt, self.prompt_length, row.index, t)
    mixer = functools.partial(
      _decode, self.model.config, self.shared, places, row.index
    )
    x = self.model.embed(row.token, position)
    x, cache, _ = self.model.run_layers(x, position, mixer, row.cache)
    return self.write(row._replace(cache=cache), x)

  def write(self, row: _Row, hidden: Any) -> _Row:
    """Draws from states [p, k, d]; a finished row stays as it is."""
    token, logp = self.draw(hidden, row.index)
    token = jnp.where(row.done, self.pad_id, token)
    logp = jnp.where(row.done, 0.0, logp)
    return row._replace(
      index=row.index + 1,
      token=token,
      tokens=row.tokens.at[:, :, row.index].set(token),
      logps=row.logps.at[:, :, row.index].set(logp),
      length=row.length + ~row.done,
      done=row.done | jnp.isin(token, self.stop_ids),
    )

  def draw(self, hidden: Any, index: Any) -> tuple[Any, Any]:
    """Tokens and their log-probs, nats, under the policy that draws them."""
    z = _logits(hidden, self.model.head())
    if self.greedy:
      token = jnp.argmax(z, axis=-1)
    else:
      z = z / self.temperature
      token = _inverse_cdf(z, _uniforms(self.row_keys, index, z.dtype))
    log_p = jax.nn.log_softmax(z)
    logp = jnp.take_along_axis(log_p, token[..., None], axis=-1)[..., 0]
    return token.astype(jnp.int32), logp


def _empty_row(call: _Call, k: int, t: int, dtype: Any) -> _Row:
  config, p = call.model.config, len(call.prompt_length)
  own = (config.num_layers, p, k, t, config.num_kv_heads, config.head_dim)
  return _Row(
    index=jnp.zeros((), jnp.int32),
    token=jnp.zeros((p, k), jnp.int32),
    done=jnp.zeros((p, k), bool),
    tokens=jnp.full((p, k, t), call.pad_id, jnp.int32),
    logps=jnp.zeros((p, k, t), jnp.promote_types(dtype, jnp.float32)),
    length=jnp.zeros((p, k), jnp.int32),
    cache=(jnp.zeros(own, dtype), jnp.zeros(own, dtype)),
  )


def _logits(hidden, head: Head):
  wide = jnp.promote_types(hidden.dtype, jnp.float32)
  z = jnp.matmul(
    hidden,
    head.weight.astype(hidden.dtype).T,
    preferred_element_type=wide,
  )
  z = z if head.bias is None else z + head.bias
  cap = head.soft_cap
  return z if cap is None else cap * jnp.tanh(z / cap)


def _prefill(attend, prompt, query, key, value, carry, **depth):
  out = attend(query, key, value, prompt, prompt, depth['window'])
  return out, carry, (key, value)


def _decode(config, shared, places, index, query, key, value, cache, *, window, layer):
  """One token a row: one softmax over two score blocks, prompt keys never copied."""
  p, k, n, h = query.shape
  at = (layer, 0, 0, index - 1, 0, 0)
  cache = tuple(
    jax.lax.dynamic_update_slice(old, new[None, :, :, None], at)
    for old, new in zip(cache, (key, value), strict=True)
  )
  prompt_key, prompt_value = (x[layer] for x in shared)
  own_key, own_value = (x[layer] for x in cache)
  m = key.shape[2]
  query = query.reshape(p, k, m, n // m, h)
  scores = jnp.concatenate(
    [
      jnp.einsum('pkmrh,plmh->pkmrl', query, prompt_key),
      jnp.einsum('pkmrh,pktmh->pkmrt', query, own_key),
    ],
    axis=-1,
  ).astype(jnp.promote_types(query.dtype, jnp.float32))
  scores = scores * (config.attention_scale or config.head_dim**-0.5)
  if (cap := config.attention_soft_cap) is not None:
    scores = cap * jnp.tanh(scores / cap)
  seen = attention.visible(*places, window)[:, 0]
  scores = jnp.where(seen[:, None, None, None], scores, -jnp.inf)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  l = prompt_key.shape[1]
  mixed = jnp.einsum('pkmrl,plmh->pkmrh', weights[..., :l], prompt_value) + jnp.einsum(
    'pkmrt,pktmh->pkmrh', weights[..., l:], own_value
  )
  return mixed.reshape(p, k, n, h), cache, None


def _places(prompt, prompt_length, index, t):
  """Where the new token stands [p, 1], and its prompt's and own keys [p, l + t]."""
  position = prompt_length[:, None] + index - 1
  own = prompt_length[:, None] + jnp.arange(t)[None]
  keys = attention.Place(
    jnp.concatenate([prompt.position, own], axis=1),
    jnp.concatenate([prompt.real, jnp.ones_like(own, bool)], axis=1),
  )
  return attention.Place(position, jnp.ones_like(position, bool)), keys


def _uniforms(row_keys, index, dtype):
  def one(key):
    return jax.random.uniform(jax.random.fold_in(key, index), dtype=dtype)

  return jax.vmap(jax.vmap(one))(row_keys)


def _inverse_cdf(
  logits: Float[Array, '*b v'], uniform: Float[Array, '*b']
) -> Int[Array, '*b']:
  """The token where the cumulative probability passes `uniform`, in two levels.

  The sums of blocks of the vocabulary find the block, those inside it the token: one
  uniform a row, where Gumbel noise needs one a token.
  """
  v = logits.shape[-1]
  block = min(_BLOCK, v)
  padding = [(0, 0)] * (logits.ndim - 1) + [(0, -v % block)]
  top = logits.max(axis=-1, keepdims=True)
  weights = jnp.pad(jnp.exp(logits - top), padding)
  weights = weights.reshape(*logits.shape[:-1], -1, block)
  sums = weights.sum(axis=-1)
  target = uniform * sums.sum(axis=-1)
  which, rest = _passes(sums, target)
  inside = jnp.take_along_axis(weights, which[..., None, None], axis=-2)
  token, _ = _passes(inside[..., 0, :], rest)
  return which * block + token


def _passes(weights, target):
  """The first index whose cumulative weight exceeds the target, and what is left."""
  total = jnp.cumsum(weights, axis=-1)
  # Rounding can move the sums by an ulp, at either end: never a weight of 0, and
  # past the very end the last that is not.
  drawable = weights > 0
  passed = (total > target[..., None]) & drawable
  last = weights.shape[-1] - 1 - jnp.argmax(drawable[..., ::-1], axis=-1)
  index = jnp.where(passed.any(axis=-1), jnp.argmax(passed, axis=-1), last)
  before = jnp.take_along_axis(total - weights, index[..., None], axis=-1)
  return index, target - before[..., 0]
