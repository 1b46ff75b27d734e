"""What does each part of DAPO add? (arXiv:2503.14476, Table 1)

  python -m experiments.sweep --experiment=grpo \
    --config=experiments/configs/grpo/ablations/dapo_ladder.py

Paper: 30, 36, 38, 41, 42, 50 on AIME 2024 (avg@32), one run each, in the order of the
rungs. Filtering is dropped where punishment comes, as verl's account of the final
recipe has it.

Scale: Qwen2.5-32B on competition mathematics, lengths up to 20,480 tokens; ours a model
of 0.4 million parameters on sums, of which those of more than 20 tokens are cut off.

Ours: the whole is not above naive GRPO here, 0.329 and 0.363 on 64 held-out prompts
(0.289 before any of them, docs/rollouts.md), and the two rungs below the last are under
where they began: the punishment of length costs accuracy. It does what it is for: by
the runs' metrics, over the last four iterations 0.45 of the responses are cut off on
the rung below it and 0.01 with it. In naive GRPO 0.3 of the groups are without spread.

Variants: `smoke`; `paper`, the settings of grpo/dapo_aime.py.
"""

from experiments import points
from experiments.configs import blocks
from experiments.configs.grpo import ablations

METRIC = 'eval/accuracy'


def get_config(variant=''):
  return ablations.dapo(variant)


def rungs(cache):
  """What each rung changes of the one below; `cache` in tokens, before the limit."""
  return {
    'naive GRPO': {
      'objective.aggregate': 'mean_of_sequence_means',
      'objective.clip_high': 0.2,
      'rewards.overlong_cache': 0,
      'rollout.dynamic': False,
      'rollout.oversample': 1.0,
    },
    '+ overlong filtering': {'rollout.filter_truncated': True},
    '+ clip-higher': {'objective.clip_high': 0.28},
    '+ soft overlong punishment': {
      'rewards.overlong_cache': cache,
      'rollout.filter_truncated': False,
    },
    '+ token-level loss': {'objective.aggregate': 'group_token_mean'},
    '+ dynamic sampling': {'rollout.dynamic': True, 'rollout.oversample': 1.5},
  }


def sweep(variant=''):
  point = {}
  for label, changes in rungs(4096 if blocks.PAPER in variant else 8).items():
    point |= changes
    yield from points.seeded({**point, 'label': label}, seeds=(0, 1))
