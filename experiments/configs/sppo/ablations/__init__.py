"""Questions to self-play: `python -m experiments.sweep --experiment=sppo`.

All begin with one base policy (`data.seed`), on the task whose styles beat each other
in a cycle.
"""

from experiments.configs import blocks
from experiments.configs.sppo import cycle, ultrafeedback


def get_config(variant='sppo'):
  """The cycle miniature; with `paper` the settings of sppo/ultrafeedback.py."""
  words = [word for word in variant.split(',') if word]
  if set(words) <= set(blocks.FLAGS):
    words.append('sppo')
  config = blocks.sized(','.join(words), cycle.get_config, ultrafeedback.get_config)
  config.data.seed = 0
  return config
