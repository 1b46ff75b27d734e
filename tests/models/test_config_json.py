"""What a config.json says, and what it may not say."""

import pytest

from prefjax.errors import InputError
from prefjax.models import config as configs
from prefjax.models import config_json

DESCRIBED = {
  'architectures': ['LlamaForCausalLM'],
  'hidden_act': 'silu',
  'hidden_size': 8,
  'intermediate_size': 12,
  'max_position_embeddings': 32,
  'num_attention_heads': 4,
  'num_hidden_layers': 2,
  'num_key_value_heads': 2,
  'rms_norm_eps': 1e-6,
  'rope_theta': 500_000,
  'vocab_size': 11,
}
SIZES = dict(
  vocab_size=11,
  width=8,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=2,
  mlp_width=12,
  max_positions=32,
)
LLAMA3 = {
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 16,
}
STRETCHED = dict(rope_scaling='llama3', rope_factor=8.0, rope_original_positions=16)
MISTRAL = {'architectures': ['MistralForCausalLM']}
QWEN2 = {'architectures': ['Qwen2ForCausalLM'], 'sliding_window': 7}
QWEN3 = {'architectures': ['Qwen3ForCausalLM']}
SLIDING = QWEN2 | {'use_sliding_window': True}
GEMMA2 = {'architectures': ['Gemma2ForCausalLM'], 'hidden_act': 'absent', 'head_dim': 4}
GEMMA3 = GEMMA2 | {'architectures': ['Gemma3ForCausalLM'], 'rope_theta': 'absent'}
GEMMA = dict(head_dim=4, attention_scale=1 / 16)
NEOX = {
  'architectures': ['GPTNeoXForCausalLM'],
  'hidden_act': 'gelu',
  'layer_norm_eps': 1e-6,
}
GPT2 = {
  'architectures': ['GPT2LMHeadModel'],
  'layer_norm_epsilon': 1e-6,
  'n_embd': 8,
  'n_head': 4,
  'n_layer': 2,
  'n_positions': 32,
}
PLAIN = dict(num_kv_heads=4, rope_theta=10_000.0)
TYPES = ['sliding_attention', 'full_attention']


def described(changes=()):
  found = DESCRIBED | dict(changes)
  return {key: value for key, value in found.items() if value != 'absent'}


# A case: how the config.json differs, and the fields that follow from it.
CASES = {
  'llama': ({}, {}),
  'head_dim': ({'head_dim': 6}, dict(head_dim=6)),
  'no head_dim': ({'head_dim': None}, dict(head_dim=2)),
  'no key heads': ({'num_key_value_heads': 'absent'}, dict(num_kv_heads=4)),
  'tied': ({'tie_word_embeddings': True}, dict(tied_embeddings=True)),
  'attention_bias': (
    {'attention_bias': True},
    dict(qkv_bias=True, output_bias=True, mlp_bias=False),
  ),
  'mlp_bias': (
    {'mlp_bias': True},
    dict(qkv_bias=False, output_bias=False, mlp_bias=True),
  ),
  'llama 1': (
    {'rope_theta': 'absent', 'rms_norm_eps': 'absent'},
    dict(rope_theta=10_000.0, norm_eps=1e-6),
  ),
  'transformers 5': (
    {
      'rope_theta': 'absent',
      'rope_parameters': {'rope_theta': 3e5, 'rope_type': 'default'},
    },
    dict(rope_theta=3e5),
  ),
  'a base of both kinds': (
    {'rope_parameters': {'rope_theta': 3e5}},
    dict(rope_theta=3e5),
  ),
  'no scaling': ({'rope_scaling': None}, {}),
  'llama 3.1': ({'rope_scaling': {'rope_type': 'llama3', **LLAMA3}}, STRETCHED),
  'its scaling in transformers 5': (
    {'rope_parameters': {'rope_type': 'llama3', 'rope_theta': 3e5, **LLAMA3}},
    STRETCHED | dict(rope_theta=3e5),
  ),
  'linear': (
    {'rope_scaling': {'type': 'linear', 'factor': 2}},
    dict(rope_scaling='linear', rope_factor=2.0),
  ),
  'mistral': (MISTRAL | {'sliding_window': 7}, dict(window=7)),
  'mistral, no window': (MISTRAL | {'sliding_window': None}, dict(window=None)),
  'mistral, not said': (MISTRAL, dict(window=4096)),
  'qwen2': (QWEN2, dict(qkv_bias=True, output_bias=False, window=None)),
  'qwen2, no layer slides': (SLIDING, dict(window=None)),
  'qwen2, the last slides': (
    SLIDING | {'max_window_layers': 1},
    dict(window=7, global_first=1),
  ),
  'qwen2, by layer': (
    SLIDING | {'layer_types': TYPES},
    dict(window=7, global_every=2),
  ),
  'qwen3': (QWEN3, dict(qk_norm=True, qkv_bias=False, head_dim=128)),
  'gemma2': (GEMMA2, dict(**GEMMA, window=4096, global_every=2)),
  'gemma2, no caps': (
    GEMMA2 | {'attn_logit_softcapping': None, 'query_pre_attn_scalar': 144},
    dict(GEMMA, attention_soft_cap=None, attention_scale=1 / 12),
  ),
  'gemma3': (
    GEMMA3 | {'num_hidden_layers': 6, 'sliding_window': 512},
    dict(**GEMMA, num_layers=6, window=512, rope_theta=1e6),
  ),
  'gemma3 of transformers 5': (
    GEMMA3
    | {
      'layer_types': TYPES,
      'rope_parameters': {
        'full_attention': {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 5e5},
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 2e4},
      },
    },
    dict(
      **GEMMA,
      window=4096,
      global_every=2,
      local_rope_theta=2e4,
      rope_scaling='linear',
      rope_factor=8.0,
    ),
  ),
  'gpt_neox': (NEOX, PLAIN),
  'gpt_neox of transformers 5': (
    NEOX
    | {
      'rope_parameters': {'rope_theta': 3e5, 'partial_rotary_factor': 0.5},
      'use_parallel_residual': False,
      'attention_bias': False,
    },
    dict(
      num_kv_heads=4,
      rope_theta=3e5,
      rotary_fraction=0.5,
      parallel_residual=False,
      qkv_bias=False,
      output_bias=False,
    ),
  ),
  'gpt2': (GPT2, PLAIN | dict(mlp_width=32)),
  'gpt2, its own width': (GPT2 | {'n_inner': 12}, PLAIN),
}


@pytest.mark.parametrize('case', CASES)
def test_read_and_described_again(case):
  changes, fields = CASES[case]
  found, config = config_json.read(described(changes), 'here')
  said = SIZES | {'norm_eps': 1e-6, 'rope_theta': 500_000.0} | fields
  assert config == configs.create(family=found.family, **said)
  architecture, again = config_json.describe(config)
  assert config_json.read(again, 'here') == (architecture, config)


def test_how_a_model_is_run_is_not_described():
  config = configs.create(**SIZES, attention='dense', dtype='bfloat16', remat='full')
  _, found = config_json.describe(config)
  assert config_json.read(found, 'here')[1] == configs.create(**SIZES)


@pytest.mark.parametrize(
  'family, fields',
  [
    ('llama', dict(position='rotary_interleaved')),
    ('llama', dict(rotary_fraction=0.5)),
    ('qwen3', dict(logit_soft_cap=3.0)),
    ('gemma2', dict(attention_scale=0.123)),
    ('gpt2', dict(qk_norm=True)),
  ],
)
def test_what_no_architecture_can_say(family, fields):
  config = configs.create(family=family, **SIZES, **fields)
  with pytest.raises(InputError, match=r"None of \['GPT2.* can say all of"):
    config_json.describe(config)


ONE_OF = r"knows one of \['GPT2.*GPTNeoX.*Gemma2.*Gemma3.*Llama.*Mistral.*Qwen2.*Qwen3"


@pytest.mark.parametrize(
  'key, value, message',
  [
    ('architectures', ['BertModel'], ONE_OF),
    ('architectures', 'absent', rf'architectures=None; prefjax {ONE_OF}'),
    ('architectures', [['LlamaForCausalLM']], ONE_OF),
    ('hidden_act', 'gelu', "hidden_act='gelu'; supported is 'silu'"),
    (
      'rope_scaling',
      {'type': 'yarn'},
      "yarn'}; the known .*'default', 'linear', 'llama3'",
    ),
    ('rope_scaling', 'linear', "positions 'linear'; they must be an object"),
    ('rope_parameters', {'rope_type': 'llama3'}, "'llama3' has .*'factor'.* nothing"),
    ('rope_scaling', {'type': 'linear', 'factor': 2, 'a': 1}, 'has .* nothing else'),
    ('rope_scaling', {'type': 'linear', 'factor': 'x'}, "rope_factor of ours='x'"),
    ('quantization_config', {'bits': 4}, 'quantization_config='),
    ('hidden_size', 'absent', r"lacks \['hidden_size'\]"),
    ('vocab_size', -3, 'vocab_size=-3; it must be int, and positive'),
    ('num_hidden_layers', True, 'num_hidden_layers=True; it must be int'),
    ('num_attention_heads', 4.0, r'num_attention_heads=4\.0; it must be int'),
    ('rms_norm_eps', 'x', "rms_norm_eps='x'; it must be float"),
    ('rope_theta', float('nan'), 'rope_theta=nan; it must be float, and positive'),
    ('tie_word_embeddings', 1, 'tie_word_embeddings=1; it must be bool'),
    ('num_key_value_heads', 3, r'must be a multiple of model\.num_kv_heads'),
  ],
)
def test_what_is_wrong_or_not_known_is_named(key, value, message):
  with pytest.raises(InputError, match=message):
    config_json.read(described({key: value}), 'here')


@pytest.mark.parametrize(
  'base, changes, message',
  [
    (SLIDING, {'layer_types': ['full_attention']}, r'layer_types=.* must be 2 of'),
    (SLIDING, {'layer_types': 'full'}, r'layer_types=.* must be 2 of'),
    (
      SLIDING,
      {'num_hidden_layers': 4, 'layer_types': [TYPES[i] for i in (0, 1, 1, 0)]},
      'neither the first nor every n-th are full',
    ),
    (GEMMA2, {'query_pre_attn_scalar': 0}, 'query_pre_attn_scalar=0; .* positive'),
    (GEMMA2, {'hidden_activation': 'silu'}, 'supported is .gelu_pytorch_tanh'),
    (GEMMA3, {'rope_parameters': [1]}, r'rope_parameters=\[1\]; it must be an object'),
    (GPT2, {'scale_attn_by_inverse_layer_idx': True}, 'supported is False'),
    (NEOX, {'hidden_act': 'gelu_fast'}, "supported is 'gelu'"),
  ],
)
def test_what_a_family_cannot_have_is_named(base, changes, message):
  with pytest.raises(InputError, match=message):
    config_json.read(described(base | changes), 'here')
