"""A model that compares two solutions, on GSM8K's graded ones: 2,429 real pairs.

  python -m experiments.rm --config=experiments/configs/rm/gsm8k_pairs.py

Four models' solutions to each of the 1,319 test questions, graded right or wrong: every
right one of a question against every wrong one, in the 731 questions that have both.
Questions are held out whole. The trunk, a small model, is first trained on GSM8K's
7,473 training questions and answers, none of which is among them.

Variants:
  scalar    scores of single solutions instead
  rank19    consistent against inconsistent summary sentences: 373 pairs, 212 sources
  smoke     beside one of them, for a run of seconds
Every one is judged on LLMBar's 100 Natural pairs too, which a model this small cannot
follow: a coin has 0.5.

Ours, seed 0: accuracy 0.591 +- 0.029 on the pairs of held-out questions (calibration
error 0.030), 0.59 +- 0.05 on LLMBar's; 7 minutes on 2 shared CPU cores.
"""

from experiments.configs import blocks

_FLAGS = {'scalar', 'rank19', blocks.SMOKE}


def get_config(variant=''):
  flags = {word for word in variant.split(',') if word}
  if flags - _FLAGS:
    raise ValueError(f'Variants are {sorted(_FLAGS)}, got {sorted(flags)}.')
  config = blocks.run()
  config.log.entropy = False  # no next token is predicted
  config.model = dict(
    family='llama',
    vocab_size=1024,
    width=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=24,
    mlp_width=256,
    max_positions=1024,
    tied_embeddings=True,
    attention='dense',
    remat='none',
    layout='shared',
    dtype='float32',
  )
  config.tokenizer = dict(path='')  # '': SentencePiece trained on the reference's text
  config.data = dict(
    source='jsonl:gsm8k/example_model_solutions.jsonl',
    held_out=330,  # questions, of which 183 have pairs
    held_out_source='',
    prompt='',
    solution='',
    max_prompt=192,  # tokens, cut on the left
    max_response=160,  # tokens of one solution
    batch_size=8,  # questions
    max_tokens=8192,  # padded tokens of a micro-batch
    bucket_multiple=64,  # tokens
    bucket_growth=1.7,
  )
  config.reference = dict(
    workdir='',  # of a finished run; '': trained by maximum likelihood
    data=dict(
      batch_size=16,
      source='jsonl:gsm8k/train.jsonl',
      held_out=128,
      prompt='{question}\n',
      solution='{answer}',
    ),
    objective=blocks.objective('sft'),
    optimizer=blocks.optimizer('adamw', 2e-3, schedule='cosine', warmup_steps=50),
    train=blocks.train(200, eval_every=200, save_every=50),
  )
  config.reads = 'response' if 'scalar' in flags else 'pair'
  config.ensemble = 1  # members, whose margins are averaged
  config.objective = blocks.objective('bradley_terry')
  config.optimizer = blocks.optimizer(
    'adamw', 3e-4, schedule='cosine', warmup_steps=10, clip_norm=1.0, weight_decay=0.1
  )
  config.train = blocks.train(140, eval_every=35, save_every=35)
  config.evaluation = dict(sources=('json:llmbar/Natural.json',))
  if 'rank19' in flags:
    config.data.update(source='jsonl:summeval/rank19_pairs.jsonl', held_out=60)
  return smoke(config) if blocks.SMOKE in flags else config


def smoke(config):
  """The same path in seconds."""
  config.model.update(width=32, num_layers=1, head_dim=8, mlp_width=64, vocab_size=512)
  config.data.update(max_prompt=64, max_response=32, bucket_growth=float('inf'))
  config.reference.train.update(steps=4, eval_every=4, save_every=4)
  config.train.update(steps=4, eval_every=2, save_every=2, log_every=1)
  return config
