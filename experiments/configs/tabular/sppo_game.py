"""Self-play on preference games of three responses, after SPPO (arXiv:2405.00675).

  python -m experiments.tabular --config=experiments/configs/tabular/sppo_game.py

Exact iterates from random starts on a game that is mostly rock-paper-scissors, and on
one that is Bradley-Terry. The paper: the average policy comes to a von Neumann winner;
of the last iterate it says nothing, and on a cycle it does not.

Variant: `smoke`.
"""

import ml_collections as mlc

from experiments.configs import blocks


def get_config(variant=''):
  config = mlc.ConfigDict()
  config.experiment = 'sppo_game'
  config.cycle = 0.8  # share of rock-paper-scissors in the cyclic game
  config.eta = 0.3
  config.tau = 1.0  # of IPO self-play
  config.mixture = 0.05  # with the start, of Nash-MD
  config.seeds = 10  # random starts
  config.steps = 400  # iterations
  if variant == blocks.SMOKE:
    config.update(seeds=2, steps=60)
  return config
