"""Sums of objectives that stay exact when a batch is taken in parts."""

import jax.numpy as jnp

from prefjax.objectives.links import Scalar
from prefjax.types import LossFn, Mean, Outputs, PreferenceBatch


def add(first: LossFn, *others: tuple[Scalar, LossFn]) -> LossFn:
  """L = L_0 + sum_i a_i L_i, for `add(L_0, (a_1, L_1), ...)`.

  The terms keep their own denominators, so that each is exact under accumulation.
  Metrics of an earlier term win over those of the same name.
  """

  def loss_fn(outputs: Outputs, batch: PreferenceBatch):
    loss, measured = first(outputs, batch)
    totals, weights = [loss.total], [loss.weight]
    for coefficient, other in others:
      loss, more = other(outputs, batch)
      totals.append(coefficient * loss.total)
      weights.append(loss.weight)
      measured = more | measured
    return Mean(_terms(totals), _terms(weights)), measured

  return loss_fn


def _terms(values):
  return jnp.concatenate([jnp.atleast_1d(value) for value in values])
