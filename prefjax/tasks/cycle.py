"""Copying letters in styles that beat each other in a cycle: preferences without order.

A prompt is four letters, `bade:`. A response says which style it is in and copies
them, `rbade`; it has a quality, the share of letters that are right, and a style, one
of rock, paper and scissors. A judge looks at the styles with probability w and at the
qualities otherwise:

    P(y > y') = w C[style, style'] + (1 - w) sigmoid(scale (quality - quality'))

C is a cycle whose three edges differ in strength, so that no ranking of responses says
who wins, and Bradley-Terry scores, whatever they are fitted to, always name one best
style. Yet there is an answer: the von Neumann winner copies every letter and mixes the
styles, each as often as the edge between the other two is strong.
"""

from collections.abc import Sequence
import re

from jaxtyping import Float64, Int
import numpy as np

from prefjax.tasks import base

STYLES = 'rps'
LETTERS = 'abcdefgh'
CHARACTERS = LETTERS + STYLES + ':'
"""All that prompts and documents are written in; no space is among them."""

_SIZE = 4  # letters of a prompt
_PROMPT = re.compile(f'[{LETTERS}]{{{_SIZE}}}:')
_RESPONSE = re.compile(f'[{STYLES}][{LETTERS}]{{{_SIZE}}}')
_SHARE = 0.6  # w, of judgements that look at the style
_SCALE = 4.0  # nats a unit of quality
# P(win) - 1/2 between two styles: rock beats scissors, paper rock, scissors paper.
_ROCK, _PAPER, _SCISSORS = 0.45, 0.3, 0.15
_CYCLE = 0.5 + np.array(
  [
    [0.0, -_PAPER, _ROCK],
    [_PAPER, 0.0, -_SCISSORS],
    [-_ROCK, _SCISSORS, 0.0],
  ]
)
_FORMLESS = len(STYLES) * (_SIZE + 1)  # the kind of text that is no response
_FORMLESS_QUALITY = -1.0
_STYLE_SHARES = (0.5, 0.3, 0.2)  # of documents
_RIGHT = 0.75  # of a document's letters, before one is drawn at random

KINDS = (
  *(f'{style}{right}' for style in STYLES for right in range(_SIZE + 1)),
  'formless',
)
"""What preferences are a function of: the style and the number of right letters."""


def kind(prompt: str, response: str) -> int:
  """The index in `KINDS` of a response; defined on any text.

  Formless is what is not a style and four letters, or follows what is no prompt.
  """
  if not (_PROMPT.fullmatch(prompt) and _RESPONSE.fullmatch(response)):
    return _FORMLESS
  right = sum(a == b for a, b in zip(prompt, response[1:], strict=False))
  return STYLES.index(response[0]) * (_SIZE + 1) + right


def kinds(prompt: str, responses: Sequence[str]) -> Int[np.ndarray, ' k']:
  """The kind of each response to a prompt."""
  return np.array([kind(prompt, response) for response in responses])


def game() -> Float64[np.ndarray, 'n n']:
  """P(kind i beats kind j): in the open (0, 1), and P + P^T = 1.

  Formless text ties with every style and has a quality below that of any copy.
  """
  styles = np.arange(_FORMLESS) // (_SIZE + 1)
  cycle = np.full((len(KINDS), len(KINDS)), 0.5)
  cycle[:_FORMLESS, :_FORMLESS] = _CYCLE[np.ix_(styles, styles)]
  quality = _qualities()
  margin = _SCALE * (quality[:, None] - quality[None, :])
  return _SHARE * cycle + (1.0 - _SHARE) * 0.5 * (1.0 + np.tanh(0.5 * margin))


def winner() -> Float64[np.ndarray, ' n']:
  """The von Neumann winner over kinds: no kind beats it more often than not.

  All letters right, and each style as often as the edge that it is not part of is
  strong: with edges a > 0 from 2 to 1, b from 3 to 2 and c from 1 to 3, a mix (b, c, a)
  / (a + b + c) meets every style with the margin 0.
  """
  mix = np.array([_SCISSORS, _ROCK, _PAPER])
  policy = np.zeros(len(KINDS))
  policy[_SIZE : _FORMLESS : _SIZE + 1] = mix / mix.sum()
  return policy


def preferences(prompt: str, responses: Sequence[str]) -> Float64[np.ndarray, 'k k']:
  """P(response i beats response j), of the judge."""
  found = kinds(prompt, responses)
  return game()[np.ix_(found, found)]


def reward(prompt: str, response: str) -> float:
  """The quality alone, whatever the style: the share of letters right, -1 formless."""
  return float(_qualities()[kind(prompt, response)])


def rewards(
  prompts: Sequence[str], responses: Sequence[str]
) -> Float64[np.ndarray, ' n']:
  """`reward` of each prompt with its response; as many of one as of the other."""
  return base.rewards(reward, prompts, responses)


def documents(seed: int, count: int, split: str = 'train') -> list[tuple[str, str]]:
  """`count` pairs (prompt, response): most of them rock, three letters in four right.

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
      be found: there are 4,096, four in five of them to train on.
  """
  base.check_request(seed, count, split)
  tries = range(100 + 20 * count)
  return base.distinct((_document(seed, split, i)[0] for i in tries), count)


def _qualities() -> Float64[np.ndarray, ' n']:
  right = np.arange(_FORMLESS) % (_SIZE + 1) / _SIZE
  return np.append(right, _FORMLESS_QUALITY)


def _document(seed: int, split: str, index: int) -> tuple[str, str]:
  rng = np.random.default_rng([seed, base.split_number(split), index])
  while True:
    letters = rng.choice([*LETTERS], _SIZE)
    prompt = ''.join(letters) + ':'
    if base.split_of(prompt) == split:
      break
  style = rng.choice([*STYLES], p=_STYLE_SHARES)
  copied = np.where(rng.random(_SIZE) < _RIGHT, letters, rng.choice([*LETTERS], _SIZE))
  return prompt, style + ''.join(copied)
