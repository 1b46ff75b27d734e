"""A scalar reward model of the controlled-sentiment pairs (DPO, arXiv:2305.18290, 6.1).

  python -m experiments.rm --config=experiments/configs/rm/sentiment.py

The trunk is the reference that wrote the pairs, its head starts at 0. The run ends with
held-out accuracy, calibration and the bias to length.

Variants: `smoke`, for a run of seconds. `--config.reads=pair` trains a model that reads
two responses at once.
"""

from experiments.configs import blocks
from experiments.configs.dpo import sentiment


def get_config(variant=''):
  config = sentiment.get_config(variant)
  config.objective = blocks.objective('bradley_terry')
  config.optimizer = blocks.optimizer('adamw', 5e-4, warmup_steps=20, clip_norm=1.0)
  config.log.entropy = False  # no next token is predicted
  config.train.steps = min(config.train.steps, 150)
  config.train.update(eval_every=config.train.steps // 2)
  config.evaluation = dict(sources=())  # further pairs to be judged on
  config.reads = 'response'  # or `pair`: two responses at once
  config.ensemble = 1  # members, whose scores are averaged
  return config
