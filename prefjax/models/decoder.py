"""The decoder: prompts and responses in one forward, the prompt run once."""

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prefjax.errors import InputError
from prefjax.models import attention
from prefjax.models.config import DecoderConfig
from prefjax.models.cudnn import cudnn
from prefjax.models.layers import MIXED, Block, Norm, angles, frequencies, rotate
from prefjax.models.sharding import constrain
from prefjax.models.splash import splash
from prefjax.types import Head, PreferenceBatch

_NO_WINDOW = jnp.iinfo(jnp.int32).max
_ATTENTION = {**attention.IMPLEMENTATIONS, 'splash': splash, 'cudnn': cudnn}
_REMAT = {
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  # Attention is not done again, projections are: for long rows.
  'mixed': jax.checkpoint_policies.save_only_these_names(MIXED),
  'full': jax.checkpoint_policies.nothing_saveable,
}


def left_padded(length: Int[Array, ' b'], size: int) -> attention.Place:
  """Positions of left-padded rows: counted from the first real token."""
  column = jnp.arange(size)[None] - (size - length[:, None])
  return attention.Place(jnp.maximum(column, 0), column >= 0)


def right_padded(
  length: Int[Array, ' b'], size: int, start: Int[Array, ' b']
) -> attention.Place:
  """Positions of right-padded rows that go on from position `start`."""
  column = jnp.arange(size)[None]
  real = column < length[:, None]
  return attention.Place(jnp.where(real, start[:, None] + column, 0), real)


class Decoder(nnx.Module):
  """A pre-norm Transformer decoder; the families differ by config alone.

  The layers are one stacked module: parameters under `layers` have a leading axis of
  `num_layers` and are scanned, so that compile time does not grow with depth.
  """

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    self.config = config
    init = nnx.initializers.normal(0.02)

    def table(rows):
      shape = (rows, config.width)
      return nnx.Param(init(rngs.params(), shape, jnp.dtype(config.param_dtype)))

    self.embedding = table(config.vocab_size)
    if config.position == 'learned':
      self.positions = table(config.max_positions)

    @nnx.vmap
    def stack(rngs):
      return Block(config, rngs=rngs)

    self.layers = stack(rngs.split(config.num_layers))
    self.norm = Norm(config, config.width)
    if not config.tied_embeddings:
      self.unembedding = table(config.vocab_size)

  def head(self) -> Head:
    """The unembedding, stored `[v, d]`; the embedding itself where they are tied."""
    table = self.embedding if self.config.tied_embeddings else self.unembedding
    return Head(table[...], soft_cap=self.config.logit_soft_cap)

  def embed(self, tokens: Int[Array, 'b n'], position: Int[Array, 'b n']):
    """Token embeddings, with learned positions where the family has them."""
    config = self.config
    table = constrain(self.embedding[...], 'vocabulary', None)
    x = table[tokens].astype(config.dtype)
    if config.scale_embeddings:
      x = x * jnp.asarray(config.width**0.5, x.dtype)
    if config.position == 'learned':
      x = x + self.positions[...][position].astype(config.dtype)
    return constrain(x, 'prompts', None, None)

  def run_layers(self, x, position, mixer, carry=None):
    """Scans the layers: returns states, the carry, and what the mixer kept, stacked.

    The mixer gets `window` and `layer`, the two things that vary with depth.
    """
    config = self.config
    graph, params = nnx.split(self.layers)
    is_global = jnp.asarray(config.layer_is_global)
    turns = self._turns(position)

    def body(state, xs):
      x, carry = state
      params, is_global, layer = xs
      turn = functools.partial(self._turn, turns=turns, full=is_global)
      window = jnp.where(is_global, _NO_WINDOW, config.window or _NO_WINDOW)
      mix = functools.partial(mixer, window=window, layer=layer)
      x, carry, kept = nnx.merge(graph, params)(x, turn, mix, carry)
      return (constrain(x, 'prompts', None, None), carry), kept

    if config.remat != 'none':
      body = jax.checkpoint(body, policy=_REMAT[config.remat], prevent_cse=False)
    xs = (params, is_global, jnp.arange(config.num_layers))
    (x, carry), kept = jax.lax.scan(body, (x, carry), xs)
    return self.norm(x), carry, kept

  def _turns(self, position):
    """Rotary angles of every token for global and for local layers, or None.

    Formed once: inside the layers their sines would be formed again by each.
    """
    config = self.config
    if config.position == 'learned':
      return None
    full = frequencies(config, config.rope_theta, stretched=True)
    if config.local_rope_theta is None:
      return (angles(position, full),)
    local = frequencies(config, config.local_rope_theta, stretched=False)
    return angles(position, full), angles(position, local)

  def _turn(self, x, turns, full):
    if turns is None:
      return x
    table = turns[0]
    if len(turns) == 2:
      table = jax.tree.map(lambda a, b: jnp.where(full, a, b), *turns)
    interleaved = self.config.position == 'rotary_interleaved'
    return rotate(x, table, interleaved=interleaved)

  def attend(
    self, query, key, value, query_place, key_place, window, *, one_row: bool = False
  ):
    """Attention as the config has it.

    `one_row` says that right-padded rows look at themselves: the one case that cuDNN
    knows. The portable kernel stands in for it in others, as when a prompt is sampled
    from.
    """
    config = self.config
    scale = config.attention_scale or config.head_dim**-0.5
    name = config.attention
    if name == 'cudnn' and not one_row:
      name = 'blocked'
    return _ATTENTION[name](
      query,
      key,
      value,
      query_place,
      key_place,
      window=window,
      scale=scale,
      soft_cap=config.attention_soft_cap,
    )

  def __call__(
    self,
    prompts: Int[Array, 'p l'],
    prompt_length: Int[Array, ' p'],
    responses: Int[Array, 'p k t'],
    response_length: Int[Array, 'p k'],
  ) -> Float[Array, 'p k t+1 d']:
    """States `[p, k, t+1, d]`: the prompt's last column, then the response's.

    The two blocks go through a layer as one row of l + k t tokens, so that every
    projection is one matrix product; only attention tells them apart.
    """
    if self.config.layout == 'plain':
      return self._plain(prompts, prompt_length, responses, response_length)
    p, l = prompts.shape
    k, t = responses.shape[1:]
    prompt = left_padded(prompt_length, l)
    response = right_padded(
      response_length.reshape(-1), t, jnp.repeat(prompt_length, k)
    )
    tokens = jnp.concatenate([prompts, responses.reshape(p, k * t)], axis=1)
    position = jnp.concatenate(
      [prompt.position, response.position.reshape(p, k * t)], axis=1
    )
    mixer = functools.partial(_two_blocks, self.attend, prompt, response)
    x, _, _ = self.run_layers(self.embed(tokens, position), position, mixer)
    last = jnp.broadcast_to(x[:, None, l - 1 : l], (p, k, 1, x.shape[-1]))
    own = x[:, l:].reshape(p, k, t, -1)
    return jnp.concatenate([last, own], axis=2)

  def _plain(self, prompts, prompt_length, responses, response_length):
    """The peers' layout: every response brings its own copy of its prompt.

    A row is both, one after the other, with all padding at its right.
    """
    p, k, t = responses.shape
    l = prompts.shape[1]
    length = jnp.repeat(prompt_length, k)
    tokens = jnp.concatenate(
      [jnp.repeat(prompts, k, axis=0), responses.reshape(p * k, t)], axis=1
    )
    column = jnp.arange(l + t)[None]
    turned = (column + (l - length)[:, None]) % (l + t)
    tokens = jnp.take_along_axis(tokens, turned, axis=1)
    both = length + response_length.reshape(-1)
    place = right_padded(both, l + t, jnp.zeros_like(both))
    mixer = functools.partial(_one_row, self.attend, place)
    x, _, _ = self.run_layers(self.embed(tokens, place.position), place.position, mixer)
    kept = jnp.maximum(length - 1, 0)[:, None] + jnp.arange(t + 1)[None]
    hidden = jnp.take_along_axis(x, kept[:, :, None], axis=1)
    return hidden.reshape(p, k, t + 1, -1)


def _one_row(attend, place, query, key, value, carry, **depth):
  """Every row attends to itself."""
  out = attend(query, key, value, place, place, depth['window'], one_row=True)
  return out, carry, None


def _two_blocks(attend, prompt, response, query, key, value, carry, **depth):
  """Prompts attend to themselves, responses to their prompt and themselves."""
  window = depth['window']
  p, l = prompt.position.shape
  rows, t = response.position.shape
  k = rows // p

  def own(x):
    return x[:, l:].reshape(rows, t, *x.shape[2:])

  def both(x):
    shared = jnp.repeat(x[:, :l], k, axis=0)
    return jnp.concatenate([shared, own(x)], axis=1)

  first = attend(query[:, :l], key[:, :l], value[:, :l], prompt, prompt, window)
  keys = attention.Place(
    jnp.concatenate(
      [jnp.repeat(prompt.position, k, axis=0), response.position], axis=1
    ),
    jnp.concatenate([jnp.repeat(prompt.real, k, axis=0), response.real], axis=1),
  )
  second = attend(own(query), both(key), both(value), response, keys, window)
  second = second.reshape(p, k * t, *second.shape[2:])
  return jnp.concatenate([first, second], axis=1), carry, None


def create(
  config: DecoderConfig,
) -> tuple[nnx.GraphDef, Any]:
  """The decoder's graph and the shapes of its parameters; allocates nothing."""
  module = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(jax.random.key(0))))
  graph, state = nnx.split(module)
  return graph, nnx.to_pure_dict(state)


@functools.partial(jax.jit, static_argnums=0)
def initial_params(config: DecoderConfig, key: Array) -> Any:
  """Fresh parameters as a nested dict of arrays; a pure function of the key.

  Always under jit: an eager initialisation has other bits.
  """
  module = Decoder(config, rngs=nnx.Rngs(key))
  return nnx.to_pure_dict(nnx.split(module)[1])


def forward(graph: nnx.GraphDef) -> Callable[..., tuple[Array, Head]]:
  """The training forward of a decoder: a `Forward`, as objectives want it."""

  def apply(params: Any, batch: PreferenceBatch, *, adapters: bool = True):
    del adapters  # A plain decoder has none.
    model = nnx.merge(graph, params)
    hidden = model(
      batch.prompts,
      batch.prompt_length,
      batch.responses,
      batch.response_length,
    )
    return hidden, model.head()

  return apply


def check_positions(config: DecoderConfig, longest: int) -> None:
  """Refuses sequences that reach beyond a table of learned positions.

  Raises:
    InputError: naming both lengths, in tokens.
  """
  if config.position == 'learned' and longest > config.max_positions:
    raise InputError(
      f'The longest sequence has {longest} tokens, but the model has learned '
      f'positions for model.max_positions={config.max_positions}.'
    )
