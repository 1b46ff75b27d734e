"""How well values of steps tell right steps from wrong ones, and find the first error.

A step is right if all is right up to it, so that the value that speaks of it is the
least of the values so far.
"""

from collections.abc import Callable, Sequence

from jaxtyping import Bool, Float, Float64, Int, Shaped
import numpy as np
from scipy import stats

from prefjax.errors import InputError
from prefjax.evaluation.statistics import Estimate

Values = Float[np.ndarray, 'n s']
Present = Bool[np.ndarray, 'n s']
Indices = Int[np.ndarray, ' n']
Groups = Sequence[str] | Shaped[np.ndarray, ' n']  # what rows belong to

_ROUNDS = 200  # of a bootstrap
_THRESHOLDS = 200  # that are tried


def least_so_far(values: Values, present: Present) -> Values:
  """Min over j <= s of the values; what is not present is passed over."""
  return np.minimum.accumulate(np.where(present, values, np.inf), axis=1)


def auc(
  values: Float[np.ndarray, ' n'], right: Bool[np.ndarray, ' n']
) -> Float64[np.ndarray, '']:
  """P(value of a right one > value of a wrong one) + P(equal) / 2; NaN without both."""
  positive, negative = right.sum(), (~right).sum()
  if not positive or not negative:
    return np.asarray(np.nan)
  ranks = stats.rankdata(values)[right].sum()
  return np.asarray((ranks - positive * (positive + 1) / 2) / (positive * negative))


def first_below(values: Values, present: Present, threshold: float) -> Indices:
  """The first step whose value is below the threshold, -1 where none is."""
  below = present & (values < threshold)
  return np.where(below.any(axis=1), below.argmax(axis=1), -1)


def localisation(predicted: Indices, first_error: Indices) -> dict[str, float]:
  """ProcessBench's numbers: errors found, right solutions left alone, and their F1.

      erroneous  share of wrong solutions whose very first error is named
      correct    share of right solutions where none is
      f1         2 erroneous correct / (erroneous + correct)

  ProcessBench (arXiv:2412.06559), Section 3. NaN where a kind is missing.
  """
  hit, wrong = predicted == first_error, first_error >= 0
  erroneous, correct = _share(hit[wrong]), _share(hit[~wrong])
  total = erroneous + correct
  f1 = 2 * erroneous * correct / total if total else 0.0
  return {'erroneous': erroneous, 'correct': correct, 'f1': f1}


def _share(hits):
  return float(hits.mean()) if len(hits) else float('nan')


def best_threshold(
  values: Values,
  present: Present,
  measure: Callable[[float], float],
) -> float:
  """The threshold with the greatest measure, midway between quantiles of the values.

  Also the least value, which none is below, and one above all. The least of equals;
  NaN measures count for nothing.
  """
  shares = np.linspace(0, 1, _THRESHOLDS)
  found = np.unique(np.quantile(values[present], shares, method='nearest'))
  middles = (found[:-1] + found[1:]) / 2
  tried = [*map(float, (found[0], *middles, np.nextafter(found[-1], np.inf)))]
  return tried[np.argmax(np.nan_to_num([measure(t) for t in tried]))]


def halves(groups: Groups) -> Bool[np.ndarray, ' n']:
  """Two halves of the groups; what belongs together (a problem) lies in one."""
  _, index = np.unique(np.asarray(groups), return_inverse=True)
  return index % 2 == 0


def located(
  values: Values,
  present: Present,
  first_error: Indices,
  groups: Groups,
) -> Indices:
  """First errors named with a threshold that the other half of the groups chose.

  The threshold with the greatest F1, so that no solution has a part in the threshold
  by which it is judged.
  """
  first = halves(groups)
  predicted = np.full(len(values), -1)
  for half in (first, ~first):
    v, p, e = (x[~half] for x in (values, present, first_error))

    def f1(threshold, v=v, p=p, e=e):
      return localisation(first_below(v, p, threshold), e)['f1']

    threshold = best_threshold(v, p, f1)
    predicted[half] = first_below(values[half], present[half], threshold)
  return predicted


def classified(
  values: Values,
  right: Bool[np.ndarray, 'n s'],
  known: Present,
  groups: Groups,
) -> Bool[np.ndarray, 'n s']:
  """Whether each step is told right from wrong, thresholds as in `located`."""
  first = halves(groups)
  hits = np.zeros(values.shape, bool)
  for half in (first, ~first):
    v, r, k = (x[~half] for x in (values, right, known))

    def share(threshold, v=v, r=r, k=k):
      return float(((v >= threshold) == r)[k].mean())

    threshold = best_threshold(v, k, share)
    hits[half] = (values[half] >= threshold) == right[half]
  return hits


def bootstrapped(
  statistic: Callable[[Indices], float],
  groups: Groups,
  *,
  seed: int = 0,
) -> Estimate:
  """A statistic of rows and its standard error: groups of rows are drawn anew.

  Args:
    statistic: of the rows at these indices; draws where it is NaN are left out, and
      the error is NaN where fewer than two are left.
    groups: rows with the same entry are not independent (steps of one prompt).

  Raises:
    InputError: fewer than two groups.
  """
  _, index = np.unique(np.asarray(groups), return_inverse=True)
  count = int(index.max(initial=-1)) + 1
  if count < 2:
    raise InputError(f'A standard error needs at least 2 groups, got {count}.')
  rows = np.split(np.argsort(index, kind='stable'), np.cumsum(np.bincount(index))[:-1])
  rng = np.random.default_rng(seed)
  drawn = [
    statistic(np.concatenate([rows[i] for i in rng.integers(0, count, count)]))
    for _ in range(_ROUNDS)
  ]
  value = np.asarray(statistic(np.arange(len(index))), np.float64)
  known = np.asarray(drawn)[~np.isnan(drawn)]
  error = np.std(known, ddof=1) if len(known) > 1 else np.nan
  return Estimate(value, np.asarray(error))
