"""Each family in its original implementation: small models, and what they say.

  python tests/originals.py

writes tests/models/golden anew, in an environment that has torch and transformers
alone: for every case the folder that `save_pretrained` leaves, and the log-probs that
the original gives to the responses of `batch`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

GOLDEN = Path(__file__).parent / 'models' / 'golden'
LOGPS = 'logps.npy'
VOCAB, WINDOW = 19, 4
PROMPT_LENGTH = np.array([5, 3])
RESPONSE_LENGTH = np.array([[7, 4], [2, 6]])


class Batch(NamedTuple):
  """Two prompts with two responses each, padded as ours are, on both sides."""

  prompts: np.ndarray  # [p, l]
  responses: np.ndarray  # [p, k, t]


def batch() -> Batch:
  """Tokens of ragged lengths; pad is a token that also occurs in the text."""
  rng = np.random.default_rng(0)
  prompts = rng.integers(0, VOCAB, (2, PROMPT_LENGTH.max()))
  responses = rng.integers(0, VOCAB, (2, 2, RESPONSE_LENGTH.max()))
  columns = np.arange(prompts.shape[1]) - (prompts.shape[1] - PROMPT_LENGTH[:, None])
  real = np.arange(responses.shape[2]) < RESPONSE_LENGTH[..., None]
  return Batch(np.where(columns >= 0, prompts, 3), np.where(real, responses, 3))


SIZES = dict(
  vocab_size=VOCAB,
  hidden_size=8,
  num_hidden_layers=2,
  num_attention_heads=4,
  intermediate_size=12,
  max_position_embeddings=32,
)
GROUPED = dict(num_key_value_heads=2, head_dim=4)  # 4 heads of 4 on a width of 8
GEMMA = GROUPED | dict(query_pre_attn_scalar=10, sliding_window=WINDOW)
LLAMA3 = dict(
  rope_type='llama3',
  rope_theta=50.0,
  factor=4.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=16,
)
LAYERS = ['sliding_attention', 'full_attention', 'sliding_attention']
TWO_ROPES = dict(
  full_attention=dict(rope_type='linear', factor=4.0, rope_theta=500.0),
  sliding_attention=dict(rope_type='default', rope_theta=30.0),
)


def theta(value):
  return dict(rope_parameters=dict(rope_type='default', rope_theta=value))


# By name: the prefix of the original's classes, and what its config is told.
CASES = {
  'llama2': ('Llama', dict(rms_norm_eps=1e-5)),
  'llama3': ('Llama', dict(**GROUPED, **theta(500.0), rms_norm_eps=1e-5)),
  'llama3.1': ('Llama', dict(**GROUPED, rope_parameters=LLAMA3)),
  'llama3.2': (
    'Llama',
    dict(**GROUPED, rope_parameters=LLAMA3, tie_word_embeddings=True),
  ),
  'llama_biased': ('Llama', dict(attention_bias=True, mlp_bias=True)),
  'mistral': ('Mistral', dict(**GROUPED, sliding_window=WINDOW)),
  'qwen2': ('Qwen2', dict(num_key_value_heads=2, **theta(1e6))),
  'qwen2_sliding': (
    'Qwen2',
    dict(
      num_key_value_heads=2,
      use_sliding_window=True,
      sliding_window=WINDOW,
      max_window_layers=1,
    ),
  ),
  'qwen3': ('Qwen3', dict(**GROUPED, **theta(1e6), tie_word_embeddings=True)),
  'gemma2': (
    'Gemma2',
    dict(**GEMMA, attn_logit_softcapping=1.0, final_logit_softcapping=2.0),
  ),
  'gemma3': (
    'Gemma3Text',
    dict(**GEMMA, layer_types=LAYERS, rope_parameters=TWO_ROPES, num_hidden_layers=3),
  ),
  'pythia': (
    'GPTNeoX',
    dict(hidden_size=16, num_attention_heads=2, **theta(100.0)),
  ),
  'gpt_neox_in_sequence': (
    'GPTNeoX',
    dict(num_attention_heads=2, rotary_pct=0.5, use_parallel_residual=False),
  ),
  'gpt2': ('GPT2', dict(num_attention_heads=2, n_inner=12)),
}


def build(case, seed):
  """The original of a case with random weights, far enough from zero to matter."""
  import torch
  import transformers

  name, options = CASES[case]
  options = {**SIZES, **options, 'attn_implementation': 'eager'}
  if name == 'GPT2':
    options.pop('intermediate_size')
  config = getattr(transformers, f'{name}Config')(**options)
  kind = 'LMHeadModel' if name == 'GPT2' else 'ForCausalLM'
  model = getattr(transformers, f'{name.removesuffix("Text")}{kind}')(config).eval()
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for path, weight in model.named_parameters():
      norm = path.endswith('weight') and weight.ndim == 1 and 'Gemma' not in name
      weight.normal_(1.0 if norm else 0.0, 0.4, generator=generator)
  return model


def score(model):
  """Log-probs [p, k, t] of the responses of `batch`, each sequence alone, unpadded."""
  import torch

  prompts, responses = batch()
  logps = np.zeros(responses.shape, np.float32)
  for p, k in np.ndindex(*RESPONSE_LENGTH.shape):
    l, t = PROMPT_LENGTH[p], RESPONSE_LENGTH[p, k]
    tokens = np.concatenate([prompts[p, -l:], responses[p, k, :t]])
    with torch.no_grad():
      logits = model(torch.tensor(tokens[None])).logits[0, l - 1 : -1]
    found = torch.log_softmax(logits.double(), -1)[torch.arange(t), tokens[l:]]
    logps[p, k, :t] = found.numpy()
  return logps


def main():
  for case in CASES:
    folder = GOLDEN / case
    model = build(case, seed=0)
    model.save_pretrained(folder)
    (folder / 'generation_config.json').unlink()
    np.save(folder / LOGPS, score(model))
    print(case, sum(file.stat().st_size for file in folder.iterdir()), 'bytes')


if __name__ == '__main__':
  main()
