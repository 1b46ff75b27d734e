"""Implicit process rewards with the settings of Implicit PRM (arXiv:2412.01981), 4.1.

  python -m experiments.prm --config=experiments/configs/prm/ultrainteract.py

33,000 instructions of UltraInteract with eight rollouts each by Llama-3.1-8B-Instruct,
labelled by their answers, as JSON lines of `prompt`, `responses` and `labels`; policy,
reference and start of every model are the same checkpoint. beta 0.05, 64 instructions
an update, one epoch, AdamW at 5e-7 with b2 0.95, clipped at 1, 3 % warm-up, a cosine
to a tenth. The least single step reward scores a response. Reported, average of
best-of-4, 16 and 64 on MATH-500 over three generators: DPO 50.4, NCA 49.4, CE 48.4
(instruction-balanced 49.0, data-set-balanced 47.8), KTO 45.7. Ours: not yet run.

Variants:
  tiny   GSM8K's graded solutions, four to each of 1,319 questions, in the place of
         UltraInteract, a model that a CPU trains, and ProcessBench's gsm8k: questions
         that are in it are not learnt from
  smoke  `tiny` for seconds
"""

from experiments.configs import blocks
from experiments.configs.prm import arithmetic

_FLAGS = {'tiny', blocks.SMOKE}


def get_config(variant=''):
  flags = {word for word in variant.split(',') if word}
  if flags - _FLAGS:
    raise ValueError(f'Variants are {sorted(_FLAGS)}, got {sorted(flags)}.')
  config = arithmetic.get_config()
  # The shape of Llama-3.1-8B.
  config.model.update(
    vocab_size=128_256,
    width=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_width=14_336,
    max_positions=131_072,
    rope_theta=500_000.0,
    tied_embeddings=False,
    attention='blocked',
    remat='full',
    dtype='bfloat16',
  )
  config.tokenizer.path = 'llama31.json'
  config.policy.checkpoint = 'llama31_8b_instruct'
  config.data.update(
    source='jsonl:ultrainteract/rollouts.jsonl',
    held_out=500,  # instructions
    max_prompt=1024,
    max_response=7168,
    batch_size=64,
    max_tokens=65_536,
    bucket_multiple=256,
    bucket_growth=1.5,
  )
  config.steps.separator = 'Step N:'
  config.pool.update(responses=8, candidates=8)
  config.prms = arithmetic.prms(beta=0.05)
  del config.prms.mc_hard, config.prms.mc_soft  # they need a verifier and continuations
  config.optimizer = blocks.optimizer(
    'adamw', 5e-7, schedule='cosine', warmup_steps=15, clip_norm=1.0, b2=0.95, final=0.1
  )
  config.train = blocks.train(507, eval_every=507, save_every=100)
  config.evaluation.update(sizes=(1, 2, 4, 8), answer_after='\\boxed{')
  if flags:
    tiny(config)
  return smoke(config) if blocks.SMOKE in flags else config


def tiny(config):
  """A model that a CPU trains in minutes, on real solutions and real first errors."""
  config.model.update(
    vocab_size=1024,
    width=128,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    mlp_width=352,
    max_positions=1024,
    rope_theta=10_000.0,
    tied_embeddings=True,
    attention='dense',
    remat='none',
    dtype='float32',
  )
  config.tokenizer.path = ''  # SentencePiece trained on the policy's text
  config.policy.checkpoint = ''
  config.data.update(
    source='jsonl:gsm8k/example_model_solutions.jsonl',
    held_out=256,
    max_prompt=160,
    max_response=256,
    batch_size=16,
    max_tokens=16_384,
    bucket_multiple=64,
    bucket_growth=1.7,
  )
  config.reference.data.update(
    source='jsonl:gsm8k/train.jsonl',
    held_out=128,
    prompt='{question}\n',
    solution='{answer}',
  )
  config.reference.train.update(steps=300, eval_every=300, save_every=100)
  config.steps.separator = '\n'
  config.pool.update(responses=4, candidates=4)
  config.prms = arithmetic.prms(beta=0.05)
  del config.prms.mc_hard, config.prms.mc_soft
  config.optimizer = blocks.optimizer('adamw', 3e-4, warmup_steps=5, clip_norm=1.0)
  config.train = blocks.train(90, eval_every=90, save_every=30)
  config.evaluation.update(sizes=(1, 2, 4), answer_after='A:', step_responses=4)
  config.processbench = arithmetic.bench('json:processbench/gsm8k.json')
  # As the questions stand before the solutions that are learnt from.
  config.processbench.update(prompt='{problem}\n', separator='\n')


def smoke(config):
  """The same path in seconds."""
  config.model.update(width=32, num_layers=1, head_dim=8, mlp_width=64, vocab_size=512)
  config.data.update(max_prompt=64, max_response=32, bucket_growth=float('inf'))
  config.reference.train.update(steps=4, eval_every=4, save_every=4)
  config.prms = {name: config.prms[name] for name in ('dpo', 'outcome')}
  config.train.update(steps=4, eval_every=4, save_every=2, log_every=1)
  return config
