import dataclasses
import re

import pytest

from prefjax.errors import InputError
from prefjax.models import config as configs

SIZES = dict(
  vocab_size=11,
  width=16,
  num_layers=8,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
  mlp_width=24,
  max_positions=32,
)
LLAMA = dict(
  norm='rms',
  norm_eps=1e-5,
  post_norms=False,
  qk_norm=False,
  position='rotary',
  rotary_fraction=1.0,
  rope_theta=1e4,
  local_rope_theta=None,
  mlp='silu_gated',
  parallel_residual=False,
  qkv_bias=False,
  output_bias=False,
  mlp_bias=False,
  tied_embeddings=False,
  scale_embeddings=False,
  attention_scale=None,
  attention_soft_cap=None,
  logit_soft_cap=None,
  window=None,
  global_every=None,
)
GEMMA = dict(
  norm='rms_plus_one',
  norm_eps=1e-6,
  post_norms=True,
  mlp='gelu_gated',
  tied_embeddings=True,
  scale_embeddings=True,
)
BIASED = dict(norm='layer', qkv_bias=True, output_bias=True, mlp_bias=True)
FAMILIES = {
  'llama': {},
  'mistral': dict(window=4096),
  'qwen2': dict(norm_eps=1e-6, rope_theta=1e6, qkv_bias=True),
  'qwen3': dict(norm_eps=1e-6, rope_theta=1e6, qk_norm=True),
  'gemma2': GEMMA
  | dict(attention_soft_cap=50.0, logit_soft_cap=30.0, window=4096, global_every=2),
  'gemma3': GEMMA
  | dict(
    qk_norm=True,
    rope_theta=1e6,
    local_rope_theta=1e4,
    window=1024,
    global_every=6,
  ),
  'gpt_neox': BIASED | dict(rotary_fraction=0.25, mlp='gelu', parallel_residual=True),
  'gpt2': BIASED | dict(position='learned', mlp='gelu_tanh', tied_embeddings=True),
}


@pytest.mark.parametrize('family', sorted(configs.FAMILIES))
def test_a_family_is_llama_but_for_what_it_changes(family):
  got = dataclasses.asdict(configs.create(family=family, **SIZES))
  wanted = LLAMA | FAMILIES[family] | SIZES
  assert {name: got[name] for name in wanted} == wanted


def test_what_is_given_overrides_the_family():
  config = configs.create(family='mistral', window=7, norm_eps=0.5, **SIZES)
  assert (config.window, config.norm_eps) == (7, 0.5)


@pytest.mark.parametrize(
  'options, wanted',
  [
    (dict(), 'GGGGGGGG'),
    (dict(window=4), 'LLLLLLLL'),
    (dict(window=4, global_every=2), 'LGLGLGLG'),
    (dict(window=4, global_every=6), 'LLLLLGLL'),
    (dict(window=4, global_every=1), 'GGGGGGGG'),
    (dict(global_every=2), 'GGGGGGGG'),
  ],
)
def test_which_layers_are_global(options, wanted):
  config = configs.create(**SIZES, **options)
  assert config.layer_is_global == tuple(kind == 'G' for kind in wanted)


def test_an_unknown_family_lists_the_known():
  wanted = re.escape(f'{sorted(configs.FAMILIES)}') + ".*'llamma'"
  with pytest.raises(InputError, match=wanted):
    configs.create(family='llamma', **SIZES)


def test_an_unknown_key_lists_the_known():
  with pytest.raises(InputError, match=r"\['widht'\].*'vocab_size', 'width'"):
    configs.create(widht=3, **SIZES)


def test_a_missing_key_is_named():
  sizes = {k: v for k, v in SIZES.items() if k not in ('width', 'head_dim')}
  with pytest.raises(InputError, match=r"lacks \['head_dim', 'width'\]"):
    configs.create(**sizes)


def test_heads_must_be_a_multiple_of_key_heads():
  with pytest.raises(InputError, match=r'multiple of model\.num_kv_heads.* 3'):
    configs.create(**SIZES | dict(num_kv_heads=3))


@pytest.mark.parametrize(
  'name, value',
  [
    ('norm', 'batch'),
    ('position', 'alibi'),
    ('mlp', 'relu'),
    ('attention', 'flash'),
    ('layout', 'packed'),
    ('remat', 'some'),
    ('dtype', 'float16'),
    ('param_dtype', 'int8'),
  ],
)
def test_a_bad_choice_lists_the_known(name, value):
  config = configs.create(**SIZES)
  known = getattr(config, name)
  # Set behind the constructor's back: under tests its types are checked before.
  object.__setattr__(config, name, value)
  with pytest.raises(InputError, match=f"model.{name} .*'{known}'.*'{value}'"):
    config.__post_init__()
