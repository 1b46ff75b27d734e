"""Questions to learning from rollouts: `python -m experiments.sweep --experiment=grpo`.

All start from one policy, trained once by maximum likelihood (`data.seed`), and take
twenty rollouts of two epochs of two updates, so that clipping has something to clip.
"""

from experiments.configs import blocks
from experiments.configs.grpo import arithmetic, dapo_aime, gsm8k


def get_config(variant='grpo', *, paper='gsm8k'):
  """The arithmetic miniature, shortened; with `paper` the paper's own settings."""
  papers = {'gsm8k': gsm8k, 'dapo_aime': dapo_aime}
  words = [word for word in variant.split(',') if word]
  if set(words) <= set(blocks.FLAGS):
    words.append('grpo')
  config = blocks.sized(
    ','.join(words), arithmetic.get_config, papers[paper].get_config
  )
  config.data.seed = 0
  if blocks.PAPER not in words:
    config.train.update(epochs=2, minibatches=2)
    if blocks.SMOKE not in words:
      config.rollout.prompts = 32
      config.train.update(iterations=20, eval_every=5, save_every=20)
  return config
