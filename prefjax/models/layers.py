"""The parts of a decoder layer."""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prefjax.models.config import DecoderConfig
from prefjax.models.sharding import constrain

# Mixes the tokens of one layer: (query, key, value, carry) -> (mixed, carry, kept).
# The forward, the prefill and a decoding step differ in nothing else.
Mixer = Callable[[Array, Array, Array, Any], tuple[Array, Any, Any]]

MIXED = 'mixed'  # what attention gives, by the name that remat policies know

_GATES = {
  'silu_gated': jax.nn.silu,
  'gelu_gated': lambda x: jax.nn.gelu(x, approximate=True),
}
_ACTIVATIONS = {
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
  'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
}


class Norm(nnx.Module):
  """RMS norm (also with 1 + scale, as Gemma has it) or layer norm, in float32."""

  def __init__(self, config: DecoderConfig, width: int):
    dtype = config.param_dtype
    self.kind, self.eps = config.norm, config.norm_eps
    first = jnp.zeros if self.kind == 'rms_plus_one' else jnp.ones
    self.scale = nnx.Param(first((width,), dtype))
    if self.kind == 'layer':
      self.bias = nnx.Param(jnp.zeros((width,), dtype))

  def __call__(self, x):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if self.kind == 'layer':
      wide = wide - wide.mean(axis=-1, keepdims=True)
    variance = jnp.square(wide).mean(axis=-1, keepdims=True)
    normal = wide * jax.lax.rsqrt(variance + self.eps)
    last = (1,) * (x.ndim - 1) + (-1,)
    scale = self.scale[...].reshape(last)
    scale = 1.0 + scale if self.kind == 'rms_plus_one' else scale
    out = normal * scale
    if self.kind == 'layer':
      out = out + self.bias[...].reshape(last)
    return out.astype(x.dtype)


@jax.custom_vjp
def _project(x, kernel):
  return jnp.matmul(x, kernel)


def _project_forward(x, kernel):
  return _project(x, kernel), (x, kernel)


def _project_backward(residuals, cotangent):
  # The kernel's gradient as x^T dy. Autodiff writes it as (dy^T x)^T, for which XLA on
  # CPU forms the gradient of an activation a second time, transposed.
  x, kernel = residuals
  rows = tuple(range(x.ndim - 1))
  d_x = jax.lax.dot_general(cotangent, kernel, (((x.ndim - 1,), (1,)), ((), ())))
  return d_x, jax.lax.dot_general(x, cotangent, ((rows, rows), ((), ())))


_project.defvjp(_project_forward, _project_backward)


def _dot_general(x, kernel, dimension_numbers, **_):
  """What `nnx.Linear` calls: the last axis of x against the kernel's first."""
  del dimension_numbers
  return _project(x, kernel)


class Projection(nnx.Linear):
  """x W + bias, and s (x A) B where `lora` has given it adapters."""

  lora_scale: float | None = None

  def __call__(self, x):
    y = super().__call__(x)
    if self.lora_scale is None:
      return y
    a, b = (part[...].astype(y.dtype) for part in (self.lora_a, self.lora_b))
    return y + self.lora_scale * _project(_project(x.astype(y.dtype), a), b)


def linear(config: DecoderConfig, inputs: int, outputs: int, *, bias, rngs, depth=1):
  """A projection; `depth` shrinks the start of those that write to the residual."""
  return Projection(
    inputs,
    outputs,
    use_bias=bias,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    kernel_init=nnx.initializers.normal(0.02 / depth**0.5),
    rngs=rngs,
    dot_general=_dot_general,
  )


class Attention(nnx.Module):
  """Grouped-query attention around a mixer of tokens."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    width, depth = config.width, 2 * config.num_layers
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    bias = config.qkv_bias
    self.head_dim = config.head_dim
    self.query = linear(config, width, queries, bias=bias, rngs=rngs)
    self.key = linear(config, width, keys, bias=bias, rngs=rngs)
    self.value = linear(config, width, keys, bias=bias, rngs=rngs)
    self.out = linear(
      config, queries, width, bias=config.output_bias, rngs=rngs, depth=depth
    )
    if config.qk_norm:
      self.query_norm = Norm(config, config.head_dim)
      self.key_norm = Norm(config, config.head_dim)
    self.qk_norm = config.qk_norm

  def __call__(self, x, turn, mixer: Mixer, carry):
    def heads(y):
      y = y.reshape(*y.shape[:-1], -1, self.head_dim)
      return constrain(y, 'prompts', None, 'heads', None)

    query, key, value = (
      heads(project(x)) for project in (self.query, self.key, self.value)
    )
    if self.qk_norm:
      query, key = self.query_norm(query), self.key_norm(key)
    mixed, carry, kept = mixer(turn(query), turn(key), value, carry)
    mixed = checkpoint_name(mixed, MIXED)
    return self.out(mixed.reshape(*x.shape[:-1], -1)), carry, kept


class MLP(nnx.Module):
  """The position-wise network, gated or plain."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    width, hidden, bias = config.width, config.mlp_width, config.mlp_bias
    self.kind = config.mlp
    if self.kind in _GATES:
      self.gate = linear(config, width, hidden, bias=bias, rngs=rngs)
    self.up = linear(config, width, hidden, bias=bias, rngs=rngs)
    depth = 2 * config.num_layers
    self.down = linear(config, hidden, width, bias=bias, rngs=rngs, depth=depth)

  def __call__(self, x):
    up = constrain(self.up(x), 'prompts', None, 'hidden')
    if self.kind in _GATES:
      gate = constrain(self.gate(x), 'prompts', None, 'hidden')
      # Kept for the backward pass are the two factors alone, not their five parts.
      gated = jax.checkpoint(lambda gate, up: _GATES[self.kind](gate) * up)
      return self.down(gated(gate, up))
    return self.down(_ACTIVATIONS[self.kind](up))


class Block(nnx.Module):
  """One layer: attention and MLP on the residual stream, in sequence or parallel."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    self.attention_norm = Norm(config, config.width)
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = Norm(config, config.width)
    self.mlp = MLP(config, rngs=rngs)
    self.parallel = config.parallel_residual
    self.post_norms = config.post_norms
    if config.post_norms:
      self.attention_post_norm = Norm(config, config.width)
      self.mlp_post_norm = Norm(config, config.width)

  def __call__(self, x, turn, mixer: Mixer, carry):
    mixed, carry, kept = self.attention(self.attention_norm(x), turn, mixer, carry)
    if self.post_norms:
      mixed = self.attention_post_norm(mixed)
    if self.parallel:
      return x + mixed + self.mlp(self.mlp_norm(x)), carry, kept
    x = x + mixed
    y = self.mlp(self.mlp_norm(x))
    return x + (self.mlp_post_norm(y) if self.post_norms else y), carry, kept


Angles = tuple[Float[Array, 'b t r'], Float[Array, 'b t r']]  # cosines, sines


def frequencies(config: DecoderConfig, theta: float, *, stretched: bool) -> Array:
  """Radians a position of each rotating pair [r], float32 at least.

  Stretched, `linear` divides all of them by `rope_factor` (Chen et al.,
  arXiv:2306.15595), and `llama3` those whose wave is long, as Llama 3.1's code has it:

      f <- (1 - s) f / factor + s f,   s = clip((n f / 2 pi - low) / (high - low), 0, 1)

  with n the original length in positions.
  """
  size = int(config.head_dim * config.rotary_fraction)
  wide = jnp.promote_types(jax.dtypes.canonicalize_dtype(float), jnp.float32)
  frequency = theta ** (-jnp.arange(0, size, 2, dtype=wide) / size)
  if not stretched or config.rope_scaling == 'none':
    return frequency
  if config.rope_scaling == 'linear':
    return frequency / config.rope_factor
  low, high = config.rope_low_factor, config.rope_high_factor
  waves = config.rope_original_positions * frequency / (2 * jnp.pi)
  kept = jnp.clip((waves - low) / (high - low), 0.0, 1.0)
  return (1.0 - kept) * frequency / config.rope_factor + kept * frequency


def angles(position: Int[Array, 'b t'], frequency: Float[Array, ' r']) -> Angles:
  """Cosines and sines of the rotary angles of every position."""
  angle = position[..., None].astype(frequency.dtype) * frequency[None, None]
  return jnp.cos(angle), jnp.sin(angle)


def rotate(
  x: Float[Array, 'b t n h'], table: Angles, *, interleaved: bool
) -> Float[Array, 'b t n h']:
  """Rotary positions (Su et al., arXiv:2104.09864, Eq. 34) on the head's first part.

  Pairs are (i, i + h/2), or (2i, 2i + 1) where `interleaved`.
  """
  cos, sin = (part[:, :, None] for part in table)
  size = 2 * cos.shape[-1]
  wide = jnp.promote_types(x.dtype, jnp.float32)
  cos, sin = cos.astype(wide), sin.astype(wide)
  turned, rest = x[..., :size].astype(wide), x[..., size:]
  if interleaved:
    first, second = turned[..., 0::2], turned[..., 1::2]
  else:
    first, second = turned[..., : size // 2], turned[..., size // 2 :]
  parts = (first * cos - second * sin, second * cos + first * sin)
  if interleaved:
    out = jnp.stack(parts, axis=-1).reshape(turned.shape)
  else:
    out = jnp.concatenate(parts, axis=-1)
  return jnp.concatenate([out.astype(x.dtype), rest], axis=-1)
