"""Controlled sentiment on-policy: PPO and GRPO with the true reward or a learned one.

  python -m experiments.grpo --config=experiments/configs/grpo/sentiment.py:ppo

The comparison that the DPO paper makes (arXiv:2305.18290, Section 6.1), in miniature:
the same reference as dpo/sentiment.py, the same prompts. With `learned` as in
`:ppo,learned` the reward is a model of experiments.rm, expected at
`runs/rm/sentiment` (or `--config.rewards.models.model=...`); the true reward is logged
beside it and moves nothing. Ours: docs/rollouts.md.

Variants: the name of a recipe on rollouts (default `ppo`), `learned`, `smoke`.
"""

from experiments.configs import blocks
from experiments.configs.dpo import sentiment as offline
from experiments.configs.grpo import arithmetic


def get_config(variant='ppo'):
  name, flags = blocks.parse(variant, default='ppo')
  base = offline.get_config('smoke' if blocks.SMOKE in flags else '')
  config = arithmetic.get_config(f'{name},smoke' if blocks.SMOKE in flags else name)
  config.model = base.model
  config.reference = base.reference
  config.data.update(
    source='task:sentiment',
    documents=base.data.documents,
    prompts=base.data.prompts,
    held_out=base.data.held_out,
    max_prompt=base.data.max_prompt,
    max_response=base.data.max_response,
    batch_size=base.data.batch_size,
    bucket_multiple=base.data.bucket_multiple,
  )
  config.rewards = blocks.rewards('task:sentiment', threshold=0.25, workers=0)
  if 'learned' in flags:
    config.rewards.update(
      models={'model': 'runs/rm/sentiment'},
      weights={'task:sentiment': 0.0, 'model': 1.0},
    )
  if 'max_length' in config.objective:
    config.objective.max_length = float(config.data.max_response)
  config.optimizer.learning_rate = 1e-4
  config.evaluation.answer_after = ''
  return config
