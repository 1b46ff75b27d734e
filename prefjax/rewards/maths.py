"""Equality of mathematical answers, by math-verify (the optional extra `maths`)."""

from collections.abc import Mapping
import logging
from typing import Any

from prefjax.errors import InputError

try:
  import math_verify
except ImportError as error:
  raise InputError(
    "The verifier 'maths_equivalence' needs the package math-verify: "
    "pip install 'prefjax[maths]'."
  ) from error

# A boxed answer is the answer, whatever else the response calls so.
_EXTRACTION = (
  math_verify.LatexExtractionConfig(boxed_match_priority=0),
  math_verify.ExprExtractionConfig(),
)
# It warns in each process that its time limits are off, as they must be: they are
# alarms, which work in a main thread only, and the pool has a limit of its own.
logging.getLogger('math_verify').setLevel(logging.ERROR)


def maths_equivalence(prompt: str, response: str, record: Mapping[str, Any]) -> float:
  r"""1 where the response's answer equals the record's `answer`, else 0.

  The record's answer is LaTeX or plain (`\frac{1}{2}`, `1/2`, `0.5` are equal), or
  a text with its answer in `\boxed{}`. The response's is what it boxes, else what
  it says that the answer is, else its last formula or number. NaN where there is
  no `answer`, or none that can be read.

  It has no time limit of its own and some text takes forever: 9^{9^{9^9}}. Run it
  in a pool (prefjax.rewards.pool).
  """
  answer = record.get('answer')
  if answer is None:
    return float('nan')
  answer = str(answer)
  truth = _parse(answer if r'\boxed' in answer else rf'\boxed{{{answer}}}')
  if not truth:
    return float('nan')
  return float(math_verify.verify(truth, _parse(response), timeout_seconds=None))


def _parse(text):
  return math_verify.parse(text, _EXTRACTION, parsing_timeout=None)
