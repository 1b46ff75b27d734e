"""What a process reward model says of every step of a pool: computed once, stored."""

from collections.abc import Mapping
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prefjax.data.pipeline import Batches
from prefjax.objectives.advantages import step_ends
from prefjax.rewards import process
from prefjax.training.files import built
from prefjax.training.mesh import place_batch
from prefjax.training.step import Step

_FILE = 'steps.npz'

# Arrays [n, k, s]: `present`, and `rewards`. Of an implicit model also `without`, the
# rewards without a reference; of one that gives values, the rewards are probabilities
# that all is right up to the step.
Steps = Mapping[str, np.ndarray]


def stored(
  step: Step,
  params: Any,
  batches: Batches,
  directory: Path,
  *,
  valued: bool,
  beta: float,
) -> Steps:
  """A model's rewards of all steps in `batches`, from `directory` or computed."""

  def build(folder: Path) -> None:
    found = computed(step, params, batches, valued=valued, beta=beta)
    np.savez(folder / _FILE, **found)

  return load(built(directory, build))


def load(directory: Path) -> Steps:
  """What `stored` left."""
  with np.load(directory / _FILE, allow_pickle=False) as file:
    return dict(file)


def computed(
  step: Step, params: Any, batches: Batches, *, valued: bool, beta: float
) -> dict[str, np.ndarray]:
  """Arrays [n, k, s] of a data set whose batches have steps."""
  data = batches.data
  count = max(len(sizes) for example in _all(data) for sizes in example.steps)
  names = ('rewards',) if valued else ('rewards', 'without')
  shape = (*data.response_length.shape, count)
  found = {name: np.zeros(shape, np.float32) for name in names}
  found['present'] = np.zeros(shape, bool)
  read = _values if valued else functools.partial(_implicit, beta=beta)
  for rows, batch in batches.once():
    placed = batch if step.mesh is None else place_batch(batch, step.mesh)
    parts = read(step.score(params, placed), placed, num_steps=count)
    real = rows >= 0
    for name, part in parts.items():
      found[name][rows[real]] = np.asarray(part)[real]
  return found


def _all(data):
  size = 1024
  for start in range(0, len(data), size):
    yield from data.read(range(start, min(start + size, len(data))))


@functools.partial(jax.jit, static_argnames='num_steps')
def _implicit(outputs, batch, *, beta, num_steps):
  options = dict(beta=beta, num_steps=num_steps)
  logps = outputs.logps
  rewards, present = process.implicit_rewards(
    logps, batch.reference_logps, batch.step, **options
  )
  without, _ = process.implicit_rewards(logps, None, batch.step, **options)
  return {'rewards': rewards, 'without': without, 'present': present}


@functools.partial(jax.jit, static_argnames='num_steps')
def _values(outputs, batch, *, num_steps):
  """The probability after a step's last token, at the step's number."""
  probability = jax.nn.sigmoid(outputs.values[..., 1:])
  at_ends = jnp.where(step_ends(batch.step), probability, 0.0)
  rewards, present = process.implicit_rewards(
    at_ends, None, batch.step, beta=1.0, num_steps=num_steps
  )
  return {'rewards': rewards, 'present': present}
