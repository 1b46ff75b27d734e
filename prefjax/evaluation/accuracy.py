"""Right or wrong, several times a prompt: pass@1, pass@k, majority and their errors."""

from collections.abc import Sequence

from jaxtyping import Bool, Float, Float64
import numpy as np

from prefjax.errors import InputError
from prefjax.evaluation.statistics import Estimate, mean_and_standard_error


def pass_at_k(right: Bool[np.ndarray, 'p n'], k: int) -> Float64[np.ndarray, ' p']:
  """1 - C(n - c, k) / C(n, k): that one of k is right, of n samples c of which are.

  Without bias. Chen et al. (arXiv:2107.03374), Eq. 1.

  Raises:
    InputError: unless 1 <= k <= n.
  """
  n = right.shape[1]
  if not 1 <= k <= n:
    raise InputError(f'pass@k needs 1 <= k <= {n} samples a prompt, got k={k}.')
  wrong = n - right.sum(axis=1, dtype=np.int64)
  # C(w, k) / C(n, k) as a product, which no factorial overflows; it holds a 0 where
  # fewer than k are wrong.
  steps = np.arange(k)
  shares = np.maximum(wrong[:, None] - steps, 0) / (n - steps)
  return 1.0 - shares.prod(axis=1)


def majority(
  answers: Sequence[Sequence[str]],
  right: Bool[np.ndarray, 'p n'],
  weights: Float[np.ndarray, 'p n'] | None = None,
) -> Float64[np.ndarray, ' p']:
  """maj@n: the share of right ones among the commonest answers; ties are split.

  Which answers are the same is decided by their text, which of them are right by the
  verifier. With weights the commonest answer is that whose responses weigh most.
  """
  found = []
  for i, (row, correct) in enumerate(zip(answers, right, strict=True)):
    _, index = np.unique(row, return_inverse=True)
    counts = np.bincount(index, None if weights is None else weights[i])
    best = np.flatnonzero(counts == counts.max())
    found.append(np.mean([correct[index == i].mean() for i in best]))
  return np.asarray(found, np.float64)


def summary(
  right: Bool[np.ndarray, 'p n'],
  answers: Sequence[Sequence[str]] | None,
  ks: Sequence[int],
) -> dict[str, Estimate]:
  """`accuracy` (pass@1), `pass@k` and `maj@n`, each with its error over prompts."""
  each = {'accuracy': right.mean(axis=1, dtype=np.float64)}
  each |= {f'pass@{k}': pass_at_k(right, k) for k in ks if k > 1}
  if answers is not None:
    each[f'maj@{right.shape[1]}'] = majority(answers, right)
  return {name: mean_and_standard_error(x) for name, x in each.items()}
