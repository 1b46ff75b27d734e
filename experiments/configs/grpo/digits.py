"""Digit completion: a known small task for RL, from a real checkpoint.

  python -m experiments.grpo --config=experiments/configs/grpo/digits.py

The prompt `8,3:9,4` gives the first terms of an arithmetic progression, its modulus and
a count; the answer is `7,2,6,1`. Each right character before the first wrong one earns
1 / (answer length + 1). The policy starts from random weights.

The task's source asks of its best run a mean reward above 0.2. Seed 0, on 200 held-out
prompts sampled 4 times each: 0.01 before, 0.23 after 120 iterations, and 0.29, 0.30 and
0.30 at the last three evaluations (± 0.02), in 5 min 48 s on 2 CPU cores. Answers are
cut at 8 tokens, where the longest has 17, so that not all of a reward can be had.

The reward stands on the character that earns it, and PPO's critic learns that nothing
follows a mistake: with the sum on the last token instead, the signal of the first
character drowns in what is drawn after a mistake, and no recipe came beyond 0.03 in 200
iterations.

Variants: as grpo/arithmetic.py has them; the default is `ppo`.
"""

from experiments.configs import blocks
from experiments.configs.grpo import arithmetic


def get_config(variant='ppo'):
  name, flags = blocks.parse(variant, default='ppo')
  config = arithmetic.get_config(name)
  config.model.update(
    vocab_size=16,
    width=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    mlp_width=344,
    max_positions=2048,
    norm_eps=1e-6,
    tied_embeddings=False,
  )
  config.tokenizer.path = 'digit_completion/tokenizer_config.json'
  config.policy.checkpoint = 'digit_completion'
  config.data.update(
    source='parquet:digit_completion/train.parquet',
    held_out_source='parquet:digit_completion/test.parquet',
    prompt='{prompt}\n',  # the separator ends a prompt
    max_prompt=16,
    max_response=8,  # the longest answer has 17
  )
  config.rollout.update(prompts=64, group_size=16)
  config.rewards = blocks.rewards('digits_steps', threshold=0.5, workers=1)
  # A little KL to random weights keeps the policy from settling on one answer.
  for key, value in dict(kl='reward', kl_coef=0.003, trace=1.0).items():
    if key in config.objective:
      config.objective[key] = value
  config.optimizer = blocks.optimizer(
    'adamw', 3e-4, schedule='cosine', warmup_steps=5, clip_norm=1.0
  )
  config.train = blocks.online(200, eval_every=20, save_every=50, minibatches=4)
  config.evaluation.update(prompts=200, samples=4, pass_at=(4,), answer_after='')
  return smoke(config) if blocks.SMOKE in flags else config


def smoke(config):
  """A few iterations of the same."""
  config.rollout.update(prompts=8, group_size=4)
  config.train.update(iterations=2, eval_every=1, save_every=1, minibatches=1)
  config.evaluation.update(prompts=8, samples=2, pass_at=(2,))
  return config
