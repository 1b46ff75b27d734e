"""GRPO of Llama-3-8B on GSM8K, for a pod: sizes to plan with.

  python -m experiments.plan --config=experiments/configs/grpo/llama3.py \\
    --topology=v5e:8x8
  python -m experiments.grpo --config=experiments/configs/grpo/llama3.py

64 prompts of 8 responses an iteration, up to 512 + 1,024 tokens, AdamW at 1e-6. While
it samples, the parameters are put together over `mesh.fsdp`: a chip then holds
1 / `mesh.tensor` of them in bfloat16. Ours: not yet run.

Variants: the name of any recipe on rollouts (default `grpo`); beside it
  70b    the shape of Llama-3-70B
  smoke  the smoke of arithmetic.py, on this method
"""

from experiments.configs import blocks
from experiments.configs.dpo import llama3
from experiments.configs.grpo import arithmetic, gsm8k


def get_config(variant='grpo'):
  name, flags = blocks.parse(variant, default='grpo')
  if blocks.SMOKE in flags:
    return arithmetic.get_config(f'{name},smoke')
  config = gsm8k.get_config(name)
  config.mesh = dict(data=1, fsdp=0, tensor=8)
  config.model = llama3.model(large='70b' in flags)
  config.tokenizer.path = 'llama3.json'
  config.policy.checkpoint = 'llama-3-8b'
  config.data.update(
    max_prompt=512,
    max_response=1024,
    max_tokens=16_384,
    bucket_multiple=128,
    bucket_growth=1.5,
    drop_long_prompts=True,
  )
  config.rollout.update(prompts=64, group_size=8, slots=64, block=128)
  config.rollout.responses_at_once = 0
  config.rollout.cache_dtype = 'bfloat16'
  config.optimizer = blocks.optimizer('adamw', 1e-6, warmup_steps=10, clip_norm=1.0)
  config.train = blocks.online(500, eval_every=20, save_every=20)
  return config
