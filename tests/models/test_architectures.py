"""What a config.json says, and what it may not say."""

import pytest

from prefjax.errors import InputError
from prefjax.models import architectures
from prefjax.models import config as configs

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
MISTRAL = {'architectures': ['MistralForCausalLM']}
QWEN2 = {'architectures': ['Qwen2ForCausalLM'], 'sliding_window': 7}
QWEN3 = {'architectures': ['Qwen3ForCausalLM']}


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
  'mistral': (MISTRAL | {'sliding_window': 7}, dict(window=7)),
  'mistral, no window': (MISTRAL | {'sliding_window': None}, dict(window=None)),
  'mistral, not said': (MISTRAL, dict(window=4096)),
  'qwen2': (QWEN2, dict(qkv_bias=True, output_bias=False, window=None)),
  'qwen3': (QWEN3, dict(qk_norm=True, qkv_bias=False, head_dim=128)),
}


@pytest.mark.parametrize('case', CASES)
def test_read_and_described_again(case):
  changes, fields = CASES[case]
  family, config = architectures.read(described(changes), 'here')
  said = SIZES | {'norm_eps': 1e-6, 'rope_theta': 500_000.0} | fields
  assert config == configs.create(family=family, **said)
  again = architectures.describe(config)
  assert architectures.read(again, 'here')[1] == config


def test_how_a_model_is_run_is_not_described():
  config = configs.create(**SIZES, attention='dense', dtype='bfloat16', remat='full')
  found = architectures.describe(config)
  assert architectures.read(found, 'here')[1] == configs.create(**SIZES)


@pytest.mark.parametrize(
  'family, fields',
  [
    ('llama', dict(position='rotary_interleaved')),
    ('llama', dict(rotary_fraction=0.5)),
    ('qwen3', dict(window=7)),
    ('gemma2', {}),
    ('gpt2', {}),
  ],
)
def test_what_no_architecture_can_say(family, fields):
  config = configs.create(family=family, **SIZES, **fields)
  with pytest.raises(InputError, match=r"None of \['Llama.* can say all of"):
    architectures.describe(config)


ONE_OF = r"prefjax knows one of \['LlamaFor.*Mistral.*Qwen2.*Qwen3"


@pytest.mark.parametrize(
  'key, value, message',
  [
    ('architectures', ['BertModel'], rf"architectures=\['BertModel'\]; {ONE_OF}"),
    ('architectures', 'absent', rf'architectures=None; {ONE_OF}'),
    ('architectures', [['LlamaForCausalLM']], ONE_OF),
    ('hidden_act', 'gelu', "hidden_act='gelu'; supported is 'silu'"),
    ('rope_scaling', {'type': 'linear', 'factor': 2.0}, 'rope_scaling=.*scaled'),
    ('rope_scaling', 'linear', 'rope_scaling=.*scaled'),
    ('rope_parameters', {'rope_type': 'llama3'}, 'rope_parameters=.*scaled'),
    ('quantization_config', {'bits': 4}, 'quantization_config='),
    ('use_sliding_window', True, 'use_sliding_window=True; supported is False'),
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
    architectures.read(described({key: value}), 'here')
