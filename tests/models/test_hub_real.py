"""A real checkpoint in the Hugging Face layout: bfloat16, and never trained."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from prefjax import logprobs
from prefjax.models import config as configs
from prefjax.models import decoder, hub
from prefjax.types import PreferenceBatch

DATA = Path(os.environ.get('PREFJAX_DATA') or Path(__file__).parents[2] / 'data')


@pytest.fixture(scope='module')
def digits():
  folder = DATA / 'digit_completion'
  if not (folder / 'model.safetensors').is_file():
    pytest.skip(f'{folder} is not there; PREFJAX_DATA names its parent')
  return folder


def bfloat16s(folder, name):
  """A tensor's values, read from the file's bytes by hand."""
  data = (folder / 'model.safetensors').read_bytes()
  size = int.from_bytes(data[:8], 'little')
  header = json.loads(data[8 : 8 + size])[name]
  first, last = header['data_offsets']
  bits = np.frombuffer(data[8 + size + first : 8 + size + last], '<u2')
  return (bits.astype('<u4') << 16).view('<f4').reshape(header['shape'])


def test_a_real_checkpoint(digits):
  config, params = hub.load(digits)
  assert config == configs.create(
    family='llama',
    vocab_size=16,
    width=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    mlp_width=344,
    max_positions=2048,
    norm_eps=1e-6,
  )
  assert jax.tree.map(np.shape, params) == jax.tree.map(
    np.shape, decoder.create(config)[1]
  )
  assert {array.dtype for array in jax.tree.leaves(params)} == {np.dtype('float32')}
  np.testing.assert_array_equal(
    params['embedding'], bfloat16s(digits, 'model.embed_tokens.weight')
  )
  np.testing.assert_array_equal(
    params['unembedding'], bfloat16s(digits, 'lm_head.weight')
  )
  down = params['layers']['mlp']['down']['kernel']
  for layer in range(4):
    wanted = bfloat16s(digits, f'model.layers.{layer}.mlp.down_proj.weight')
    np.testing.assert_array_equal(down[layer], wanted.T)
  kernels = params['layers']['attention']['query']['kernel']
  np.testing.assert_allclose(np.std(kernels), 0.02, rtol=0.02)


def test_a_real_checkpoint_guesses_at_random(digits):
  config, params = hub.load(digits)
  graph, _ = decoder.create(config)
  tokens = jnp.arange(16)[None, None]
  batch = PreferenceBatch(
    prompts=jnp.array([[12, 14, 7, 15, 13, 14, 8, 0]]),
    responses=tokens,
    prompt_length=jnp.array([8]),
    response_length=jnp.array([[16]]),
    mask=jnp.ones(tokens.shape, bool),
    weight=jnp.ones((1, 1)),
  )
  hidden, head = jax.jit(decoder.forward(graph))(params, batch)
  out = logprobs.from_hidden(hidden[:, :, :-1], head, tokens, batch.mask)
  np.testing.assert_allclose(out.logps, -np.log(16), rtol=0, atol=0.7)
  # A normed state of 128 numbers, times weights drawn from N(0, 0.02^2).
  logits = hidden[0, 0] @ head.weight.T
  np.testing.assert_allclose(logits.std(), 0.02 * 128**0.5, rtol=0.1)


def test_a_real_checkpoint_saved_again_has_the_same_bits(digits, tmp_path):
  config, params = hub.load(digits, param_dtype='bfloat16')
  hub.save(tmp_path, config, params)
  old, new = (load_file(x / 'model.safetensors') for x in (digits, tmp_path))
  assert list(new) == list(old)
  for name, value in old.items():
    assert new[name].tobytes() == value.tobytes()
  wanted = json.loads((digits / 'config.json').read_text())
  found = json.loads((tmp_path / 'config.json').read_text())
  assert {key: wanted.get(key, 32) for key in found} == found  # head_dim is derived
