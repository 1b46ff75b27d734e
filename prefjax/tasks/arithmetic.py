"""Integer arithmetic with written-out steps, each of which can be checked exactly.

A prompt is a sum of a few numbers, `7+8-3+5=`. A response works it out from the left,
one equation a step, each with the result of the one before: `7+8=15;15-3=12;12+5=17`.
The answer has a verifier and every step a label, so that a model can be rewarded for
its answer alone or step by step.

Documents are like human work. Some steps are hasty and do two operations at once;
some solutions hold one slip, a wrong result that all later steps carry on faithfully.
A policy trained on them is right now and then, and can be lifted: by slipping less,
and by writing out more.
"""

from collections.abc import Iterator, Sequence
import itertools
import re

from jaxtyping import Float64, Int
import numpy as np

from prefjax.tasks import base

CHARACTERS = '+-0123456789;='
"""All that prompts and documents are written in; no space is among them.

SentencePiece with a piece for each and its four special ones, a vocabulary of 18,
reads digit by digit. A larger one merges across numbers, and hides how they are made.
"""

_NUMBERS = (2, 5)  # of a prompt
_OPERAND = (1, 9)  # each of them, before its sign
_RESULT = (0, 20)  # all that is worked out in a document
_HASTE = 0.25  # of the steps that have two operations to do
_SLIPS = 0.3  # of the solutions
_OFFSETS = (-10, -2, -1, 1, 2, 10)  # a forgotten ten, or a miscount

# Integers as they are written by str, of at most nine digits, which no prompt of the
# task comes near and which add up in no time.
_NUMBER = '(?:0|[1-9][0-9]{0,8})'
_PROMPT = re.compile(f'(?:0|-?[1-9][0-9]{{0,8}})(?:[-+]{_NUMBER})+=')


def reward(prompt: str, response: str) -> float:
  """1 if the response ends with the answer to the prompt, else 0.

  The answer is what stands after the last `=`, or all where there is none. It must be
  the very integer: no space, no leading zero, no `;` after it. The steps before it
  are not looked at. 0 where the prompt is no sum; defined on any text.
  """
  terms = _terms(prompt)
  return float(bool(terms) and response.rpartition('=')[2] == _total(terms))


def rewards(
  prompts: Sequence[str], responses: Sequence[str]
) -> Float64[np.ndarray, ' n']:
  """`reward` of each prompt with its response; as many of one as of the other."""
  return base.rewards(reward, prompts, responses)


def steps(response: str) -> list[str]:
  """The steps of a response, each with the `;` that ends it; joined, the response.

  `7+8=15;15-3=12` has the steps `7+8=15;` and `15-3=12`.
  """
  return re.findall('[^;]*;|[^;]+', response)


def step_labels(prompt: str, response: str) -> list[bool]:
  """Whether a response is right up to and including each of its steps.

  What is to be worked out is at first the prompt, then the result of the last step
  with what that step left of the prompt: `15-3+5` after `7+8=15;` for `7+8-3+5=`. A
  step is right if it is `left=result`, where `left` is the beginning of what is to be
  worked out, one or more operations, character for character, and `result` is what
  that comes to. So doing two operations at once is right, doing them in another order
  is not, nor is a step where nothing is left to do.

  After the first wrong step all are wrong, even one that is consistent with it or
  makes good for it: a label tells of the whole solution so far, as the value of a
  process reward model does. Right steps that leave nothing to do end with the answer
  and have reward 1; right steps that stop before it do not, and wrong steps can end
  with it by luck. Every step is wrong where the prompt is no sum.
  """
  left = _terms(prompt)
  labels = []
  for step in steps(response):
    left = _after(left, step.removesuffix(';'))
    labels.append(bool(left))
  return labels


def step_rewards(prompt: str, response: str) -> list[tuple[int, float]]:
  """Where in the response each step ends, and 1 if all is right so far, else 0.

  `step_labels` as the rewards of a verifier of steps; ends in characters.
  """
  ends = itertools.accumulate(map(len, steps(response)))
  labels = map(float, step_labels(prompt, response))
  return list(zip(ends, labels, strict=True))


def first_error(prompt: str, response: str) -> int:
  """The index of the first wrong step (`step_labels`), -1 if there is none.

  The convention of ProcessBench (https://arxiv.org/abs/2412.06559).
  """
  labels = step_labels(prompt, response)
  return -1 if all(labels) else labels.index(False)


def documents(seed: int, count: int, split: str = 'train') -> list[tuple[str, str]]:
  """`count` pairs (prompt, response), of mixed quality.

  Document i is a pure function of (seed, split, i). One prompt in five, chosen by a
  hash of its text alone, belongs to the test split, whatever the seed.

  Raises:
    InputError: a negative seed or count, or an unknown split.
  """
  base.check_request(seed, count, split)
  return [_document(seed, split, index) for index in range(count)]


def prompts(seed: int, count: int, split: str = 'train') -> list[str]:
  """The first `count` distinct prompts of the documents of (seed, split).

  Raises:
    InputError: a negative seed or count, an unknown split, or more prompts than can
      be found.
  """
  base.check_request(seed, count, split)
  # Short prompts repeat, the longest hardly ever do, and one in four is of those: a
  # bound that only a count near the number of all prompts meets.
  tries = range(100 + 5 * count)
  return base.distinct((_document(seed, split, i)[0] for i in tries), count)


def _terms(prompt: str) -> list[str]:
  """The signed numbers of a prompt, as they are written; none if it is no sum."""
  return re.findall('[-+]?[0-9]+', prompt) if _PROMPT.fullmatch(prompt) else []


def _total(terms: Sequence[str]) -> str:
  return str(sum(map(int, terms)))


def _after(terms: list[str], step: str) -> list[str]:
  """What a right step leaves to be worked out of a sum; nothing after a wrong one."""
  left, _, result = step.partition('=')
  for count in range(2, len(terms) + 1):
    if left == ''.join(terms[:count]) and result == _total(terms[:count]):
      return [result, *terms[count:]]
  return []


def _document(seed: int, split: str, index: int) -> tuple[str, str]:
  rng = np.random.default_rng([seed, base.split_number(split), index])
  # Drawn before anything is refused, so that refusals do not change their shares.
  size = int(rng.integers(_NUMBERS[0], _NUMBERS[1] + 1))
  slips = bool(rng.random() < _SLIPS)
  while True:
    terms = rng.integers(_OPERAND[0], _OPERAND[1] + 1, size)
    terms[1:] *= rng.choice([-1, 1], size - 1)
    results = np.cumsum(terms)
    prompt = _joined(terms.tolist()) + '='
    if _fits(results) and base.split_of(prompt) == split:
      break
  while slips:
    results = np.cumsum(terms)
    results[rng.integers(1, size) :] += rng.choice(_OFFSETS)
    slips = not _fits(results)
  return prompt, ';'.join(_written(rng, terms.tolist(), results.tolist()))


def _written(
  rng: np.random.Generator, terms: Sequence[int], results: Sequence[int]
) -> Iterator[str]:
  """The steps from the first of the results to the last; haste leaves some out."""
  last = len(terms) - 1
  at = 0
  while at < last:
    to = min(at + 1 + int(rng.random() < _HASTE), last)
    yield f'{_joined([results[at], *terms[at + 1 : to + 1]])}={results[to]}'
    at = to


def _fits(results: Int[np.ndarray, ' n']) -> bool:
  return bool(_RESULT[0] <= results.min() and results.max() <= _RESULT[1])


def _joined(numbers: Sequence[int]) -> str:
  return ''.join(f'{number:+d}' for number in numbers).removeprefix('+')
