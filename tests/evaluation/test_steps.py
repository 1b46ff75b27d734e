"""Step-level numbers, by hand and against what they should not depend on."""

import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.evaluation import steps

VALUES = np.array([[0.9, 0.2, 0.8], [0.7, 0.6, 9.0], [0.1, 0.5, 0.4]])
PRESENT = np.array([[True, True, True], [True, True, False], [True, True, True]])


def test_the_least_so_far_passes_over_what_is_not_there():
  found = steps.least_so_far(VALUES, PRESENT)
  np.testing.assert_allclose(found, [[0.9, 0.2, 0.2], [0.7, 0.6, 0.6], [0.1, 0.1, 0.1]])


@pytest.mark.parametrize(
  ('values', 'right', 'want'),
  [
    ([3.0, 2.0, 1.0, 0.0], [1, 1, 0, 0], 1.0),
    ([0.0, 1.0, 2.0, 3.0], [1, 1, 0, 0], 0.0),
    ([1.0, 1.0, 1.0], [1, 0, 0], 0.5),
    ([2.0, 1.0, 1.0, 0.0], [1, 1, 0, 0], (1 + 1 + 0.5 + 1) / 4),
  ],
)
def test_auc_by_hand(values, right, want):
  got = steps.auc(np.array(values), np.array(right, bool))
  np.testing.assert_allclose(got, want)


def test_auc_without_both_kinds_is_not_a_number():
  assert np.isnan(steps.auc(np.ones(3), np.ones(3, bool)))


def test_first_below_by_hand():
  found = steps.first_below(VALUES, PRESENT, 0.65)
  np.testing.assert_array_equal(found, [1, 1, 0])
  np.testing.assert_array_equal(steps.first_below(VALUES, PRESENT, 0.1), [-1, -1, -1])


def test_localisation_by_hand():
  predicted, truth = np.array([1, 0, -1, -1, 2]), np.array([1, 1, -1, -1, -1])
  found = steps.localisation(predicted, truth)
  assert found['erroneous'] == 0.5
  assert found['correct'] == pytest.approx(2 / 3)
  assert found['f1'] == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
  assert steps.localisation(truth * 0 - 1, truth)['f1'] == 0.0
  assert np.isnan(steps.localisation(predicted[:2], truth[:2])['f1'])


def test_the_best_threshold_is_found():
  truth = np.array([1, -1, 0])

  def f1(threshold):
    named = steps.first_below(VALUES, PRESENT, threshold)
    return steps.localisation(named, truth)['f1']

  threshold = steps.best_threshold(VALUES, PRESENT, f1)
  assert f1(threshold) == 1.0
  assert 0.2 < threshold <= 0.6


def test_thresholds_come_from_the_other_half():
  # Errors show below 0.5 in one half of the groups and below -0.5 in the other, so
  # that a threshold of the own half would be perfect and the other's is not.
  groups = np.repeat(np.arange(4), 2)
  shift = np.where(groups % 2 == 0, 0.0, -1.0)[:, None]
  wrong = np.arange(8) % 2 == 0
  values = np.where(wrong[:, None], [[0.9, 0.4]], [[0.9, 0.6]]) + shift
  truth = np.where(wrong, 1, -1)
  present = np.ones(values.shape, bool)
  found = steps.located(values, present, truth, groups)
  own = steps.first_below(values, present, 0.5)
  assert (own == truth)[groups % 2 == 0].all()
  assert not (found == truth).all()
  same = steps.located(values - shift, present, truth, groups)
  np.testing.assert_array_equal(same, truth)


def test_steps_are_classified_by_the_other_half():
  rng = np.random.default_rng(0)
  right = rng.random((40, 3)) < 0.5
  values = np.where(right, 0.8, 0.3) + rng.uniform(-0.1, 0.1, (40, 3))
  hits = steps.classified(values, right, np.ones((40, 3), bool), np.arange(40))
  assert hits.all()


def test_a_bootstrap_knows_the_error_of_a_mean():
  rng = np.random.default_rng(0)
  x = rng.normal(size=400)
  found = steps.bootstrapped(lambda i: x[i].mean(), np.arange(400))
  assert float(found.mean) == pytest.approx(x.mean())
  assert float(found.standard_error) == pytest.approx(x.std() / 20, rel=0.15)
  # Four copies of every row are no more evidence than one.
  copies, groups = np.tile(x, 4), np.tile(np.arange(400), 4)
  again = steps.bootstrapped(lambda i: copies[i].mean(), groups)
  assert float(again.standard_error) == pytest.approx(x.std() / 20, rel=0.15)
  nowhere = steps.bootstrapped(lambda i: float('nan'), np.arange(3))
  assert np.isnan(nowhere.mean) and np.isnan(nowhere.standard_error)
  with pytest.raises(InputError, match='at least 2 groups, got 1'):
    steps.bootstrapped(lambda i: 0.0, np.zeros(3, int))
