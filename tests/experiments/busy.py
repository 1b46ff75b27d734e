"""A rollout in which everything happens: refills, surplus groups, several updates.

The smoke's model solves nothing, so that what is right here is an odd length.
"""

from experiments.configs.grpo import arithmetic


def odd(prompt, response, record):
  """1 for a response of an odd number of characters."""
  return float(len(response) % 2)


def get_config(variant='dapo'):
  config = arithmetic.get_config(f'{variant},smoke')
  config.rollout.update(prompts=8, group_size=2, oversample=2.0, max_rounds=4)
  config.rollout.update(slots=4, block=4, max_staleness=1)
  config.rewards.update(verifiers={'odd': 'busy.odd'}, weights={'odd': 1.0}, gate='odd')
  config.data.max_tokens = 256
  config.train.update(iterations=6, epochs=2, minibatches=2, save_every=1)
  return config
