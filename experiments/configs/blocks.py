"""What configs share: variants, smoke sizes, an objective's own flags."""

from collections.abc import Callable
import inspect
from typing import Any

import ml_collections as mlc

from prefjax import objectives

SMOKE, PAPER = 'smoke', 'paper'
FLAGS = (SMOKE, PAPER, 'tiny', 'repository', 'learned', 'steps', '70b')


def parse(variant: str, default: str) -> tuple[str, set[str]]:
  """A variant `name`, `smoke` or `name,smoke`: the name, and the words beside it."""
  words = [word for word in variant.split(',') if word]
  flags = {word for word in words if word in FLAGS}
  names = [word for word in words if word not in flags]
  if len(names) > 1:
    raise ValueError(f'A variant names one objective, got {names}.')
  return (names or [default])[0], flags


def sized(variant: str, small: Callable[..., Any], paper: Callable[..., Any]) -> Any:
  """The config of an ablation: the miniature's, or with `paper` that of the paper."""
  words = [word for word in variant.split(',') if word]
  rest = ','.join(word for word in words if word != PAPER)
  return paper(rest) if PAPER in words else small(rest)


def objective(name: str, **chosen: Any) -> mlc.ConfigDict:
  """A recipe's hyperparameters as flags, from its own signature.

  `chosen` are the experiment's values; those that the recipe does not have are left
  out, so that one set serves every recipe. A knob without a value must be given on
  the command line.
  """
  config = mlc.ConfigDict({'name': name})
  for key, field in objectives.fields(name).items():
    kind = field.kind if isinstance(field.kind, type) else str
    default = None if field.required else field.default
    value = chosen.get(key, default)
    if value is None or value is inspect.Parameter.empty:
      config[key] = mlc.config_dict.placeholder(kind)
    else:
      config[key] = value
  return config


def optimizer(name: str, learning_rate: float, **changes: Any) -> dict[str, Any]:
  """An optimiser block; `changes` are the fields that differ from the defaults."""
  block = dict(
    name=name,
    learning_rate=learning_rate,
    schedule='constant',
    warmup_steps=0,  # updates
    clip_norm=0.0,  # global norm; 0 does not clip
    weight_decay=0.0,
    b1=0.9,
    b2=0.999,
    final=0.0,  # share of the learning rate that a decay ends at
  )
  return _changed('optimizer', block, changes)


def train(
  steps: int, *, eval_every: int, save_every: int, log_every: int = 10
) -> dict[str, int]:
  """A training block, in updates."""
  return dict(
    steps=steps,
    log_every=log_every,
    eval_every=eval_every,
    save_every=save_every,
    keep=2,  # checkpoints, the newest
    best='',  # keep the best by this too: eval/loss, eval/accuracy
    profile_from=0,  # 0: no profile
    profile_steps=3,
  )


def rollout(prompts: int, group_size: int, **changes: Any) -> dict[str, Any]:
  """How an iteration samples; `changes` are the fields that differ."""
  block = dict(
    prompts=prompts,  # groups of a batch
    group_size=group_size,  # responses of a prompt
    temperature=1.0,
    top_k=0,  # 0: all tokens
    top_p=1.0,
    min_p=0.0,
    stop_strings=(),  # beside the tokenizer's EOS
    stop_ids=(),
    slots=0,  # prompts decoded at once; 0: all that are asked for
    block=0,  # tokens between two looks at who has ended; 0: to the end
    cache_dtype='',  # of keys and values; '': the model's
    gather=True,  # put parameters together over mesh.fsdp once a block, not a token
    responses_at_once=0,  # of a prompt, in a micro-batch; 0: the whole group
    dynamic=False,  # leave out groups that are all right or all wrong
    refill='next_prompt',  # or resample, which conditions the distribution
    oversample=1.0,  # prompts of a round for every group that is missing
    max_rounds=10,  # after which a batch is trained on short
    max_staleness=1,  # iterations that a surplus group may wait for
    filter_truncated=False,  # leave responses that were cut off out of the loss
    server='',  # URL of an OpenAI-compatible server that samples; '': in this process
    server_model='',  # its name for the policy
    correction='none',  # of sampler against trainer: none, token, sequence
    correction_cap=2.0,
  )
  return _changed('rollout', block, changes)


def rewards(gate: str, **changes: Any) -> dict[str, Any]:
  """Rewards: verifiers by name, their weights, and which of them says `right`."""
  block = dict(
    verifiers={gate: gate},  # name -> verifier, task:NAME, steps:NAME, an import path
    models={},  # name -> folder of a finished experiments.rm run
    weights={gate: 1.0},
    gate=gate,
    threshold=1.0,  # of the gate's reward, from which a response is right
    overlong_cache=0,  # tokens before max_response that are punished; 0: none
    overlong_weight=1.0,
    token_cost=0.0,  # reward that every token costs
    seconds=5.0,  # for one sample
    workers=1,  # processes; 0: in this one, without a limit
  )
  return _changed('rewards', block, changes)


def self_play(iterations: int, *, prompts: int, **changes: Any) -> dict[str, Any]:
  """How self-play samples and picks; `changes` are the fields that differ."""
  block = dict(
    iterations=iterations,
    prompts=prompts,  # of an iteration, which no other one has
    responses=5,  # K of a prompt
    use='best_and_worst',  # or `all` K of them
    soft_pairs=False,  # pairs have the oracle's own chance; else they are certain
    temperature=1.0,
    top_k=0,  # 0: all tokens
    top_p=1.0,
    min_p=0.0,
    prompts_at_once=128,  # that are sampled for in one call
  )
  return _changed('self_play', block, changes)


def online(iterations: int, *, eval_every: int, save_every: int, **changes: Any):
  """A training block, in iterations of one rollout each."""
  block = dict(
    iterations=iterations,
    epochs=1,  # times that a rollout is gone through (mu)
    minibatches=1,  # updates of an epoch
    refresh_every=0,  # iterations after which the policy becomes the reference
    eval_every=eval_every,
    save_every=save_every,
    keep=2,  # checkpoints, the newest
    best='',  # keep the best by this too: eval/accuracy, eval/reward
  )
  return _changed('train', block, changes)


def _changed(name, block, changes):
  unknown = sorted(set(changes) - set(block))
  if unknown:
    raise KeyError(f'{name} has no {unknown}')
  return block | changes


def run() -> mlc.ConfigDict:
  """What every run has: a seed, a mesh (0: every device), what to log."""
  config = mlc.ConfigDict()
  config.seed = 0
  # What is trained from; '': as reference says, where the run has one.
  config.policy = dict(checkpoint='')  # a Hugging Face folder
  config.records = dict(
    columns='',  # what the source's columns mean (docs/data.md); '': as named
    chat=False,  # prompts as conversations, by the template beside the tokenizer
  )
  config.lora = dict(
    rank=0,  # columns of every adapter; 0: all parameters are trained
    alpha=16.0,  # the adapters' weight is alpha / rank
    targets=('layers.*',),  # patterns of projections: layers.attention.*, *.query
    zero='a',  # the factor that starts at 0: a, or b as in the paper
  )
  config.mesh = dict(
    # One of them may be 0: all devices that the others leave.
    data=0,  # devices that share out the prompts
    fsdp=1,  # devices that share out the prompts and the parameters' width
    tensor=1,  # devices that share out heads, hidden units and the vocabulary
  )
  config.memory = dict(
    # device, or host: brought to the devices where it is needed.
    optimizer='device',  # the optimiser's moments, between updates
    reference='device',  # the parameters that a run begins with, between uses
  )
  config.log = dict(
    entropy=True,  # of the policy, every update
    wandb='',  # project; '' logs to files alone
  )
  return config
