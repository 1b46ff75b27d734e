import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.rewards import lengths


def test_overlong_responses_are_punished_as_worked_out_by_hand():
  # L_max = 100 and L_cache = 10: nothing up to 90, then a tenth a token, 1 at most.
  length = np.array([0, 89, 90, 91, 95, 99, 100, 101, 10_000])
  punished = lengths.soft_overlong(length, longest=100, cache=10)
  expected = [0.0, 0.0, 0.0, -0.1, -0.5, -0.9, -1.0, -1.0, -1.0]
  np.testing.assert_allclose(punished, expected, rtol=1e-15)
  assert punished.dtype == np.float64


def test_the_settings_of_the_paper():
  # 16,384 tokens expected and a cache of 4,096 more.
  length = np.array([[16_384, 18_432], [20_480, 20_481]])
  punished = lengths.soft_overlong(length, longest=20_480, cache=4_096)
  np.testing.assert_array_equal(punished, [[0.0, -0.5], [-1.0, -1.0]])


def test_narrow_integers_do_not_wrap():
  for dtype in (np.int8, np.uint8):
    length = np.array([1, 100], dtype)
    punished = lengths.soft_overlong(length, longest=100, cache=100)
    np.testing.assert_allclose(punished, [-0.01, -1.0], rtol=1e-15)
    penalty = lengths.length_penalty(length, per_token=2.0)
    np.testing.assert_array_equal(penalty, [-2.0, -200.0])


@pytest.mark.parametrize('cache', [0, -1, 101])
def test_a_cache_must_fit(cache):
  with pytest.raises(InputError, match=rf'\[1, 100\] tokens, got {cache}'):
    lengths.soft_overlong(np.array([1]), longest=100, cache=cache)


def test_every_token_costs_the_same():
  penalty = lengths.length_penalty(np.array([0, 3, 7]), per_token=0.5)
  np.testing.assert_array_equal(penalty, [0.0, -1.5, -3.5])


@pytest.mark.parametrize('per_token', [-0.1, np.inf, np.nan])
def test_a_cost_must_be_one(per_token):
  with pytest.raises(InputError, match='per_token'):
    lengths.length_penalty(np.array([1]), per_token=per_token)
