"""What of a model a run trains: all of it, or adapters beside it."""

from typing import Any, NamedTuple

import jax

from experiments.parts import build
from experiments.parts.build import Config, Model
from prefjax.models import lora as lora_lib
from prefjax.models.lora import Lora
from prefjax.training.mesh import place

_PURPOSE = 5  # of the adapters' first draw; no other draw of a run has it


class Trained(NamedTuple):
  """A model, what of its parameters is trained from, and what stays.

  The model's forward and graph take `whole` parameters.
  """

  model: Model
  params: Any  # what training starts from; adapters alone, where there are some
  frozen: Any = None
  lora: Lora | None = None

  def whole(self, params: Any) -> Any:
    """Trained parameters with those that are frozen, as the model runs on them."""
    return lora_lib.joined(self.frozen, params)

  def merged(self, params: Any) -> Any:
    """Trained parameters as those of a model without adapters."""
    if self.lora is None:
      return params
    return lora_lib.merged(self.whole(params), self.lora)


def trained(config: Config, model: Model, params: Any, mesh: Any) -> Trained:
  """What a config trains of a model that starts as `params`."""
  lora = build.lora(config)
  if lora is None:
    return Trained(model, params)
  key = jax.random.fold_in(jax.random.key(config['seed']), _PURPOSE)
  adapters = lora_lib.initial_params(model.config, lora, key)
  adapted = with_adapters(config, model)
  return Trained(adapted, place(adapters, mesh), params, lora)


def with_adapters(config: Config, model: Model) -> Model:
  """The model on base and adapters joined; as it is, where a config has none."""
  lora = build.lora(config)
  if lora is None:
    return model
  return model._replace(
    graph=lora_lib.create(model.config, lora)[0],
    forward=lora_lib.forward(model.config, lora),
  )
