"""Drawing the next token: which tokens may be drawn, and one uniform that draws."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prefjax.errors import InputError

_BLOCK = 256  # tokens of a block of the two-level inverse CDF


@dataclasses.dataclass(frozen=True, kw_only=True)
class Controls:
  """How responses are drawn; all numbers are traced, `greedy` is not.

  Attributes:
    temperature: divides the logits.
    top_k: of the likeliest tokens alone; 0 is all.
    top_p: of the fewest likeliest tokens that hold this much probability.
    min_p: of tokens at least this share as likely as the likeliest.
    greedy: the likeliest token always; its log-prob is the model's own.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  greedy: bool = False

  def __post_init__(self):
    ranges = {
      'temperature': (0 < self.temperature < math.inf, 'positive'),
      'top_k': (self.top_k >= 0, 'not negative'),
      'top_p': (0 < self.top_p <= 1, 'in (0, 1]'),
      'min_p': (0 <= self.min_p <= 1, 'in [0, 1]'),
    }
    for name, (fits, rule) in ranges.items():
      if not fits:
        raise InputError(f'{name} must be {rule}, got {getattr(self, name)!r}.')

  @property
  def truncates(self) -> bool:
    """Whether some tokens can never be drawn."""
    return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

  def numbers(self) -> dict[str, Array]:
    """What a compiled sampler takes as arguments."""
    return {
      'temperature': jnp.asarray(self.temperature, jnp.float32),
      'top_k': jnp.asarray(self.top_k, jnp.int32),
      'top_p': jnp.asarray(self.top_p, jnp.float32),
      'min_p': jnp.asarray(self.min_p, jnp.float32),
    }


def draw(
  logits: Float[Array, '*b v'],
  uniform: Float[Array, '*b'],
  numbers: dict[str, Any],
  *,
  greedy: bool,
  truncates: bool,
) -> tuple[Int[Array, '*b'], Float[Array, '*b']]:
  """Tokens and their log-probs, nats, under the policy that draws them.

  Where the support is truncated, the log-probs are those of what is left.
  """
  if greedy:
    z = logits
    token = jnp.argmax(z, axis=-1)
  else:
    z = logits / numbers['temperature']
    z = truncated(z, numbers) if truncates else z
    token = inverse_cdf(z, uniform)
  log_p = jax.nn.log_softmax(z)
  logp = jnp.take_along_axis(log_p, token[..., None], axis=-1)[..., 0]
  return token.astype(jnp.int32), logp


def truncated(
  logits: Float[Array, '*b v'], numbers: dict[str, Any]
) -> Float[Array, '*b v']:
  """The logits, -inf where top-k, then top-p, then min-p leave a token out.

  Tokens that tie with the last one kept are kept too.
  """
  z = -jnp.sort(-logits, axis=-1)
  rank = jnp.arange(z.shape[-1]).reshape((1,) * (z.ndim - 1) + (-1,))
  kept = rank < jnp.where(numbers['top_k'] > 0, numbers['top_k'], z.shape[-1])
  p = jax.nn.softmax(jnp.where(kept, z, -jnp.inf), axis=-1)
  kept &= jnp.cumsum(p, axis=-1) - p < numbers['top_p']
  kept &= p >= numbers['min_p'] * p[..., :1]
  least = jnp.min(jnp.where(kept, z, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits >= least, logits, -jnp.inf)


def inverse_cdf(
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
  which, rest = passes(sums, target)
  inside = jnp.take_along_axis(weights, which[..., None, None], axis=-2)
  token, _ = passes(inside[..., 0, :], rest)
  return which * block + token


def passes(weights, target):
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
