"""DAPO's parts on integer arithmetic, one at a time.

  python -m experiments.grpo --config=experiments/configs/grpo/dapo_arithmetic.py:naive

Sixteen updates a rollout, as in DAPO (arXiv:2503.14476, Section 4.1), so that bounds
of the ratio hold tokens back; and responses of 20 tokens at most, so that many are cut
off. The first policy is that of grpo/arithmetic.py.

Variants: `naive` has none of the parts; `clip_higher`, `dynamic` and `overlong` have
one each, `dapo` has all. `smoke` beside it. What came of them: docs/rollouts.md.
"""

from experiments.configs import blocks
from experiments.configs.grpo import arithmetic

PARTS = ('clip_higher', 'dynamic', 'overlong')


def get_config(variant='dapo'):
  words = [word for word in variant.split(',') if word != blocks.SMOKE]
  parts = PARTS if words in ([], ['dapo']) else words
  unknown = set(parts) - {*PARTS, 'naive'}
  if unknown:
    raise ValueError(f'DAPO has the parts {PARTS}, got {sorted(unknown)}.')
  config = arithmetic.get_config('dapo')
  config.reference.data.max_response = config.data.max_response
  config.data.max_response = 20
  config.objective.clip_high = 0.28 if 'clip_higher' in parts else 0.2
  config.rollout.update(prompts=32, dynamic='dynamic' in parts)
  config.rewards = blocks.rewards(
    'task:arithmetic', workers=0, overlong_cache=8 if 'overlong' in parts else 0
  )
  config.train = blocks.online(
    24, eval_every=12, save_every=12, epochs=4, minibatches=4
  )
  config.optimizer.learning_rate = 5e-5  # for 16 times the updates
  config.evaluation.update(prompts=64)
  return smoke(config) if blocks.SMOKE in variant.split(',') else config


def smoke(config):
  """As arithmetic's, with updates that several devices can share."""
  config = arithmetic.smoke(config)
  config.train.update(epochs=2, minibatches=1)
  return config
