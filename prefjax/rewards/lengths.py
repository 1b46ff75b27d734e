"""Penalties on the length of a response, counted in tokens and never in characters."""

from jaxtyping import Float64, Integer
import numpy as np

from prefjax.errors import InputError


def soft_overlong(
  length: Integer[np.ndarray, '*b'], *, longest: int, cache: int
) -> Float64[np.ndarray, '*b']:
  """DAPO's soft punishment of responses that come near the longest allowed.

  0                                          if length <= longest - cache
  ((longest - cache) - length) / cache       if longest - cache < length <= longest
  -1                                         if length > longest

  Args:
    length: response tokens.
    longest: L_max, tokens.
    cache: L_cache, the tokens before L_max over which the punishment grows.

  Raises:
    InputError: unless 1 <= cache <= longest.

  Source: DAPO (https://arxiv.org/abs/2503.14476), Eq. 13.
  """
  if not 1 <= cache <= longest:
    raise InputError(
      f'cache must lie in [1, longest] = [1, {longest}] tokens, got {cache}.'
    )
  # The three cases meet where they join, so that they are one clipped line.
  free = longest - cache
  return np.clip((free - length.astype(np.float64)) / cache, -1.0, 0.0)


def length_penalty(
  length: Integer[np.ndarray, '*b'], *, per_token: float
) -> Float64[np.ndarray, '*b']:
  """-per_token * length: every token costs the same.

  Raises:
    InputError: a cost that is negative, for that would pay for length, or not
      finite.
  """
  if not 0 <= per_token < np.inf:
    raise InputError(f'per_token must be finite and not negative, got {per_token}.')
  return -per_token * length.astype(np.float64)
