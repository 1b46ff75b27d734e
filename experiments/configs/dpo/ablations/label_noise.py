"""Who bears labels that are turned round: DPO, cDPO, rDPO or IPO?

  python -m experiments.sweep --experiment=dpo \
    --config=experiments/configs/dpo/ablations/label_noise.py

Paper: cDPO's margins stop where P(chosen) = 1 - e, rDPO's loss is unbiased under flips
of probability e (arXiv:2403.00409), IPO's margins are bounded (arXiv:2310.12036). No
one number.

Scale: the papers add noise to IMDb and HH; ours turns round a share of the labels of a
miniature, which are Bradley-Terry draws and so noisy already.

Ours: not yet run.

Variants: `smoke`; `paper`, the settings of dpo/hh.py.
"""

from experiments import points
from experiments.configs.dpo import ablations

METRIC = 'eval/accuracy'


def get_config(variant=''):
  return ablations.get_config(variant)


def sweep():
  losses = {
    'dpo': {},
    'cdpo': {'objective.label_smoothing': 0.2},
    'robust_dpo': {'objective.flip_probability': 0.2},
    'ipo': {},
  }
  for flipped in (0.0, 0.2):
    for name, changes in losses.items():
      point = {'variant': 'dpo' if name == 'cdpo' else name, 'data.flipped': flipped}
      yield from points.seeded(
        {**point, **changes, 'label': f'{name}, {flipped:.0%} turned'}, seeds=(0, 1)
      )
