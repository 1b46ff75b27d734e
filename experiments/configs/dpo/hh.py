"""DPO on Anthropic's helpful-and-harmless dialogues, after arXiv:2305.18290, App. B.

  python -m experiments.dpo --config=experiments/configs/dpo/hh.py

beta 0.1, RMSprop at 1e-6 after 150 warm-up updates, 64 pairs an update, 512 tokens of
which 256 for the prompt; the reference is trained on the preferred responses.
Reported for Pythia-2.8B: 62.9 % wins over the chosen response (GPT-4, temperature 1).
Ours: not yet run.

Variants: the name of any pairwise recipe (default `dpo`); beside it
  repository  the learning rate of the authors' code, 5e-7, for the paper's 1e-6
  tiny        a small model on the 2,312 pairs of the harmless-base test file, for CPU:
              8 minutes on 2 cores; on 256 held-out pairs loss 0.645, accuracy 0.63
              (beta 0.5: 0.644, 0.63), where a coin has 0.693 and 0.50; 5 pairs skipped
  smoke       `tiny` for seconds
"""

from experiments.configs import blocks

# The paper's beta, and values in use for the other recipes.
OBJECTIVES = dict(
  beta=0.1,
  tau=0.1,
  flip_probability=0.1,
  gamma=0.3,
  coefficient=0.2,
  alpha=0.1,
  tail=0.5,
  eta=10.0,
)


def get_config(variant='dpo'):
  name, flags = blocks.parse(variant, default='dpo')
  config = blocks.run()
  # The shape of Pythia-2.8B.
  config.model = dict(
    family='gpt_neox',
    vocab_size=50_304,
    width=2560,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=80,
    mlp_width=10_240,
    max_positions=2048,
    attention='blocked',
    remat='full',
    layout='shared',
    dtype='bfloat16',
  )
  config.tokenizer = dict(path='pythia.model')
  config.data = dict(
    source='jsonl:hh_rlhf/train.jsonl.gz',
    seed=-1,  # of all that is trained on, the reference too; -1: the run's
    held_out=256,  # records, the same for every seed
    flipped=0.0,  # share of the training pairs that are turned round
    max_prompt=256,  # tokens, cut on the left
    max_response=256,  # tokens
    batch_size=64,  # prompts, each with one pair
    max_tokens=16_384,  # padded tokens of a micro-batch on a data shard
    bucket_multiple=64,  # tokens
    bucket_growth=1.5,
  )
  config.reference = dict(
    workdir='',  # of a finished run; '': trained on the preferred responses
    move_every=0,  # updates after which it follows the policy (TR-DPO); 0: never
    move_mix=1.0,  # share of the policy that it takes on
    data=dict(batch_size=64),
    objective=blocks.objective('sft', reduction='sequence_sum'),
    optimizer=blocks.optimizer('rmsprop', 5e-7, warmup_steps=150, clip_norm=10.0),
    train=blocks.train(2500, eval_every=500, save_every=500),
  )
  config.objective = blocks.objective(name, **OBJECTIVES)
  rate = 5e-7 if 'repository' in flags else 1e-6
  config.optimizer = blocks.optimizer('rmsprop', rate, warmup_steps=150, clip_norm=10.0)
  config.train = blocks.train(2500, eval_every=300, save_every=300)
  if flags & {'tiny', blocks.SMOKE}:
    tiny(config)
  return smoke(config) if blocks.SMOKE in flags else config


def tiny(config):
  """A model that a CPU trains in minutes, on the real pairs of the test file."""
  config.model.update(
    family='llama',
    vocab_size=2048,
    width=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    mlp_width=352,
    max_positions=512,
    attention='dense',
    remat='none',
    dtype='float32',
  )
  config.tokenizer.path = ''  # trained on the preferred responses
  config.data.update(
    source='jsonl:hh_rlhf/harmless-base_test.jsonl.gz',
    max_prompt=128,
    max_response=64,
    batch_size=32,
    bucket_multiple=32,
    bucket_growth=2.0,
  )
  config.reference.data.batch_size = 32
  config.reference.objective.reduction = 'token_mean'
  config.reference.optimizer.update(
    name='adamw', learning_rate=2e-3, schedule='cosine', warmup_steps=20
  )
  config.reference.train.update(steps=200, eval_every=100, save_every=100)
  # So small a model learns at a rate that would break a large one.
  config.optimizer.learning_rate = 5e-5
  config.train.update(steps=150, eval_every=50, save_every=50)


def smoke(config):
  """The same path in seconds."""
  config.model.update(width=32, num_layers=1, head_dim=8, mlp_width=64)
  config.model.vocab_size = 512
  config.data.update(max_prompt=32, max_response=16, bucket_growth=1e9)
  config.reference.train.update(steps=6, eval_every=3, save_every=3)
  config.train.update(steps=4, eval_every=2, save_every=2, log_every=1)
  return config
