"""Rewards of single steps: from places in a text to tokens, and to numbers of steps."""

import bisect
from collections.abc import Callable, Sequence

from jaxtyping import Bool, Float, Int32
import numpy as np

Decode = Callable[[Sequence[int]], str]


def token_ends(ids: Sequence[int], ends: Sequence[int], decode: Decode) -> list[int]:
  """The tokens that hold the last characters of the steps of a response.

  `ends` are counted in characters of `decode(ids)`, exclusive. Steps whose ends lie in
  one token share it. The token that stops a response is of no step: what a step earned
  is not to be had by ending after it.
  """

  def written(n):
    # A character whose bytes are not all there yet decodes to replacements.
    return len(decode(ids[:n]).rstrip('\ufffd'))

  places, last = range(1, len(ids) + 1), len(ids) - 1
  return [min(bisect.bisect_left(places, end, key=written), last) for end in ends]


def numbered(ends: Bool[np.ndarray, '*b t']) -> Int32[np.ndarray, '*b t']:
  """The number of the step that each token belongs to, -1 after the last end.

  `ends` is True on the last token of every step.
  """
  before = np.cumsum(ends, axis=-1) - ends
  open_ = np.flip(np.cumsum(np.flip(ends, -1), axis=-1), -1) > 0
  return np.where(open_, before, -1).astype(np.int32)


def listed(rewards: Float[np.ndarray, ' t']) -> list[tuple[int, float]]:
  """(token, reward) of every step of a response; NaN is where no step ends."""
  return [(int(at), float(rewards[at])) for at in np.flatnonzero(~np.isnan(rewards))]
