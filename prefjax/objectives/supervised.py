"""Maximum likelihood, alone or as a term beside another objective."""

from typing import Literal

import jax

from prefjax.objectives import aggregation, metrics
from prefjax.objectives.recipes import recipe
from prefjax.types import LossFn, Outputs, PreferenceBatch, check_batch

_REDUCTIONS = {
  'token_mean': aggregation.token_mean,
  'sequence_sum': aggregation.sequence_sum,
}


@recipe()
def sft(*, reduction: Literal['token_mean', 'sequence_sum'] = 'token_mean') -> LossFn:
  """Negative log-likelihood of the responses, nats: -sum_t log pi(y_t | y_<t, x).

  `token_mean` divides by all counted tokens; `sequence_sum` sums within a response
  and averages over responses, as the DPO authors' code does.
  """
  aggregate = _REDUCTIONS[reduction]

  def loss_fn(outputs: Outputs, batch: PreferenceBatch):
    check_batch(batch)
    constant = jax.lax.stop_gradient(outputs)
    nll = aggregation.token_mean(-constant.logps, batch.mask, batch.weight)
    measured = {'nll': nll} | metrics.response_metrics(constant, batch)
    return aggregate(-outputs.logps, batch.mask, batch.weight), measured

  return loss_fn
