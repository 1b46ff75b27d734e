"""Does a larger beta keep DPO nearer to its reference? (arXiv:2305.18290, Fig. 2)

  python -m experiments.sweep --experiment=dpo \
    --config=experiments/configs/dpo/ablations/beta.py

Paper: the same four values of beta on IMDb; KL falls as beta rises, rewards of 0.9 at a
KL of 1 to 2 and 0.95 to 1 at 3 to 5 (read off the figure), above PPO at every KL.

Scale: GPT-2 large, 25,000 prefixes of film reviews, a learned classifier as the true
reward; ours 0.4 million parameters and a grammar of reviews whose reward and frontier
are exact.

Ours: KL falls from 1.7 nats at beta 0.05 to 0.05 at beta 5, and
no policy lies above the exact frontier.

Variants: `smoke`; `paper`, the settings of dpo/hh.py.
"""

from experiments import points
from experiments.configs.dpo import ablations

METRIC = 'eval/accuracy'


def get_config(variant=''):
  return ablations.get_config(variant)


def sweep():
  yield from points.grid({'objective.beta': (0.05, 0.1, 1.0, 5.0)})
