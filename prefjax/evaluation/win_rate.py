"""Win rates between policies, from preferences between their responses."""

from collections.abc import Sequence

from jaxtyping import Float64
import numpy as np

from prefjax.errors import InputError
from prefjax.evaluation.statistics import Estimate, mean_and_standard_error


def head_to_head(
  wins: Float64[np.ndarray, 'p k k'], owners: Sequence[int]
) -> Float64[np.ndarray, 'p a a']:
  """P(a response of policy a beats one of policy b), on each prompt.

  The mean over all pairs of a response of a with one of b: without bias where the
  responses of two policies are drawn independently. Of a policy with itself it is 1/2.

  Args:
    wins: P(response i beats response j) of the k responses of all policies.
    owners: [k] the policy that wrote each response; they are numbered from 0.

  Raises:
    InputError: where there are not as many owners as responses.
  """
  if len(owners) != wins.shape[-1]:
    raise InputError(f'{wins.shape[-1]} responses need as many owners: {len(owners)}.')
  own = np.eye(max(owners) + 1)[list(owners)]
  shares = own / own.sum(axis=0)
  return np.einsum('ka,pkj,jb->pab', shares, wins, shares)


def summary(means: Float64[np.ndarray, 'p a a']) -> Estimate:
  """[a, a] win rates with their standard errors over prompts."""
  return mean_and_standard_error(means)
