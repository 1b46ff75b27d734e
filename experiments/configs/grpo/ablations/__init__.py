"""Questions to learning from rollouts: `python -m experiments.sweep --experiment=grpo`.

All start from one policy, trained once by maximum likelihood (`data.seed`). Those of
GRPO take twenty rollouts of two epochs of two updates, those of DAPO what
grpo/dapo_arithmetic.py has, sixteen updates a rollout and responses that are cut off.
"""

from experiments.configs import blocks
from experiments.configs.grpo import arithmetic, dapo_aime, dapo_arithmetic, gsm8k


def get_config(variant=''):
  """The arithmetic miniature, shortened; with `paper` the settings of grpo/gsm8k.py."""
  words = [word for word in variant.split(',') if word]
  if set(words) <= set(blocks.FLAGS):
    words.append('grpo')
  config = blocks.sized(','.join(words), arithmetic.get_config, gsm8k.get_config)
  config.data.seed = 0
  if blocks.PAPER not in words:
    config.train.epochs = 2
    if blocks.SMOKE not in words:
      config.rollout.prompts = 32
      config.train.update(minibatches=2, iterations=20, eval_every=5, save_every=20)
  return config


def dapo(variant=''):
  """DAPO's miniature without its parts; with `paper` that of grpo/dapo_aime.py."""
  words = [word for word in variant.split(',') if word]
  name = 'dapo' if blocks.PAPER in words else 'naive'
  config = blocks.sized(
    ','.join([name, *words]), dapo_arithmetic.get_config, dapo_aime.get_config
  )
  config.data.seed = 0
  return config
