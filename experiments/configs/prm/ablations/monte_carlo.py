"""Are step labels by continuations worth what they cost? (arXiv:2412.01981, Table 1)

  python -m experiments.sweep --experiment=prm \
    --config=experiments/configs/prm/ablations/monte_carlo.py

Paper: Math-Shepherd's labels, eight continuations a step, come to 47.8 on average where
an implicit model comes to 50.4 (DPO) at 1/38 of the FLOPs.

Scale: Llama-3.1-8B on 33,000 instructions of UltraInteract, judged on MATH-500; ours a
model of 0.4 million parameters on sums.

Ours: not yet run.

Variants: `smoke`; `paper`, the settings of prm/ultrainteract.py, whose rollouts are
read and cannot be continued: it has the models of outcomes alone.
"""

from experiments import points
from experiments.configs import blocks
from experiments.configs.prm import ablations

METRIC, BESIDE = ablations.METRIC, ablations.BESIDE


def get_config(variant=''):
  return ablations.get_config(variant)


def sweep(variant=''):
  yield from points.grid({'variant': ('dpo', 'outcome')}, seeds=(0, 1))
  if blocks.PAPER not in variant:
    for name in ('mc_hard', 'mc_soft'):
      for count in (1, 4, 8):
        point = {'variant': name, 'monte_carlo.samples': count}
        point['label'] = f'{name}, {count} continuations'
        yield from points.seeded(point, seeds=(0, 1))
