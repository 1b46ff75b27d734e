import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.evaluation import statistics


def test_by_hand():
  # 1, 2, 3, 6: mean 3, squares 4 + 1 + 0 + 9 = 14, variance 14 / 3, error / 2.
  mean, error = statistics.mean_and_standard_error(np.array([1.0, 2, 3, 6]))
  assert mean == 3.0
  assert error == pytest.approx(np.sqrt(14 / 3) / 2, rel=1e-14)


def test_the_axis_is_the_one_that_is_averaged():
  x = np.array([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0]])
  mean, error = statistics.mean_and_standard_error(x)
  np.testing.assert_allclose(mean, [3, 5])
  np.testing.assert_allclose(error, [2 / np.sqrt(3), 0])
  mean, error = statistics.mean_and_standard_error(x, axis=1)
  np.testing.assert_allclose(mean, [3, 4, 5])
  np.testing.assert_allclose(error, [2, 1, 0])


def test_half_precision_is_summed_in_double():
  x = np.full(4096, 2049.0, np.float32)
  x[0] = 2050.0
  mean, _ = statistics.mean_and_standard_error(x)
  assert mean.dtype == np.float64
  assert mean == 2049 + 1 / 4096


def test_the_standard_error_covers():
  rng = np.random.default_rng(0)
  mean, error = statistics.mean_and_standard_error(rng.normal(1.0, 3.0, (25, 4000)))
  z = (mean - 1.0) / error  # Student's t with 24 degrees: variance 24 / 22
  assert abs(z.var() - 24 / 22) < 4 * 24 / 22 * np.sqrt(2.3 / 4000)


def test_pairs_by_hand():
  a, b = np.array([11.0, 22.0, 33.0]), np.array([10.0, 20.0, 30.0])
  mean, error, z = statistics.paired_difference(a, b)
  assert mean == 2.0
  assert error == pytest.approx(1 / np.sqrt(3))
  assert z == pytest.approx(2 * np.sqrt(3))


def test_equal_differences_have_no_error():
  a = np.array([1.0, 2.0, 4.0])
  assert statistics.paired_difference(a, a) == (0.0, 0.0, 0.0)
  assert statistics.paired_difference(a, a + 1) == (-1.0, 0.0, -np.inf)
  assert statistics.paired_difference(a, a - 1).z == np.inf


def test_one_value_has_no_spread():
  for x in (np.ones(1), np.ones(0), np.ones((1, 5)), np.array(1.0)):
    with pytest.raises(InputError, match='at least 2 values'):
      statistics.mean_and_standard_error(x)
  with pytest.raises(InputError, match='at least 2 values'):
    statistics.paired_difference(np.ones(1), np.zeros(1))


def test_pairs_must_pair_up():
  with pytest.raises(InputError, match=r'\(3,\) and \(2,\)'):
    statistics.paired_difference(np.ones(3), np.zeros(2))


def test_clusters_by_hand():
  """Residuals 0.4 + 0.4 and -0.6 - 0.2 in two clusters: sqrt(2 (0.64 + 0.64)) / 4."""
  got = statistics.clustered_mean(
    np.array([1.0, 0.0, 1.0, 0.4]), np.array([3, 7, 3, 7])
  )
  assert got.mean == pytest.approx(0.6)
  assert got.standard_error == pytest.approx(0.4)


def test_clusters_of_one_are_independent_values():
  x = np.random.default_rng(0).normal(size=20)
  alone = statistics.clustered_mean(x, np.arange(20))
  np.testing.assert_allclose(alone, statistics.mean_and_standard_error(x), rtol=1e-12)
  twice = statistics.clustered_mean(np.repeat(x, 2), np.repeat(np.arange(20), 2))
  np.testing.assert_allclose(twice, alone, rtol=1e-12)  # a copy says nothing new


def test_one_cluster_has_no_spread():
  with pytest.raises(InputError, match='at least 2 clusters, got 1'):
    statistics.clustered_mean(np.arange(3.0), np.zeros(3, int))


def test_a_bootstrap_of_two_seeds_by_hand():
  # Means of two draws of {0, 1}: 0, 1/2, 1 with shares 1/4, 1/2, 1/4.
  interval = statistics.paired_bootstrap(np.array([[0.0], [1.0]]))
  assert interval == (0.0, 1.0)
  assert statistics.paired_bootstrap(np.full((3, 4), 0.25)) == (0.25, 0.25)


def test_a_bootstrap_covers_and_does_not_take_a_seed_for_many():
  rng = np.random.default_rng(0)
  covered = []
  for _ in range(200):
    of_seed = rng.normal(size=(12, 1))
    found = of_seed + rng.normal(size=(1, 20)) + rng.normal(size=(12, 20))
    low, high = statistics.paired_bootstrap(found, draws=400)
    covered.append(low <= 0.0 <= high)
  # Were rows and columns taken for 240 independent numbers, less than half would be.
  assert np.mean(covered) > 0.88


def test_a_bootstrap_is_a_function_of_its_numbers():
  found = np.random.default_rng(0).normal(size=(3, 5))
  assert statistics.paired_bootstrap(found) == statistics.paired_bootstrap(found)
