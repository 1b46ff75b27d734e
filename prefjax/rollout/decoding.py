"""Decoding on the device: slots of prompts, each with its k responses.

The keys and values of a prompt are shared by its k responses and never copied. The
responses' own lie in a ring of `t` columns that all slots write at the same place, so
that a slot can be given to another prompt while its neighbours go on: a key's age says
which token of its row it is, and what is older than the row is not seen.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from prefjax.models import attention, decoder
from prefjax.models.sharding import constrain
from prefjax.rollout import draws
from prefjax.types import Head


class Rows(NamedTuple):
  """The state of decoding; `s` slots, `k` responses of each, `t` tokens at most."""

  column: Any  # [] where the newest token of every row stands
  first: Any  # [s] where the first tokens of a slot's rows stand
  prompt_length: Any  # [s]
  keys: Any  # [s, k] noise of each row
  stops: Any  # [s, n] tokens that end a response, -1 for none
  drawn: Any  # [s] tokens that the slot's rows have, 0 where it is free
  token: Any  # [s, k] the newest token
  done: Any  # [s, k]
  truncated: Any  # [s, k]
  length: Any  # [s, k]
  tokens: Any  # [s, k, t]
  logps: Any  # [s, k, t] nats
  prompts: Any  # keys and values [layers, s, l, m, h]
  cache: Any  # keys and values [layers, s, k, t, m, h]


class Admission(NamedTuple):
  """Prompts for free slots; a slot number beyond the last is no admission."""

  slots: Any  # [a]
  prompts: Any  # [a, l] token ids, left-padded
  prompt_length: Any  # [a]
  keys: Any  # [a]
  stops: Any  # [a, n]


class Options(NamedTuple):
  """What is fixed when decoding is compiled."""

  greedy: bool
  truncates: bool
  pad_id: int
  cache_dtype: str | None


def empty(config: Any, admission: Admission, s: int, k: int, t: int, options: Options):
  """Slots without a prompt."""
  l, n = admission.prompts.shape[1], admission.stops.shape[1]
  dtype = jnp.dtype(options.cache_dtype or config.dtype)
  heads = (config.num_kv_heads, config.head_dim)
  wide = jnp.promote_types(config.dtype, jnp.float32)

  def pair(*shape):
    return tuple(jnp.zeros((config.num_layers, *shape, *heads), dtype) for _ in '12')

  rows = Rows(
    column=jnp.zeros((), jnp.int32),
    first=jnp.zeros(s, jnp.int32),
    prompt_length=jnp.ones(s, jnp.int32),
    keys=jnp.broadcast_to(admission.keys[0], (s, k)),
    stops=jnp.full((s, n), -1, jnp.int32),
    drawn=jnp.zeros(s, jnp.int32),
    token=jnp.zeros((s, k), jnp.int32),
    done=jnp.ones((s, k), bool),
    truncated=jnp.zeros((s, k), bool),
    length=jnp.zeros((s, k), jnp.int32),
    tokens=jnp.full((s, k, t), options.pad_id, jnp.int32),
    logps=jnp.zeros((s, k, t), wide),
    prompts=pair(s, l),
    cache=pair(s, k, t),
  )
  return _dealt(rows)


def axes(rows: Rows) -> Rows:
  """The logical axes of each array: slots over the data axes, heads over `tensor`."""
  return Rows(
    **{
      name: (None, 'prompts', *[None] * (x[0].ndim - 4), 'heads', None)
      if name in ('prompts', 'cache')
      else ('prompts', *[None] * (x.ndim - 1))[: x.ndim]
      for name, x in rows._asdict().items()
    }
  )


def _dealt(rows: Rows) -> Rows:
  """The rows where they lie on a mesh."""
  return Rows(
    *(
      jax.tree.map(lambda leaf, names=names: constrain(leaf, *names), x)
      for x, names in zip(rows, axes(rows), strict=True)
    )
  )


def admit(model: Any, rows: Rows, new: Admission, numbers: Any, options: Options):
  """Runs the prompts of an admission and draws the first token of their responses."""
  k = rows.token.shape[1]
  place = decoder.left_padded(new.prompt_length, new.prompts.shape[1])
  mixer = functools.partial(_prefill, model.attend, place)
  x = model.embed(new.prompts, place.position)
  x, _, kept = model.run_layers(x, place.position, mixer)
  own = jax.vmap(
    lambda key: jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(k))
  )(new.keys)

  def at(old, value):
    return old.at[new.slots].set(value.astype(old.dtype), mode='drop')

  fresh = jnp.zeros_like(new.slots)
  rows = rows._replace(
    first=at(rows.first, fresh + rows.column),
    prompt_length=at(rows.prompt_length, new.prompt_length),
    keys=_keys_at(rows.keys, new.slots, own),
    stops=at(rows.stops, new.stops),
    drawn=at(rows.drawn, fresh),
    done=at(rows.done, jnp.zeros((len(fresh), k), bool)),
    truncated=at(rows.truncated, jnp.zeros((len(fresh), k), bool)),
    length=at(rows.length, jnp.zeros((len(fresh), k), jnp.int32)),
    prompts=tuple(
      old.at[:, new.slots].set(value.astype(old.dtype), mode='drop')
      for old, value in zip(rows.prompts, kept, strict=True)
    ),
  )
  admitted = jnp.zeros(rows.drawn.shape, bool).at[new.slots].set(True, mode='drop')
  hidden = jnp.zeros((len(rows.drawn), k, x.shape[-1]), x.dtype)
  hidden = hidden.at[new.slots].set(x[:, -1:], mode='drop')
  return _dealt(_write(model, rows, hidden, admitted, numbers, options))


def _keys_at(keys, slots, own):
  """Typed keys are set through their data: a scatter of keys has no mode `drop`."""
  data = jax.random.key_data(keys)
  data = data.at[slots].set(jax.random.key_data(own), mode='drop')
  return jax.random.wrap_key_data(data, impl=jax.random.key_impl(keys))


def decode(model: Any, rows: Rows, steps: Any, numbers: Any, options: Options) -> Rows:
  """Up to `steps` more tokens a row; stops where every row is done."""

  def going_on(state):
    step, rows = state
    return (step < steps) & ~rows.done.all()

  def body(state):
    step, rows = state
    return step + 1, _dealt(_advance(model, rows, numbers, options))

  return jax.lax.while_loop(going_on, body, (jnp.zeros((), jnp.int32), rows))[1]


def _advance(model, rows, numbers, options):
  """Runs the newest tokens and draws the next."""
  k, t = rows.tokens.shape[1:]
  number = rows.drawn - 1  # of the newest token in its row
  position = jnp.repeat((rows.prompt_length + number)[:, None], k, axis=1)
  position = jnp.maximum(position, 0)
  places = _places(rows, number, t)
  mixer = functools.partial(_attend, model.config, rows.prompts, places, rows.column)
  x = model.embed(rows.token, position)
  x, cache, _ = model.run_layers(x, position, mixer, rows.cache)
  rows = rows._replace(cache=cache, column=(rows.column + 1) % t)
  return _write(model, rows, x, jnp.ones_like(rows.drawn, bool), numbers, options)


def _write(model, rows, hidden, chosen, numbers, options):
  """Draws a token for the rows of the chosen slots that are not done."""
  # Drawing reads along the vocabulary: its logits are put together, of one token a row.
  z = constrain(_logits(hidden, model.head()), 'prompts', None, None)
  uniform = _uniforms(rows.keys, rows.drawn, z.dtype)
  token, logp = draws.draw(
    z, uniform, numbers, greedy=options.greedy, truncates=options.truncates
  )
  active = chosen[:, None] & ~rows.done
  length = rows.length + active
  stopped = active & (token[..., None] == rows.stops[:, None]).any(axis=-1)
  cut = active & ~stopped & (length == rows.tokens.shape[-1])

  def put(table, value):
    old = jax.lax.dynamic_slice_in_dim(table, rows.column, 1, axis=2)
    new = jnp.where(active[..., None], value[..., None].astype(table.dtype), old)
    return jax.lax.dynamic_update_slice_in_dim(table, new, rows.column, axis=2)

  return rows._replace(
    drawn=rows.drawn + active.any(axis=1),
    token=jnp.where(active, token, rows.token),
    done=rows.done | stopped | cut,
    truncated=rows.truncated | cut,
    length=length,
    tokens=put(rows.tokens, token),
    logps=put(rows.logps, logp),
  )


def _prefill(attend, place, query, key, value, carry, **depth):
  out = attend(query, key, value, place, place, depth['window'])
  return out, carry, (key, value)


def _attend(config, prompts, places, column, query, key, value, cache, **depth):
  """One token a row: one softmax over two score blocks, prompt keys never copied."""
  p, k, n, h = query.shape
  layer = depth['layer']
  zero = jnp.zeros_like(layer)
  at = (layer, zero, zero, column.astype(layer.dtype), zero, zero)
  cache = tuple(
    jax.lax.dynamic_update_slice(old, new[None, :, :, None].astype(old.dtype), at)
    for old, new in zip(cache, (key, value), strict=True)
  )
  prompt_key, prompt_value = (x[layer].astype(key.dtype) for x in prompts)
  own_key, own_value = (x[layer].astype(key.dtype) for x in cache)
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
  seen = attention.visible(*places, depth['window'])[:, 0]
  scores = jnp.where(seen[:, None, None, None], scores, -jnp.inf)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  l = prompt_key.shape[1]
  mixed = jnp.einsum('pkmrl,plmh->pkmrh', weights[..., :l], prompt_value) + jnp.einsum(
    'pkmrt,pktmh->pkmrh', weights[..., l:], own_value
  )
  return mixed.reshape(p, k, n, h), cache, None


def _places(rows, number, t):
  """Where the newest token stands [s, 1], and its prompt's and own keys [s, l + t].

  A slot that is free counts as having one token, so that no softmax is empty.
  """
  l = rows.prompts[0].shape[2]
  prompt = decoder.left_padded(rows.prompt_length, l)
  age = (rows.column - jnp.arange(t)) % t
  own = jnp.maximum(number, 0)[:, None] - age[None]
  keys = attention.Place(
    jnp.concatenate([prompt.position, rows.prompt_length[:, None] + own], axis=1),
    jnp.concatenate([prompt.real, own >= 0], axis=1),
  )
  position = (rows.prompt_length + jnp.maximum(number, 0))[:, None]
  return attention.Place(position, jnp.ones_like(position, bool)), keys


def _logits(hidden, head: Head):
  wide = jnp.promote_types(hidden.dtype, jnp.float32)
  z = jnp.matmul(
    hidden, head.weight.astype(hidden.dtype).T, preferred_element_type=wide
  )
  z = z if head.bias is None else z + head.bias
  cap = head.soft_cap
  return z if cap is None else cap * jnp.tanh(z / cap)


def _uniforms(keys: Array, drawn: Int[Array, ' s'], dtype):
  """One uniform a row: a function of its key and of how many tokens it has."""

  def one(key, number):
    return jax.random.uniform(jax.random.fold_in(key, number), dtype=dtype)

  return jax.vmap(jax.vmap(one, in_axes=(0, None)))(keys, drawn)
