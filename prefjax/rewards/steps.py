"""Where the steps of a response are: in its text, and from there in its tokens.

Text is cut into steps by a `Segment`; a step's number then stands on each of its
tokens (`batch.step`).
"""

import bisect
from collections.abc import Callable, Sequence
import itertools
import re

from jaxtyping import Bool, Float, Int32, Integer
import numpy as np

from prefjax.errors import InputError

Segment = Callable[[str], Sequence[str]]  # a text -> pieces that join to it
Decode = Callable[[Sequence[int]], str]

NUMBERED = 'Step N:'
_NUMBER = re.compile(r'^[ \t]*Step [0-9]+:', re.MULTILINE)


def segmenter(how: str) -> Segment:
  """Cuts at `Step 1:`, `Step 2:`, ... for `Step N:`, else behind a separator.

  Raises:
    InputError: an empty separator.
  """
  if not how:
    raise InputError(
      f'Steps need a separator, such as a blank line, or {NUMBERED!r}; got none.'
    )
  return by_number if how == NUMBERED else lambda text: by_separator(text, how)


def by_separator(text: str, separator: str) -> list[str]:
  """The steps of a text, each with the separator that ends it.

  A step of white space and separators alone is no step: it belongs to the one before
  it, or, where it comes first, to the next. So blank lines may be many, a separator at
  the end begins nothing, and a text without a separator is one step. What a length
  limit cut off is a step like the others.
  """
  parts = [part + separator for part in text.split(separator)]
  parts[-1] = parts[-1].removesuffix(separator)
  return _joined(parts, lambda part: bool(part.replace(separator, '').strip()))


def by_number(text: str) -> list[str]:
  """The steps of a text that begin with `Step 1:`, `Step 2:`, ... on a line of its own.

  What stands before the first is a step too, unless it is white space.
  """
  starts = [match.start() for match in _NUMBER.finditer(text)]
  edges = [0, *(start for start in starts if start), len(text)]
  parts = [text[a:b] for a, b in itertools.pairwise(edges)]
  return _joined(parts, lambda part: bool(part.strip()))


def _joined(parts, filled):
  """The parts, those that are not filled put to the one before or, at first, after."""
  steps: list[str] = []
  open_step = False  # nothing but blanks so far
  for part in parts:
    if steps and (open_step or not filled(part)):
      steps[-1] += part
      open_step = open_step and not filled(part)
    elif part:
      steps.append(part)
      open_step = not filled(part)
  return steps


def token_steps(
  ids: Sequence[int], decode: Decode, segment: Segment
) -> Int32[np.ndarray, ' n']:
  """The step of each token of a response: that in which its first character lies.

  A token that has no character of its own (EOS) belongs to the last step.

  Raises:
    InputError: where the pieces of a text do not join to it.
  """
  text = decode(ids)
  steps = list(segment(text))
  if ''.join(steps) != text:
    raise InputError(
      f'A segmentation must keep every character: {len(steps)} steps of '
      f'{sum(map(len, steps))} characters from a text of {len(text)}.'
    )
  ends = itertools.accumulate(map(len, steps[:-1]))
  starts = _tokens_up_to(ids, ends, decode)
  return np.searchsorted(starts, np.arange(len(ids)), side='right').astype(np.int32)


def batch_steps(
  tokens: Integer[np.ndarray, '*b t'],
  length: Integer[np.ndarray, '*b'],
  decode: Decode,
  segment: Segment,
) -> Int32[np.ndarray, '*b t']:
  """`token_steps` of every response of a batch, -1 beyond its end: `batch.step`."""
  found = np.full(tokens.shape, -1, np.int32)
  for index in np.ndindex(length.shape):
    n = int(length[index])
    found[index][:n] = token_steps(tokens[index][:n].tolist(), decode, segment)
  return found


def token_ends(ids: Sequence[int], ends: Sequence[int], decode: Decode) -> list[int]:
  """The tokens that hold the last characters of the steps of a response.

  `ends` are counted in characters of `decode(ids)`, exclusive. Steps whose ends lie in
  one token share it. The token that stops a response is of no step: what a step earned
  is not to be had by ending after it.
  """
  counts = _tokens_up_to(ids, ends, decode)
  return [min(max(count, 1), len(ids)) - 1 for count in counts]


def _tokens_up_to(ids, ends, decode):
  """How many tokens it takes to write as many characters, for each of `ends`."""

  def written(n):
    # A character whose bytes are not all there yet decodes to replacements.
    return len(decode(ids[:n]).rstrip('\ufffd'))

  places = range(len(ids) + 1)
  return [bisect.bisect_left(places, end, key=written) for end in ends]


def numbered(ends: Bool[np.ndarray, '*b t']) -> Int32[np.ndarray, '*b t']:
  """The number of the step that each token belongs to, -1 after the last end.

  `ends` is True on the last token of every step.
  """
  before = np.cumsum(ends, axis=-1) - ends
  open_ = np.flip(np.cumsum(np.flip(ends, -1), axis=-1), -1) > 0
  return np.where(open_, before, -1).astype(np.int32)


def listed(rewards: Float[np.ndarray, ' t']) -> list[tuple[int, float]]:
  """(token, reward) of every step of a response; NaN is where no step ends."""
  return [(int(at), float(rewards[at])) for at in np.flatnonzero(~np.isnan(rewards))]
