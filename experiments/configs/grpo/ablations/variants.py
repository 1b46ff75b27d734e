"""Which policy gradient? GRPO, Dr. GRPO, GSPO, CISPO, REINFORCE++, RLOO

  python -m experiments.sweep --experiment=grpo \
    --config=experiments/configs/grpo/ablations/variants.py

Paper: Dr. GRPO comes to the same reward with much shorter wrong answers
(arXiv:2503.20783); the others report each on its own models.

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
  for name in ('grpo', 'dr_grpo', 'gspo', 'cispo', 'reinforce_pp'):
    yield from points.seeded({'variant': name}, seeds=(0, 1))
  # RLOO has no ratio: one update a rollout.
  one_update = {'variant': 'rloo', 'train.epochs': 1, 'train.minibatches': 1}
  yield from points.seeded({**one_update, 'label': 'rloo, one update'}, seeds=(0, 1))
