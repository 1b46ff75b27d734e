"""Reads the `.bin` checkpoints of llama2.c (its first format, float32)."""

from pathlib import Path
from typing import Any

import numpy as np

from prefjax.errors import InputError
from prefjax.models import config as configs
from prefjax.models.config import DecoderConfig

# int32: width, MLP width, layers, heads, key heads, vocabulary, length
_HEADER = 7


def load(path: Path, **overrides: Any) -> tuple[DecoderConfig, dict[str, Any]]:
  """A checkpoint's config and parameters; `overrides` change the config.

  A positive vocabulary size says that the embeddings are tied, a negative one that an
  unembedding follows.

  Raises:
    InputError: where the file is missing or its size is not what its header says.
  """
  if not path.is_file():
    raise InputError(f'There is no llama2.c checkpoint at {path}.')
  data = path.read_bytes()
  if len(data) < 4 * _HEADER or len(data) % 4:
    raise InputError(
      f'{path} is no llama2.c checkpoint: it has {len(data)} bytes, not a '
      f'header of {4 * _HEADER} and whole float32 weights.'
    )
  header = np.frombuffer(data, '<i4', _HEADER).tolist()
  width, hidden, layers, heads, kv_heads, vocab, length = header
  weights = np.frombuffer(data, '<f4', offset=4 * _HEADER)
  head_dim = width // max(heads, 1)
  shapes = _shapes(abs(vocab), width, hidden, layers, heads, kv_heads, head_dim, length)
  if vocab < 0:
    shapes['unembedding'] = (-vocab, width)
  wanted = sum(int(np.prod(shape)) for shape in shapes.values())
  if min(header[:5]) <= 0 or wanted != weights.size:
    raise InputError(
      f'{path} is no llama2.c checkpoint: its header {header} asks for {wanted} '
      f'weights, and {weights.size} follow.'
    )
  config = configs.create(
    family='llama',
    vocab_size=abs(vocab),
    width=width,
    num_layers=layers,
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=head_dim,
    mlp_width=hidden,
    max_positions=length,
    position='rotary_interleaved',
    tied_embeddings=vocab > 0,
    **overrides,
  )
  return config, _params(_cut(weights, shapes))


def _shapes(vocab, width, hidden, layers, heads, kv_heads, head_dim, length):
  queries, keys = heads * head_dim, kv_heads * head_dim
  return {
    'embedding': (vocab, width),
    'attention_norm': (layers, width),
    'query': (layers, queries, width),
    'key': (layers, keys, width),
    'value': (layers, keys, width),
    'out': (layers, width, queries),
    'mlp_norm': (layers, width),
    'gate': (layers, hidden, width),
    'down': (layers, width, hidden),
    'up': (layers, hidden, width),
    'norm': (width,),
    # Tables of rotary angles, which the decoder forms by itself.
    'cosines': (length, head_dim // 2),
    'sines': (length, head_dim // 2),
  }


def _cut(weights, shapes):
  parts, start = {}, 0
  for name, shape in shapes.items():
    size = int(np.prod(shape))
    parts[name] = weights[start : start + size].reshape(shape)
    start += size
  return parts


def _params(parts):
  def kernels(*names):
    return {name: {'kernel': parts[name].swapaxes(1, 2)} for name in names}

  params = {
    'embedding': parts['embedding'],
    'layers': {
      'attention': kernels('query', 'key', 'value', 'out'),
      'attention_norm': {'scale': parts['attention_norm']},
      'mlp': kernels('gate', 'up', 'down'),
      'mlp_norm': {'scale': parts['mlp_norm']},
    },
    'norm': {'scale': parts['norm']},
  }
  if 'unembedding' in parts:
    params['unembedding'] = parts['unembedding']
  return params
