"""SPPO on UltraFeedback, with the settings of the paper (arXiv:2405.00675), 5.1.

  python -m experiments.sppo --config=experiments/configs/sppo/ultrafeedback.py

Mistral-7B-Instruct-v0.2, three iterations of 20,000 prompts, K = 5 responses of which
the best and the worst by PairRM are trained on, eta 1e3, RMSprop at 5e-7, 64 prompts an
update. The paper reports 24.79, 26.89 and 28.53 % length-controlled wins on AlpacaEval
2.0 after the iterations, from 17.11 %; of iterative DPO 23.81, 24.23, 22.30 and of
iterative IPO 23.78, 21.08, 20.06. Ours: not yet run.

Variants: the name of a recipe (default `sppo`); beside it
  repository  what the authors' code does where the paper's text says something else:
              temperature 0.7 and top-p 0.9 (1.0 and 1.0); win rates by way of one score
              a response (of the chances themselves); a schedule of one epoch (of 18, of
              which the first is kept: all of it is warm-up)
  llama3      Llama-3-8B-Instruct: 31.73, 35.15 and 38.77 %, from 22.92 %; its shape and
              settings, its tokenizer and chat are to be brought along
  smoke       the cycle task, in seconds

The prompts are expected as JSON lines with `prompt`, AlpacaEval's instructions
likewise. PairRM runs elsewhere: an iteration that finds no rows for its responses in
`ultrafeedback/scores.jsonl` stops and names the file that they are in; write `prompt`,
`responses` and `wins` (or `scores`) there and start the run again.
"""

from experiments.configs import blocks
from experiments.configs.sppo import cycle

_BATCH = 64  # prompts of an update, the paper's
_PROMPTS = 20_000  # of an iteration
_EPOCH = _PROMPTS // _BATCH  # updates


def get_config(variant='sppo'):
  words = [word for word in variant.split(',') if word and word != 'llama3']
  name, flags = blocks.parse(','.join(words), default='sppo')
  if blocks.SMOKE in flags:
    return cycle.get_config(f'{name},smoke')
  config = cycle.get_config(name)
  mistral(config)
  if 'llama3' in variant.split(','):
    llama3(config)
  config.data.update(
    source='jsonl:ultrafeedback/prompts.jsonl',
    held_out_source='jsonl:ultrafeedback/alpaca_eval.jsonl',
    batch_size=_BATCH,
    max_prompt=512,
    max_response=512,
    max_tokens=16_384,
    bucket_multiple=128,
    bucket_growth=1.5,
    drop_long_prompts=True,
  )
  config.self_play = blocks.self_play(3, prompts=_PROMPTS, prompts_at_once=32)
  config.oracle = dict(source='jsonl:ultrafeedback/scores.jsonl', win_rate='matrix')
  for key, value in (('eta', 1e3), ('beta', 1e-3), ('tau', 5e-4)):
    if key in config.objective:
      config.objective[key] = value
  # 1.8 of 18 epochs are warm-up, and the model of the first epoch is kept.
  config.optimizer = blocks.optimizer(
    'rmsprop', 5e-7, schedule='linear', warmup_steps=_EPOCH * 18 // 10
  )
  config.train = blocks.train(_EPOCH, eval_every=_EPOCH, save_every=100)
  config.evaluation.update(prompts=805, samples=1, instruction='prompt')
  if 'repository' in flags:
    repository(config)
  return config


def mistral(config):
  """The shape of Mistral-7B-Instruct-v0.2, and its chat."""
  config.model = dict(
    family='mistral',
    vocab_size=32_000,
    width=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_width=14_336,
    max_positions=32_768,
    window=None,
    rope_theta=1e6,
    attention='blocked',
    remat='full',
    layout='shared',
    dtype='bfloat16',
  )
  config.tokenizer.path = 'mistral.model'
  config.policy.checkpoint = 'mistral-7b-instruct-v0.2'
  config.data.prompt = '[INST] {prompt} [/INST]'


def llama3(config):
  """The shape of Llama-3-8B-Instruct."""
  config.model.update(
    family='llama',
    vocab_size=128_256,
    max_positions=8192,
    rope_theta=500_000.0,
  )
  config.tokenizer.path = 'llama3.model'
  config.policy.checkpoint = 'llama-3-8b-instruct'


def repository(config):
  """Where the authors' code differs from the paper's text."""
  config.self_play.update(temperature=0.7, top_p=0.9)
  config.oracle.win_rate = 'scalar'
  config.optimizer.warmup_steps = _EPOCH // 10
