"""What configs share: variants, smoke sizes, an objective's own flags."""

import inspect
from typing import Any

import ml_collections as mlc

from prefjax import objectives

SMOKE = 'smoke'
FLAGS = (SMOKE, 'tiny', 'repository')


def parse(variant: str, default: str) -> tuple[str, set[str]]:
  """A variant `name`, `smoke` or `name,smoke`: the name, and the words beside it."""
  words = [word for word in variant.split(',') if word]
  flags = {word for word in words if word in FLAGS}
  names = [word for word in words if word not in flags]
  if len(names) > 1:
    raise ValueError(f'A variant names one objective, got {names}.')
  return (names or [default])[0], flags


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
  unknown = sorted(set(changes) - set(block))
  if unknown:
    raise KeyError(f'optimizer has no {unknown}')
  return block | changes


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


def run() -> mlc.ConfigDict:
  """What every run has: a seed, a mesh (0: every device), what to log."""
  config = mlc.ConfigDict()
  config.seed = 0
  config.mesh = dict(data=0)  # devices; 0 is every one
  config.log = dict(
    entropy=True,  # of the policy, every update
    wandb='',  # project; '' logs to files alone
  )
  return config
