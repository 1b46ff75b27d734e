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

METRIC = 'dpo@4'


def get_config(variant=''):
  return ablations.get_config(variant)


def sweep():
  for beta in (0.01, 0.05, 0.1, 0.5):
    changes = {f'prms.{name}.objective.beta': beta for name in ablations.MODELS}
    yield from points.seeded({**changes, 'label': f'beta {beta}'}, seeds=(0, 1))
