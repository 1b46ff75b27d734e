"""DPO of Llama 3 on UltraFeedback, for a pod: sizes to plan with.

  python -m experiments.plan --config=experiments/configs/dpo/llama3.py \\
    --topology=v5e:8x8
  python -m experiments.dpo --config=experiments/configs/dpo/llama3.py

beta 0.01, AdamW at 5e-7 with a linear decay after a tenth of warm-up, 64 pairs an
update, 1,024 tokens for the prompt and for each response. Ours: not yet run.

Variants: the name of any pairwise recipe (default `dpo`); beside it
  70b    the shape of Llama-3-70B
  smoke  the smoke of hh.py, on this method
"""

from experiments.configs import blocks
from experiments.configs.dpo import hh


def get_config(variant='dpo'):
  name, flags = blocks.parse(variant, default='dpo')
  if blocks.SMOKE in flags:
    return hh.get_config(f'{name},smoke')
  config = hh.get_config(name)
  large = '70b' in flags
  config.mesh = dict(data=1, fsdp=0, tensor=4 if large else 1)
  config.model = model(large=large)
  config.tokenizer.path = 'llama3.json'
  config.data.update(
    source='jsonl:ultrafeedback/train.jsonl.gz',
    max_prompt=1024,  # tokens, cut on the left
    max_response=1024,  # tokens
    batch_size=64,
    max_tokens=4096,  # padded tokens of a micro-batch on a data shard
    bucket_multiple=128,
  )
  config.objective = blocks.objective(name, **{**hh.OBJECTIVES, 'beta': 0.01})
  steps = 950  # one epoch
  for stage in (config, config.reference):
    stage.optimizer = blocks.optimizer(
      'adamw', 5e-7, schedule='linear', warmup_steps=95, clip_norm=1.0
    )
    stage.train = blocks.train(steps, eval_every=100, save_every=100)
  return config


def model(*, large=False):
  """The shapes of Llama-3-8B and -70B."""
  return dict(
    family='llama',
    vocab_size=128_256,
    width=8192 if large else 4096,
    num_layers=80 if large else 32,
    num_heads=64 if large else 32,
    num_kv_heads=8,
    head_dim=128,
    mlp_width=28_672 if large else 14_336,
    max_positions=8192,
    rope_theta=500_000.0,
    attention='blocked',
    remat='full',
    layout='shared',
    dtype='bfloat16',
  )
