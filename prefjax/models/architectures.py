"""The published families: what their config.json says, and their tensors' names."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from prefjax.models import fields as parts


class Architecture(NamedTuple):
  """How a family's config.json and tensors say what ours do.

  Attributes:
    keys: our field -> the key of config.json.
    names: our path -> the tensor's name; below `layers`, names go on from that of the
      layer. Three paths with one name are thirds of one tensor, in this order.
    sections: fields that are no single key.
    defaults: what transformers takes for a key that is not written.
    only: keys that are understood with one value alone, or not written.
    derived: fields that need not be written, as they follow from others.
    thirds: how query, key and value lie in one tensor: end to end, or head by head.
    transposed: kernels are [outputs, inputs] there.
    buffers: endings of tensors that old checkpoints hold beside their weights.
  """

  family: str
  keys: Mapping[str, str]
  names: Mapping[str, str]
  sections: tuple[parts.Section, ...] = ()
  defaults: Mapping[str, Any] = {}
  only: Mapping[str, Any] = {}
  derived: tuple[str, ...] = ('head_dim', 'num_kv_heads')
  thirds: Literal['end to end', 'by head'] | None = None
  transposed: bool = True
  buffers: tuple[str, ...] = ('.rotary_emb.inv_freq',)


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
_GEMMA_KEYS = {
  **_KEYS,
  **_ATTENTION_BIAS,
  'attention_soft_cap': 'attn_logit_softcapping',
  'logit_soft_cap': 'final_logit_softcapping',
}
_SHARED_BY_NEOX = ('vocab_size', 'width', 'num_layers', 'num_heads', 'mlp_width')

_NAMES = {
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
_GEMMA_NAMES = _NAMES | {
  'layers.attention_post_norm': 'post_attention_layernorm',
  'layers.mlp_norm': 'pre_feedforward_layernorm',
  'layers.mlp_post_norm': 'post_feedforward_layernorm',
}
_NEOX_NAMES = {
  'embedding': 'gpt_neox.embed_in',
  'unembedding': 'embed_out',
  'norm': 'gpt_neox.final_layer_norm',
  'layers': 'gpt_neox.layers',
  'layers.attention_norm': 'input_layernorm',
  'layers.attention.query': 'attention.query_key_value',
  'layers.attention.key': 'attention.query_key_value',
  'layers.attention.value': 'attention.query_key_value',
  'layers.attention.out': 'attention.dense',
  'layers.mlp_norm': 'post_attention_layernorm',
  'layers.mlp.up': 'mlp.dense_h_to_4h',
  'layers.mlp.down': 'mlp.dense_4h_to_h',
}
_GPT2_NAMES = {
  'embedding': 'transformer.wte',
  'positions': 'transformer.wpe',
  'unembedding': 'lm_head',
  'norm': 'transformer.ln_f',
  'layers': 'transformer.h',
  'layers.attention_norm': 'ln_1',
  'layers.attention.query': 'attn.c_attn',
  'layers.attention.key': 'attn.c_attn',
  'layers.attention.value': 'attn.c_attn',
  'layers.attention.out': 'attn.c_proj',
  'layers.mlp_norm': 'ln_2',
  'layers.mlp.up': 'mlp.c_fc',
  'layers.mlp.down': 'mlp.c_proj',
}
_LLAMA_DEFAULTS = {
  'rms_norm_eps': 1e-6,
  'rope_theta': 10_000.0,
  'tie_word_embeddings': False,
  'attention_bias': False,
  'mlp_bias': False,
  'sliding_window': 4096,
}
_GEMMA_DEFAULTS = _LLAMA_DEFAULTS | {
  'tie_word_embeddings': True,
  'head_dim': 256,
  'attn_logit_softcapping': None,
  'final_logit_softcapping': None,
}
_SILU = {'hidden_act': 'silu'}
_GEMMA_ONLY = {
  'hidden_activation': 'gelu_pytorch_tanh',
  'use_bidirectional_attention': False,
}

ARCHITECTURES = {
  'LlamaForCausalLM': Architecture(
    'llama',
    _KEYS | _ATTENTION_BIAS | {'mlp_bias': 'mlp_bias'},
    _NAMES,
    (parts.ROPE,),
    _LLAMA_DEFAULTS,
    _SILU,
  ),
  'MistralForCausalLM': Architecture(
    'mistral',
    _KEYS | {'window': 'sliding_window'},
    _NAMES,
    (parts.ROPE,),
    _LLAMA_DEFAULTS,
    _SILU,
  ),
  'Qwen2ForCausalLM': Architecture(
    'qwen2',
    _KEYS,
    _NAMES,
    (parts.ROPE, parts.QWEN_LAYERS),
    _LLAMA_DEFAULTS,
    _SILU,
  ),
  'Qwen3ForCausalLM': Architecture(
    'qwen3',
    _KEYS | _ATTENTION_BIAS,
    _NAMES,
    (parts.ROPE, parts.QWEN_LAYERS),
    _LLAMA_DEFAULTS | {'head_dim': 128},
    _SILU,
  ),
  'Gemma2ForCausalLM': Architecture(
    'gemma2',
    _GEMMA_KEYS,
    _GEMMA_NAMES,
    (parts.ROPE, parts.GEMMA2_LAYERS, parts.SCALE),
    _GEMMA_DEFAULTS | {'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0},
    _GEMMA_ONLY,
  ),
  'Gemma3ForCausalLM': Architecture(
    'gemma3',
    _GEMMA_KEYS | {'local_rope_theta': 'rope_local_base_freq'},
    _GEMMA_NAMES,
    (parts.TWO_ROPES, parts.GEMMA3_LAYERS, parts.SCALE),
    _GEMMA_DEFAULTS | {'rope_theta': 1e6, 'rope_local_base_freq': 10_000.0},
    _GEMMA_ONLY | {'model_type': 'gemma3_text'},
  ),
  'GPTNeoXForCausalLM': Architecture(
    'gpt_neox',
    {
      **{ours: _KEYS[ours] for ours in _SHARED_BY_NEOX},
      'max_positions': 'max_position_embeddings',
      'norm_eps': 'layer_norm_eps',
      'rope_theta': 'rotary_emb_base',
      'rotary_fraction': 'rotary_pct',
      'parallel_residual': 'use_parallel_residual',
      'tied_embeddings': 'tie_word_embeddings',
      **_ATTENTION_BIAS,
    },
    _NEOX_NAMES,
    (parts.ROPE,),
    {
      'layer_norm_eps': 1e-5,
      'rotary_emb_base': 10_000.0,
      'rotary_pct': 0.25,
      'use_parallel_residual': True,
      'tie_word_embeddings': False,
      'attention_bias': True,
    },
    {'hidden_act': 'gelu'},
    thirds='by head',
    buffers=('.rotary_emb.inv_freq', '.attention.bias', '.attention.masked_bias'),
  ),
  'GPT2LMHeadModel': Architecture(
    'gpt2',
    {
      'vocab_size': 'vocab_size',
      'width': 'n_embd',
      'num_layers': 'n_layer',
      'num_heads': 'n_head',
      'mlp_width': 'n_inner',
      'max_positions': 'n_positions',
      'norm_eps': 'layer_norm_epsilon',
      'tied_embeddings': 'tie_word_embeddings',
    },
    _GPT2_NAMES,
    (),
    {'layer_norm_epsilon': 1e-5, 'tie_word_embeddings': True},
    {
      'activation_function': 'gelu_new',
      'scale_attn_weights': True,
      'scale_attn_by_inverse_layer_idx': False,
      'add_cross_attention': False,
    },
    ('head_dim', 'num_kv_heads', 'mlp_width'),
    thirds='end to end',
    transposed=False,
    buffers=('.attn.bias', '.attn.masked_bias'),
  ),
}
