"""The llama2.c reader, on a written file and on a real pretrained model."""

import json
import os
from pathlib import Path
import re
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax import logprobs
from prefjax.errors import InputError
from prefjax.models import decoder, llama2c
from prefjax.rollout.draws import Controls
from prefjax.rollout.sampler import DecoderSampler, collect
from prefjax.types import PreferenceBatch

DATA = Path(os.environ.get('PREFJAX_DATA') or Path(__file__).parents[2] / 'data')
BOS = 1
#       width, MLP width, layers, heads, key heads, vocabulary, length
HEADER = (8, 12, 2, 4, 2, 11, 16)


def write(path, header=HEADER, extra=0):
  width, hidden, layers, heads, kv_heads, vocab, length = header
  keys, head_dim = width // heads * kv_heads, width // heads
  sizes = {
    'embedding': abs(vocab) * width,
    'attention_norm': layers * width,
    'query': layers * width * width,
    'key': layers * width * keys,
    'value': layers * width * keys,
    'out': layers * width * width,
    'mlp_norm': layers * width,
    'gate': layers * width * hidden,
    'down': layers * width * hidden,
    'up': layers * width * hidden,
    'norm': width,
    'angles': 2 * length * head_dim // 2,
  }
  if vocab < 0:
    sizes['unembedding'] = -vocab * width
  weights = np.arange(sum(sizes.values()) + extra, dtype='<f4')
  path.write_bytes(struct.pack('<7i', *header) + weights.tobytes())
  starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
  return starts


def test_weights_are_where_the_format_has_them(tmp_path):
  starts = write(tmp_path / 'm.bin')
  config, params = llama2c.load(tmp_path / 'm.bin', attention='dense')
  assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, 2)
  assert (config.position, config.tied_embeddings) == ('rotary_interleaved', True)
  assert (config.attention, config.max_positions) == ('dense', 16)
  shapes = jax.tree.map(np.shape, decoder.create(config)[1])
  assert jax.tree.map(np.shape, params) == shapes
  layers = params['layers']
  # The file has [outputs, inputs] of each layer in turn; ours are [inputs, outputs].
  key = layers['attention']['key']['kernel']
  assert key[0, 0, 0] == starts['key']
  assert key[0, 0, 1] == starts['key'] + 8
  assert key[0, 1, 0] == starts['key'] + 1
  assert key[1, 0, 0] == starts['key'] + 8 * 4
  for name in ('gate', 'up', 'down'):
    assert layers['mlp'][name]['kernel'][0, 0, 0] == starts[name]
  assert params['norm']['scale'][0] == starts['norm']


def test_a_negative_vocabulary_has_an_unembedding(tmp_path):
  starts = write(tmp_path / 'm.bin', (*HEADER[:5], -11, 16))
  config, params = llama2c.load(tmp_path / 'm.bin')
  assert config.vocab_size == 11
  assert not config.tied_embeddings
  assert params['unembedding'].shape == (11, 8)
  assert params['unembedding'][0, 0] == starts['unembedding']


def test_a_file_that_is_none_is_refused(tmp_path):
  path = tmp_path / 'm.bin'
  with pytest.raises(InputError, match=r'There is no .*m\.bin'):
    llama2c.load(path)
  write(path)
  whole = path.read_bytes()
  for cut in (0, 20, 28, 100, len(whole) - 1, len(whole) - 4):
    path.write_bytes(whole[:cut])
    with pytest.raises(InputError, match=r'm\.bin is no llama2\.c'):
      llama2c.load(path)
  for wrong in (struct.pack('<i', -8), struct.pack('<i', 9)):
    path.write_bytes(wrong + whole[4:])
    with pytest.raises(InputError, match=r'its header .* weights'):
      llama2c.load(path)
  write(path, extra=1)
  with pytest.raises(InputError, match='weights, and'):
    llama2c.load(path)


@pytest.fixture(scope='module')
def stories():
  folder = DATA / 'stories260K'
  if not (folder / 'stories260K.bin').is_file():
    pytest.skip(f'{folder} is not there; PREFJAX_DATA names its parent')
  expected = json.loads((folder / 'expected_greedy.json').read_text())
  config, params = llama2c.load(folder / 'stories260K.bin')
  params = jax.tree.map(jnp.asarray, params)
  return folder, config, params, expected


def decode(path, ids):
  """Text of token ids: pieces as (score, length, bytes) after the longest's."""
  data, pieces, at = path.read_bytes(), [], 4
  while at < len(data):
    _, size = struct.unpack_from('<fi', data, at)
    piece = data[at + 8 : at + 8 + size]
    # A raw byte is written out, as <0x0A>.
    raw = re.fullmatch(rb'<0x(..)>', piece)
    pieces.append(bytes.fromhex(raw[1].decode()) if raw else piece)
    at += 8 + size
  text = b''.join(pieces[i] for i in ids if i != BOS)
  return text.decode().removeprefix(' ')


def test_greedy_samples_of_a_real_model(stories):
  folder, config, params, expected = stories
  graph, _ = decoder.create(config)
  drawn = DecoderSampler(graph=graph, stop_ids=(BOS,)).stream(
    params,
    jnp.array([[BOS]]),
    jnp.array([1]),
    jax.random.key(0)[None],
    num_responses=1,
    max_tokens=200,
    controls=Controls(greedy=True),
  )
  found = collect(drawn)
  ids = [BOS, *np.asarray(found.tokens)[0, 0].tolist()]
  assert ids == expected['greedy_ids']
  assert decode(folder / 'tok512.bin', ids) == expected['text']
  np.testing.assert_allclose(
    found.logps[0, 0], expected['token_logprobs'], rtol=0, atol=1e-4
  )
  assert found.truncated.all()


@pytest.mark.parametrize('attention', ['dense', 'blocked'])
def test_teacher_forced_logps_of_a_real_model(stories, attention):
  folder, _, params, expected = stories
  config, _ = llama2c.load(folder / 'stories260K.bin', attention=attention)
  graph, _ = decoder.create(config)
  responses = jnp.asarray(expected['greedy_ids'][1:])[None, None]
  batch = PreferenceBatch(
    prompts=jnp.array([[BOS]]),
    responses=responses,
    prompt_length=jnp.array([1]),
    response_length=jnp.array([[200]]),
    mask=jnp.ones(responses.shape, bool),
    weight=jnp.ones((1, 1)),
  )
  hidden, head = jax.jit(decoder.forward(graph))(params, batch)
  out = logprobs.from_hidden(hidden[:, :, :-1], head, responses, batch.mask)
  np.testing.assert_allclose(
    out.logps[0, 0], expected['token_logprobs'], rtol=0, atol=1e-4
  )
  np.testing.assert_allclose(
    out.logps.sum(), expected['sum_logprob'], rtol=0, atol=1e-3
  )
  np.testing.assert_allclose(
    hidden[0, 0, 0] @ head.weight.T,
    expected['logits_after_bos'],
    rtol=0,
    atol=1e-4,
  )
