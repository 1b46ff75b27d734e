"""DAPO on competition maths, with the settings of the paper (arXiv:2503.14476), 4.1.

  python -m experiments.grpo --config=experiments/configs/grpo/dapo_aime.py

Qwen2.5-32B, 512 prompts of 16 responses, 16 updates a rollout, AdamW 1e-6 with a
warm-up of 20 rollouts, clip 0.2 and 0.28, no KL, lengths up to 20,480 tokens with the
last 4,096 punished, dynamic sampling. The paper reports 50 on AIME 2024 (avg@32); ours:
not yet run. `dapo_verl` has what the released code does: the mean over all tokens, 3
times the prompts a round, weight decay 0.1, a warm-up of 10.

The questions (DAPO-Math-17K) are expected as JSON lines with `prompt` and `answer`.
"""

from experiments.configs import blocks
from experiments.configs.grpo import arithmetic


def get_config(variant='dapo'):
  name, flags = blocks.parse(variant, default='dapo')
  config = arithmetic.get_config(name)
  # The shape of Qwen2.5-32B.
  config.model = dict(
    family='qwen2',
    vocab_size=152_064,
    width=5120,
    num_layers=64,
    num_heads=40,
    num_kv_heads=8,
    head_dim=128,
    mlp_width=27_648,
    max_positions=32_768,
    attention='blocked',
    remat='full',
    layout='shared',
    dtype='bfloat16',
  )
  config.tokenizer.path = 'qwen.model'
  config.policy.checkpoint = 'qwen2.5-32b'
  config.data.update(
    source='jsonl:dapo/train.jsonl',
    held_out_source='jsonl:dapo/aime_2024.jsonl',
    prompt='{prompt}',
    max_prompt=2048,
    max_response=20_480,
    bucket_multiple=1024,
    bucket_growth=1.5,
    max_tokens=131_072,
    drop_long_prompts=True,
  )
  released = name == 'dapo_verl'
  config.rollout.update(prompts=512, group_size=16, slots=128, block=256)
  config.rollout.update(responses_at_once=4, cache_dtype='bfloat16')
  if config.rollout.dynamic:
    config.rollout.oversample = 3.0 if released else 1.0
  config.rewards = blocks.rewards('maths_equivalence', workers=16)
  config.rewards.overlong_cache = 4096
  # 16 updates a rollout: 20 rollouts of warm-up are 320 of them.
  config.optimizer = blocks.optimizer(
    'adamw',
    1e-6,
    warmup_steps=160 if released else 320,
    clip_norm=1.0,
    weight_decay=0.1 if released else 0.0,
  )
  config.train = blocks.online(1000, eval_every=10, save_every=10, minibatches=16)
  config.evaluation.update(prompts=30, samples=32, pass_at=(32,), top_p=0.7)
  config.evaluation.answer_after = '\\boxed'
  return smoke() if blocks.SMOKE in flags else config


def smoke():
  """The same method on the embedded task, in seconds."""
  small = arithmetic.get_config('dapo,smoke')
  small.rollout.prompts = 16
  small.train.minibatches = 2
  return small
