"""A process reward model that learns from outcomes while the policy does: PRIME."""

import dataclasses
from typing import Any

import jax
import numpy as np

from prefjax.training import scoring
from prefjax.training.mesh import place
from prefjax.training.minibatches import Cutter
from prefjax.training.step import State, Step, hyper
from prefjax.types import RolloutBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessModel:
  """Rewards of tokens, r_t = beta (log pi_phi(y_t) - log pi_ref(y_t)), without labels.

  pi_phi learns by cross-entropy whether a response is right, from every rollout before
  it judges it; pi_ref is what it started from. PRIME (arXiv:2502.01456), which calls
  this order `before`.

  Attributes:
    step: of `cross_entropy`, whose beta this is.
    params: what pi_phi starts from, and its reference, which never moves.
    updates: of a rollout, each on its own prompts.
  """

  step: Step
  params: Any
  updates: int = 1

  def start(self) -> State:
    """The state that the first rollout finds."""
    return self.step.initial_state(self.params)

  def judge(
    self,
    state: State,
    reference: Any,
    batch: RolloutBatch,
    cutter: Cutter,
  ) -> tuple[State, RolloutBatch, dict[str, float]]:
    """Learns the outcomes in `batch.label`, then fills `batch.implicit`.

    Metrics are means over the updates, of the model before each: so `accuracy` is of
    responses that it has not learnt from. `reference` is `params`, in any memory. The
    state is donated.
    """

    def logps(params):
      def score(part):
        return self.step.score(params, part)

      return scoring.read('logps', score, cutter, batch, self.step)

    before = logps(place(reference, self.step.mesh))
    labelled = batch.replace(reference_logps=before)
    numbers = hyper(self.step.objective, self.step.optimizer)
    found = []
    for some in np.split(np.arange(len(batch.prompt_length)), self.updates):
      cut = cutter.cut(labelled, some)
      parts = [scoring.placed(part.batch, self.step) for part in cut]
      state, metrics = self.step.update(state, parts, numbers)
      found.append(jax.device_get(metrics))
    beta = self.step.objective.numbers['beta']
    rewards = np.where(batch.mask, beta * (logps(state['params']) - before), 0.0)
    batch = batch.replace(implicit=rewards.astype(before.dtype), label=None)
    means = {
      f'process/{name}': float(np.mean([row[name] for row in found]))
      for name in found[0]
    }
    return state, batch, means
