"""Ordered pairs: what a model reads that compares two responses at once.

A pair (a, b) becomes two responses of its prompt, `a SEP b` and `b SEP a`, each read
whole and scored at its end: g(a, b) and g(b, a). Their difference is the margin, so a
Bradley-Terry loss on them trains the pairwise model. SEP is EOS: no text gives it.
"""

import dataclasses
import functools

from jaxtyping import Int32
import numpy as np

from prefjax.data.encoding import Example
from prefjax.data.prepare import Prepared


def joined(
  first: Int32[np.ndarray, ' a'], second: Int32[np.ndarray, ' b'], eos_id: int
) -> Int32[np.ndarray, ' c']:
  """`first SEP second`: one EOS between them, whether or not the first had its own."""
  ended = len(first) and first[-1] == eos_id
  separator = np.asarray([] if ended else [eos_id], np.int32)
  return np.concatenate([first, separator, second])


@dataclasses.dataclass(frozen=True, eq=False)
class _Ordered(Prepared):
  eos_id: int

  @functools.cached_property
  def digest(self):
    return f'{super().digest}-ordered'

  def read(self, indices):
    return [_ordered(example, self.eos_id) for example in super().read(indices)]


def _ordered(example: Example, eos_id: int) -> Example:
  """The two orders of every pair, beside each other."""
  responses = [
    joined(example.responses[a], example.responses[b], eos_id)
    for pair in zip(example.chosen, example.rejected, strict=True)
    for a, b in (pair, pair[::-1])
  ]
  places = np.arange(len(example.chosen), dtype=np.int32)
  return Example(
    prompt=example.prompt,
    responses=tuple(responses),
    chosen=2 * places,
    rejected=2 * places + 1,
    preference=example.preference,
  )


def ordered(data: Prepared, eos_id: int) -> Prepared:
  """The data with both orders of its pairs as the responses of each prompt.

  Column 2 m is `chosen SEP rejected` of pair m, column 2 m + 1 the other order.
  """
  fields = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
  examples = data.read(range(len(data)))
  length = np.zeros((len(data), 2 * int(data.num_pairs.max())), np.int32)
  for row, example in zip(length, examples, strict=True):
    sizes = [len(response) for response in _ordered(example, eos_id).responses]
    row[: len(sizes)] = sizes
  return _Ordered(**fields | {'response_length': length}, eos_id=eos_id)
