"""The published model that a run starts from."""

import dataclasses
import functools
from typing import Any

import jax

from experiments.parts.build import Config
from prefjax.data import sources
from prefjax.errors import InputError
from prefjax.models import config as model_configs
from prefjax.models import hub, sharding


def checkpoint(config: Config, mesh: jax.sharding.Mesh | None) -> dict[str, Any]:
  """The parameters of `policy.checkpoint`, which must be of the config's model.

  Raises:
    InputError: where it is not there, or is another model.
  """
  folder = sources.find(f'{config["policy"]["checkpoint"]}/config.json').parent
  _, found = hub.read_config(folder, **config['model'])
  # What the config leaves to its family's default must be the checkpoint's too.
  own = dataclasses.asdict(model_configs.create(**config['model']))
  other = {
    name: value
    for name, value in dataclasses.asdict(found).items()
    if value != own[name]
  }
  if other:
    raise InputError(
      f'The model in {folder} has {other}, the config '
      f'{ {name: own[name] for name in other} }: give model.* the first.'
    )
  where = None
  if mesh is not None:
    where = functools.partial(sharding.shardings, mesh=mesh)
  return hub.load(folder, shardings=where, **config['model'])[1]
