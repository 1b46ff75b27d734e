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
