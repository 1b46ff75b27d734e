"""Weights for a sampler that is not the trainer, and what a plan may say."""

import math

import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.training.correction import Correction
from prefjax.training.online import OnlinePlan

# Two responses of three tokens; the last of the first does not count.
SAMPLER = np.log([[[0.5, 0.25, 0.1], [0.2, 0.8, 0.5]]])
TRAINER = np.log([[[0.6, 0.20, 0.9], [0.8, 0.4, 0.5]]])
MASK = np.array([[[True, True, False], [True, True, True]]])


# By hand ----------------------------------------------------------------------


def test_a_token_has_its_own_ratio_up_to_the_cap():
  found = Correction(level='token', cap=3.0).weights(TRAINER, SAMPLER, MASK)
  # 0.6 / 0.5 and 0.2 / 0.25; 0.8 / 0.2 = 4 is cut at 3.
  expected = [[[1.2, 0.8, 1.0], [3.0, 0.5, 1.0]]]
  np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_a_sequence_has_the_product_of_its_ratios_up_to_the_cap():
  found = Correction(level='sequence', cap=3.0).weights(TRAINER, SAMPLER, MASK)
  # 1.2 * 0.8, and 4 * 0.5 * 1: it is the product that is cut.
  np.testing.assert_allclose(found, [[[0.96] * 3, [2.0] * 3]], rtol=1e-14)
  found = Correction(level='sequence', cap=1.5).weights(TRAINER, SAMPLER, MASK)
  np.testing.assert_allclose(found, [[[0.96] * 3, [1.5] * 3]], rtol=1e-14)


def test_the_cap_is_2_unless_it_is_set():
  found = Correction(level='token').weights(TRAINER, SAMPLER, MASK)
  np.testing.assert_allclose(found[0, 1], [2.0, 0.5, 1.0], rtol=1e-14)


@pytest.mark.parametrize('level', ['token', 'sequence'])
def test_equal_log_probs_have_weight_1(level):
  found = Correction(level=level, cap=1.0).weights(SAMPLER, SAMPLER, MASK)
  np.testing.assert_array_equal(found, np.ones((1, 2, 3)))


# Edges ------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('level', ['token', 'sequence'])
def test_gaps_that_no_ratio_can_hold_do_not_overflow(level, dtype):
  gap = np.array([[[1e3, 1e3, -1e3], [-1e3, -1e3, -1e3]]], dtype)
  zeros = np.zeros_like(gap)
  found = Correction(level=level, cap=5.0).weights(gap, zeros, np.ones(gap.shape, bool))
  first = [5.0, 5.0, 0.0] if level == 'token' else [5.0] * 3
  np.testing.assert_allclose(found, [[first, [0.0] * 3]], rtol=1e-6)
  assert found.dtype == dtype


@pytest.mark.parametrize('level', ['token', 'sequence'])
@pytest.mark.parametrize('what', [1e30, np.inf, np.nan])
def test_what_the_mask_leaves_out_is_not_read(level, what):
  trainer = np.where(MASK, TRAINER, what)
  correction = Correction(level=level, cap=3.0)
  found = correction.weights(trainer, SAMPLER, MASK)
  np.testing.assert_array_equal(found, correction.weights(TRAINER, SAMPLER, MASK))
  assert np.isfinite(found).all()


def test_weights_are_written_over_nothing():
  trainer, sampler = TRAINER.copy(), SAMPLER.copy()
  Correction(level='sequence').weights(trainer, sampler, MASK)[...] = 0
  np.testing.assert_array_equal(trainer, TRAINER)
  np.testing.assert_array_equal(sampler, SAMPLER)


def test_without_a_correction_nothing_need_be_set():
  assert Correction() == Correction(level='none', cap=2.0)


@pytest.mark.parametrize('cap', [0.99, 0.0, -1.0, math.inf, math.nan])
def test_a_cap_below_1_or_without_end_is_refused(cap):
  with pytest.raises(InputError, match='correction_cap must be at least 1'):
    Correction(level='token', cap=cap)


def test_an_unknown_level_is_refused():
  correction = Correction()
  # Past the type checker of the tests, which a user does not have.
  object.__setattr__(correction, 'level', 'tokens')
  with pytest.raises(InputError, match="none, token or sequence, got 'tokens'"):
    correction.__post_init__()


# Plans ------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('name', 'least'),
  [
    ('iterations', 1),
    ('epochs', 1),
    ('minibatches', 1),
    ('refresh_every', 0),
    ('eval_every', 1),
    ('save_every', 1),
    ('keep', 1),
  ],
)
def test_each_number_of_a_plan_has_a_least(name, least):
  numbers = {'iterations': 3, name: least}
  assert getattr(OnlinePlan(**numbers), name) == least
  said = rf'train\.{name} must be at least {least}, got {least - 1}\.'
  with pytest.raises(InputError, match=said):
    OnlinePlan(**numbers | {name: least - 1})
