"""A reward model's numbers by hand."""

import numpy as np
import pytest

from prefjax.evaluation import reward_quality
from prefjax.evaluation.reward_quality import Pairs
from prefjax.types import PreferenceBatch

PAIRS = Pairs(
  margins=np.array([[2.0, 1.0, -1.0, 0.0]]),
  preference=np.array([1.0, 1.0, 1.0, 0.2]),
  longer=np.array([3, -1, 2, 0]),
  prompt=np.array([0, 0, 1, 1]),
)


def test_accuracy_and_length_by_hand():
  got = reward_quality.summary(PAIRS)
  assert got['pairs'] == 4
  assert got['prompts'] == 2
  assert got['accuracy'] == 0.5
  # Residuals sum to 1 and -1 in the two prompts: sqrt(2 / 1 * 2) / 4.
  assert got['accuracy_se'] == pytest.approx(0.5)
  assert got['longer_preferred'] == pytest.approx(1 / 3)
  assert got['longer_right'] == pytest.approx(2 / 3)
  # (2, 1, -1, 0) with (3, -1, 2, 0): 3 / sqrt(6 * 14).
  assert got['length_correlation'] == pytest.approx(3 / np.sqrt(84), rel=1e-5)
  assert 'disagreement' not in got


def test_calibration_takes_soft_preferences_in_both_orders():
  fair = PAIRS._replace(margins=np.zeros((1, 4)), preference=np.full(4, 0.5))
  assert reward_quality.summary(fair)['calibration_error'] == pytest.approx(0.0)
  sure = PAIRS._replace(margins=np.full((1, 4), 100.0), preference=np.full(4, 0.5))
  assert reward_quality.summary(sure)['calibration_error'] == pytest.approx(0.5)


def test_an_ensemble_is_judged_by_its_mean_margin():
  members = np.array([[2.0, 1.0, -1.0, 0.5], [0.0, -3.0, -1.0, 0.5]])
  got = reward_quality.summary(PAIRS._replace(margins=members))
  assert got['accuracy'] == 0.5  # of 1, -1, -1, 0.5
  assert (got['accuracy_of_0'], got['accuracy_of_1']) == (0.75, 0.25)
  assert got['disagreement'] == pytest.approx((np.sqrt(2) + 4 / np.sqrt(2)) / 4)


def batch(responses):
  """One prompt with two responses and a pair, and a filling prompt."""
  responses = np.array([responses, np.zeros_like(responses)], np.int32)
  real = responses > 0
  return PreferenceBatch(
    prompts=np.ones((2, 1), np.int32),
    responses=responses,
    prompt_length=np.ones(2, np.int32),
    response_length=real.sum(axis=-1).astype(np.int32),
    mask=real,
    weight=np.ones((2, 2), np.float32),
    chosen=np.array([[0], [0]], np.int32),
    rejected=np.array([[1], [0]], np.int32),
    preference=np.array([[0.7], [0.0]], np.float32),
    pair_weight=np.array([[1.0], [0.0]], np.float32),
  )


@pytest.mark.parametrize(
  ('eos_id', 'longer'),
  # Alone they have 5 tokens each; read at once, 3 stand before the first EOS (2), or 1.
  [(None, 0), (2, 2)],
)
def test_pairs_of_a_batch(eos_id, longer):
  given = batch([[5, 6, 7, 2, 8], [8, 2, 5, 6, 7]])
  scores = np.array([[[3.0, 1.0], [9.0, 9.0]]])
  got = reward_quality.compared(given, np.array([4, -1]), scores, eos_id)
  np.testing.assert_array_equal(got.margins, [[2.0]])
  np.testing.assert_allclose(got.preference, [0.7], rtol=1e-6)
  np.testing.assert_array_equal(got.longer, [longer])
  np.testing.assert_array_equal(got.prompt, [4])
  whole = reward_quality.joined([got, got])
  assert whole.margins.shape == (1, 2)
  assert whole.prompt.shape == (2,)
