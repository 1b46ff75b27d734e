"""Low-rank adapters beside frozen weights: LoRA (Hu et al., arXiv:2106.09685).

    y = x W + (alpha / rank) (x A) B,    A [inputs, rank], B [rank, outputs]    (Eq. 3)

One of A and B starts at zero, so that the adapted model first is the base, bit for bit.
The base with its adapters off is the reference: there is no second model.
"""

import dataclasses
import fnmatch
import functools
from typing import Any

from flax import nnx, traverse_util
import jax
import jax.numpy as jnp

from prefjax.errors import InputError
from prefjax.models import decoder
from prefjax.models.config import DecoderConfig
from prefjax.types import Forward, PreferenceBatch

A, B = 'lora_a', 'lora_b'  # their names beside a projection's kernel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
  """Which projections have adapters, of which rank, and how they start.

  Attributes:
    rank: columns of A.
    alpha: the adapters' weight is alpha / rank.
    targets: shell patterns of paths, as `layers.attention.*` or `layers.mlp.down`.
    zero: which of the two starts at zero, 'a' or 'b'. The paper's is B. With A, the
      first steps of DPO under Adam do not hang on the order of a sum's terms
      (marin-community/marin#4755, where B at zero left it at log 2).
  """

  rank: int
  alpha: float
  targets: tuple[str, ...]
  zero: str = 'a'

  def __post_init__(self):
    if self.rank < 1 or not self.alpha > 0:
      raise InputError(
        f'lora.rank and lora.alpha must be positive, got {self.rank} and {self.alpha}.'
      )
    if self.zero not in ('a', 'b'):
      raise InputError(f"lora.zero must be 'a' or 'b', got {self.zero!r}.")

  @property
  def scale(self) -> float:
    """What x A B is multiplied by."""
    return self.alpha / self.rank


def create(config: DecoderConfig, lora: Lora) -> tuple[nnx.GraphDef, Any]:
  """The adapted decoder's graph and the shapes of its adapters; allocates nothing.

  Raises:
    InputError: for a target that is no projection's path.
  """

  def adapted():
    module = decoder.Decoder(config, rngs=nnx.Rngs(jax.random.key(0)))
    for path in _chosen(config, lora):
      *folders, name = path
      projection = getattr(functools.reduce(getattr, folders, module), name)
      *stack, inputs, outputs = projection.kernel.shape
      # Adapters of bfloat16 weights are trained in float32.
      dtype = jnp.promote_types(config.param_dtype, jnp.float32)
      projection.lora_a = nnx.Param(jnp.zeros((*stack, inputs, lora.rank), dtype))
      projection.lora_b = nnx.Param(jnp.zeros((*stack, lora.rank, outputs), dtype))
      projection.lora_scale = lora.scale
    return module

  graph, state = nnx.split(nnx.eval_shape(adapted))
  return graph, split(nnx.to_pure_dict(state))[1]


def initial_params(config: DecoderConfig, lora: Lora, key: jax.Array) -> Any:
  """Fresh adapters as a nested dict of arrays; a pure function of the key.

  What does not start at zero is normal with variance 1 / inputs (A) or 1 / rank (B).
  """
  flat = traverse_util.flatten_dict(create(config, lora)[1])
  zero = A if lora.zero == 'a' else B

  @jax.jit
  def draw(key):
    keys = dict(zip(sorted(flat), jax.random.split(key, len(flat)), strict=True))
    return {
      path: jnp.zeros(x.shape, x.dtype)
      if path[-1] == zero
      else jax.random.normal(keys[path], x.shape, x.dtype) * x.shape[-2] ** -0.5
      for path, x in flat.items()
    }

  return traverse_util.unflatten_dict(draw(key))


def forward(config: DecoderConfig, lora: Lora) -> Forward:
  """The adapted decoder's forward, on base and adapters `joined`."""
  adapted = decoder.forward(create(config, lora)[0])
  plain = decoder.forward(decoder.create(config)[0])

  def apply(params: Any, batch: PreferenceBatch, *, adapters: bool = True):
    return adapted(params, batch) if adapters else plain(split(params)[0], batch)

  return apply


def joined(base: Any, adapters: Any) -> Any:
  """One tree of two, without a copy; `base` None is no base."""
  if base is None:
    return adapters
  flat = traverse_util.flatten_dict(base) | traverse_util.flatten_dict(adapters)
  return traverse_util.unflatten_dict(flat)


def split(params: Any) -> tuple[Any, Any]:
  """The base and the adapters of a joined tree."""
  flat = traverse_util.flatten_dict(params)
  adapters = {path: leaf for path, leaf in flat.items() if path[-1] in (A, B)}
  base = {path: leaf for path, leaf in flat.items() if path not in adapters}
  return traverse_util.unflatten_dict(base), traverse_util.unflatten_dict(adapters)


@functools.partial(jax.jit, static_argnames='lora')
def merged(params: Any, lora: Lora) -> Any:
  """The joined tree as one of plain weights, W + (alpha / rank) A B."""
  base, adapters = (traverse_util.flatten_dict(part) for part in split(params))
  for path, a in adapters.items():
    if path[-1] == A:
      kernel = (*path[:-1], 'kernel')
      more = lora.scale * jnp.matmul(a, adapters[(*path[:-1], B)])
      base[kernel] = (base[kernel] + more).astype(base[kernel].dtype)
  return traverse_util.unflatten_dict(base)


def _chosen(config, lora):
  """The paths of the projections that the targets name."""
  shapes = traverse_util.flatten_dict(decoder.create(config)[1])
  paths = {'.'.join(path[:-1]): path[:-1] for path in shapes if path[-1] == 'kernel'}
  chosen = {}
  for target in lora.targets:
    found = fnmatch.filter(paths, target)
    if not found:
      raise InputError(
        f'lora.targets names {target!r}, which fits none of the projections '
        f'{sorted(paths)}.'
      )
    chosen |= {name: paths[name] for name in found}
  if not chosen:
    raise InputError('lora.targets names no projection.')
  return list(chosen.values())
