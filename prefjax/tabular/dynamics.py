"""Self-play in a preference game: what each method's exact iterates do.

Every method is f(P, *, steps, start, <numbers>) -> log-policies [steps + 1, n], the
start first. P[i, j] is the probability that response i beats j, and start a policy, as
probabilities. One step is the minimum of the method's loss over all policies, with
expectations for samples.
"""

from collections.abc import Callable
import functools
from typing import Literal

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from prefjax.errors import InputError
from prefjax.tabular import games, policies
from prefjax.tabular.games import win_rates
from prefjax.tabular.policies import Preferences, Scalar

Start = Float[Array | np.ndarray, ' n']
Iterates = Float[Array, 'iterates n']

_ROUNDING = 1e-5  # what float32 may leave between a sum of probabilities and 1

# Log-normalisers of SPPO --------------------------------------------------------


def exact_log_normaliser(
  log_policy: Float[Array, ' n'], win_rate: Float[Array, ' n'], eta: Scalar
) -> Array:
  """Log Z_t = log E_{y ~ pi_t}[exp(eta P(y > pi_t))]; at least eta / 2, by Jensen."""
  return jax.nn.logsumexp(log_policy + eta * win_rate)


def half_log_normaliser(eta: Scalar) -> Array:
  """Eta / 2: log Z where preferences are fair coins. SPPO, Eq. 4.7."""
  return 0.5 * jnp.asarray(eta)


def ordered_log_normaliser(eta: Scalar) -> Array:
  """Log((e^eta - 1) / eta): log Z where very many responses are strictly ranked.

  SPPO, App. A. No game has a larger log Z: win rates are never more spread than
  uniform on [0, 1]. As h + log(sinh(h) / h), h = eta / 2.
  """
  half = half_log_normaliser(eta)
  small = half < 0.03
  square = half**2
  series = square * (1 / 6 - square * (1 / 180 - square / 2835))
  h = jnp.where(small, 1.0, half)
  return half + jnp.where(small, series, h + jnp.log(-jnp.expm1(-2.0 * h) / (2.0 * h)))


# Methods ----------------------------------------------------------------------


def multiplicative_weights(
  P: Preferences, *, steps: int, start: Start, eta: float
) -> Iterates:
  """pi_{t+1}(y) prop. to pi_t(y) exp(eta P(y > pi_t)). SPPO (2405.00675), Eq. 4.1.

  Raises:
    InputError: P is no game, start no policy that writes every response, or a number
      out of its range; so for every method below.
  """
  return _iterates(_multiply, P, steps, start, eta=eta)


def _multiply(log_policy, P, start, eta):
  del start
  rates = win_rates(P, jnp.exp(log_policy))
  return policies.kl_optimum(log_policy, rates, beta=1.0 / eta)


def sppo(
  P: Preferences,
  *,
  steps: int,
  start: Start,
  eta: float,
  log_normaliser: Literal['exact', 'half', 'ordered'] = 'exact',
) -> Iterates:
  """Argmin_pi E_{y ~ pi_t}[(log pi(y) / pi_t(y) - eta P(y > pi_t) + log Z)^2].

  SPPO, Eq. 4.4, over all policies. With the exact log Z it is
  `multiplicative_weights`; a constant asks for log-ratios that no policy has, and
  `regression_optimum` says which it settles for.
  """
  if log_normaliser not in _REGRESSIONS:
    raise InputError(
      f'`log_normaliser` must be one of {list(_REGRESSIONS)}, got {log_normaliser!r}.'
    )
  return _iterates(_REGRESSIONS[log_normaliser], P, steps, start, eta=eta)


def _regress(log_normaliser, log_policy, P, start, eta):
  del start
  rates = win_rates(P, jnp.exp(log_policy))
  target = eta * rates - log_normaliser(log_policy, rates, eta)
  return policies.regression_optimum(log_policy, target)


_LOG_NORMALISERS: dict[str, Callable] = {
  'exact': exact_log_normaliser,
  'half': lambda log_policy, win_rate, eta: half_log_normaliser(eta),
  'ordered': lambda log_policy, win_rate, eta: ordered_log_normaliser(eta),
}
# Made once: `jit` tells functions apart by identity.
_REGRESSIONS = {
  name: functools.partial(_regress, function)
  for name, function in _LOG_NORMALISERS.items()
}


def ipo_self_play(P: Preferences, *, steps: int, start: Start, tau: float) -> Iterates:
  """pi_{t+1}(y) prop. to pi_ref(y) exp(P(y > pi_t) / tau), pi_ref the start throughout.

  The optimum of IPO (arXiv:2310.12036, Eq. 6, Psi the identity) whose pairs pit pi
  against pi_t. With pi_t as its reference too it would be `multiplicative_weights`
  with eta = 1 / tau.
  """
  return _iterates(_best_reply, P, steps, start, tau=tau)


def _best_reply(log_policy, P, start, tau):
  return policies.kl_optimum(start, win_rates(P, jnp.exp(log_policy)), beta=tau)


def nash_md(
  P: Preferences, *, steps: int, start: Start, eta: float, mixture: float
) -> Iterates:
  """pi_{t+1}(y) prop. to m(y) exp(eta P(y > m)), m prop. to pi_t^(1 - b) pi_ref^b.

  A step from and against a geometric mixture with pi_ref, the start. Nash-MD
  (arXiv:2312.00886): b = eta tau, and tau weighs the KL from pi_ref in the game that
  it solves. With b = 0 it is `multiplicative_weights`.
  """
  if not 0.0 <= mixture <= 1.0:
    raise InputError(f'`mixture` must be in [0, 1], got {mixture}.')
  return _iterates(_mirror, P, steps, start, eta=eta, mixture=mixture)


def _mirror(log_policy, P, start, eta, mixture):
  mixed = policies.log_policy((1.0 - mixture) * log_policy + mixture * start)
  return _multiply(mixed, P, start, eta)


def iterative_dpo(P: Preferences, *, steps: int, start: Start, beta: float) -> Iterates:
  """pi_{t+1}(y) prop. to pi_t(y) exp(r(y) / beta), r fitted to pairs drawn from pi_t.

  The optimum of DPO (arXiv:2305.18290) on them with pi_t as the reference, r the
  `bradley_terry_fit`.

  Raises:
    InputError: as above, or no scores fit: for want of losses of some responses, in P
      or, where preferences are 0 or 1, in the pairs that a policy still draws.
  """
  iterates = _iterates(_reward, P, steps, start, beta=beta)
  finite = np.isfinite(iterates).all(axis=1)
  if not finite.all():
    raise InputError(
      f'No Bradley-Terry scores fit the pairs of step {np.argmin(finite) - 1}: some '
      'responses (almost) never lose to the others there. P without 0 and 1, a larger '
      f'`beta` than {beta} or fewer `steps` would help.'
    )
  return iterates


def _reward(log_policy, P, start, beta):
  del start
  reward = games.bradley_terry_fit(P, log_policy)
  return policies.kl_optimum(log_policy, reward, beta=beta)


# The loop ---------------------------------------------------------------------


def _iterates(step, P, steps, start, **numbers):
  """Checks what was given, and applies the step to the start `steps` times."""
  P = games.check_preferences(P)
  probability = np.asarray(start)
  if probability.shape != P.shape[:1] or not np.all(probability > 0):
    raise InputError(
      f'`start` must be {len(P)} positive probabilities, got {probability.tolist()}.'
    )
  if abs(probability.sum() - 1.0) > _ROUNDING:
    raise InputError(f'`start` must add up to 1, got {probability.sum()}.')
  if steps < 0:
    raise InputError(f'`steps` must not be negative, got {steps}.')
  for name, value in numbers.items():
    if name != 'mixture' and not 0.0 < value < np.inf:
      raise InputError(f'`{name}` must be positive and finite, got {value}.')
  log_start = jax.nn.log_softmax(jnp.log(jnp.asarray(start)))
  return _scan(step, steps, log_start, P, numbers)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scan(step, steps, start, P, numbers):
  def body(log_policy, _):
    following = step(log_policy, P, start, **numbers)
    return following, following

  _, rest = lax.scan(body, start, length=steps)
  return jnp.concatenate([start[None], rest])
