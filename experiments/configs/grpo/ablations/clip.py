"""Does a higher upper bound keep entropy? (DAPO, arXiv:2503.14476, Fig. 2)

  python -m experiments.sweep --experiment=grpo \
    --config=experiments/configs/grpo/ablations/clip.py

Paper: with bounds of 0.2 entropy collapses, with 0.2 and 0.28 it rises slowly.

Scale: Qwen2.5-32B on competition mathematics; ours a model of 0.4 million parameters on
sums, for 24 rollouts from one supervised start.

Ours: not yet run.

Variants: `smoke`; `paper`, the settings of grpo/dapo_aime.py.
"""

from experiments import points
from experiments.configs.grpo import ablations

METRIC = 'eval/accuracy'


def get_config(variant=''):
  return ablations.dapo(variant)


def sweep():
  yield from points.grid(
    {'objective.clip_high': (0.2, 0.28, 0.4), 'train.epochs': (1, 4)}, seeds=(0, 1)
  )
