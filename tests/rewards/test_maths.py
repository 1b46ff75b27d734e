import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip('math_verify', reason='the optional extra maths')

from prefjax.errors import InputError
from prefjax.rewards import base
from prefjax.rewards.maths import maths_equivalence

BY_HAND = [
  (r'so \boxed{\frac{2}{4}}', '1/2', 1.0),
  (r'so \boxed{0.5}', r'\frac{1}{2}', 1.0),
  ('The answer is 1/2.', '0.5', 1.0),
  (r'Hence $x = \frac{1}{2}$.', '$0.5$', 1.0),
  ('1,080', '1080', 1.0),
  (r'\boxed{x^2 + 2x + 1}', '(x + 1)^2', 1.0),
  (r'\boxed{\{2, 1\}}', r'\{1, 2\}', 1.0),
  (r'\boxed{(1, 2)}', '(1, 2)', 1.0),
  (r'\boxed{(2, 1)}', '(1, 2)', 0.0),
  (r'\boxed{\text{east}}', r'\text{east}', 1.0),
  (r'\boxed{3}', 'whatever, but \\boxed{3} it is', 1.0),
  (r'\boxed{3}', 3, 1.0),
  (r'\boxed{\sqrt{2}}', '1.4', 0.0),
  # The box counts, not what stands beside it.
  (r'\boxed{3}, for the answer is $4$', '3', 1.0),
  (r'\boxed{3}, for the answer is $4$', '4', 0.0),
  ('no answer', '3', 0.0),
  ('', '3', 0.0),
  ('\x00\ud800 日本語 \\boxed{', '3', 0.0),
]


@pytest.mark.parametrize(('response', 'answer', 'expected'), BY_HAND)
def test_answers_by_hand(response, answer, expected):
  assert maths_equivalence('', response, {'answer': answer}) == expected


@pytest.mark.parametrize('record', [{}, {'answer': None}, {'answer': ''}])
def test_without_an_answer_it_does_not_apply(record):
  assert np.isnan(maths_equivalence('', r'\boxed{3}', record))


def test_it_sets_no_alarm_and_warns_of_nothing():
  # An alarm fails in a thread; a warning for each worker would be noise.
  code = (
    'from concurrent.futures import ThreadPoolExecutor\n'
    'from prefjax.rewards.base import find\n'
    'run = ThreadPoolExecutor().submit\n'
    'print(run(find("maths_equivalence"), "", "1/2", {"answer": "0.5"}).result())\n'
  )
  ran = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert (ran.stdout, ran.stderr) == ('1.0\n', '')


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
  monkeypatch.delitem(sys.modules, 'prefjax.rewards.maths')
  monkeypatch.setitem(sys.modules, 'math_verify', None)
  with pytest.raises(InputError, match=r"pip install 'prefjax\[maths\]'"):
    base.find('maths_equivalence')
