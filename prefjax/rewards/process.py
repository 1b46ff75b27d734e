"""Process rewards: where the steps of a response are, and what each of them earns.

Text is cut into steps by a `Segment`; a step's number then stands on each of its
tokens (`batch.step`), and the implicit rewards of `prefjax.objectives.process` become
step rewards, scores of whole responses, or rewards on the last token of each step, as
the process supervision of an on-policy objective reads them.
"""

import bisect
from collections.abc import Callable, Sequence
import itertools
import re

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, Integer
import numpy as np

from prefjax.errors import InputError
from prefjax.objectives import process
from prefjax.objectives.advantages import step_ends
from prefjax.objectives.links import Scalar

Segment = Callable[[str], Sequence[str]]  # a text -> pieces that join to it
Decode = Callable[[Sequence[int]], str]

NUMBERED = 'Step N:'
FORMS = ('single', 'accumulated')
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
  ends = np.cumsum([len(step) for step in steps[:-1]], dtype=np.int64)

  def before(n):
    # A character whose bytes are not all there yet decodes to replacements.
    return len(decode(ids[:n]).rstrip('\ufffd'))

  places = range(len(ids) + 1)
  starts = [bisect.bisect_left(places, end, key=before) for end in ends.tolist()]
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


def implicit_rewards(
  logps: Float[Array, '*b t'],
  reference_logps: Float[Array, '*b t'] | None,
  step: Int[Array, '*b t'],
  *,
  beta: Scalar,
  num_steps: int,
) -> tuple[Float[Array, '*b s'], Bool[Array, '*b s']]:
  """r_s = beta log pi / pi_ref summed over a step, nats; and which steps there are.

  Implicit PRM (arXiv:2412.01981), Eq. 3; without a reference, of log pi alone (its
  Table 5).
  """
  ratios = logps if reference_logps is None else logps - reference_logps
  return process.step_rewards(ratios, step, beta=beta, num_steps=num_steps)


def response_scores(
  rewards: Float[Array, '*b s'],
  present: Bool[Array, '*b s'],
  *,
  form: str,
  how: str,
) -> Float[Array, '*b']:
  """One number a response, from its step rewards.

  Args:
    form: `single` rewards, or `accumulated` ones: the values q_s.
    how: `min`, `sum`, `mean` or `last` of them.

  Raises:
    InputError: another form or aggregation.
  """
  if form not in FORMS:
    raise InputError(f'Unknown form of step rewards {form!r}; known are {FORMS}.')
  found = process.values(rewards) if form == 'accumulated' else rewards
  return process.aggregate(found, present, how)


def on_last_tokens(
  rewards: Float[Array, 'p k s'], step: Int[Array, 'p k t']
) -> Float[Array, 'p k t']:
  """Each step's reward on the last token of the step, 0 elsewhere: `batch.rewards`."""
  at = jnp.clip(step, 0, rewards.shape[-1] - 1)
  picked = jnp.take_along_axis(rewards, at, axis=-1)
  return jnp.where(step_ends(step), picked, 0.0)
