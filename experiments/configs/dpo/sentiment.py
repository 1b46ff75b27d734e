"""Controlled sentiment in miniature, after DPO (arXiv:2305.18290), Section 6.1.

  python -m experiments.dpo --config=experiments/configs/dpo/sentiment.py

Short film reviews from a grammar, whose true reward is known. The reference is trained
on mixed reviews; it writes four responses to each prompt, and all six pairs are
labelled by Bradley-Terry draws from the true reward. The run ends with true reward,
KL, and the exact frontier between them.

Variants: the name of any recipe (default `dpo`), or the import path of your own;
`smoke` beside it, as in `:ipo,smoke`, for a run of seconds. Labels and win rates, for
recipes on single responses, are counted from the pairs.
"""

from experiments.configs import blocks

# The knob of each recipe at which the miniature moves about as far from its reference.
OBJECTIVES = dict(
  beta=0.3,
  tau=0.3,
  flip_probability=0.1,
  gamma=0.3,
  coefficient=0.3,
  alpha=0.1,
  tail=0.5,
  eta=3.0,
)


def get_config(variant='dpo'):
  name, flags = blocks.parse(variant, default='dpo')
  config = blocks.run()
  config.model = dict(
    family='llama',
    vocab_size=384,
    width=128,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    mlp_width=352,
    max_positions=64,
    tied_embeddings=True,
    attention='blocked',
    remat='none',
    layout='shared',
    dtype='float32',
  )
  config.tokenizer = dict(path='')  # '': SentencePiece trained on the task's text
  config.data = dict(
    source='task:sentiment',
    seed=-1,  # of all that is trained on, the reference too; -1: the run's
    documents=8000,  # reviews that the reference learns from
    prompts=1536,  # that preferences are drawn for
    held_out=128,  # prompts with pairs, and reviews, that are not trained on
    responses=4,  # a prompt, all pairs among them
    label_scale=4.0,  # nats a unit of true reward, of the Bradley-Terry labels
    flipped=0.0,  # share of the training pairs that are turned round
    max_prompt=16,  # tokens
    max_response=32,  # tokens
    batch_size=32,  # prompts
    max_tokens=8192,  # padded tokens of a micro-batch
    bucket_multiple=4,  # tokens
    bucket_growth=float('inf'),  # one bucket of each length
  )
  config.reference = dict(
    workdir='',  # of a finished run; '': trained by maximum likelihood
    move_every=0,  # updates after which it follows the policy (TR-DPO); 0: never
    move_mix=1.0,  # share of the policy that it takes on
    data=dict(batch_size=64),
    objective=blocks.objective('sft'),
    optimizer=blocks.optimizer('adamw', 3e-3, schedule='cosine', warmup_steps=50),
    train=blocks.train(500, eval_every=250, save_every=100),
  )
  config.objective = blocks.objective(name, **OBJECTIVES)
  config.optimizer = blocks.optimizer('rmsprop', 1e-4, warmup_steps=150, clip_norm=10.0)
  config.train = blocks.train(240, eval_every=80, save_every=80)
  config.evaluation = dict(
    prompts=16,
    samples=1024,  # a prompt, of reference and policy each
    prompts_at_once=2,
  )
  return smoke(config) if blocks.SMOKE in flags else config


def smoke(config):
  """A model that knows little, in seconds; the same path through every part."""
  config.model.update(width=32, num_layers=1, head_dim=8, mlp_width=64)
  config.data.update(documents=400, prompts=64, held_out=16, batch_size=16)
  config.reference.data.batch_size = 32
  config.reference.train.update(steps=60, eval_every=30, save_every=20)
  config.train.update(steps=12, eval_every=6, save_every=4, log_every=1)
  config.evaluation.update(prompts=4, samples=256, prompts_at_once=4)
  return config
