"""Scalar heads: a critic's values and a reward model's scores from a model's states.

The head is one more parameter beside the decoder's, so that a critic can share its
trunk with the policy or have one of its own.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prefjax.errors import InputError
from prefjax.types import Forward, Head, PreferenceBatch

SCALAR = 'scalar'  # the parameter's path, beside the decoder's own


def with_scalar(params: Any, width: int) -> Any:
  """The parameters with a scalar head [d + 1] of zeros beside them.

  Zeros, so that a new critic predicts 0 everywhere and a new reward model prefers
  nothing: their first gradients are those of the head alone.
  """
  dtype = jax.tree.leaves(params)[0].dtype
  return {**params, SCALAR: jnp.zeros(width + 1, dtype)}


def trunk(params: Any) -> Any:
  """The parameters without a scalar head: those of the decoder alone."""
  return {name: leaf for name, leaf in params.items() if name != SCALAR}


@functools.lru_cache(maxsize=32)
def forward(base: Forward) -> Forward:
  """The forward of a model whose parameters hold a scalar head too; one a base."""

  def apply(params: Any, batch: PreferenceBatch, *, adapters: bool = True):
    hidden, head = base(trunk(params), batch, adapters=adapters)
    return hidden, head.replace(scalar=params[SCALAR])

  return apply


def values(hidden: Float[Array, 'p k n d'], head: Head) -> Float[Array, 'p k n']:
  """V(x, y_<j) of every state: column j before token j, the last after the last.

  Raises:
    InputError: where the model has no scalar head.
  """
  if head.scalar is None:
    raise InputError(
      'The objective reads values or scores, and this model has no scalar head.'
    )
  scalar = head.scalar.astype(jnp.promote_types(hidden.dtype, jnp.float32))
  return hidden.astype(scalar.dtype) @ scalar[:-1] + scalar[-1]


def scores(
  hidden: Float[Array, 'p k n d'], head: Head, batch: PreferenceBatch
) -> Float[Array, 'p k']:
  """The value of the state after the last token: one score a response."""
  at = batch.response_length[..., None]
  return jnp.take_along_axis(values(hidden, head), at, axis=-1)[..., 0]
