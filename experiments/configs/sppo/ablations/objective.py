"""Does SPPO go on to improve where iterative DPO and IPO turn back?

  python -m experiments.sweep --experiment=sppo \
    --config=experiments/configs/sppo/ablations/objective.py

Paper: length-controlled wins on AlpacaEval 2.0 after iterations 1 to 3 (Table 1): SPPO
24.79, 26.89, 28.53; iterative DPO 23.81, 24.23, 22.30; iterative IPO 23.78, 21.08,
20.06.

Scale: 7B models, 20,000 prompts an iteration, a learned preference model; ours a model
of 0.1 million parameters, 512 prompts, and preferences that are known.

Ours: over the base, all win more often after three iterations than after two; those of
SPPO's losses that take the win as certain go as far as IPO. By the gap to the winner
IPO does turn back, as docs/self_play.md shows for three seeds, and DPO falls apart in
one or two of those.

Variants: `smoke`; `paper`, the settings of sppo/ultrafeedback.py.
"""

from experiments import points
from experiments.configs.sppo import ablations

METRIC = 'win_rate/2_0'


def get_config(variant='sppo'):
  return ablations.get_config(variant)


def sweep():
  names = ('sppo', 'sppo_single', 'sppo_hard', 'dpo', 'ipo')
  yield from points.grid({'variant': names}, seeds=(0, 1))
