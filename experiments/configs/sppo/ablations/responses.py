"""How many responses does an estimate of the win rate need?

  python -m experiments.sweep --experiment=sppo \
    --config=experiments/configs/sppo/ablations/responses.py

Paper: K = 5 against K = 2 (Fig. 4): 24.79 and 23.85, 26.89 and 26.91, 28.53 and 28.26
after iterations 1 to 3; it is robust to K.

Scale: 7B models, 20,000 prompts an iteration, a learned preference model; ours a model
of 0.1 million parameters, 512 prompts, and preferences that are known.

Ours: more responses go further at the same number of updates,
most from 2 to 3: an estimate that counts a response against itself is nearer to 1/2 the
fewer there are, and targets with it.

Variants: `smoke`; `paper`, the settings of sppo/ultrafeedback.py.
"""

from experiments import points
from experiments.configs.sppo import ablations

METRIC = 'win_rate/2_0'


def get_config(variant='sppo'):
  return ablations.get_config(variant)


def sweep():
  yield from points.grid({'self_play.responses': (2, 3, 5, 8)}, seeds=(0, 1))
