"""Does DPO raise the chosen response, or only lower the rejected one?

  python -m experiments.sweep --experiment=dpo \
    --config=experiments/configs/dpo/ablations/displacement.py

Paper: DPO lowers the rejected response and barely moves the chosen one (Pal et al.,
arXiv:2402.13228, as SPPO, arXiv:2405.00675, quotes it); DPO-Positive and an added
likelihood (RPO) hold the chosen one up. No one number.

Scale: the papers train 7B models; ours reads the drift of both log-probabilities off a
miniature's curves.

Ours: DPO lowers both, the rejected response by 1.0 nats and the chosen one by 0.4. RPO
keeps more of the chosen one and three quarters of the reward; SPPO's hard targets raise
it a little, at half of the reward; DPO-Positive, at lambda 50, hardly moves at all.

Variants: `smoke`; `paper`, the settings of dpo/hh.py.
"""

from experiments import points
from experiments.configs.dpo import ablations

METRIC = 'eval/chosen_drift'  # nats a response
BESIDE = ('eval/rejected_drift',)


def get_config(variant=''):
  return ablations.get_config(variant)


def sweep():
  yield from points.grid({'variant': ('dpo', 'dpop', 'rpo', 'sppo_hard')}, seeds=(0, 1))
