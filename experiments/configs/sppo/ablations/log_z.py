"""Is eta / 2 enough for the log-normaliser?

  python -m experiments.sweep --experiment=sppo \
    --config=experiments/configs/sppo/ablations/log_z.py

Paper: eta / 2, log Z for preferences by fair coins, is used; that of a strict ranking
is larger (Appendix A), and tuning it is said to be an option. No number.

Scale: 7B models, 20,000 prompts an iteration, a learned preference model; ours a model
of 0.1 million parameters, 512 prompts, and preferences that are known.

Ours: with log Z of a strict ranking steps are longer, to 0.590
against the base after three iterations where eta / 2 comes to 0.575; an estimate from
the K samples comes to 0.577.

Variants: `smoke`; `paper`, the settings of sppo/ultrafeedback.py.
"""

from experiments import points
from experiments.configs.sppo import ablations

METRIC = 'win_rate/2_0'


def get_config(variant='sppo'):
  return ablations.get_config(variant)


def sweep():
  kinds = ('half', 'ordered', 'samples')
  yield from points.grid({'objective.log_normaliser': kinds}, seeds=(0, 1))
