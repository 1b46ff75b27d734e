"""Sampled responses as text, and as groups with their rewards."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from prefjax.data.encoding import encode_prompt
from prefjax.data.tokenizers import Tokenizer
from prefjax.errors import InputError
from prefjax.rollout.draws import Controls
from prefjax.rollout.groups import Groups, Request, join, take
from prefjax.rollout.sampler import FREE, Sampler, Samples, collect


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

  sampler: Sampler
  tokenizer: Tokenizer
  num_responses: int
  max_prompt: int
  max_tokens: int
  prompts_at_once: int
  controls: Controls = FREE

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
      table, length = left_padded(filled, self.max_prompt, self.tokenizer.pad_id)
      places = np.arange(start, start + size)
      keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(places)
      samples = collect(
        self.sampler.stream(
          params,
          table,
          length,
          keys,
          num_responses=self.num_responses,
          max_tokens=self.max_tokens,
          controls=self.controls,
        )
      )
      samples = Samples(*(x[: len(some)] for x in samples))
      yield Drawn(
        slice(start, start + len(some)),
        table[: len(some)],
        length[: len(some)],
        samples,
        texts(samples, self.tokenizer),
      )


def left_padded(
  rows: Sequence[Sequence[int]], size: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Token ids [p, size] and their lengths [p].

  Raises:
    InputError: for a prompt that is longer than `size`.
  """
  length = np.asarray([len(ids) for ids in rows], np.int32)
  if length.max() > size:
    raise InputError(
      f'A prompt of {length.max()} tokens is longer than its bucket, '
      f'data.max_prompt={size}.'
    )
  table = np.full((len(rows), size), pad_id, np.int32)
  for row, ids in zip(table, rows, strict=True):
    row[size - len(ids) :] = ids
  return table, length


def texts(samples: Samples, tokenizer: Tokenizer) -> list[list[str]]:
  """The responses `[p][k]` as text, without their stop tokens."""
  return [
    [
      tokenizer.decode(tokens[:length].tolist())
      for tokens, length in zip(row, lengths, strict=True)
    ]
    for row, lengths in zip(samples.tokens, samples.length, strict=True)
  ]


class Rolled(NamedTuple):
  """Groups, what each reward gave them, and their texts."""

  groups: Groups
  values: dict[str, np.ndarray]  # [n, k] each reward alone
  texts: list[list[str]]  # [n][k]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roller:
  """Samples the prompts of a stream and has them judged while it samples on.

  A reward stands on a response's last token, or where the judge placed it.

  A response's noise is fold_in(seed, position, attempt, index): no two groups share
  any, a prompt that is tried again gets other noise, and the batch it stands in
  changes nothing.

  Attributes:
    question: the prompt of a position of the stream, as (text, token ids, record).
    judge: starts to judge sampled groups and returns what waits for the rewards.
    num_responses: k, the size of a group.
    max_prompt: tokens of the prompts' bucket.
    max_tokens: tokens of a response at most.
  """

  sampler: Sampler
  tokenizer: Tokenizer
  question: Callable[[int], tuple[str, Sequence[int], Mapping[str, Any]]]
  judge: Callable[..., Callable[[], Any]]
  num_responses: int
  max_prompt: int
  max_tokens: int
  seed: jax.Array
  controls: Controls = FREE

  def sample(self, params: Any, requests: Sequence[Request], iteration: int) -> Rolled:
    """One group for every request, in their order."""
    asked = [self.question(request.position) for request in requests]
    prompts, length = left_padded(
      [ids for _, ids, _ in asked], self.max_prompt, self.tokenizer.pad_id
    )
    pending = []
    stream = self.sampler.stream(
      params,
      prompts,
      length,
      self._keys(requests),
      num_responses=self.num_responses,
      max_tokens=self.max_tokens,
      controls=self.controls,
    )
    for index, samples in stream:
      written = texts(samples, self.tokenizer)
      chosen = [requests[i] for i in index]
      judged = self.judge(
        position=np.asarray([request.position for request in chosen]),
        attempt=np.asarray([request.attempt for request in chosen]),
        texts=[asked[i][0] for i in index],
        records=[asked[i][2] for i in index],
        responses=written,
        prompts=prompts[index],
        prompt_length=length[index],
        tokens=samples.tokens,
        length=samples.length,
      )
      pending.append((index, samples, written, judged))
    parts = [
      self._rolled(requests, prompts, length, iteration, *part) for part in pending
    ]
    return _in_order(parts, np.concatenate([part[0] for part in pending]))

  def _keys(self, requests):
    position, attempt = np.asarray(requests, np.uint32).reshape(-1, 2).T
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys = fold(self.seed, position)
    return jax.vmap(jax.random.fold_in)(keys, attempt)

  def _rolled(
    self, requests, prompts, length, iteration, index, samples, written, judged
  ):
    found = judged()
    scored = ~np.isnan(found.reward)
    rewards, step = found.placed, found.step
    if rewards is None:
      rewards = np.zeros(samples.tokens.shape)
      step = np.full(samples.tokens.shape, -1, np.int32)
      last = np.maximum(samples.length - 1, 0)[..., None]
      np.put_along_axis(rewards, last, found.reward[..., None], axis=-1)
    rewards = np.where(scored[..., None], rewards, 0.0).astype(np.float32)
    groups = Groups(
      position=np.asarray([requests[i].position for i in index]),
      attempt=np.asarray([requests[i].attempt for i in index]),
      born=np.full(len(index), iteration),
      prompts=prompts[index],
      prompt_length=length[index],
      tokens=samples.tokens,
      length=samples.length,
      logps=samples.logps,
      truncated=samples.truncated,
      rewards=rewards,
      step=step,
      scored=scored,
      right=found.right & scored,
    )
    return Rolled(groups, found.values, written)


def _in_order(parts: Sequence[Rolled], index: np.ndarray) -> Rolled:
  order = np.argsort(index)
  written = [row for part in parts for row in part.texts]
  return Rolled(
    take(join([part.groups for part in parts]), order),
    {
      name: np.concatenate([part.values[name] for part in parts])[order]
      for name in parts[0].values
    },
    [written[i] for i in order],
  )
