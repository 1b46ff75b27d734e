"""How far a policy is from its reference, a token: estimates of KL(pi || pi_ref).

Each stage is a function of d = log pi - log pi_ref of a sampled token (nats). What it
is worth depends on where it stands: its value as an estimate of KL under samples of
pi, and, inside a loss, the expectation of its gradient, which is that of a KL for
some alone. Estimators: Schulman (2020), `Approximating KL divergence`.

                value      unbiased   E[gradient] under samples of pi, weights left out
    k1          d          yes        0: of use in the reward only
    k2          d^2 / 2    no         grad KL(pi || pi_ref)
    k3          e^-d-1+d   yes        grad KL(pi_ref || pi)
    k3_as_k2    e^-d-1+d   yes        grad KL(pi || pi_ref)
    Outputs.kl  exact      yes        grad KL(pi || pi_ref), of this prefix
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tokens = Float[Array, '*b']
Divergence = Callable[[Tokens], Tokens]

# exp() of more says only that pi all but excludes what pi_ref allows.
_LARGEST = 20.0  # nats


def k1(d: Tokens) -> Tokens:
  """d: unbiased, of either sign and great variance.

  Its expected gradient is E[grad log pi] = 0, so that a loss learns nothing of it:
  subtract beta k1 from the reward.
  """
  return d


def k2(d: Tokens) -> Tokens:
  """d^2 / 2: biased, never negative; its expected gradient is that of KL(pi || pi_ref).

  E[d grad log pi] = grad sum pi log(pi / pi_ref).
  """
  return 0.5 * jnp.square(d)


def k3(d: Tokens) -> Tokens:
  """exp(-d) - 1 + d: unbiased, never negative. GRPO (arXiv:2402.03300), Eq. 4.

  Its gradient (1 - exp(-d)) grad log pi is that of KL(pi_ref || pi) under samples of
  pi. For d < -20 the exponential stops, and with it its slope.
  """
  return jnp.expm1(jnp.minimum(-d, _LARGEST)) + d


def k3_as_k2(d: Tokens) -> Tokens:
  """The value of k3 with the gradient of k2: what is read and what is learnt agree."""
  learnt = k2(d)
  # The value alone first: k3 - k2 + k2 would lose its digits where k2 is huge.
  return jax.lax.stop_gradient(k3(d)) + (learnt - jax.lax.stop_gradient(learnt))


DIVERGENCES: dict[str, Divergence] = {
  'k1': k1,
  'k2': k2,
  'k3': k3,
  'k3_as_k2': k3_as_k2,
}
