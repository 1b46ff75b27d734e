"""The pytrees that every part of prefjax passes to the next.

Axes: `p` prompts, `k` responses of a prompt, `m` pairs of a prompt, `l` prompt
tokens (left-padded), `t` response tokens (right-padded), `v` vocabulary, `d` width.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from prefjax.errors import InputError


@struct.dataclass
class Mean:
  """A weighted mean that has not been divided yet, so that parts can be merged.

  `value = total / weight`. Where `total` and `weight` have an axis, each entry is a
  term with a denominator of its own and the value is the sum of their ratios: this
  is what lets a sum of losses be accumulated exactly. A weight depends on the batch
  alone, never on the model. A term of weight 0 has the value 0.
  """

  total: Any  # [] or [terms]
  weight: Any  # [] or [terms]

  def __add__(self, other: 'Mean') -> 'Mean':
    return Mean(self.total + other.total, self.weight + other.weight)

  def value(self, weight: Any = None) -> Any:
    """The mean; `weight` puts another denominator in the place of its own."""
    weight = self.weight if weight is None else weight
    empty = weight == 0
    ratio = jnp.where(empty, 0.0, self.total / jnp.where(empty, 1.0, weight))
    return jnp.sum(ratio)


def weighted_mean(values: Float[Array, '*b'], weights: Float[Array, '*b']) -> Mean:
  """The mean of `values` under `weights`; what has weight 0 may hold anything."""
  counted = jnp.where(weights != 0, values, 0.0)
  return Mean(jnp.sum(counted * weights), jnp.sum(weights))


@struct.dataclass
class PreferenceBatch:
  """Prompts, their responses, and pairs among the responses of one prompt.

  A pair is two indices into its own prompt's responses, so it never leaves its
  prompt, nor a prompt its device. `None` marks what an experiment does not have.
  """

  prompts: Any  # [p, l] int32 token ids, left-padded
  responses: Any  # [p, k, t] int32 token ids, right-padded
  prompt_length: Any  # [p] int32, real tokens
  response_length: Any  # [p, k] int32, real tokens; 0 is no response
  mask: Any  # [p, k, t] bool, True on the tokens that count
  weight: Any  # [p, k] float, what a response counts for; 0 for filling
  label: Any = None  # [p, k] float in [0, 1], desirable or not
  win_rate: Any = None  # [p, k] float, P(y > pi_t)
  reference_logps: Any = None  # [p, k, t] float, nats
  old_logps: Any = None  # [p, k, t] float, nats
  step: Any = None  # [p, k, t] int32, the reasoning step of a token, -1 outside
  step_label: Any = None  # [p, k, t] float in [0, 1], of the step that ends; -1: none
  chosen: Any = None  # [p, m] int32, index into k
  rejected: Any = None  # [p, m] int32, index into k
  preference: Any = None  # [p, m] float, P(chosen beats rejected)
  pair_weight: Any = None  # [p, m] float, 0 for filling


@struct.dataclass
class RolloutBatch(PreferenceBatch):
  """Sampled responses with what was observed of them."""

  truncated: Any = None  # [p, k] bool, ended by the length limit
  rewards: Any = None  # [p, k, t] float; an outcome sits on the last real token
  implicit: Any = None  # [p, k, t] float, token rewards of a process reward model
  advantages: Any = None  # [p, k, t] float
  returns: Any = None  # [p, k, t] float, what a critic is to predict
  values: Any = None  # [p, k, t+1] float, a critic's when the responses were drawn
  correction: Any = None  # [p, k, t] float, weight for the sampler's mismatch
  group_tokens: Any = None  # [p] float, weighted tokens of a prompt's whole group


_AXES: Mapping[str, tuple[str, str]] = {
  'prompts': ('p l', 'integer'),
  'responses': ('p k t', 'integer'),
  'prompt_length': ('p', 'integer'),
  'response_length': ('p k', 'integer'),
  'mask': ('p k t', 'bool'),
  'weight': ('p k', 'floating'),
  'label': ('p k', 'floating'),
  'win_rate': ('p k', 'floating'),
  'reference_logps': ('p k t', 'floating'),
  'old_logps': ('p k t', 'floating'),
  'step': ('p k t', 'integer'),
  'step_label': ('p k t', 'floating'),
  'chosen': ('p m', 'integer'),
  'rejected': ('p m', 'integer'),
  'preference': ('p m', 'floating'),
  'pair_weight': ('p m', 'floating'),
  'truncated': ('p k', 'bool'),
  'rewards': ('p k t', 'floating'),
  'implicit': ('p k t', 'floating'),
  'advantages': ('p k t', 'floating'),
  'returns': ('p k t', 'floating'),
  'values': ('p k t+1', 'floating'),
  'correction': ('p k t', 'floating'),
  'group_tokens': ('p', 'floating'),
}
_OPTIONAL_FROM = 'label'
_KINDS = {'integer': np.integer, 'bool': np.bool_, 'floating': np.floating}


def check_batch(batch: PreferenceBatch) -> PreferenceBatch:
  """Returns the batch, or refuses one whose fields do not fit together.

  Reads shapes and dtypes only, so it costs nothing in a compiled function.

  Raises:
    InputError: naming the field, the shape or type wanted, and what it got.
  """
  sizes: dict[str, int] = {}
  optional = False
  for field, (axes, kind) in _AXES.items():
    optional = optional or field == _OPTIONAL_FROM
    value = getattr(batch, field, None)
    if value is None and optional:
      continue
    _check_field(field, value, axes.split(), kind, sizes)
  pairs = ('chosen', 'rejected', 'preference', 'pair_weight')
  missing = [name for name in pairs if getattr(batch, name) is None]
  if 0 < len(missing) < len(pairs):
    raise InputError(f'A batch has all of {pairs} or none of them; {missing} missing.')
  return batch


def _check_field(field, value, axes, kind, sizes):
  if value is None:
    raise InputError(f'The batch field `{field}` is required, got None.')
  wanted = ', '.join(
    f'{axis}={_size(axis, sizes)}' if _size(axis, sizes) else axis for axis in axes
  )
  shape, dtype = jnp.shape(value), jnp.result_type(value)
  fits = len(shape) == len(axes) and all(
    _size(axis, sizes) in (None, got) for axis, got in zip(axes, shape, strict=True)
  )
  if not fits:
    raise InputError(
      f'The batch field `{field}` must have shape [{wanted}], got {list(shape)}.'
    )
  if not jnp.issubdtype(dtype, _KINDS[kind]):
    raise InputError(f'The batch field `{field}` must be of {kind} type, got {dtype}.')
  sizes.update(
    (axis, got)
    for axis, got in zip(axes, shape, strict=True)
    if not axis.endswith('+1')
  )


def _size(axis, sizes):
  base, _, more = axis.partition('+')
  return sizes[base] + int(more or 0) if base in sizes else None


@struct.dataclass
class Outputs:
  """What an objective may read of a model; None where it was not asked for."""

  logps: Any = None  # [p, k, t] log-probs of the response tokens, nats
  entropy: Any = None  # [p, k, t] entropy of the next-token distribution, nats
  collision: Any = None  # [p, k, t] sum of squared next-token probabilities
  kl: Any = None  # [p, k, t] KL(policy || reference) over the vocabulary, nats
  values: Any = None  # [p, k, t+1] a critic's values
  scores: Any = None  # [p, k] a reward model's scores


@struct.dataclass
class Head:
  """The unembedding: `logits = soft_cap * tanh((h @ weight.T + bias) / soft_cap)`.

  A critic or a reward model reads `h @ scalar` beside it.
  """

  weight: Any  # [v, d]
  bias: Any = None  # [v]
  scalar: Any = None  # [d + 1], the last entry a bias
  soft_cap: float | None = struct.field(pytree_node=False, default=None)


@runtime_checkable
class Forward(Protocol):
  """The one thing prefjax asks of a model; any Linen or NNX model can give it.

  `hidden [p, k, t+1, d]`: column 0 is the state at the prompt's last token, column j
  the state at response token j - 1, so that column j predicts response token j.
  """

  def __call__(
    self, params: Any, batch: PreferenceBatch, *, adapters: bool = True
  ) -> tuple[jax.Array, Head]:
    """The states and the unembedding; `adapters=False` is the base model."""
    ...


LossFn = Callable[[Outputs, PreferenceBatch], tuple[Mean, dict[str, Mean]]]
