"""PRIME on integer arithmetic: process rewards from outcomes alone, learnt online.

  python -m experiments.grpo --config=experiments/configs/grpo/prime_arithmetic.py

PRIME (arXiv:2502.01456) in miniature: four responses to each of 64 prompts (the paper:
of 256), all right or all wrong ones left out as its filter of accuracies in [0.2, 0.8]
does for four, beta 0.05, no KL. Both terms weigh 1, as the paper prints them. Its code
weighs both 5 and divides the token rewards by their largest return: here that makes
noise of a reward model that knows nothing yet as strong as the outcome, and the policy
followed it down, from 0.29 to 0.20 in seven iterations.

Variants: `prime`; to compare with, `rloo`, which has no process reward; `smoke`.
"""

from experiments.configs import blocks
from experiments.configs.grpo import arithmetic


def get_config(variant='prime'):
  name, flags = blocks.parse(variant, default='prime')
  config = arithmetic.get_config(name)
  config.rollout.update(group_size=4, dynamic=True, oversample=1.5, slots=32)
  config.process.update(beta=0.05, learning_rate=1e-4)
  if name == 'prime':
    config.objective.update(process_coef=1.0, outcome_coef=1.0, scale='none')
  if 'kl' in config.objective:
    config.objective.kl = 'none'
  return arithmetic.smoke(config) if blocks.SMOKE in flags else config
