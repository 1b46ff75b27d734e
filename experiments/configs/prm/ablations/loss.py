"""Which loss makes the best process rewards of outcomes? (arXiv:2412.01981, Table 1)

  python -m experiments.sweep --experiment=prm \
    --config=experiments/configs/prm/ablations/loss.py

Paper: best of 4, 16 and 64 on average over three generators: DPO 50.4, NCA 49.4, CE
48.4 (balanced by instruction 49.0, by data set 47.8), KTO 45.7; Math-Shepherd 47.8.

Scale: Llama-3.1-8B on 33,000 instructions of UltraInteract, judged on MATH-500; ours a
model of 0.4 million parameters on sums.

Ours: of four candidates DPO, NCA and balanced cross-entropy choose alike, 0.47 to 0.48,
above the policy's 0.41 and below a majority; KTO is the last, as in the paper. Of 64
all are below the policy: docs/process_rewards.md says more.

Variants: `smoke`; `paper`, the settings of prm/ultrainteract.py.
"""

from experiments import points
from experiments.configs.prm import ablations

METRIC, BESIDE = ablations.METRIC, ablations.BESIDE


def get_config(variant=''):
  return ablations.get_config(variant)


def sweep():
  names = ('dpo', 'nca', 'kto', 'ce', 'ce_dataset', 'ce_instruction', 'outcome')
  yield from points.grid({'variant': names}, seeds=(0, 1))
