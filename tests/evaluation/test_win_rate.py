import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.evaluation import win_rate


def test_two_policies_by_hand():
  """Policy 0 wrote responses 0 and 2, policy 1 response 1."""
  wins = np.array([[[0.5, 0.9, 0.2], [0.1, 0.5, 0.4], [0.8, 0.6, 0.5]]])
  got = win_rate.head_to_head(wins, [0, 1, 0])
  np.testing.assert_allclose(got, [[[0.5, 0.75], [0.25, 0.5]]], rtol=1e-15)


def test_errors_are_over_prompts():
  means = np.array([[[0.5, 0.6], [0.4, 0.5]], [[0.5, 0.8], [0.2, 0.5]]])
  got = win_rate.summary(means)
  np.testing.assert_allclose(got.mean, [[0.5, 0.7], [0.3, 0.5]], rtol=1e-12)
  np.testing.assert_allclose(got.standard_error, [[0, 0.1], [0.1, 0]], atol=1e-12)


def test_each_response_has_an_owner():
  with pytest.raises(InputError, match='3 responses need as many owners: 2'):
    win_rate.head_to_head(np.full((1, 3, 3), 0.5), [0, 1])
