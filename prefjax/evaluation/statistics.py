"""Means with their standard errors: no number of a comparison goes without."""

from typing import NamedTuple

from jaxtyping import Float, Int
import numpy as np

from prefjax.errors import InputError


class Estimate(NamedTuple):
  """A mean and its standard error, in the unit of what was averaged."""

  mean: np.ndarray
  standard_error: np.ndarray


class Difference(NamedTuple):
  """A mean difference, its standard error, and how many of those it is."""

  mean: float
  standard_error: float
  z: float


def mean_and_standard_error(x: Float[np.ndarray, '*shape'], axis: int = 0) -> Estimate:
  """The mean of independent values and its standard error, in float64.

  standard_error = sqrt(sum (x_i - mean)^2 / (n - 1)) / sqrt(n)

  Args:
    x: [..., n, ...] values, independent along `axis`.
    axis: the axis of the n values; the others are kept.

  Raises:
    InputError: fewer than two values, which have no spread to judge by.
  """
  n = x.shape[axis] if x.ndim else 0
  if n < 2:
    raise InputError(f'A standard error needs at least 2 values, got {n}.')
  x = x.astype(np.float64)
  error = np.std(x, axis=axis, ddof=1) / np.sqrt(n)
  return Estimate(np.mean(x, axis=axis), np.asarray(error))


def paired_difference(
  a: Float[np.ndarray, ' n'], b: Float[np.ndarray, ' m']
) -> Difference:
  """The mean of a_i - b_i, its standard error, and z = mean / standard_error.

  Pairing (the same prompts, the same seeds) cancels what both sides share,
  which two standard errors side by side would count twice. Where all
  differences are equal the standard error is 0 and z is 0, inf or -inf.

  Args:
    a: [n] one value a pair.
    b: [m] the other, in the same order; m = n.

  Raises:
    InputError: fewer than two pairs, or arrays that do not pair up.
  """
  if a.shape != b.shape:
    raise InputError(f'Paired values need equal shapes, got {a.shape} and {b.shape}.')
  differences = a.astype(np.float64) - b
  mean, error = map(float, mean_and_standard_error(differences))
  return Difference(mean, error, in_standard_errors(mean, error))


class Interval(NamedTuple):
  """Between what a bootstrap puts 95 % of its means."""

  low: float
  high: float


def paired_bootstrap(
  differences: Float[np.ndarray, 's p'], *, draws: int = 10_000, seed: int = 0
) -> Interval:
  """The percentile interval of a mean of paired differences, in their unit.

  Seeds [s] and prompts [p] are drawn with replacement, each axis by itself, so that
  what the differences of a seed or of a prompt share is not taken for evidence. Where
  one axis has length 1 it is the plain bootstrap of the other. Of 3 seeds alone there
  are but 10 samples, and the interval is no wider than they are.

  Source: Owen, The pigeonhole bootstrap (arXiv:0712.1111), which is conservative.
  """
  rng = np.random.default_rng(seed)
  s, p = differences.shape
  seeds = rng.multinomial(s, np.full(s, 1 / s), draws) / s
  prompts = rng.multinomial(p, np.full(p, 1 / p), draws) / p
  means = np.sum((seeds @ differences.astype(np.float64)) * prompts, axis=1)
  return Interval(*map(float, np.quantile(means, (0.025, 0.975))))


def in_standard_errors(value: float, standard_error: float) -> float:
  """Value / standard_error, and its limit where the standard error is 0."""
  if standard_error > 0:
    return value / standard_error
  return float(np.sign(value) * np.inf) if value else 0.0


def clustered_mean(
  x: Float[np.ndarray, ' n'], cluster: Int[np.ndarray, ' n']
) -> Estimate:
  """The mean of values that come in clusters, and its error over the clusters.

  standard_error = sqrt(c / (c - 1) sum_c (sum_{i in c} (x_i - mean))^2) / n

  Pairs of one prompt share it, so they say less than as many of different prompts.
  The ratio estimator's error (Cochran, Sampling Techniques, 1977, Eq. 6.13); with
  clusters of one value it is that of `mean_and_standard_error`.

  Args:
    x: [n] values.
    cluster: [n] what each belongs to.

  Raises:
    InputError: fewer than two clusters.
  """
  _, place = np.unique(cluster, return_inverse=True)
  count = int(place.max(initial=-1)) + 1
  if count < 2:
    raise InputError(f'A standard error needs at least 2 clusters, got {count}.')
  mean = x.mean(dtype=np.float64)
  sums = np.bincount(place, x - mean)
  error = np.sqrt(count / (count - 1) * np.sum(sums**2)) / len(x)
  return Estimate(np.asarray(mean), np.asarray(error))
