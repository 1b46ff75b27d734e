"""Self-play preference optimisation: log-ratios regressed on win rates.

Conventions of eta. The update is pi_{t+1} = pi_t exp(eta P(y > pi_t)) / Z (SPPO,
arXiv:2405.00675, Eq. 4.1); the reference is pi_t. The authors' code has beta = 1 / eta
(0.001 for eta = 1e3) and halves the two squares of a pair, as `factor` 1/2 does; TRL's
`sppo_hard` has beta = 1 / eta and factor 1. Texts that write the target (1 / eta)(P -
1/2) call beta eta.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from prefjax.objectives.links import Scalar
from prefjax.objectives.pairing import on_scores, pairwise
from prefjax.objectives.pointwise import counted, further, ratios_of, response_mean
from prefjax.objectives.recipes import Positive, recipe
from prefjax.types import LossFn, Outputs, PreferenceBatch, check_batch


def half_log_normaliser(eta: Scalar) -> Array:
  """Eta / 2: log Z where preferences are fair coins. SPPO, Eq. 4.7."""
  return 0.5 * jnp.asarray(eta)


def ordered_log_normaliser(eta: Scalar) -> Array:
  """log((e^eta - 1) / eta): log Z where responses are strictly ranked.

  SPPO, Appendix A.4. As eta + log((1 - e^-eta) / eta), which does not overflow; where
  that cancels, by its series.
  """
  eta = jnp.asarray(eta)
  series = 0.5 * eta + jnp.square(eta) / 24.0
  return jnp.where(eta < 0.05, series, eta + jnp.log(-jnp.expm1(-eta) / eta))


def sampled_log_normaliser(
  win_rate: Float[Array, 'p k'], weight: Float[Array, 'p k'], eta: Scalar
) -> Float[Array, 'p 1']:
  """Log of the weighted mean of exp(eta P(y > pi_t)) over samples of pi_t.

  SPPO, Section 4: an estimate of log Z. 0 for a prompt without a sample.
  """
  total = weight.sum(axis=1, keepdims=True)
  some = total > 0
  share = weight / jnp.where(some, total, 1.0)
  win_rate = jnp.where(weight > 0, win_rate, 0.0)
  top = win_rate.max(axis=1, keepdims=True)
  spread = jnp.sum(share * jnp.exp(eta * (win_rate - top)), axis=1, keepdims=True)
  return jnp.where(some, eta * top + jnp.log(jnp.where(some, spread, 1.0)), 0.0)


@recipe(needs=('win_rate', 'reference_logps'))
def sppo(
  *,
  eta: Positive,
  log_normaliser: Literal['half', 'ordered', 'samples', 'further'] = 'half',
) -> LossFn:
  """(log pi(y) / pi_t(y) - eta P(y > pi_t) + log Z)^2, each response's own win rate.

  SPPO (arXiv:2405.00675), Eq. 4.4 to 4.7. log Z is eta / 2 (`half`), that of a strict
  ranking (`ordered`), the soft mean of the K `samples` themselves, or of `further`
  ones (weight 0, with tokens), whose win rates against the K cost O(KB) queries.
  """

  def loss_fn(outputs: Outputs, batch: PreferenceBatch):
    check_batch(batch)
    log_z = _LOG_NORMALISERS[log_normaliser](batch, eta)
    target = eta * counted(batch.win_rate, batch) - jnp.broadcast_to(
      log_z, batch.weight.shape
    )
    loss = jnp.square(ratios_of(outputs, batch) - target)
    return response_mean(loss, outputs, batch, scale=1.0 / eta)

  return loss_fn


_LOG_NORMALISERS = {
  'half': lambda batch, eta: half_log_normaliser(eta),
  'ordered': lambda batch, eta: ordered_log_normaliser(eta),
  'samples': lambda batch, eta: sampled_log_normaliser(
    batch.win_rate, batch.weight, eta
  ),
  'further': lambda batch, eta: sampled_log_normaliser(
    batch.win_rate, further(batch).astype(batch.weight.dtype), eta
  ),
}


@recipe(needs=('pairs', 'reference_logps'))
def sppo_single(*, eta: Positive, factor: Positive = 0.5) -> LossFn:
  """Factor [(a - eta (P - 1/2))^2 + (b + eta (P - 1/2))^2], P = P(y_w > y_l).

  SPPO's released `sppo_single`: P sets the targets, so it does not mix two orders.
  """

  def pair_loss(chosen, rejected, preference):
    target = eta * (preference - 0.5)
    squares = jnp.square(chosen - target) + jnp.square(rejected + target)
    return factor * squares

  return pairwise(pair_loss, scale=1.0 / eta)


@recipe(needs=('pairs', 'reference_logps'))
def sppo_hard(*, eta: Positive, factor: Positive = 1.0) -> LossFn:
  """Factor [(a - eta / 2)^2 + (b + eta / 2)^2]: the winner is taken to win always.

  SPPO (arXiv:2405.00675), Eq. 4.15, times eta^2; TRL's `sppo_hard`.
  """

  def loss(chosen, rejected):
    squares = jnp.square(chosen - 0.5 * eta) + jnp.square(rejected + 0.5 * eta)
    return factor * squares

  return pairwise(on_scores(loss), scale=1.0 / eta)
