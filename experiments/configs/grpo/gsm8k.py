"""GRPO on grade-school maths, after DeepSeekMath (arXiv:2402.03300), Section 4.2.

  python -m experiments.grpo --config=experiments/configs/grpo/gsm8k.py

G = 64, learning rate 1e-6, KL coefficient 0.04, batch 1024, length 1024, one update a
rollout. The paper trains on 144,000 questions of GSM8K and MATH and reports, of a 7B
instruction-tuned model, GSM8K 82.9 -> 88.2 %; ours: not yet run.

Variants: as grpo/arithmetic.py has them; `tiny` runs end to end on the real questions
on a CPU, with a model too small to solve more than a few by chance: 0.004 +- 0.004 of
64 held-out questions before ten iterations of 8 prompts x 8 and 0.020 +- 0.008 after,
in 12 minutes of two shared cores.
"""

from experiments.configs import blocks
from experiments.configs.grpo import arithmetic


def get_config(variant='grpo'):
  name, flags = blocks.parse(variant, default='grpo')
  config = arithmetic.get_config(name)
  # The shape of DeepSeekMath-7B.
  config.model.update(
    vocab_size=102_400,
    width=4096,
    num_layers=30,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    mlp_width=11_008,
    max_positions=4096,
    norm_eps=1e-6,
    tied_embeddings=False,
    attention='blocked',
    remat='full',
    dtype='bfloat16',
  )
  config.tokenizer.path = 'deepseek.model'
  config.data.update(
    source='jsonl:gsm8k/train.jsonl',
    held_out_source='jsonl:gsm8k/test.jsonl',
    prompt='Question: {question}\nAnswer:',
    solution=' {answer}',
    max_prompt=512,
    max_response=1024,
    bucket_multiple=128,
    bucket_growth=1.5,
    max_tokens=65_536,
  )
  config.reference.optimizer = blocks.optimizer('adamw', 1e-5, warmup_steps=50)
  # 16 prompts of 64 responses are the batch of 1024.
  config.rollout.update(prompts=16, group_size=64, slots=16, block=64)
  config.rollout.update(responses_at_once=16, cache_dtype='bfloat16')
  config.rewards = blocks.rewards('gsm8k', workers=4)
  if 'kl_coef' in config.objective:
    config.objective.kl_coef = 0.04
  config.optimizer = blocks.optimizer('adamw', 1e-6, clip_norm=1.0)
  config.train = blocks.online(1000, eval_every=50, save_every=50)
  config.evaluation.update(prompts=1319, samples=8, answer_after='####')
  if flags & {'tiny', blocks.SMOKE}:
    tiny(config)
  return smoke(config) if blocks.SMOKE in flags else config


def tiny(config):
  """A model that a CPU trains in minutes, on the real questions."""
  config.model.update(
    vocab_size=1024,
    width=128,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    mlp_width=352,
    max_positions=512,
    tied_embeddings=True,
    attention='dense',
    remat='none',
    dtype='float32',
  )
  config.tokenizer.path = ''
  config.data.update(max_prompt=192, max_response=160, max_tokens=32_768)
  config.data.update(bucket_multiple=32, drop_long_prompts=True)
  config.reference.optimizer = blocks.optimizer(
    'adamw', 3e-3, schedule='cosine', warmup_steps=50
  )
  config.reference.train.update(steps=300, eval_every=300, save_every=100)
  config.rollout.update(prompts=8, group_size=8, slots=0, block=0)
  config.rollout.update(responses_at_once=0, cache_dtype='')
  config.rewards.workers = 1
  config.optimizer.learning_rate = 1e-4
  config.train.update(iterations=10, eval_every=10, save_every=5)
  config.evaluation.update(prompts=64, samples=4, pass_at=(4,))


def smoke(config):
  """The same path in seconds."""
  config.model.update(width=32, num_layers=1, head_dim=8, mlp_width=64, vocab_size=512)
  config.data.update(max_response=24, max_prompt=128)
  config.reference.train.update(steps=4, eval_every=4, save_every=4)
  config.rollout.update(prompts=8, group_size=4)
  config.train.update(iterations=2, eval_every=1, save_every=1)
  config.evaluation.update(prompts=4, samples=2, pass_at=(2,))
  return config
