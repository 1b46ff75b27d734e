"""How good a reward model is: accuracy, calibration, and its bias to length."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from prefjax.evaluation.statistics import clustered_mean
from prefjax.objectives.reward import expected_calibration_error, length_correlation
from prefjax.types import PreferenceBatch


class Pairs(NamedTuple):
  """Held-out pairs and the margins that each of e members gives them."""

  margins: np.ndarray  # [e, n] of chosen over rejected, nats
  preference: np.ndarray  # [n] P(chosen beats rejected)
  longer: np.ndarray  # [n] tokens of chosen less those of rejected
  prompt: np.ndarray  # [n] whose pair it is


def compared(
  batch: PreferenceBatch,
  prompts: Int[np.ndarray, ' p'],
  scores: Float[np.ndarray, 'e p k'],
  eos_id: int | None,
) -> Pairs:
  """The pairs of a batch; `eos_id` parts the two responses where they are read at once.

  Args:
    prompts: the index of each prompt in its data.
    scores: of every response, by each member.
    eos_id: the separator of ordered pairs; None where responses stand alone.
  """
  counted = np.asarray(batch.pair_weight) > 0

  def of_pairs(x):
    ends = (np.take_along_axis(x, i, axis=-1) for i in (batch.chosen, batch.rejected))
    chosen, rejected = ends
    return (chosen - rejected)[counted]

  length = np.asarray(batch.response_length)
  if eos_id is not None:
    length = (np.asarray(batch.responses) == eos_id).argmax(axis=-1)
  return Pairs(
    np.stack([of_pairs(member) for member in scores]),
    np.asarray(batch.preference)[counted],
    of_pairs(length.astype(np.int64)),
    np.broadcast_to(prompts[:, None], counted.shape)[counted],
  )


def joined(parts: Sequence[Pairs]) -> Pairs:
  """The pairs of several batches."""
  return Pairs(*(np.concatenate(x, axis=-1) for x in zip(*parts, strict=True)))


def summary(pairs: Pairs) -> dict[str, float]:
  """The numbers of the mean margin, and each member's accuracy where there are several.

  accuracy            share of pairs whose margin is above 0, +- its error over
                      prompts, since pairs of one prompt are no independent draws
  calibration_error   of sigmoid(margin), over both orders of every pair
  longer_preferred    share of pairs, of those that differ in length, in which the
                      longer response is preferred; `longer_right` is that of the
                      data
  length_correlation  of margins with differences of length, over both orders
  disagreement        mean over pairs of the members' standard deviation, nats
  """
  margin = pairs.margins.mean(axis=0)
  right = (margin > 0).astype(np.float64)
  accuracy = clustered_mean(right, pairs.prompt)
  both, wanted = (np.concatenate(x) for x in _both_orders(margin, pairs.preference))
  weight = jnp.ones(len(both), jnp.float32)
  chance, wanted = (jnp.asarray(x, jnp.float32) for x in (_sigmoid(both), wanted))
  lengths = np.concatenate([pairs.longer, -pairs.longer])
  correlation = length_correlation(
    jnp.asarray(both, jnp.float32), jnp.asarray(lengths, jnp.float32), weight
  )
  differ = pairs.longer != 0
  found = {
    'pairs': float(len(margin)),
    'prompts': float(len(np.unique(pairs.prompt))),
    'accuracy': float(accuracy.mean),
    'accuracy_se': float(accuracy.standard_error),
    'calibration_error': float(expected_calibration_error(chance, wanted, weight)),
    'longer_preferred': _share((margin > 0) == (pairs.longer > 0), differ),
    'longer_right': _share((pairs.preference > 0.5) == (pairs.longer > 0), differ),
    'length_correlation': float(correlation),
  }
  if len(pairs.margins) > 1:
    found['disagreement'] = float(pairs.margins.std(axis=0, ddof=1).mean())
    each = (pairs.margins > 0).mean(axis=1)
    found |= {f'accuracy_of_{i}': float(x) for i, x in enumerate(each)}
  return found


def _both_orders(margin, preference):
  """The error must not depend on which response of a pair came first."""
  return (margin, -margin), (preference, 1.0 - preference)


def _sigmoid(x):
  return 0.5 * (1.0 + np.tanh(0.5 * x))


def _share(found, of):
  return float(found[of].mean()) if of.any() else 0.5
