import subprocess
import sys

import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.rewards import base

NAN = np.nan


def test_rewards_combine_as_worked_out_by_hand():
  values = {
    'right': np.array([1.0, 0.0, NAN, NAN]),
    'form': np.array([0.5, NAN, -2.0, NAN]),
  }
  combined = base.combine(values, {'form': 0.2, 'right': 3.0})
  # 3 * 1 + 0.2 * 0.5; 3 * 0; 0.2 * -2; nothing applies.
  np.testing.assert_allclose(combined, [3.1, 0.0, -0.4, NAN], rtol=1e-15)


def test_a_weight_of_0_is_not_a_reward_that_does_not_apply():
  values = {'a': np.array([2.0, NAN])}
  np.testing.assert_array_equal(base.combine(values, {'a': 0.0}), [0.0, NAN])


def test_combining_nothing_of_something_is_nothing():
  assert base.combine({'a': np.zeros(0)}, {'a': 1.0}).shape == (0,)


@pytest.mark.parametrize(
  ('weights', 'match'),
  [
    ({}, r"rewards \['a'\] and weights of \[\]"),
    ({'b': 1.0}, r"weights of \['b'\]"),
    ({'a': 1.0, 'b': 1.0}, r"weights of \['a', 'b'\]"),
    ({'a': NAN}, "weight of 'a' must be finite"),
  ],
)
def test_weights_that_do_not_fit_are_refused(weights, match):
  with pytest.raises(InputError, match=match):
    base.combine({'a': np.ones(2)}, weights)


def test_no_rewards_cannot_be_combined():
  with pytest.raises(InputError, match='needs its weight'):
    base.combine({}, {})


@pytest.mark.parametrize('name', sorted(base.VERIFIERS))
def test_every_known_verifier_is_found_and_need_not_apply(name):
  if name == 'maths_equivalence':
    pytest.importorskip('math_verify')
  verifier = base.find(name)
  assert isinstance(verifier, base.Verifier)
  assert verifier.__name__ == name
  value = verifier('a prompt', 'a response', {})
  if base.is_stepwise(verifier):
    assert value is None
  else:
    assert isinstance(value, float)
    assert np.isnan(value) or value == 0.0


def test_a_verifier_is_found_by_import_path():
  assert base.find('math.dist').__name__ == 'dist'


@pytest.mark.parametrize(
  ('name', 'match'),
  [
    ('gsm8', r"'gsm8' \(did you mean 'gsm8k'\?\).*'game24'.*import path"),
    ('zzz', r"Unknown verifier 'zzz'; known are"),
    ('', "Unknown verifier ''"),
    ('no_such.verifier', "'no_such.verifier' cannot be imported: No module"),
    ('math.no_such', "'math.no_such' cannot be imported: .*no_such"),
    ('.math.dist', 'cannot be imported'),
    ('math.pi', "'math.pi' is not a function"),
  ],
)
def test_unknown_verifiers_are_refused_with_what_exists(name, match):
  with pytest.raises(InputError, match=match):
    base.find(name)


def test_scoring_imports_no_jax():
  # A worker starts in a fifth of the time, and claims no accelerator.
  code = (
    'import sys; import prefjax.rewards.pool, prefjax.rewards.lengths;'
    'from prefjax.rewards.base import find; find("gsm8k"); find("game24");'
    'sys.exit("jax" in sys.modules)'
  )
  assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
