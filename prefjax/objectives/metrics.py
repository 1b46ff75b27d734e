"""What every preference run logs; one definition of each number for all objectives."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prefjax.objectives import aggregation, scores
from prefjax.objectives.links import Scalar
from prefjax.types import Mean, Outputs, PreferenceBatch, weighted_mean

# exp() of a larger per-token log-ratio says only that the models disagree utterly.
_LARGEST_LOG_RATIO = 20.0  # nats


def preference_metrics(
  outputs: Outputs,
  chosen: Float[Array, 'p m'],
  rejected: Float[Array, 'p m'],
  batch: PreferenceBatch,
  *,
  scale: Scalar,
) -> dict[str, Mean]:
  """Means over the pairs of what a preference objective does, as constants.

      chosen_reward, rejected_reward   scale * score, the implicit reward
      margin                           their difference u
      accuracy                         1[u > 0], strict: 0 at the reference
      gradient_coefficient             sigmoid(-u), DPO (arXiv:2305.18290) sec. 4
      chosen_drift, rejected_drift     log pi / pi_ref of the response, nats

  and those of `response_metrics`.
  """
  u = scale * (chosen - rejected)
  means = {
    'chosen_reward': scale * chosen,
    'rejected_reward': scale * rejected,
    'margin': u,
    'accuracy': (u > 0).astype(u.dtype),
    'gradient_coefficient': jax.nn.sigmoid(-u),
  }
  if batch.reference_logps is not None and outputs.logps is not None:
    drift = scores.log_ratio(outputs.logps, batch.reference_logps, batch.mask)
    for name in ('chosen', 'rejected'):
      index = getattr(batch, name)
      means[f'{name}_drift'] = jnp.take_along_axis(drift, index, axis=1)
  weighted = {
    name: weighted_mean(value, batch.pair_weight) for name, value in means.items()
  }
  return weighted | response_metrics(outputs, batch)


def label_accuracy(
  scores: Float[Array, 'p k'], batch: PreferenceBatch
) -> dict[str, Mean]:
  """How often the more desirable of two responses to a prompt scores higher, strictly.

  Over all pairs of a prompt's responses whose labels differ, weighed by both weights;
  no zero of the scores is asked for.
  """

  def gaps(x):
    return x[:, :, None] - x[:, None]

  weight = batch.weight[:, :, None] * batch.weight[:, None]
  weight = jnp.where(gaps(batch.label) > 0, weight, 0.0)
  right = (gaps(scores) > 0).astype(weight.dtype)
  return {'accuracy': weighted_mean(right, weight)}


def response_metrics(outputs: Outputs, batch: PreferenceBatch) -> dict[str, Mean]:
  """Means over the responses: length (tokens), entropy (nats a token), KL (nats).

  `kl_to_reference` sums exp(d) - 1 - d, d = log pi / pi_ref of a token, over each
  response: the k3 estimate, without bias for KL(pi_ref || pi) where the responses
  are samples of the reference, and a distance on this data where they are not.
  """
  dtype = batch.weight.dtype
  present = (batch.response_length > 0) & (batch.weight > 0)
  present = present.astype(dtype)
  means = {
    'response_length': weighted_mean(batch.response_length.astype(dtype), present)
  }
  if outputs.entropy is not None:
    means['entropy'] = aggregation.token_mean(outputs.entropy, batch.mask, present)
  if batch.reference_logps is not None and outputs.logps is not None:
    d = jnp.minimum(outputs.logps - batch.reference_logps, _LARGEST_LOG_RATIO)
    means['kl_to_reference'] = aggregation.sequence_sum(
      jnp.expm1(d) - d, batch.mask, present
    )
  return means
