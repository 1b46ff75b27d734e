"""Softmax policies over a finite set of responses, and which of them is optimal.

A policy is its log-probabilities, nats, over the last axis.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from prefjax.errors import InputError

Scalar = Float[Array, ''] | float
LogPolicy = Float[Array, '*b n']
Reward = Float[Array, '*b n']
Preferences = Float[Array | np.ndarray, 'n n']

# Of the interval from 1 to 1 / pi_ref in which the best response gains, in logs.
_BISECTIONS = 60
_NEWTON_STEPS = 25


class Frontier(NamedTuple):
  """What each beta buys: its optimum's KL from the reference (nats) and reward."""

  kl: Float[Array, ' b']
  reward: Float[Array, ' b']


def log_policy(theta: Float[Array, '*b n']) -> LogPolicy:
  """Log pi(y) = theta_y - log sum_y' exp theta_y'."""
  return jax.nn.log_softmax(theta)


def kl(policy: LogPolicy, other: LogPolicy) -> Float[Array, '*b']:
  """KL(pi || q) = sum_y pi(y) log(pi(y) / q(y)), nats; 0 log 0 is 0.

  Infinite where pi writes what q never does.
  """
  impossible = policy == -jnp.inf
  ratio = jnp.where(impossible, 0.0, policy - other)
  return jnp.sum(jnp.exp(policy) * ratio, axis=-1)


def objective(
  policy: LogPolicy, reference: LogPolicy, reward: Reward, *, beta: Scalar
) -> Float[Array, '*b']:
  """J(pi) = E_{y ~ pi}[r(y)] - beta KL(pi || pi_ref). DPO (arXiv:2305.18290), Eq. 3."""
  expected = jnp.sum(jnp.exp(policy) * reward, axis=-1)
  return expected - beta * kl(policy, reference)


def kl_optimum(reference: LogPolicy, reward: Reward, *, beta: Scalar) -> LogPolicy:
  """Log pi* = log pi_ref + r / beta - log Z, which maximises J. DPO, Eq. 4."""
  return jax.nn.log_softmax(reference + reward / beta)


def optimal_value(
  reference: LogPolicy, reward: Reward, *, beta: Scalar
) -> Float[Array, '*b']:
  """max_pi J(pi) = beta log Z = beta log E_{y ~ pi_ref}[exp(r(y) / beta)].

  Any other policy falls short by beta KL(pi || pi*). IPO (arXiv:2310.12036), App. A.1.
  """
  return beta * jax.nn.logsumexp(reference + reward / beta, axis=-1)


def frontier(
  reference: Float[Array, ' n'],
  reward: Float[Array, ' n'],
  betas: Float[Array | np.ndarray, ' b'],
) -> Frontier:
  """The most reward that a KL from the reference can buy: `kl_optimum` at each beta.

  With l = 1 / beta and V the variance of r under the optimum, dE[r]/dl = V and
  dKL/dl = l V, so that dE[r]/dKL = beta along it.

  Raises:
    InputError: a beta that is not positive and finite.
  """
  given = np.asarray(betas)
  if not np.all((given > 0) & np.isfinite(given)):
    raise InputError(f'Every beta must be positive and finite, got {given.tolist()}.')

  def point(beta):
    policy = kl_optimum(reference, reward, beta=beta)
    return Frontier(kl(policy, reference), jnp.sum(jnp.exp(policy) * reward))

  return jax.vmap(point)(jnp.asarray(betas))


def identity(preference: Float[Array, '*b']) -> Float[Array, '*b']:
  """Psi(q) = q, that of IPO: bounded, so the optimum stays near its reference."""
  return preference


def logit(preference: Float[Array, '*b']) -> Float[Array, '*b']:
  """Psi(q) = log(q / (1 - q)), that of RLHF and DPO; infinite at 0 and 1."""
  return jnp.log(preference) - jnp.log1p(-preference)


def psi_optimum(
  reference: Float[Array, ' n'],
  opponent: Float[Array, ' n'],
  P: Preferences,
  *,
  tau: Scalar,
  psi: Callable[[Float[Array, 'n n']], Float[Array, 'n n']],
) -> Float[Array, ' n']:
  """Log pi*, pi*(y) prop. to pi_ref(y) exp(E_{y' ~ mu}[Psi(P(y > y'))] / tau).

  It maximises E_{y ~ pi, y' ~ mu}[Psi(P(y > y'))] - tau KL(pi || pi_ref); mu is the
  opponent, log-probabilities. IPO (arXiv:2310.12036), Eq. 6 and App. A.1.

  Raises:
    InputError: a preference whose Psi is infinite; there is no optimum then.
  """
  values = psi(jnp.asarray(P))
  infinite = np.argwhere(~np.isfinite(values))
  if infinite.size:
    i, j = infinite[0]
    raise InputError(f'Psi of P[{i},{j}] = {P[i, j]} is not finite: no optimum exists.')
  return kl_optimum(reference, values @ jnp.exp(opponent), beta=tau)


def regression_optimum(
  reference: Float[Array, ' n'], target: Float[Array, ' n']
) -> Float[Array, ' n']:
  """The log-policy that minimises E_{y ~ pi_ref}[(log pi(y) / pi_ref(y) - u(y))^2].

  The log-ratio x of a policy has E_{pi_ref}[e^x] = 1. Where the target u has that
  too, x = u; elsewhere a stationary point has, for one multiplier b,

      x(y) - b e^x(y) = u(y).

  Responses are ordered as their targets are. In terms of the best, with z its x and
  q = b e^z = z - max u, the others lie d = z - x >= 0 below it, and

      d + q e^-d = q + max u - u.

  E[e^x] - 1 has opposite signs at z = 0 and at z = -log pi_ref(best), and a point
  where it rises through 0 is a minimum. There is no other if E[e^u] >= 1, as b is
  then at most 0. If E[e^u] < 1 the target leaves mass over, and other minima, some
  of them lower, may put it on responses that the reference hardly writes; this one
  gives it to the best.
  """
  best = jnp.argmax(target)
  top = target[best]

  def below(z):
    """The distances d at a given z, by Newton from the side where it is monotone."""
    q = z - top
    gap = top - target

    def newton(_, d):
      residual = d + q * jnp.expm1(-d) - gap
      slope = 1.0 - q - q * jnp.expm1(-d)
      return d - residual / jnp.maximum(slope, jnp.finfo(d.dtype).tiny)

    start = jnp.where(q > 0, gap + q, 0.0)
    d = lax.fori_loop(0, _NEWTON_STEPS, newton, start)
    return d.at[best].set(0.0)

  def halve(_, bracket):
    low, high = bracket
    middle = 0.5 * (low + high)
    mass = jax.nn.logsumexp(reference + middle - below(middle))
    return jnp.where(mass > 0, low, middle), jnp.where(mass > 0, middle, high)

  bracket = jnp.zeros_like(top), -reference[best]
  z = lax.fori_loop(0, _BISECTIONS, halve, bracket)[1]
  return jax.nn.log_softmax(reference + z - below(z))
