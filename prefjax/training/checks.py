"""Step-0 checks: before the first update, policy and reference are one model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prefjax.errors import TrainingError
from prefjax.training.mesh import on_host
from prefjax.training.step import Hyper, Step
from prefjax.types import Outputs, PreferenceBatch

_ROUNDING = 1e-5  # relative, float32 sums of a few hundred tokens


class Check(NamedTuple):
  """One number that is known before training, and how far it may lie off."""

  name: str
  value: float
  wanted: float
  tolerance: float

  @property
  def holds(self) -> bool:
    return bool(abs(self.value - self.wanted) <= self.tolerance)

  def __str__(self) -> str:
    mark = 'ok' if self.holds else 'WRONG'
    return (
      f'{self.name} {self.value:.6g}, wanted {self.wanted:.6g} '
      f'within {self.tolerance:.1e}: {mark}'
    )


def step_zero(
  step: Step, params: Any, batch: PreferenceBatch, hyper: Hyper
) -> list[Check]:
  """Scores one batch and compares with what holds where policy = reference.

  Drifts, margin and KL are 0, and the loss is that of the stored log-probs
  themselves (log 2 for DPO). The tolerance is measured: the same batch is scored
  again with its arrays padded to other lengths, and ten times the difference that
  this makes is allowed. Without a reference nothing is known, and nothing checked.
  """
  if batch.reference_logps is None:
    return []
  scored = jax.tree.map(on_host, step.score(params, batch))
  host = jax.tree.map(on_host, batch)
  first, t = scored.logps, host.responses.shape[-1]
  second = on_host(step.score(params, widened(host)).logps)[..., :t]
  spread = np.abs(first.sum(axis=-1) - second.sum(axis=-1)).max()
  size = np.abs(first.sum(axis=-1)).max()
  tolerance = float(10 * spread + _ROUNDING * (1 + size))
  values = step.evaluate(params, [batch], hyper)
  checks = [
    Check(name, values[name], 0.0, tolerance)
    for name in ('chosen_drift', 'rejected_drift', 'margin', 'kl_to_reference')
    if name in values
  ]
  exact = _loss(step, scored, host.reference_logps, host)
  moved = [
    _loss(step, scored, host.reference_logps + shift, host)
    for shift in _shifts(host, tolerance)
  ]
  change = max(abs(loss - exact) for loss in moved)
  slack = change + _ROUNDING * (1 + abs(exact))
  return [Check('loss', values['loss'], exact, slack), *checks]


def refuse(checks: list[Check]) -> None:
  """Raises TrainingError if a check does not hold."""
  wrong = [str(check) for check in checks if not check.holds]
  if wrong:
    raise TrainingError(
      'Before the first update the policy is not the reference: '
      f'{"; ".join(wrong)}. The stored reference log-probs belong to another '
      'model or other tokens, or the forward depends on padding.'
    )


def widened(batch: PreferenceBatch, by: int = 8) -> PreferenceBatch:
  """The same batch in arrays that are `by` tokens longer in both blocks."""

  def right(x, value):
    return np.pad(x, ((0, 0), (0, 0), (0, by)), constant_values=value)

  names = ('responses', 'mask', 'reference_logps', 'old_logps', 'step', 'step_label')
  longer: Mapping[str, Any] = {
    name: right(np.asarray(getattr(batch, name)), -1 if 'step' in name else 0)
    for name in names
    if getattr(batch, name) is not None
  }
  prompts = np.pad(np.asarray(batch.prompts), ((0, 0), (by, 0)))
  return batch.replace(prompts=prompts, **longer)


def _loss(step: Step, scored: Outputs, logps: Any, batch: PreferenceBatch) -> float:
  outputs, batch = jax.tree.map(jnp.asarray, (scored.replace(logps=logps), batch))
  return float(step.objective.build()(outputs, batch)[0].value())


def _shifts(batch, tolerance):
  """Changes of the log-probs by the tolerance a response, for and against pairs."""
  count = np.maximum(np.asarray(batch.mask).sum(axis=-1, keepdims=True), 1)
  one = tolerance * np.asarray(batch.mask) / count
  sign = np.ones(batch.weight.shape)
  if batch.chosen is not None:
    rejected = np.asarray(batch.rejected)[:, :1]
    np.put_along_axis(sign, rejected, -1.0, axis=1)
  return (one * sign[..., None], -one * sign[..., None])
