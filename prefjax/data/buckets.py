"""Which prompts go together: a batch cut into cells of a small grid of shapes.

Padding is met by buckets, not by packing. Accumulation is exact, so the cut changes
nothing but speed, and each jitted function compiles at most once a cell.
"""

from typing import NamedTuple

from jaxtyping import Int
import numpy as np

from prefjax.errors import InputError


class Cell(NamedTuple):
  """The shape of a micro-batch: prompts, responses of each, and their tokens."""

  p: int
  k: int
  l: int
  t: int

  @property
  def tokens(self) -> int:
    """What the model runs over, padding included; the prompt once."""
    return self.p * (self.l + self.k * self.t)


class MicroBatch(NamedTuple):
  """A cell and the rows of the batch that fill it; -1 is filling of weight 0."""

  cell: Cell
  rows: Int[np.ndarray, ' p']


class Grid(NamedTuple):
  """The lengths that arrays may have, ascending, in tokens."""

  prompt: tuple[int, ...]
  response: tuple[int, ...]


def lengths(longest: int, *, multiple: int, growth: float) -> tuple[int, ...]:
  """Multiples of `multiple` up to the longest, each `growth` times the one before."""
  if growth <= 1.0 or multiple < 1:
    raise InputError(
      f'Buckets need growth > 1 and multiple >= 1, got {growth} and {multiple}.'
    )
  last = -(-longest // multiple) * multiple
  found = [last]
  while (smaller := int(found[-1] / growth) // multiple * multiple) > 0:
    found.append(smaller)
  return tuple(reversed(found))


def grid(
  longest_prompt: int,
  longest_response: int,
  *,
  multiple: int = 16,
  growth: float = 1.5,
) -> Grid:
  """A grid for these longest lengths; `growth=inf` gives one bucket of each."""
  if growth == float('inf'):
    growth = 2.0 * max(longest_prompt, longest_response) + multiple
  return Grid(
    lengths(longest_prompt, multiple=multiple, growth=growth),
    lengths(longest_response, multiple=multiple, growth=growth),
  )


def plan(
  prompt_length: Int[np.ndarray, ' b'],
  response_length: Int[np.ndarray, 'b k'],
  grid: Grid,
  *,
  max_tokens: int,
  shards: int = 1,
  overhead: int = 256,
) -> list[MicroBatch]:
  """Cuts a batch, sorted by length, where the padded tokens are fewest.

  Micro-batches hold `shards` times a power of two prompts and at most `max_tokens`
  padded tokens a shard; one prompt a shard may pass that, where the longest prompt
  and the longest response are not of the same prompt. Among these, dynamic
  programming over the sorted batch minimises padded tokens plus `overhead` (tokens) a
  micro-batch. A pure function of the lengths, so every process forms the same plan.

  Raises:
    InputError: if the batch does not divide by the shards, or one prompt with its
      responses is more than `max_tokens`.
  """
  b, k = response_length.shape
  if b % shards:
    raise InputError(
      f'A batch must divide by the data shards: {b} prompts, {shards} shards.'
    )
  l = np.asarray(grid.prompt)[_bucket(prompt_length, grid.prompt, 'prompt')]
  longest = response_length.max(axis=1)
  t = np.asarray(grid.response)[_bucket(longest, grid.response, 'response')]
  if np.max(l + k * t) > max_tokens:
    raise InputError(
      f'A prompt with its {k} responses takes {np.max(l + k * t)} tokens after '
      f'padding, more than data.max_tokens={max_tokens}.'
    )
  order = np.lexsort((np.arange(b), -l, -t))
  cuts = _cheapest_cuts(l[order], t[order], k, max_tokens, shards, overhead)
  return [
    MicroBatch(cell, _fill(order[start : start + cell.p], cell.p))
    for start, cell in cuts
  ]


def _bucket(length, edges, name):
  index = np.searchsorted(edges, length)
  if np.any(index == len(edges)):
    raise InputError(
      f'A {name} of {np.max(length)} tokens is longer than the largest bucket, '
      f'{edges[-1]}.'
    )
  return index


def _cheapest_cuts(l, t, k, max_tokens, shards, overhead):
  """(start, cell) of each micro-batch; the batch is sorted by t, then l."""
  b = len(l)
  best: list[tuple[float, int, Cell | None]] = [(0.0, 0, None)] * (b + 1)
  for start in reversed(range(0, b, shards)):
    options = []
    size = shards
    while True:
      stop = min(start + size, b)
      cell = Cell(size, k, int(l[start:stop].max()), int(t[start]))
      if size > shards and cell.tokens > max_tokens * shards:
        break
      options.append((cell.tokens + overhead + best[stop][0], stop, cell))
      if stop == b:
        break
      size *= 2
    best[start] = min(options, key=lambda option: option[0])
  cuts, start = [], 0
  while start < b:
    _, stop, cell = best[start]
    cuts.append((start, cell))
    start = stop
  return cuts


def _fill(rows, size):
  return np.pad(rows, (0, size - len(rows)), constant_values=-1)
