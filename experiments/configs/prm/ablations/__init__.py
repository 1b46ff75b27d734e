"""Questions to process reward models: `python -m experiments.sweep --experiment=prm`.

A run has one model, `prm`, of the kind that the variant names (a key of
prm/arithmetic.py's `prms`), and all judge the candidates of one policy (`data.seed`).
`prm@4` is the share right of the best of four.
"""

from experiments.configs import blocks
from experiments.configs.prm import arithmetic, ultrainteract

METRIC = 'prm@4'
BESIDE = ('prm@16', 'prm@64', 'policy@4', 'majority@4')


def get_config(variant='dpo'):
  """The arithmetic miniature at the paper's beta; with `paper` prm/ultrainteract.py."""
  name, flags = blocks.parse(variant, default='dpo')
  config = blocks.sized(
    ','.join(sorted(flags)), arithmetic.get_config, ultrainteract.get_config
  )
  config.data.seed = 0
  config.prms = {'prm': arithmetic.prms(beta=0.05)[name]}
  return config
