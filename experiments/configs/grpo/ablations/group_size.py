"""How many responses does a prompt need, at a fixed number of samples?

  python -m experiments.sweep --experiment=grpo \
    --config=experiments/configs/grpo/ablations/group_size.py

Paper: G = 64 is used (arXiv:2402.03300, Section 4.2), no other is reported.

Scale: the paper trains a 7B model on 144,000 questions; ours a model of 0.4 million
parameters on sums, for twenty rollouts from one supervised start.

Ours: not yet run.

Variants: `smoke`; `paper`, the settings of grpo/gsm8k.py.
"""

from experiments import points
from experiments.configs import blocks
from experiments.configs.grpo import ablations

METRIC = 'eval/accuracy'


def get_config(variant=''):
  return ablations.get_config(variant)


def sweep(variant=''):
  samples, sizes = 256, (2, 4, 8, 16)
  if blocks.PAPER in variant:
    samples, sizes = 1024, (4, 16, 64)
  elif blocks.SMOKE in variant:
    samples, sizes = 32, (2, 4)
  for size in sizes:
    yield from points.seeded(
      {
        'rollout.group_size': size,
        'rollout.prompts': samples // size,
        'label': f'{size} responses of {samples // size} prompts',
      },
      seeds=(0, 1),
    )
