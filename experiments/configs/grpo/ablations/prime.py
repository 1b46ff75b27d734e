"""Do implicit process rewards, learnt online, help? (PRIME, arXiv:2502.01456)

  python -m experiments.sweep --experiment=grpo \
    --config=experiments/configs/grpo/ablations/prime.py

Paper: 41.0 on average at 240 steps with them, 36.9 by RLOO without; a reward model that
is not updated decays. That arm is not here: it needs one trained beforehand.

Scale: Qwen2.5-Math-7B on competition mathematics; ours a model of 0.4 million
parameters on sums, for twenty rollouts from one supervised start.

Ours: not yet run.

Variants: `smoke`; `paper`, the settings of grpo/gsm8k.py.
"""

from experiments import points
from experiments.configs.grpo import ablations

METRIC = 'eval/accuracy'


def get_config(variant='prime'):
  return ablations.get_config(variant)


def sweep():
  common = {'variant': 'prime', 'objective.outcome_coef': 1.0}
  for label, changes in {
    'outcomes alone': {'objective.process_coef': 0.0},
    'as printed': {'objective.process_coef': 1.0, 'objective.scale': 'none'},
    'as in the code': {'objective.process_coef': 1.0},
    'as printed, slower reward model': {
      'objective.process_coef': 1.0,
      'objective.scale': 'none',
      'process.learning_rate': 2e-5,
    },
  }.items():
    yield from points.seeded({**common, **changes, 'label': label}, seeds=(0, 1))
