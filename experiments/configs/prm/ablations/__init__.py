"""Questions to process reward models: `python -m experiments.sweep --experiment=prm`.

All judge the candidates of one policy (`data.seed`). Every run's own report has the
losses beside each other, and every way to make a score of step rewards.
"""

from experiments.configs import blocks
from experiments.configs.prm import arithmetic, ultrainteract

MODELS = ('dpo', 'ce')


def get_config(variant=''):
  """The arithmetic miniature at the paper's beta; with `paper` prm/ultrainteract.py."""
  config = blocks.sized(variant, arithmetic.get_config, ultrainteract.get_config)
  config.data.seed = 0
  config.prms = {name: arithmetic.prms(beta=0.05)[name] for name in MODELS}
  return config
