"""From per-token log-probs to one number a response."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prefjax.errors import InputError

Logps = Float[Array, '*b t']
Mask = Bool[Array, '*b t']
Score = Callable[[Logps, Logps | None, Mask], Float[Array, '*b']]


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
