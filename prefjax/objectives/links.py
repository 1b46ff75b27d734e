"""From a margin (chosen score minus rejected score, nats) to a loss."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Margin = Float[Array, '*b']
Scalar = Float[Array, ''] | float
Link = Callable[[Margin], Margin]


def logistic(*, beta: Scalar) -> Link:
  """-log sigmoid(beta h). DPO (arXiv:2305.18290), Eq. 7. Linear, never infinite."""
  return lambda margin: -jax.nn.log_sigmoid(beta * margin)


def squared(*, tau: Scalar) -> Link:
  """(h - 1 / (2 tau))^2. IPO (arXiv:2310.12036), Eq. 17.

  float32 overflows to infinity from |h| of about 1e19 nats.
  """
  return lambda margin: jnp.square(margin - 0.5 / tau)


def hinge(*, beta: Scalar) -> Link:
  """max(0, 1 - beta h). SLiC (arXiv:2305.10425) on log-ratios (RSO, 2309.06657)."""
  return lambda margin: jax.nn.relu(1.0 - beta * margin)


def relative_entropy(*, beta: Scalar, epsilon: Scalar) -> Link:
  """KL(q || (1 - e, e)) of q = (sigmoid(beta h), sigmoid(-beta h)), e > 0.

  EXO (arXiv:2402.00856), Eq. 16 with two responses.
  """

  def link(margin):
    right, wrong = (jax.nn.log_sigmoid(s * beta * margin) for s in (1.0, -1.0))
    kept = jnp.exp(right) * (right - jnp.log1p(-epsilon))
    return kept + jnp.exp(wrong) * (wrong - jnp.log(epsilon))

  return link


def discovered(*, beta: Scalar, temperature: Scalar) -> Link:
  """(1 - m) (-log sigmoid(z)) + m exp(-z), z = beta h, m = sigmoid(z / temperature).

  DiscoPOP (arXiv:2406.08414), Section 4: found by search over programs.
  """

  def link(margin):
    z = beta * margin
    logistic = -jax.nn.sigmoid(-z / temperature) * jax.nn.log_sigmoid(z)
    # One exponential: its factor exp(-z) overflows where the product does not.
    return logistic + jnp.exp(jax.nn.log_sigmoid(z / temperature) - z)

  return link
