"""How far does eta move SPPO, and where does it cease to matter?

  python -m experiments.sweep --experiment=sppo \
    --config=experiments/configs/sppo/ablations/eta.py

Paper: eta is 1e3 throughout (arXiv:2405.00675, 5.1), where targets of 400 nats cannot
be reached and RMSprop divides eta out: a sweep of it is ours, not the paper's.

Scale: 7B models, 20,000 prompts an iteration, a learned preference model; ours a model
of 0.1 million parameters, 512 prompts, and preferences that are known.

Ours: from eta 30 on the first iterate is the same within 0.003, a plateau: its targets
are out of reach, and RMSprop divides eta out. Later iterates of 1e3 and 1e4 are not the
same: after three, one seed of two has 0.56 and 0.31 wins over the base.

Variants: `smoke`; `paper`, the settings of sppo/ultrafeedback.py.
"""

from experiments import points
from experiments.configs.sppo import ablations

METRIC = 'win_rate/1_0'  # of later ones each begins with another policy


def get_config(variant='sppo'):
  return ablations.get_config(variant)


def sweep():
  etas = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 1e3, 1e4)
  yield from points.grid({'objective.eta': etas}, seeds=(0, 1))
