"""Verifiers by rule: text is read, never run, and any text has a reward.

Each takes (prompt, response, record) and returns NaN where the record has nothing
to verify against.
"""

from collections.abc import Mapping
from decimal import Decimal
import re
from typing import Any

from prefjax.rewards.base import Steps, stepwise

Record = Mapping[str, Any]

# 1,080 and 0.5 and .5; 1,2 are two numbers. ASCII, for \d matches every script.
_DIGITS = r'(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)'
# -5, -$5 and $-5; but the 3 of 16-3 is no -3.
_NUMBER = re.compile(rf'(?:(?<![\w)])[-−]\$?|\$[-−]?)?{_DIGITS}')
_MARKER = '####'
_BOXED = r'\boxed{'
_SEQUENCE = re.compile(r'([0-9]{1,6}),([0-9]{1,6}):([0-9]{1,6}),([0-9]{1,4})')


def exact_answer(prompt: str, response: str, record: Record) -> float:
  """1 where the response is the record's `answer`, both stripped, else 0."""
  answer = record.get('answer')
  if answer is None:
    return float('nan')
  return float(response.strip() == str(answer).strip())


def gsm8k(prompt: str, response: str, record: Record) -> float:
  """1 where the response ends in the number that the record's `answer` ends in.

  That is the first number after the last `####`, or without a `####` the last
  number of all. Numbers are equal by value: $1,080 is 1080.00.

  Source: GSM8K (https://arxiv.org/abs/2110.14168). On the 5,276 graded model
  solutions that come with the data, it agrees with every grade.
  """
  truth = _final_number(str(record.get('answer', '')))
  if truth is None:
    return float('nan')
  return float(_final_number(response) == truth)


def gsm8k_format(prompt: str, response: str, record: Record) -> float:
  """1 where the response has one `####` and ends in it and a number, else 0."""
  _, _, after = response.partition(_MARKER)
  return float(_NUMBER.fullmatch(after.strip()) is not None)


def format_boxed(prompt: str, response: str, record: Record) -> float:
  r"""1 where the response has one `\boxed{...}`, closed and not empty, else 0."""
  before, _, after = response.partition(_BOXED)
  if len(before) == len(response) or _BOXED in after:
    return 0.0
  depth = 1
  for brace in re.finditer(r'[{}]', after):
    depth += 1 if brace[0] == '{' else -1
    if depth == 0:
      return float(after[: brace.start()].strip() != '')
  return 0.0


def digits(prompt: str, response: str, record: Record) -> float:
  """The share of a digit completion that is right before the first mistake.

  The prompt `a,b:m,n` asks for the next n terms of the arithmetic progression
  modulo m that begins with a, b: term_i = (b + i (b - a)) mod m, joined by commas.
  Of an answer of L characters each is worth 1 / (L + 1), and they count up to the
  first that the response has otherwise:

    8,3:9,4  ->  7,2,6,1   (L = 7);   the response 7,2,5  earns  4 / 8

  The share left over stands for the end of the sequence, and is never paid: a
  right answer earns L / (L + 1), and text after it costs nothing.

  Source: verl's tests/special_e2e/envs/digit_completion, whose per-token rewards
  are summed here.
  """
  found = _right_digits(prompt, response)
  return float('nan') if found is None else found[0] / (found[1] + 1)


@stepwise
def digits_steps(prompt: str, response: str, record: Record) -> Steps | None:
  """The reward of `digits` where it is earned: 1 / (L + 1) on every right character."""
  found = _right_digits(prompt, response)
  if found is None:
    return None
  right, size = found
  return [(end, 1 / (size + 1)) for end in range(1, right + 1)]


def _right_digits(prompt: str, response: str) -> tuple[int, int] | None:
  """How many characters are right before the first mistake, and of how many."""
  asked = _SEQUENCE.fullmatch(prompt.strip())
  if asked is None or int(asked[3]) == 0:
    return None
  first, second, modulus, count = map(int, asked.groups())
  terms = ((second + i * (second - first)) % modulus for i in range(1, count + 1))
  answer = ','.join(map(str, terms))
  pairs = zip(answer, response, strict=False)
  wrong = (i for i, (want, got) in enumerate(pairs) if want != got)
  return next(wrong, min(len(answer), len(response))), len(answer)


def _final_number(text: str) -> Decimal | None:
  _, marker, after = text.rpartition(_MARKER)
  numbers = _NUMBER.findall(after)
  if not numbers:
    return None
  number = numbers[0 if marker else -1]
  return Decimal(re.sub(r'[$,]', '', number).replace('−', '-'))
