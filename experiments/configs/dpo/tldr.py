"""DPO on Reddit TL;DR summaries, after arXiv:2305.18290, App. B: HH with beta 0.5.

  python -m experiments.dpo --config=experiments/configs/dpo/tldr.py

Expects records {prompt, chosen, rejected} in tldr/train.jsonl.gz (see docs/data.md).
The paper's model is GPT-J with a reference from earlier work; name yours with
--config.reference.workdir. Reported: 61 % wins over the human summary (GPT-4,
temperature 0). Ours: not yet run.

Variants: as hh.py, and `smoke` on the 373 pairs of rank19 summaries.
"""

from experiments.configs import blocks
from experiments.configs.dpo import hh


def get_config(variant='dpo'):
  _, flags = blocks.parse(variant, default='dpo')
  config = hh.get_config(variant)
  config.data.source = 'jsonl:tldr/train.jsonl.gz'
  if blocks.SMOKE in flags:
    config.data.source = 'jsonl:summeval/rank19_pairs.jsonl'
    config.data.held_out = 32
  if 'beta' in config.objective:
    config.objective.beta = 0.5
  return config
