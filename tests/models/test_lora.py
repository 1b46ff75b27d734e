"""Adapters: by hand, where they sit, how they start, and what merging them gives."""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from prefjax.errors import InputError
from prefjax.models import decoder, layers, lora
from prefjax.models.lora import Lora

SPEC = Lora(rank=2, alpha=3.0, targets=('layers.*',))
CONFIG = tiny.config(qkv_bias=True)


def adapters(spec=SPEC, seed=0, scale=0.3, config=CONFIG):
  """Adapters far from their start, so that they say something."""
  rng = np.random.default_rng(seed)
  shapes = lora.create(config, spec)[1]
  return jax.tree.map(
    lambda x: jnp.asarray(scale * rng.standard_normal(x.shape), x.dtype), shapes
  )


@functools.cache
def runs(spec=SPEC):
  base = tiny.params(qkv_bias=True)
  forward = lora.forward(CONFIG, spec)
  adapted = jax.jit(lambda base, more, batch: forward(lora.joined(base, more), batch))
  plain = jax.jit(decoder.forward(decoder.create(CONFIG)[0]))
  return base, adapted, plain


def test_a_projection_by_hand():
  # x W = [1, 2] [[1], [1]] = 3; x A = [1, 2] [[1], [0]] = 1; 1 B = 5; 0.5 * 5 = 2.5
  made = layers.Projection(2, 1, rngs=layers.nnx.Rngs(0))
  made.kernel[...] = jnp.ones((2, 1))
  x = jnp.array([[1.0, 2.0]])
  np.testing.assert_allclose(made(x), [[3.0]])
  made.lora_a = layers.nnx.Param(jnp.array([[1.0], [0.0]]))
  made.lora_b = layers.nnx.Param(jnp.array([[5.0]]))
  made.lora_scale = 0.5
  np.testing.assert_allclose(made(x), [[5.5]])


@pytest.mark.parametrize(
  'targets, wanted',
  [
    (('layers.attention.query', '*.down'), {'attention.query', 'mlp.down'}),
    (('layers.mlp.*',), {'mlp.gate', 'mlp.up', 'mlp.down'}),
    (
      ('layers.attention.[qkv]*',),
      {f'attention.{x}' for x in ('query', 'key', 'value')},
    ),
  ],
)
def test_targets_are_patterns_of_paths(targets, wanted):
  shapes = lora.create(CONFIG, Lora(rank=2, alpha=1.0, targets=targets))[1]
  flat = traverse_util.flatten_dict(shapes, sep='.')
  assert set(flat) == {f'layers.{x}.lora_{c}' for x in wanted for c in 'ab'}
  for path, x in flat.items():
    assert x.shape[0] == CONFIG.num_layers
    assert x.shape[2 if path.endswith('a') else 1] == 2


@pytest.mark.parametrize('zero', ['a', 'b'])
def test_first_the_adapted_model_is_the_base_bit_for_bit(zero):
  spec = Lora(rank=2, alpha=3.0, targets=SPEC.targets, zero=zero)
  base, adapted, plain = runs()
  first = lora.initial_params(CONFIG, spec, jax.random.key(0))
  sizes = {path[-1]: [] for path in traverse_util.flatten_dict(first)}
  for path, x in traverse_util.flatten_dict(first).items():
    sizes[path[-1]].append(float(np.std(x)) * x.shape[-2] ** 0.5)
  other = 'b' if zero == 'a' else 'a'
  assert not any(sizes[f'lora_{zero}'])
  np.testing.assert_allclose(sizes[f'lora_{other}'], 1.0, atol=0.5)
  batch = tiny.batch()
  hidden, _ = adapted(base, first, batch)
  np.testing.assert_array_equal(hidden, plain(base, batch)[0])


def test_adapters_off_and_merged():
  base, adapted, plain = runs()
  more, batch = adapters(), tiny.batch()
  whole = lora.joined(base, more)
  on, _ = adapted(base, more, batch)
  forward = functools.partial(lora.forward(CONFIG, SPEC), adapters=False)
  off, _ = jax.jit(forward)(whole, batch)
  np.testing.assert_allclose(off, plain(base, batch)[0], atol=1e-6)
  assert np.abs(on - off).max() > 0.1
  merged = lora.merged(whole, SPEC)
  assert jax.tree.map(np.shape, merged) == jax.tree.map(np.shape, base)
  np.testing.assert_allclose(plain(merged, batch)[0], on, atol=2e-5)
  kernel = merged['layers']['mlp']['up']['kernel'][1]
  one = more['layers']['mlp']['up']
  wanted = base['layers']['mlp']['up']['kernel'][1]
  wanted = wanted + 1.5 * one['lora_a'][1] @ one['lora_b'][1]
  np.testing.assert_allclose(kernel, wanted, atol=1e-6)


def test_joined_and_split_are_inverses_without_a_copy():
  base, more = tiny.params(qkv_bias=True), adapters()
  parts = lora.split(lora.joined(base, more))
  assert jax.tree.structure(parts) == jax.tree.structure((base, more))
  same = jax.tree.map(lambda a, b: a is b, parts, (base, more))
  assert jax.tree.all(same)


def test_adapters_of_bfloat16_weights_are_float32():
  config = tiny.config(param_dtype='bfloat16', dtype='bfloat16')
  shapes = lora.create(config, SPEC)[1]
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {np.dtype('float32')}


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(rank=0), 'lora.rank and lora.alpha must be positive, got 0'),
    (dict(alpha=0.0), r'must be positive, got 2 and 0\.0'),
    (dict(zero='c'), "lora.zero must be 'a' or 'b', got 'c'"),
    (
      dict(targets=('layers.attn.*',)),
      r"'layers\.attn\.\*', .*'layers\.attention\.key'",
    ),
    (dict(targets=('layers.attention_norm',)), 'fits none of the projections'),
    (dict(targets=()), 'names no projection'),
  ],
)
def test_what_is_wrong_is_named(changes, message):
  options = dict(rank=2, alpha=1.0, targets=('layers.*',)) | changes
  with pytest.raises(InputError, match=message):
    lora.create(CONFIG, Lora(**options))
