"""What an update minimises for a token: a function of the ratio pi / pi_old.

Stages take the log-ratio (nats), the advantage and the log-prob of each token and
return a loss; exponents stop at 80, and with them the slope.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prefjax.objectives.links import Scalar

Tokens = Float[Array, 'p k t']
Mask = Bool[Array, 'p k t']
LogRatio = Callable[[Tokens, Tokens, Mask], Tokens]
Surrogate = Callable[[Tokens, Tokens, Tokens], Tokens]  # (log-ratio, advantage, logps)

_LARGEST_EXPONENT = 80.0  # float32 ends at exp(88.7)


def token_log_ratio(logps: Tokens, old_logps: Tokens, mask: Mask) -> Tokens:
  """Log pi(y_t) - log pi_old(y_t), nats; 0 where no token counts."""
  return jnp.where(mask, logps - old_logps, 0.0)


def sequence_log_ratio(logps: Tokens, old_logps: Tokens, mask: Mask) -> Tokens:
  """The mean of a response's token log-ratios, on each of its tokens.

  GSPO (arXiv:2507.18071), Eq. 7: s_i = (pi(y_i) / pi_old(y_i))^(1 / |y_i|).
  """
  ratio = token_log_ratio(logps, old_logps, mask)
  count = jnp.maximum(mask.sum(axis=-1, keepdims=True), 1)
  return jnp.where(mask, ratio.sum(axis=-1, keepdims=True) / count, 0.0)


def sequence_token_log_ratio(logps: Tokens, old_logps: Tokens, mask: Mask) -> Tokens:
  """The sequence's ratio in value, each token's own in slope.

  GSPO-token (arXiv:2507.18071), Eq. 14: sg[s_i] pi(y_t) / sg[pi(y_t)].
  """
  value = jax.lax.stop_gradient(sequence_log_ratio(logps, old_logps, mask))
  return value + jnp.where(mask, logps - jax.lax.stop_gradient(logps), 0.0)


LOG_RATIOS: dict[str, LogRatio] = {
  'token': token_log_ratio,
  'sequence': sequence_log_ratio,
  'sequence_token': sequence_token_log_ratio,
}


def ratio(log_ratio: Tokens) -> Tokens:
  """exp() of the log-ratio, up to an exponent of 80."""
  return jnp.exp(jnp.minimum(log_ratio, _LARGEST_EXPONENT))


def plain() -> Surrogate:
  """-rho A."""
  return lambda log_ratio, advantage, logps: -ratio(log_ratio) * advantage


def likelihood() -> Surrogate:
  """-A log pi: REINFORCE, which reads no old policy."""
  return lambda log_ratio, advantage, logps: -advantage * logps


def clipped(*, low: Scalar, high: Scalar) -> Surrogate:
  """-min(rho A, clip(rho, 1 - low, 1 + high) A).

  PPO (arXiv:1707.06347), Eq. 7; with high > low DAPO (arXiv:2503.14476), Eq. 8.
  """

  def surrogate(log_ratio: Tokens, advantage: Tokens, logps: Tokens) -> Tokens:
    rho, least, largest = ratio(log_ratio), 1.0 - low, 1.0 + high
    # Not jnp.clip, which halves the slope of a ratio on a bound: of 1 where low is 0.
    up = jnp.where(rho > largest, largest, rho)
    down = jnp.where(rho < least, least, rho)
    return -jnp.where(advantage > 0, up, down) * advantage

  return surrogate


def dual_clipped(*, low: Scalar, high: Scalar, cap: Scalar) -> Surrogate:
  """`clipped`, and for A < 0 never more than -cap A, with cap > 1.

  Ye et al. (arXiv:1912.09729), Eq. 3: a large ratio of a bad token is left alone.
  """
  single = clipped(low=low, high=high)

  def surrogate(log_ratio: Tokens, advantage: Tokens, logps: Tokens) -> Tokens:
    loss = single(log_ratio, advantage, logps)
    return jnp.where(advantage < 0, jnp.minimum(loss, -cap * advantage), loss)

  return surrogate


def cispo(*, high: Scalar) -> Surrogate:
  """-sg[min(rho, 1 + high)] A log pi: the weight is clipped, no gradient is lost.

  CISPO (arXiv:2506.13585), Eq. 4, without its lower bound, which the paper leaves off.
  """

  def surrogate(log_ratio: Tokens, advantage: Tokens, logps: Tokens) -> Tokens:
    weight = jnp.minimum(ratio(log_ratio), 1.0 + high)
    return -jax.lax.stop_gradient(weight) * advantage * logps

  return surrogate
