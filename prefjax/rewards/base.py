"""What a reward is, how several are combined, and how a verifier is named."""

from collections.abc import Callable, Mapping, Sequence
import difflib
import importlib
import math
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float64
import numpy as np

from prefjax.errors import InputError

# Paths, so that a worker imports only what it scores with.
VERIFIERS = {
  'digits': 'prefjax.rewards.verifiers.digits',
  'digits_steps': 'prefjax.rewards.verifiers.digits_steps',
  'exact_answer': 'prefjax.rewards.verifiers.exact_answer',
  'format_boxed': 'prefjax.rewards.verifiers.format_boxed',
  'game24': 'prefjax.rewards.game24.game24',
  'gsm8k': 'prefjax.rewards.verifiers.gsm8k',
  'gsm8k_format': 'prefjax.rewards.verifiers.gsm8k_format',
  'maths_equivalence': 'prefjax.rewards.maths.maths_equivalence',
}


@runtime_checkable
class Verifier(Protocol):
  """The reward of one response, by a rule.

  `record` is what the data holds beside the prompt, such as a reference answer.
  NaN says that the verifier does not apply to this record.
  """

  def __call__(self, prompt: str, response: str, record: Mapping[str, Any]) -> float:
    """The reward; a pure function of its arguments, defined on any response."""
    ...


# What a verifier of steps returns: where in the text each step ends, in characters from
# its beginning, and what that step earns.
Steps = Sequence[tuple[int, float]]


def stepwise(verifier: Callable[..., Steps | None]) -> Callable[..., Steps | None]:
  """Declares that a verifier judges single steps and returns [(end, reward), ...].

  Ends ascend, and a step that ends with the text takes the token that stops the
  response too. The response's reward is the sum, so that weights, gate and failures are
  those of any verifier; None says that it does not apply to this record.
  """
  verifier.stepwise = True
  return verifier


def is_stepwise(reward: Any) -> bool:
  """Whether a verifier or a model rewards single steps."""
  return getattr(reward, 'stepwise', False)


@runtime_checkable
class Reward(Protocol):
  """The rewards of a batch of responses; NaN where the reward does not apply."""

  def __call__(
    self,
    prompts: Sequence[str],
    responses: Sequence[str],
    records: Sequence[Mapping[str, Any]],
  ) -> Float64[np.ndarray, ' n']:
    """One reward a response, in their order."""
    ...


def combine(
  values: Mapping[str, Float64[np.ndarray, ' n']], weights: Mapping[str, float]
) -> Float64[np.ndarray, ' n']:
  """The weighted sum of the rewards that apply to a response.

  sum_j weight_j * value_j over the j whose value is not NaN. Where none applies
  the sum is NaN: such a response was not judged, which is not a reward of 0.

  Raises:
    InputError: no rewards, names of values and weights that differ, or a weight
      that is not finite.

  Source: TRL's GRPOTrainer sums so, but gives 0 where none applies.
  """
  if not values or values.keys() != weights.keys():
    raise InputError(
      f'Each reward needs its weight: got rewards {sorted(values)} and weights '
      f'of {sorted(weights)}.'
    )
  for name, weight in weights.items():
    if not math.isfinite(weight):
      raise InputError(f'The weight of {name!r} must be finite, got {weight}.')
  table = np.stack([weights[name] * values[name] for name in values])
  return np.where(np.isnan(table).all(axis=0), np.nan, np.nansum(table, axis=0))


def find(name: str) -> Verifier:
  """The verifier of this name, of `task:NAME` or `steps:NAME`, or at an import path.

  Raises:
    InputError: for a name that is neither, listing what exists, for a task that does
      not judge steps, or for a verifier whose optional package is not installed.
  """
  scheme, _, task = name.partition(':')
  if scheme in ('task', 'steps'):
    return _by_task(task, scheme)
  module, _, function = VERIFIERS.get(name, name).rpartition('.')
  if not module:
    close = difflib.get_close_matches(name, list(VERIFIERS), n=1)
    hint = f' (did you mean {close[0]!r}?)' if close else ''
    raise InputError(
      f'Unknown verifier {name!r}{hint}; known are {sorted(VERIFIERS)}, or give an '
      f'import path such as my_package.my_verifier.'
    )
  try:
    found = getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError, TypeError) as error:
    raise InputError(f'The verifier {name!r} cannot be imported: {error}.') from error
  if not callable(found):
    raise InputError(f'The verifier {name!r} is not a function.')
  return found


def _by_task(name: str, scheme: str) -> Verifier:
  # Imported here: scipy, which tasks import, is half of a worker's start.
  from prefjax import tasks

  task = tasks.get(name)
  if scheme == 'task':
    return lambda prompt, response, record: task.reward(prompt, response)
  if not hasattr(task, 'step_rewards'):
    known = [n for n, found in tasks.TASKS.items() if hasattr(found, 'step_rewards')]
    raise InputError(
      f'The task {name!r} does not judge single steps, so that there is no verifier '
      f'steps:{name}; those that do are {known}.'
    )
  return stepwise(lambda prompt, response, record: task.step_rewards(prompt, response))
