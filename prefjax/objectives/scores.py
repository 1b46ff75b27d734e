"""From per-token log-probs to one number a response."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prefjax.errors import InputError
from prefjax.objectives.links import Scalar
from prefjax.types import PreferenceBatch

Logps = Float[Array, '*b t']
Mask = Bool[Array, '*b t']
Score = Callable[[Logps, Logps | None, Mask], Float[Array, '*b']]

_LARGEST_EXPONENT = 80.0  # float32 ends at exp(88.7)


def log_ratio(
  logps: Logps, reference_logps: Logps | None, mask: Mask
) -> Float[Array, '*b']:
  """h(y) = sum_t log pi(y_t) - log pi_ref(y_t), nats. DPO (arXiv:2305.18290), Eq. 7."""
  difference = logps - required(reference_logps)
  return jnp.sum(difference, axis=-1, where=mask)


def mean_log_ratio(
  logps: Logps, reference_logps: Logps | None, mask: Mask
) -> Float[Array, '*b']:
  """The log-ratio divided by the response's tokens, nats a token; 0 for no token."""
  count = jnp.sum(mask, axis=-1)
  return log_ratio(logps, reference_logps, mask) / jnp.maximum(count, 1)


def required(reference_logps: Logps | None) -> Logps:
  """The reference's log-probs, or an error where the batch has none."""
  if reference_logps is None:
    raise InputError(
      'This objective reads batch.reference_logps, and the batch has none.'
    )
  return reference_logps


def log_prob(
  logps: Logps, reference_logps: Logps | None, mask: Mask
) -> Float[Array, '*b']:
  """Log pi(y) = sum_t log pi(y_t), nats; the reference is not read."""
  del reference_logps
  return jnp.sum(logps, axis=-1, where=mask)


def mean_log_prob(
  logps: Logps, reference_logps: Logps | None, mask: Mask
) -> Float[Array, '*b']:
  """Log pi(y) / |y|, nats a token; the reference is not read. 0 for no token."""
  count = jnp.sum(mask, axis=-1)
  return log_prob(logps, reference_logps, mask) / jnp.maximum(count, 1)


def shared_length_log_ratios(
  logps: Float[Array, 'p k t'], batch: PreferenceBatch, *, tail: Scalar
) -> tuple[Float[Array, 'p m'], Float[Array, 'p m']]:
  """Log-ratios of chosen and rejected, later tokens times `tail`, nats.

  Later are those beyond as many as the shorter of the two has. LD-DPO
  (arXiv:2409.06411). 0 where a pair has no weight.
  """
  ratios = jnp.where(batch.mask, logps - required(batch.reference_logps), 0.0)
  counts = batch.pair_weight != 0

  def of(x, index):
    return jnp.take_along_axis(x, index[..., None], axis=1)

  masks = [of(batch.mask, index) for index in (batch.chosen, batch.rejected)]
  shared = jnp.minimum(*(mask.sum(axis=-1, keepdims=True) for mask in masks))
  sums = []
  for mask, index in zip(masks, (batch.chosen, batch.rejected), strict=True):
    weights = jnp.where(jnp.cumsum(mask, axis=-1) <= shared, 1.0, tail)
    total = jnp.sum(of(ratios, index) * weights, axis=-1)
    sums.append(jnp.where(counts, total, 0.0))
  return sums[0], sums[1]


def f_derivative(
  divergence: str, *, alpha: Scalar
) -> Callable[[Float[Array, '*b']], Float[Array, '*b']]:
  """f'(u) of an f-divergence as a function of x = log u, up to a constant.

      reverse_kl   x
      forward_kl   -exp(-x)
      js           log sigmoid(x)
      alpha        (1 - exp(-alpha x)) / alpha

  f-DPO (arXiv:2309.16240), Table 1. Exponents stop at 80, and their slope there.
  """

  def exponential(x):
    return jnp.exp(jnp.minimum(x, _LARGEST_EXPONENT))

  return {
    'reverse_kl': lambda x: x,
    'forward_kl': lambda x: -exponential(-x),
    'js': jax.nn.log_sigmoid,
    'alpha': lambda x: (1.0 - exponential(-alpha * x)) / alpha,
  }[divergence]
