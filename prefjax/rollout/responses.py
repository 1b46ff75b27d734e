"""Sampled responses as text: prompts in, what a policy writes out."""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from prefjax.data.encoding import encode_prompt
from prefjax.data.tokenizers import Tokenizer
from prefjax.rollout.sampler import Sampler, Samples


class Drawn(NamedTuple):
  """What was drawn for a few prompts, on the host."""

  index: slice  # of the prompts that were asked for
  prompts: np.ndarray  # [p, l] token ids, left-padded
  prompt_length: np.ndarray  # [p]
  samples: Samples
  texts: list[list[str]]  # [p][k]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writer:
  """Draws `num_responses` to each prompt, `prompts_at_once` prompts a call.

  The noise of a prompt is a function of the key and of its place in the list, so
  that neither the batching nor the prompts after it change what it gets.
  """

  sample: Sampler
  tokenizer: Tokenizer
  num_responses: int
  max_prompt: int
  max_tokens: int
  prompts_at_once: int

  def draw(
    self, params: Any, prompts: Sequence[str], key: jax.Array
  ) -> Iterator[Drawn]:
    """Yields the responses of consecutive prompts; one compiled shape serves all."""
    ids = [
      encode_prompt(text, self.tokenizer, max_prompt=self.max_prompt)
      for text in prompts
    ]
    size = self.prompts_at_once
    for start in range(0, len(ids), size):
      some = ids[start : start + size]
      filled = some + [some[-1]] * (size - len(some))
      table, length = self._left_padded(filled)
      places = np.arange(start, start + size)
      keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(places)
      samples = self.sample(
        params,
        table,
        length,
        keys,
        num_responses=self.num_responses,
        max_tokens=self.max_tokens,
      )
      samples = Samples(*(np.asarray(x)[: len(some)] for x in samples))
      yield Drawn(
        slice(start, start + len(some)),
        table[: len(some)],
        length[: len(some)],
        samples,
        self._texts(samples),
      )

  def _left_padded(self, rows):
    table = np.full((len(rows), self.max_prompt), self.tokenizer.pad_id, np.int32)
    for row, ids in zip(table, rows, strict=True):
      row[len(row) - len(ids) :] = ids
    return table, np.asarray([len(ids) for ids in rows], np.int32)

  def _texts(self, samples):
    return [
      [
        self.tokenizer.decode(tokens[:length].tolist())
        for tokens, length in zip(row, lengths, strict=True)
      ]
      for row, lengths in zip(samples.tokens, samples.length, strict=True)
    ]
