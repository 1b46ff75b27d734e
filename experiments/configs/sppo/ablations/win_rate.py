"""What does one score a response lose of preferences in a cycle?

  python -m experiments.sweep --experiment=sppo \
    --config=experiments/configs/sppo/ablations/win_rate.py

Paper: preferences are intransitive (Section 3); the released code yet makes win rates
of one averaged score a response, which are transitive.

Scale: 7B models, 20,000 prompts an iteration, a learned preference model; ours a model
of 0.1 million parameters, 512 prompts, and preferences that are known.

Ours: nothing is lost where scores are made anew of every K
responses; averaged scores are twice as far apart, so that steps are longer and the gap
closes faster. docs/self_play.md says where a cycle is lost.

Variants: `smoke`; `paper`, the settings of sppo/ultrafeedback.py.
"""

from experiments import points
from experiments.configs.sppo import ablations

METRIC = 'win_rate/2_0'


def get_config(variant='sppo'):
  return ablations.get_config(variant)


def sweep():
  yield from points.grid({'oracle.win_rate': ('matrix', 'scalar')})
