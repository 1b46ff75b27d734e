"""Choosing one of N responses: by score, by vote, by both, and how often it is right.

A pool holds the same number of responses to every prompt. The N of a choice are taken
from it in consecutive blocks, of which the first is what papers report; the others are
as good, and the mean over them has less noise. Errors are over prompts.
"""

from collections.abc import Callable, Sequence

from jaxtyping import Bool, Float, Float64
import numpy as np

from prefjax.errors import InputError
from prefjax.evaluation import accuracy

Share = Float64[np.ndarray, ' p']
Choose = Callable[[slice], Share]  # of some columns of a pool: the share right


def over_blocks(choose: Choose, pool: int, size: int) -> Share:
  """The mean of a choice over the consecutive blocks of `size` in a pool.

  Raises:
    InputError: a size that does not divide the pool.
  """
  if size < 1 or pool % size:
    raise InputError(
      f'best-of-N needs an N that divides the {pool} responses of the pool, got {size}.'
    )
  starts = range(0, pool, size)
  return np.mean([choose(slice(start, start + size)) for start in starts], axis=0)


def best_of(
  scores: Float[np.ndarray, 'p n'], right: Bool[np.ndarray, 'p n'], size: int
) -> Share:
  """Whether the response with the greatest score is right; ties are split."""

  def choose(block):
    top = scores[:, block] == scores[:, block].max(axis=1, keepdims=True)
    return np.sum(top & right[:, block], axis=1) / top.sum(axis=1)

  return over_blocks(choose, right.shape[1], size)


def vote(
  answers: Sequence[Sequence[str]],
  right: Bool[np.ndarray, 'p n'],
  size: int,
  weights: Float[np.ndarray, 'p n'] | None = None,
) -> Share:
  """Whether the answer of most responses is right, or of those that weigh most.

  With the sigmoid of a score for a weight it is the weighted vote of Implicit PRM
  (arXiv:2412.01981), Section 4.2.
  """

  def choose(block):
    part = None if weights is None else weights[:, block]
    return accuracy.majority([row[block] for row in answers], right[:, block], part)

  return over_blocks(choose, right.shape[1], size)


def oracle(right: Bool[np.ndarray, 'p n'], size: int) -> Share:
  """Whether any of N is right: what no choice exceeds."""
  return over_blocks(
    lambda block: right[:, block].any(axis=1).astype(np.float64), right.shape[1], size
  )
