"""Does an implicit process reward model depend on its beta? (arXiv:2412.01981)

  python -m experiments.sweep --experiment=prm \
    --config=experiments/configs/prm/ablations/beta.py

Paper: 0.05, "empirically" (Section 4.1); no other is reported.

Scale: Llama-3.1-8B on 33,000 instructions of UltraInteract, judged on MATH-500; ours a
model of 0.4 million parameters on sums.

Ours: not yet run.

Variants: `smoke`; `paper`, the settings of prm/ultrainteract.py.
"""

from experiments import points
from experiments.configs.prm import ablations

METRIC, BESIDE = ablations.METRIC, ablations.BESIDE


def get_config(variant=''):
  return ablations.get_config(variant)


def sweep():
  betas = (0.01, 0.05, 0.1, 0.5)
  for name in ('dpo', 'ce'):
    for beta in betas:
      point = {'variant': name, 'prms.prm.objective.beta': beta}
      yield from points.seeded({**point, 'label': f'{name}, beta {beta}'}, seeds=(0, 1))
