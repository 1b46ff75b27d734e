"""What a loop's models say of a rollout before any update learns from it."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from prefjax.training.correction import Correction
from prefjax.training.mesh import on_host, place, place_batch
from prefjax.training.minibatches import Cutter, Part, gathered
from prefjax.training.step import Step
from prefjax.types import Outputs, RolloutBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring:
  """Fills a rollout with the log-probs and values that an objective needs.

  Attributes:
    step: the policy's; its objective says what is needed.
    critic: the step of a critic of its own, or None.
    temperature: of the sampler, for log-probs.
  """

  step: Step
  cutter: Cutter
  critic: Step | None
  correction: Correction
  temperature: float

  def scored(
    self, batch: RolloutBatch, state: Mapping[str, Any], reference: Any
  ) -> RolloutBatch:
    """The rollout with what the models of `state`, and the reference, say of it."""
    needs = self.step.objective.needs
    if 'reference_logps' in needs:
      logps = self.logps(place(reference, self.step.mesh), batch)
      batch = batch.replace(reference_logps=logps)
    if self.correction.level != 'none':
      own = self.logps(state['policy']['params'], batch)
      weights = self.correction.weights(own, batch.old_logps, batch.mask)
      batch = batch.replace(old_logps=own, correction=weights)
    if self.critic is not None:
      batch = batch.replace(values=self._values(self.critic, state['critic'], batch))
    elif 'values' in needs:
      batch = batch.replace(values=self._values(self.step, state['policy'], batch))
    return batch

  def logps(self, params: Any, batch: RolloutBatch) -> np.ndarray:
    """Log-probs of the responses [p, k, t], nats, at the sampler's temperature."""

    def score(part):
      return self.step.score(params, part, self.temperature)

    return read('logps', score, self.cutter, batch, self.step)

  def _values(self, step, state, batch):
    def score(part):
      return step.score(state['params'], part)

    return read('values', score, self.cutter, batch, step)


def read(
  name: str,
  score: Callable[[RolloutBatch], Outputs],
  cutter: Cutter,
  batch: RolloutBatch,
  step: Step,
) -> np.ndarray:
  """One quantity of a forward on a whole rollout, put together from micro-batches."""
  parts: Sequence[Part] = cutter.cut(batch, np.arange(len(batch.prompt_length)))

  def on_part(part):
    return {name: on_host(getattr(score(placed(part, step)), name))}

  return gathered(parts, on_part, batch)[name]


def placed(batch: RolloutBatch, step: Step) -> RolloutBatch:
  """A micro-batch where the step wants it."""
  return batch if step.mesh is None else place_batch(batch, step.mesh)
