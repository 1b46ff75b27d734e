"""Who bears labels that are turned round: DPO, cDPO, rDPO or IPO?

  python -m experiments.sweep --experiment=dpo \
    --config=experiments/configs/dpo/ablations/label_noise.py

Paper: cDPO's margins stop where P(chosen) = 1 - e, rDPO's loss is unbiased under flips
of probability e (arXiv:2403.00409), IPO's margins are bounded (arXiv:2310.12036). No
one number.

Scale: the papers add noise to IMDb and HH; ours turns round a share of the labels of a
miniature, which are Bradley-Terry draws and so noisy already.

Ours: a fifth of the labels turned costs each loss 0.01 to 0.03 of its accuracy and a
third of its true reward: rDPO keeps 0.68 of it, DPO 0.66, cDPO 0.64, IPO 0.63. None
stands out; they differ in how far they go, rDPO furthest and IPO least.

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
