"""Maximum likelihood on mixed film reviews: the reference of dpo/sentiment.py.

  python -m experiments.sft --config=experiments/configs/sft/sentiment.py

Variants: `smoke`, for a run of seconds.
"""

import ml_collections as mlc

from experiments import sft
from experiments.configs.dpo import sentiment


def get_config(variant=''):
  base = sentiment.get_config(variant)
  return mlc.ConfigDict(sft.likelihood_config(base.to_dict()))
