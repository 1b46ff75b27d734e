"""What helps more, further prompts or further responses? (arXiv:2412.01981, Fig. 4, 5)

  python -m experiments.sweep --experiment=prm \
    --config=experiments/configs/prm/ablations/data.py

Paper: both help, responses more; DPO does poorly on two responses, cross-entropy works
on one (Figures 4 and 5; no number printed).

Scale: Llama-3.1-8B on 33,000 instructions of UltraInteract, judged on MATH-500; ours a
model of 0.4 million parameters on sums. All points have the same number of updates.

Ours: not yet run.

Variants: `smoke`; `paper`, the settings of prm/ultrainteract.py, whose rollouts are
read: it asks half of the question, by shares of one epoch.
"""

from experiments import points
from experiments.configs import blocks
from experiments.configs.prm import ablations

METRIC, BESIDE = ablations.METRIC, ablations.BESIDE


def get_config(variant=''):
  return ablations.get_config(variant)


def sweep(variant=''):
  whole = ablations.get_config(variant)
  for share in (0.25, 0.5, 1.0):
    point = {'label': f'{share:.0%} of the prompts'}
    if blocks.PAPER in variant:
      point['train.steps'] = round(share * whole.train.steps)
    else:
      point['data.prompts'] = round(share * whole.data.prompts)
    yield from points.seeded(point, seeds=(0, 1))
  if blocks.PAPER not in variant:
    for count in (2, 4):
      point = {'pool.responses': count, 'label': f'{count} responses'}
      yield from points.seeded(point, seeds=(0, 1))
