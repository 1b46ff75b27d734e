"""Best of n: what a policy earns that draws n responses and keeps the best."""

from jaxtyping import Float, Float64
import numpy as np

from prefjax.errors import InputError


def best_of(rewards: Float[np.ndarray, 'p m'], n: int) -> Float64[np.ndarray, ' p']:
  """E[max of n draws] of each prompt, from m >= n draws, without bias.

    sum_i r_(i) C(i - 1, n - 1) / C(m, n)    r_(1) <= ... <= r_(m)

  which is the mean over all subsets of n: the largest of one is r_(i) in C(i - 1,
  n - 1) of them. For rewards of 0 and 1 it is pass@n (arXiv:2107.03374, Eq. 1).

  Raises:
    InputError: unless 1 <= n <= m.
  """
  m = rewards.shape[1]
  if not 1 <= n <= m:
    raise InputError(f'The best of n needs 1 <= n <= {m} samples, got n={n}.')
  weights = np.zeros(m)
  weights[-1] = n / m
  # C(i - 1, n - 1) / C(m, n) from the largest down, by their ratios.
  for i in range(m - 1, n - 1, -1):
    weights[i - 1] = weights[i] * (i - n + 1) / i
  return np.sort(rewards.astype(np.float64), axis=1) @ weights


def divergence_bound(n: int) -> float:
  """The most that the best of n diverges from its policy, nats a response.

    log n - (n - 1) / n

  with equality where no two responses have one reward. Beirami et al.,
  arXiv:2401.01879.
  """
  return float(np.log(n) - (n - 1) / n)
