"""Does a reference that follows the policy help? (GRPO, Fig. 6)

  python -m experiments.sweep --experiment=grpo \
    --config=experiments/configs/grpo/ablations/iterative.py

Paper: a second iteration, with the policy as its reference, helps, most in the first
round (arXiv:2402.03300, Fig. 6; no number printed).

Scale: the paper trains a 7B model on 144,000 questions; ours a model of 0.4 million
parameters on sums, for twenty rollouts from one supervised start.

Ours: not yet run.

Variants: `smoke`; `paper`, the settings of grpo/gsm8k.py.
"""

from experiments import points
from experiments.configs.grpo import ablations

METRIC = 'eval/accuracy'


def get_config(variant=''):
  return ablations.get_config(variant)


def sweep():
  yield from points.grid({'train.refresh_every': (0, 5, 10)}, seeds=(0, 1))
