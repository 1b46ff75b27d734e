"""What score should a response have? (arXiv:2412.01981, Section 4.1 and Table 5)

  python -m experiments.sweep --experiment=prm \
    --config=experiments/configs/prm/ablations/score.py

Paper: the least of the rewards of steps; of a DPO model, 50.4 on average with the
reference and 50.6 without it (Table 5).

Scale: Llama-3.1-8B on 33,000 instructions of UltraInteract, judged on MATH-500; ours a
model of 0.4 million parameters on sums.

Ours: with the reference the ways are alike of four candidates, 0.45 to 0.46, but for
the last step alone (0.43); without it all choose better, of four (0.49 to 0.54) as of
64: the policy's own log-prob, which the reference takes out, is what chooses best here.
Accumulated log-probs only fall, so that their least is their last.

Variants: `smoke`; `paper`, the settings of prm/ultrainteract.py.
"""

from experiments import points
from experiments.configs.prm import ablations

METRIC, BESIDE = ablations.METRIC, ablations.BESIDE


def get_config(variant=''):
  return ablations.get_config(variant)


def sweep():
  ways = [('single', how) for how in ('min', 'mean', 'last')]
  ways += [('accumulated', 'min'), ('accumulated', 'last')]
  for reference in (True, False):
    for form, how in ways:
      label = f'{form} {how}' + ('' if reference else ', no reference')
      point = {'evaluation.form': form, 'evaluation.how': how}
      point |= {'evaluation.reference': reference, 'label': label}
      yield from points.seeded(point, seeds=(0, 1))
