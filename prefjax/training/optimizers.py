"""Optimisers as the papers used them, built under trace from traced numbers.

Structure (names, step counts) is fixed when an optimiser is created; numbers (learning
rate, weight decay, clip norm) are arguments of the compiled step.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import optax

from prefjax.errors import InputError

Numbers = Mapping[str, Any]


def warm_up(step: Any, steps: int) -> Any:
  """min(1, (n + 1) / (steps + 1)): the warm-up of the DPO authors' code."""
  return jnp.minimum(1.0, (step + 1) / (steps + 1))


def _decay(schedule: str, step, start: int, stop: int):
  """A unit schedule that goes from 1 at `start` to 0 at `stop`."""
  if schedule == 'constant':
    return 1.0
  done = jnp.clip((step - start) / max(stop - start, 1), 0.0, 1.0)
  if schedule == 'linear':
    return 1.0 - done
  return 0.5 * (1.0 + jnp.cos(jnp.pi * done))


def _rmsprop(rate, numbers):
  del numbers
  # torch.optim.RMSprop, which the DPO and SPPO authors ran: alpha 0.99 and eps
  # outside the root. optax's own defaults are others.
  return optax.rmsprop(rate, decay=0.99, eps=1e-8, eps_in_sqrt=False)


def _adamw(rate, numbers):
  return optax.adamw(
    rate,
    b1=numbers['b1'],
    b2=numbers['b2'],
    eps=1e-8,
    weight_decay=numbers['weight_decay'],
  )


def _adafactor(rate, numbers):
  # Shazeer and Stern (arXiv:1804.04235) without momentum: of a matrix it keeps means
  # over rows and columns. The rate is ours, not the parameter's scale, and the decay
  # of weights that of AdamW.
  return optax.chain(
    optax.scale_by_factored_rms(),
    optax.clip_by_block_rms(1.0),
    optax.add_decayed_weights(numbers['weight_decay']),
    optax.scale_by_learning_rate(rate),
  )


_OPTIMIZERS = {'rmsprop': _rmsprop, 'adamw': _adamw, 'adafactor': _adafactor}
_SCHEDULES = ('constant', 'linear', 'cosine')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """An optimiser's structure and its default numbers.

  `clip_norm` bounds the global norm of the gradient; 0 does not clip. `final` is the
  share of the learning rate that a decay ends at.
  """

  name: str
  learning_rate: float
  steps: int
  schedule: str = 'constant'
  warmup_steps: int = 0
  clip_norm: float = 0.0
  weight_decay: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  final: float = 0.0

  def __post_init__(self):
    for key, known in (('name', _OPTIMIZERS), ('schedule', _SCHEDULES)):
      if getattr(self, key) not in known:
        raise InputError(
          f'optimizer.{key} must be one of {list(known)}, got {getattr(self, key)!r}.'
        )
    for key in ('learning_rate', 'clip_norm', 'weight_decay', 'warmup_steps'):
      if not getattr(self, key) >= 0:
        raise InputError(
          f'optimizer.{key} must not be negative, got {getattr(self, key)!r}.'
        )

  @property
  def numbers(self) -> dict[str, float]:
    """What is traced."""
    names = ('learning_rate', 'clip_norm', 'weight_decay', 'b1', 'b2', 'final')
    return {name: float(getattr(self, name)) for name in names}

  def rate(self, step: Any, numbers: Numbers) -> Any:
    """The learning rate of a step (0 is the first)."""
    # An int32 step would make the quotients float32, also where x64 is on.
    step = jnp.asarray(step, float)
    decay = _decay(self.schedule, step, self.warmup_steps, self.steps)
    shape = numbers['final'] + (1.0 - numbers['final']) * decay
    return numbers['learning_rate'] * warm_up(step, self.warmup_steps) * shape

  def build(self, numbers: Numbers | None = None) -> optax.GradientTransformation:
    """The transformation; its state's structure never depends on the numbers."""
    numbers = self.numbers if numbers is None else numbers
    rate = functools.partial(self.rate, numbers=numbers)
    inner = _OPTIMIZERS[self.name](rate, numbers)
    return optax.chain(_clip(numbers['clip_norm']), inner)


def _clip(norm):
  # optax.clip_by_global_norm has no value that leaves the gradient alone.
  limit = jnp.where(norm > 0, norm, jnp.inf)
  return optax.clip_by_global_norm(limit)
