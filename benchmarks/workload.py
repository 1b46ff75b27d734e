"""What TRL and Tunix are measured on too: a workload's weights and tokens in our names.

The workload is a file that gives weights, token ids and the fields of the result line.
"""

import importlib.util
import os
import sys
from typing import Any

_FLAG, _VARIABLE = '--workload=', 'PREFJAX_WORKLOAD'


def load() -> Any:
  """The module at --workload, which reads the other flags by itself."""
  own = [arg for arg in sys.argv if arg.startswith(_FLAG)]
  if own:
    # The workload may start the process again with other allocator settings, as a
    # script that finds no package beside it.
    os.environ[_VARIABLE] = own[-1].removeprefix(_FLAG)
    os.environ['PYTHONPATH'] = os.getcwd()
    sys.argv = [arg for arg in sys.argv if arg not in own]
  path = os.environ.get(_VARIABLE)
  if path is None:
    raise SystemExit('Give the workload: --workload=PATH/workload.py')
  spec = importlib.util.spec_from_file_location('workload', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def llama(w: Any, args: Any) -> tuple[Any, Any]:
  """The workload's Llama: our config and its weights in our names."""
  import jax.numpy as jnp
  import numpy as np

  from prefjax.models import config as configs

  shape = configs.create(
    family='llama',
    vocab_size=args.vocab,
    width=args.hidden,
    num_layers=args.layers,
    num_heads=args.heads,
    num_kv_heads=args.kv_heads,
    head_dim=args.head_dim,
    mlp_width=args.mlp,
    max_positions=2048,
    rope_theta=float(w.ROPE_THETA),
    norm_eps=w.NORM_EPS,
    attention='blocked',
    remat='full' if args.checkpointing else 'none',
  )
  weights = w.weights(args)

  def layers(name):
    return jnp.asarray(
      np.stack([weights[f'model.layers.{i}.{name}.weight'] for i in range(args.layers)])
    )

  def kernels(prefix, **names):
    return {
      ours: {'kernel': layers(f'{prefix}.{theirs}_proj').swapaxes(1, 2)}
      for ours, theirs in names.items()
    }

  params = {
    'embedding': jnp.asarray(weights['model.embed_tokens.weight']),
    'layers': {
      'attention': kernels('self_attn', query='q', key='k', value='v', out='o'),
      'attention_norm': {'scale': layers('input_layernorm')},
      'mlp': kernels('mlp', gate='gate', up='up', down='down'),
      'mlp_norm': {'scale': layers('post_attention_layernorm')},
    },
    'norm': {'scale': jnp.asarray(weights['model.norm.weight'])},
    'unembedding': jnp.asarray(weights['lm_head.weight']),
  }
  return shape, params


class Words:
  """The workload's tokenizer: id i is the word `wi`; it has no BOS."""

  bos_id = None
  fingerprint = 'words'

  def __init__(self, w: Any, vocab_size: int):
    self._inner = w.WordTokenizer()
    self.eos_id, self.pad_id, self.vocab_size = w.EOS, w.PAD, vocab_size

  def encode(self, text: str) -> list[int]:
    """Ids of a text."""
    return self._inner.encode(text)

  def decode(self, ids: list[int]) -> str:
    """Text of ids."""
    return self._inner.decode(ids)
