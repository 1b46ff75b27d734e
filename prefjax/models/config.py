"""What distinguishes one decoder from another, and the published families."""

import dataclasses
from typing import Any, Literal

from prefjax.errors import InputError
from prefjax.models import attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
  """The shape of a decoder; `layer_is_global` says which layers have no window.

  A window counts positions. `rotary_fraction` is the share of a head that rotates.
  `rope_scaling` stretches rotary angles by the four numbers after it; layers with
  `local_rope_theta`, a base of their own for those with a window, are left as they are.
  Soft caps bound scores and logits by `cap * tanh(x / cap)`. `dtype` is that of
  computing; parameters are kept in `param_dtype`.
  """

  vocab_size: int
  width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_width: int
  max_positions: int
  norm: Literal['rms', 'rms_plus_one', 'layer'] = 'rms'
  norm_eps: float = 1e-5
  post_norms: bool = False
  qk_norm: bool = False
  position: Literal['rotary', 'rotary_interleaved', 'learned'] = 'rotary'
  rotary_fraction: float = 1.0
  rope_theta: float = 10_000.0
  local_rope_theta: float | None = None
  rope_scaling: Literal['none', 'linear', 'llama3'] = 'none'
  rope_factor: float = 1.0
  rope_low_factor: float = 1.0
  rope_high_factor: float = 4.0
  rope_original_positions: int = 8192
  mlp: Literal['silu_gated', 'gelu_gated', 'gelu', 'gelu_tanh'] = 'silu_gated'
  parallel_residual: bool = False
  qkv_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  tied_embeddings: bool = False
  scale_embeddings: bool = False
  attention_scale: float | None = None
  attention_soft_cap: float | None = None
  logit_soft_cap: float | None = None
  window: int | None = None
  global_every: int | None = None
  global_first: int = 0
  attention: str = 'blocked'
  layout: Literal['shared', 'plain'] = 'shared'
  remat: Literal['none', 'dots', 'mixed', 'full'] = 'none'
  dtype: str = 'float32'
  param_dtype: str = 'float32'

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise InputError(
        f'model.num_heads must be a multiple of model.num_kv_heads, got '
        f'{self.num_heads} and {self.num_kv_heads}.'
      )
    for name, known in _KNOWN.items():
      if getattr(self, name) not in known:
        raise InputError(
          f'model.{name} must be one of {list(known)}, got {getattr(self, name)!r}.'
        )
    if self.attention in KERNELS and self.window is not None:
      raise InputError(
        f'model.attention={self.attention} has no windows, and the model looks back '
        f'model.window={self.window} positions.'
      )
    if self.attention == 'cudnn':
      self._check_cudnn()

  def _check_cudnn(self):
    if self.layout != 'plain':
      raise InputError(
        'model.attention=cudnn has no causal mask with an offset, which responses that '
        f'share a prompt need: set model.layout=plain, got {self.layout!r}.'
      )
    if self.dtype != 'bfloat16' or self.attention_soft_cap is not None:
      raise InputError(
        'model.attention=cudnn computes in model.dtype=bfloat16 and has no soft-cap, '
        f'got {self.dtype!r} and model.attention_soft_cap={self.attention_soft_cap}.'
      )
    if self.head_dim % 8 or self.head_dim > 256:
      raise InputError(
        'model.attention=cudnn needs model.head_dim to be a multiple of 8, at most 256 '
        f'(128 on chips before Hopper), got {self.head_dim}.'
      )

  @property
  def layer_is_global(self) -> tuple[bool, ...]:
    """Which layers look at everything; the others look back `window` positions."""
    if self.window is None:
      return (True,) * self.num_layers
    first, every = self.global_first, self.global_every
    return tuple(
      layer < first or (every is not None and (layer + 1) % every == 0)
      for layer in range(self.num_layers)
    )


KERNELS = {'splash': 'tpu', 'cudnn': 'gpu'}  # attention that one backend alone runs

_KNOWN = {
  'norm': ('rms', 'rms_plus_one', 'layer'),
  'position': ('rotary', 'rotary_interleaved', 'learned'),
  'rope_scaling': ('none', 'linear', 'llama3'),
  'mlp': ('silu_gated', 'gelu_gated', 'gelu', 'gelu_tanh'),
  'attention': (*attention.IMPLEMENTATIONS, *KERNELS),
  'layout': ('shared', 'plain'),
  'remat': ('none', 'dots', 'mixed', 'full'),
  'dtype': ('float32', 'bfloat16', 'float64'),
  'param_dtype': ('float32', 'bfloat16', 'float64'),
}

_GEMMA = dict(
  norm='rms_plus_one',
  norm_eps=1e-6,
  post_norms=True,
  mlp='gelu_gated',
  tied_embeddings=True,
  scale_embeddings=True,
)

# What every member of a family shares; the sizes are a checkpoint's own.
FAMILIES: dict[str, dict[str, Any]] = {
  'llama': {},
  'mistral': dict(window=4096),
  'qwen2': dict(norm_eps=1e-6, rope_theta=1e6, qkv_bias=True),
  'qwen3': dict(norm_eps=1e-6, rope_theta=1e6, qk_norm=True),
  'gemma2': dict(
    **_GEMMA,
    attention_soft_cap=50.0,
    logit_soft_cap=30.0,
    window=4096,
    global_every=2,
  ),
  'gemma3': dict(
    **_GEMMA,
    qk_norm=True,
    rope_theta=1e6,
    local_rope_theta=10_000.0,
    window=1024,
    global_every=6,
  ),
  'gpt_neox': dict(
    norm='layer',
    rotary_fraction=0.25,
    mlp='gelu',
    parallel_residual=True,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
  ),
  'gpt2': dict(
    norm='layer',
    position='learned',
    mlp='gelu_tanh',
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    tied_embeddings=True,
  ),
}


def create(*, family: str = 'llama', **sizes: Any) -> DecoderConfig:
  """A family's config with the given sizes; whatever is given overrides the family.

  Raises:
    InputError: for an unknown family or key, or one that is missing.
  """
  if family not in FAMILIES:
    raise InputError(f'model.family must be one of {sorted(FAMILIES)}, got {family!r}.')
  fields = {field.name: field for field in dataclasses.fields(DecoderConfig)}
  unknown = sorted(set(sizes) - set(fields))
  missing = sorted(
    name
    for name, field in fields.items()
    if field.default is dataclasses.MISSING and name not in sizes
  )
  if unknown or missing:
    raise InputError(
      f'The model config has unknown keys {unknown} and lacks {missing}; '
      f'it knows {sorted(fields)}.'
    )
  return DecoderConfig(**{**FAMILIES[family], **sizes})
