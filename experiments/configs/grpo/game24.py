"""The Game of 24: four numbers, one expression, an exact verifier that parses it.

  python -m experiments.grpo --config=experiments/configs/grpo/game24.py

From a checkpoint of an instruction-tuned model; the puzzles are those of Tree of
Thoughts (arXiv:2305.10601). Ours: not yet run at this size.

Variants: as grpo/arithmetic.py has them. `tiny` takes the real puzzles through every
part on a CPU with a policy that was taught to repeat the numbers and no more: it tries
the path, not the method, and is rewarded for nothing: 0 before and after ten
iterations, in 98 seconds of two shared cores.
"""

from experiments.configs import blocks
from experiments.configs.grpo import gsm8k


def get_config(variant='grpo'):
  name, flags = blocks.parse(variant, default='grpo')
  config = gsm8k.get_config(name)
  config.data.update(
    source='csv:game24/24.csv',
    held_out_source='',
    held_out=100,
    prompt='Use each of {Puzzles} once with + - * / and parentheses to get 24.\n',
    solution='',
    max_prompt=64,
    max_response=512,
  )
  config.policy.checkpoint = 'deepseek-math-7b-instruct'
  config.rewards = blocks.rewards('game24', workers=4)
  config.evaluation.update(prompts=100, answer_after='')
  if flags & {'tiny', blocks.SMOKE}:
    tiny(config)
  return gsm8k.smoke(config) if blocks.SMOKE in flags else config


def tiny(config):
  """A policy that only repeats numbers, on the real puzzles."""
  gsm8k.tiny(config)
  config.policy.checkpoint = ''
  config.data.update(solution='{Puzzles}', max_prompt=64, max_response=32)
  config.data.bucket_multiple = 16
  config.model.vocab_size = 64
  config.rewards.workers = 1
