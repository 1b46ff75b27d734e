"""How do the DPO paper's baselines compare? (arXiv:2305.18290, Section 6)

  python -m experiments.sweep --experiment=dpo \
    --config=experiments/configs/dpo/ablations/baselines.py

Paper: DPO's frontier lies above PPO's and both above preferred fine-tuning;
unlikelihood degenerates; the best of N levels off at 64 to 128 (Fig. 2 and 3).

Scale: GPT-2 large on IMDb; ours a miniature, where the best of N is that of the
reference (drawn in the report) and PPO is grpo/sentiment.py. That DPO beats PPO is not
expected to show in a world this small.

Ours: not yet run.

Variants: `smoke`; `paper`, the settings of dpo/hh.py.
"""

from experiments import points
from experiments.configs.dpo import ablations

METRIC = 'eval/accuracy'


def get_config(variant=''):
  return ablations.get_config(variant)


def sweep():
  yield from points.seeded({'variant': 'dpo'}, seeds=(0, 1))
  yield from points.seeded({'variant': 'preferred_ft'}, seeds=(0, 1))
  for alpha in (0.05, 0.1, 0.5, 1.0):
    yield from points.seeded(
      {'variant': 'unlikelihood', 'objective.alpha': alpha}, seeds=(0, 1)
    )
