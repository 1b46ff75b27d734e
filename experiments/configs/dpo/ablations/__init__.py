"""Questions to DPO, one file each: `python -m experiments.sweep --experiment=dpo`.

All share one reference and one set of pairs (`data.seed`).
"""

from experiments.configs import blocks
from experiments.configs.dpo import hh, sentiment


def get_config(variant=''):
  """The sentiment miniature, shortened; with `paper` the settings of dpo/hh.py."""
  config = blocks.sized(variant, sentiment.get_config, hh.get_config)
  config.data.seed = 0
  if not {blocks.PAPER, blocks.SMOKE} & set(variant.split(',')):
    config.optimizer.warmup_steps = 50
    config.train.update(steps=120, eval_every=30, save_every=120)
    config.evaluation.update(prompts=8)
  return config
