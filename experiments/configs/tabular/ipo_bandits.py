"""The bandits of IPO (arXiv:2310.12036), Section 5.4: DPO against IPO, by tau.

  python -m experiments.tabular --config=experiments/configs/tabular/ipo_bandits.py

Three actions, a > b > c in every pair, Adam at 0.01, 18,000 steps, 10 seeds. The paper:
DPO becomes deterministic for every tau, IPO stays near the reference for a large one.

Variant: `smoke`.
"""

import ml_collections as mlc

from experiments.configs import blocks


def get_config(variant=''):
  config = mlc.ConfigDict()
  config.experiment = 'ipo_bandits'
  config.taus = (0.1, 0.5, 1.0)
  config.seeds = 10
  config.steps = 18_000  # of Adam
  config.record_every = 100
  if variant == blocks.SMOKE:
    config.update(seeds=2, steps=2000)
  return config
