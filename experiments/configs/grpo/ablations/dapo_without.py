"""What does DAPO lose without each of its parts? (arXiv:2503.14476; verl's account)

  python -m experiments.sweep --experiment=grpo \
    --config=experiments/configs/grpo/ablations/dapo_without.py

Paper: verl's reproduction has 52 on AIME 2024, 50 without dynamic sampling, 44 without
it and the token-level loss.

Scale: as dapo_ladder.py.

Ours: not yet run.

Variants: `smoke`; `paper`, the settings of grpo/dapo_aime.py.
"""

from experiments import points
from experiments.configs import blocks
from experiments.configs.grpo import ablations
from experiments.configs.grpo.ablations import dapo_ladder

METRIC = 'eval/accuracy'
WITHOUT = {
  'clip-higher': {'objective.clip_high': 0.2},
  'token-level loss': {'objective.aggregate': 'mean_of_sequence_means'},
  'soft overlong punishment': {'rewards.overlong_cache': 0},
  'dynamic sampling': {'rollout.dynamic': False, 'rollout.oversample': 1.0},
}


def get_config(variant=''):
  return ablations.dapo(variant)


def sweep(variant=''):
  whole = {}
  for changes in dapo_ladder.rungs(4096 if blocks.PAPER in variant else 8).values():
    whole |= changes
  yield from points.seeded({**whole, 'label': 'DAPO'}, seeds=(0, 1))
  for part, changes in WITHOUT.items():
    point = {**whole, **changes, 'label': f'without {part}'}
    yield from points.seeded(point, seeds=(0, 1))
