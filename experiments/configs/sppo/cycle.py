"""Self-play where preferences run in a cycle: SPPO, iterative DPO and IPO compared.

  python -m experiments.sppo --config=experiments/configs/sppo/cycle.py

Four letters are to be copied in one of three styles that beat each other in a cycle
(prefjax/tasks/cycle.py), and the von Neumann winner is known. Three iterations of each
objective in three seeds, with win rates taken from the matrix of preferences, as the
SPPO paper has it (arXiv:2405.00675), and by way of one score a response, as its code.
beta = 1 / eta and tau = beta / 2 are the paper's own correspondence (Eq. 4.13 to 4.15).

Variants: a recipe's name runs it alone, with `--config.seed` and
`--config.oracle.win_rate`; `smoke` beside it, for a run of seconds.
"""

from experiments.configs import blocks

ETA = 4.0  # large enough to move in three iterations, small enough to be reached
OBJECTIVES = dict(
  eta=ETA,
  beta=1.0 / ETA,
  tau=0.5 / ETA,
  flip_probability=0.1,
  gamma=0.3,
  coefficient=0.3,
  alpha=0.1,
  tail=0.5,
)


def get_config(variant=''):
  name, flags = blocks.parse(variant, default='')
  config = blocks.run()
  config.model = dict(
    family='llama',
    vocab_size=16,  # every character of the task, and nothing longer
    width=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_width=176,
    max_positions=32,
    tied_embeddings=True,
    attention='dense',
    remat='none',
    layout='shared',
    dtype='float32',
  )
  config.tokenizer = dict(path='')  # '': SentencePiece trained on the task's text
  config.data = dict(
    source='task:cycle',
    held_out_source='',
    prompt='',  # templates of a source's fields, for what is no task
    solution='',
    documents=16_000,  # that the base policy learns from
    prompts=1536,  # for all iterations together
    held_out=256,  # prompts, and documents, that nothing is trained on
    max_prompt=8,  # tokens
    max_response=8,  # tokens
    batch_size=32,  # prompts of an update
    max_tokens=8192,  # padded tokens of a micro-batch
    bucket_multiple=8,  # tokens
    bucket_growth=float('inf'),  # one bucket of each length
    drop_long_prompts=False,
  )
  config.reference = dict(
    workdir='',  # of a finished run; '': trained by maximum likelihood
    data=dict(batch_size=128),
    objective=blocks.objective('sft'),
    optimizer=blocks.optimizer('adamw', 3e-3, schedule='cosine', warmup_steps=50),
    train=blocks.train(800, eval_every=400, save_every=400),
  )
  config.oracle = dict(
    source='task:cycle',  # or rm:FOLDER, jsonl:PATH, the import path of a function
    win_rate='matrix',  # or scalar
  )
  config.self_play = blocks.self_play(3, prompts=512, prompts_at_once=256)
  config.objective = blocks.objective(name or 'sppo', **OBJECTIVES)
  config.optimizer = blocks.optimizer(
    'rmsprop', 1e-4, schedule='linear', clip_norm=10.0
  )
  config.train = blocks.train(48, eval_every=48, save_every=24)
  config.evaluation = dict(
    prompts=256,
    samples=8,  # a prompt, of every iterate
    oracle='',  # '': the one that is learnt from
    instruction='',  # field of a question for the export; '': the prompt
  )
  config.compare = dict(objectives=dict(), win_rates=(), seeds=())
  if not name:
    config.compare = dict(
      objectives={x: blocks.objective(x, **OBJECTIVES) for x in ('sppo', 'dpo', 'ipo')},
      win_rates=('matrix', 'scalar'),
      seeds=(0, 1, 2),
    )
  return smoke(config) if blocks.SMOKE in flags else config


def smoke(config):
  """A model that knows little, in seconds; the same path through every part."""
  config.model.update(width=32, num_layers=1, head_dim=8, mlp_width=64)
  config.data.update(documents=400, prompts=64, held_out=16)
  config.data.update(batch_size=8)
  config.reference.data.batch_size = 32
  config.reference.train.update(steps=120, eval_every=120, save_every=60)
  config.self_play.update(iterations=2, prompts=32, prompts_at_once=16)
  config.train.update(steps=6, eval_every=6, save_every=3, log_every=1)
  config.evaluation.update(prompts=16, samples=4)
  if config.compare.seeds:
    config.compare.update(win_rates=('matrix', 'scalar'), seeds=(0,))
  return config
