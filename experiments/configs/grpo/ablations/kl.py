"""What does the KL penalty hold back, and does its estimator matter?

  python -m experiments.sweep --experiment=grpo \
    --config=experiments/configs/grpo/ablations/kl.py

Paper: 0.04 with k3 (arXiv:2402.03300, Section 4.2); DAPO has none (arXiv:2503.14476,
Section 2.3).

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
  yield from points.seeded({'objective.kl': 'none'}, seeds=(0, 1))
  for kl in ('k3', 'k3_as_k2'):
    for coefficient in (0.04, 0.4):
      yield from points.seeded(
        {'objective.kl': kl, 'objective.kl_coef': coefficient}, seeds=(0, 1)
      )
