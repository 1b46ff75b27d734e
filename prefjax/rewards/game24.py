"""The game of 24: four numbers, each used once, make 24 by + - * / and brackets."""

from collections.abc import Mapping
from fractions import Fraction
import re
from typing import Any

_TARGET = 24
# Of a line, in characters: it bounds how deep brackets nest, hence the recursion.
_LONGEST = 200
_PREFIX = 'answer:'
_SIGNS = str.maketrans('×÷−', '*/-')


def game24(prompt: str, response: str, record: Mapping[str, Any]) -> float:
  """1 where the response solves the puzzle of the record's `numbers`, else 0.

  `numbers` (`Puzzles` in the file of Tree of Thoughts) are a string (`1 1 4 6`) or
  integers. The last line of the response
  that is not empty is an expression in them, each used exactly once, that may be
  introduced by `Answer:` and followed by `= 24`. It is parsed here, never
  evaluated by Python, and computed exactly: 8 / (3 - 8 / 3) is 24.

  Source: Tree of Thoughts (https://arxiv.org/abs/2305.10601), Section 4.1.
  """
  numbers = record.get('numbers', record.get('Puzzles'))
  if numbers is None:
    return float('nan')
  if isinstance(numbers, str):
    numbers = numbers.replace(',', ' ').split()
  line = response.strip().rpartition('\n')[2].strip()
  if line[: len(_PREFIX)].lower() == _PREFIX:
    line = line[len(_PREFIX) :]
  expression, equals, right = line.translate(_SIGNS).partition('=')
  if equals and right.strip().rstrip('.') != str(_TARGET):
    return 0.0
  return float(_solves(expression, [int(number) for number in numbers]))


def _solves(expression, numbers):
  if len(expression) > _LONGEST or not re.fullmatch(r'[-+*/()0-9 ]+', expression):
    return False
  tokens = re.findall(r'[0-9]+|\S', expression)
  used = [int(token) for token in tokens if token.isdigit()]
  if sorted(used) != sorted(numbers):
    return False
  tokens.reverse()  # the next token is the last: popped, it is read
  try:
    value = _sum(tokens)
  except (ValueError, IndexError, ZeroDivisionError):
    return False
  return not tokens and value == _TARGET


def _sum(tokens):
  value = _product(tokens)
  while tokens and tokens[-1] in '+-':
    plus = tokens.pop() == '+'
    term = _product(tokens)
    value = value + term if plus else value - term
  return value


def _product(tokens):
  value = _factor(tokens)
  while tokens and tokens[-1] in '*/':
    times = tokens.pop() == '*'
    factor = _factor(tokens)
    value = value * factor if times else value / factor
  return value


def _factor(tokens):
  token = tokens.pop()
  if token != '(':
    return Fraction(token)  # ValueError for what is no number
  value = _sum(tokens)
  if tokens.pop() != ')':
    raise ValueError('A bracket is not closed.')
  return value
