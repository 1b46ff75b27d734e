"""What a Hugging Face config.json says, and how its tensors are named, in our terms."""

from collections.abc import Mapping
import dataclasses
import inspect
from typing import Any, NamedTuple

from prefjax.errors import InputError
from prefjax.models import config as configs
from prefjax.models.config import DecoderConfig

RUNNING = ('attention', 'layout', 'remat', 'dtype', 'param_dtype')
"""How a model is run, which a checkpoint leaves open; all else is the checkpoint's."""

# Our field -> the key of config.json.
_KEYS = {
  'vocab_size': 'vocab_size',
  'width': 'hidden_size',
  'num_layers': 'num_hidden_layers',
  'num_heads': 'num_attention_heads',
  'num_kv_heads': 'num_key_value_heads',
  'head_dim': 'head_dim',
  'mlp_width': 'intermediate_size',
  'max_positions': 'max_position_embeddings',
  'norm_eps': 'rms_norm_eps',
  'rope_theta': 'rope_theta',
  'tied_embeddings': 'tie_word_embeddings',
}
_ATTENTION_BIAS = dict.fromkeys(('qkv_bias', 'output_bias'), 'attention_bias')
# What transformers takes for a key that is not written.
_DEFAULTS = {
  'rms_norm_eps': 1e-6,
  'rope_theta': 10_000.0,
  'tie_word_embeddings': False,
  'attention_bias': False,
  'mlp_bias': False,
  'sliding_window': 4096,
}
# Keys that are understood with one value alone, which is also what absence means.
_ONLY = {
  'hidden_act': 'silu',
  'use_sliding_window': False,
  'quantization_config': None,
}

# Our path -> the tensor's name; below `layers`, names go on from that of the layer.
NAMES = {
  'embedding': 'model.embed_tokens',
  'unembedding': 'lm_head',
  'norm': 'model.norm',
  'layers': 'model.layers',
  'layers.attention_norm': 'input_layernorm',
  'layers.attention.query': 'self_attn.q_proj',
  'layers.attention.query_norm': 'self_attn.q_norm',
  'layers.attention.key': 'self_attn.k_proj',
  'layers.attention.key_norm': 'self_attn.k_norm',
  'layers.attention.value': 'self_attn.v_proj',
  'layers.attention.out': 'self_attn.o_proj',
  'layers.mlp_norm': 'post_attention_layernorm',
  'layers.mlp.gate': 'mlp.gate_proj',
  'layers.mlp.up': 'mlp.up_proj',
  'layers.mlp.down': 'mlp.down_proj',
}


class Architecture(NamedTuple):
  """How a config.json describes one of our families, and what it need not say."""

  family: str
  keys: Mapping[str, str]
  defaults: Mapping[str, Any] = {}


ARCHITECTURES = {
  'LlamaForCausalLM': Architecture(
    'llama', _KEYS | _ATTENTION_BIAS | {'mlp_bias': 'mlp_bias'}
  ),
  'MistralForCausalLM': Architecture('mistral', _KEYS | {'window': 'sliding_window'}),
  'Qwen2ForCausalLM': Architecture('qwen2', _KEYS),
  'Qwen3ForCausalLM': Architecture('qwen3', _KEYS | _ATTENTION_BIAS, {'head_dim': 128}),
}


def read(described: Mapping[str, Any], where: str) -> tuple[str, DecoderConfig]:
  """The family and the config that a config.json describes.

  Raises:
    InputError: naming `where` and the key that is missing, wrong or not supported.
  """
  names = described.get('architectures')
  if names not in [[name] for name in ARCHITECTURES]:
    raise InputError(
      f'{where} has architectures={names!r}; prefjax knows one of '
      f'{sorted(ARCHITECTURES)}.'
    )
  family, keys, defaults = ARCHITECTURES[names[0]]
  for key, only in _ONLY.items():
    if described.get(key, only) != only:
      raise InputError(f'{where} has {key}={described[key]!r}; supported is {only!r}.')
  said = {**_DEFAULTS, **defaults, **described, **_rope(described, where)}
  if said.get('num_key_value_heads') is None:
    said['num_key_value_heads'] = said.get('num_attention_heads')
  derived = [] if said.get('head_dim') else ['head_dim']
  missing = sorted(set(keys.values()) - set(said) - set(derived))
  if missing:
    raise InputError(f'{where} lacks {missing}.')
  fields = {
    ours: _value(_TYPES[ours], key, said[key], where)
    for ours, key in keys.items()
    if ours not in derived
  }
  fields.setdefault('head_dim', fields['width'] // fields['num_heads'])
  return family, configs.create(family=family, **fields)


def describe(config: DecoderConfig) -> dict[str, Any]:
  """A config.json that `read` takes for this config.

  Raises:
    InputError: where no known architecture can say all of it.
  """
  running = {name: getattr(config, name) for name in RUNNING}
  for name, (family, keys, _) in ARCHITECTURES.items():
    described = {
      'architectures': [name],
      'model_type': family,
      'hidden_act': 'silu',
      'torch_dtype': config.param_dtype,
      **{key: getattr(config, ours) for ours, key in keys.items()},
    }
    _, found = read(described, name)
    if dataclasses.replace(found, **running) == config:
      return described
  raise InputError(f'None of {sorted(ARCHITECTURES)} can say all of {config}.')


def _rope(described, where):
  """The rotary base of transformers 5, which keeps it in a section of its own."""
  found = {}
  for key in ('rope_scaling', 'rope_parameters'):
    section = described.get(key) or {}
    plain = isinstance(section, dict) and all(
      name == 'rope_theta' or (name in ('rope_type', 'type') and value == 'default')
      for name, value in section.items()
    )
    if not plain:
      raise InputError(
        f'{where} has {key}={section!r}; scaled rotary positions are not supported.'
      )
    found |= {name: section[name] for name in section if name == 'rope_theta'}
  return found


_TYPES = {field.name: field.type for field in dataclasses.fields(DecoderConfig)}


def _value(kind, key, value, where):
  if kind is float and type(value) is int:
    value = float(value)
  fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
  if not fits or (type(value) in (int, float) and not value > 0):
    raise InputError(
      f'{where} has {key}={value!r}; it must be {inspect.formatannotation(kind)}, and '
      'positive where that is a number.'
    )
  return value
