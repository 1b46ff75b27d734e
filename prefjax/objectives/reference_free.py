"""Recipes on pairs that read no reference; their scores are log-probs."""

from typing import Literal

import jax
import jax.numpy as jnp

from prefjax.objectives import links, scores
from prefjax.objectives.combine import add
from prefjax.objectives.links import Scalar
from prefjax.objectives.pairing import on_margin, on_scores, pairwise, smoothed
from prefjax.objectives.recipes import BelowHalf, NonNegative, Positive, recipe
from prefjax.types import LossFn

Reduction = Literal['sum', 'mean']
_SCORES = {'sum': scores.log_prob, 'mean': scores.mean_log_prob}

# Log-odds grow without end as the mean log-prob comes to 0.
_LARGEST_MEAN = -1e-6  # nats a token


def chosen_nll(*, reduction: Reduction, scale: Scalar = 1.0) -> LossFn:
  """-log pi(y_w), or that a token: the supervised term beside a preference loss."""
  loss = on_scores(lambda chosen, rejected: -chosen)
  return pairwise(loss, scale=scale, score=_SCORES[reduction])


@recipe(needs=('pairs',))
def preferred_ft(*, reduction: Reduction = 'sum') -> LossFn:
  """-log pi(y_w): supervised fine-tuning on the preferred response, nats.

  The baseline Preferred-FT of DPO (arXiv:2305.18290), Section 6.
  """
  return chosen_nll(reduction=reduction)


@recipe(needs=('pairs',))
def unlikelihood(*, alpha: NonNegative) -> LossFn:
  """-log pi(y_w) + alpha log pi(y_l), nats; without a lower bound.

  The baseline Unlikelihood of DPO (arXiv:2305.18290), Section 6, alpha in [0, 1].
  """
  loss = on_scores(lambda chosen, rejected: alpha * rejected - chosen)
  return pairwise(loss, scale=1.0, score=scores.log_prob)


@recipe(needs=('pairs',))
def simpo(*, beta: Positive, gamma: NonNegative) -> LossFn:
  """-log sigmoid(beta (mean log pi(y_w) - mean log pi(y_l)) - gamma).

  SimPO (arXiv:2405.14734), Eq. 6. Its code sets gamma / beta: multiply.
  """
  link = links.logistic(beta=beta)
  loss = on_margin(lambda margin: link(margin - gamma / beta))
  return pairwise(loss, scale=beta, score=scores.mean_log_prob)


@recipe(needs=('pairs',))
def cpo(
  *,
  beta: Positive,
  nll_coefficient: NonNegative = 1.0,
  nll_reduction: Reduction = 'sum',
  label_smoothing: BelowHalf = 0.0,
) -> LossFn:
  """-log sigmoid(beta (log pi(y_w) - log pi(y_l))) - nll_coefficient log pi(y_w).

  CPO (arXiv:2401.08417), Section 3.
  """
  loss = smoothed(on_margin(links.logistic(beta=beta)), epsilon=label_smoothing)
  preferred = pairwise(loss, scale=beta, score=scores.log_prob)
  return add(preferred, (nll_coefficient, chosen_nll(reduction=nll_reduction)))


@recipe(needs=('pairs',))
def orpo(*, coefficient: NonNegative) -> LossFn:
  """-mean log pi(y_w) - coefficient log sigmoid(log odds_w - log odds_l).

  odds = P / (1 - P) of P = exp(mean log pi(y)). ORPO (arXiv:2403.07691), Eq. 6 and 7;
  `coefficient` is its lambda. The rewards of the metrics are mean log-probs.
  """

  def loss(chosen, rejected):
    return -jax.nn.log_sigmoid(_log_odds(chosen) - _log_odds(rejected))

  odds = pairwise(on_scores(loss), scale=1.0, score=scores.mean_log_prob)
  return add(chosen_nll(reduction='mean'), (coefficient, odds))


def _log_odds(log_p):
  """log(P / (1 - P)) of P = exp(log_p), by the branch that does not cancel."""
  log_p = jnp.minimum(log_p, _LARGEST_MEAN)
  near = log_p > -0.6931472
  # Each branch gets only what it is meant for: the other's derivative may be NaN.
  small, large = jnp.where(near, log_p, -1.0), jnp.where(near, -1.0, log_p)
  complement = jnp.where(near, jnp.log(-jnp.expm1(small)), jnp.log1p(-jnp.exp(large)))
  return log_p - complement
