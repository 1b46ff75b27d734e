"""A rollout cut into updates and micro-batches, and put together again."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from prefjax.data import buckets
from prefjax.data.buckets import Grid
from prefjax.errors import InputError
from prefjax.types import RolloutBatch

# Where the axis of tokens lies: right-padded arrays, and the prompts left-padded.
_TOKENS = (
  'responses',
  'mask',
  'reference_logps',
  'old_logps',
  'step',
  'step_label',
  'rewards',
  'implicit',
  'advantages',
  'returns',
  'correction',
)
_PAIRS = ('chosen', 'rejected', 'preference', 'pair_weight')
_OUTSIDE = {'step': -1, 'step_label': -1.0}  # what stands where no token is, if not 0


class Part(NamedTuple):
  """A micro-batch and the prompts and responses of the rollout that it holds."""

  rows: np.ndarray  # [p] of the rollout, -1 for filling
  columns: slice  # of its responses
  batch: RolloutBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cutter:
  """Cuts rollouts into cells of a grid; a cut changes nothing but speed.

  Attributes:
    grid: the lengths that arrays may have.
    max_tokens: padded tokens of a micro-batch on one data shard, at most.
    at_once: responses of a prompt in one micro-batch; 0 is all. Fewer run the prompt
      again, and fit where a whole group does not.
    shards: data shards.
  """

  grid: Grid
  max_tokens: int
  at_once: int = 0
  shards: int = 1

  def cut(self, batch: RolloutBatch, rows: np.ndarray) -> list[Part]:
    """Micro-batches of these prompts of a rollout (NumPy arrays), longest first.

    Raises:
      InputError: where a group does not divide by `at_once`, or is held together by
        pairs that the cut would part.
    """
    k = batch.responses.shape[1]
    size = self.at_once or k
    if size < 1 or k % size or (size < k and batch.chosen is not None):
      raise InputError(
        f'rollout.responses_at_once={size} must divide the {k} responses of a group, '
        'and pairs need a whole group.'
      )
    short = -len(rows) % self.shards
    rows = np.pad(rows, (0, short), constant_values=-1)
    return [
      part
      for start in range(0, k, size)
      for part in self._cut(batch, rows, slice(start, start + size))
    ]

  def _cut(self, batch, rows, columns):
    real = rows >= 0
    prompt = np.where(real, batch.prompt_length[rows], 1)
    response = np.where(real[:, None], batch.response_length[rows][:, columns], 0)
    for micro in buckets.plan(
      prompt, response, self.grid, max_tokens=self.max_tokens, shards=self.shards
    ):
      chosen = np.where(micro.rows >= 0, rows[micro.rows], -1)
      yield Part(chosen, columns, taken(batch, chosen, columns, *micro.cell[2:]))


def taken(
  batch: RolloutBatch, rows: np.ndarray, columns: slice, l: int, t: int
) -> RolloutBatch:
  """These prompts and responses alone, in arrays of l and t tokens; -1 is filling."""
  fields = {
    field.name: getattr(batch, field.name)
    for field in dataclasses.fields(batch)
    if getattr(batch, field.name) is not None
  }
  none = rows < 0
  out = {
    name: _rows(x[rows], none, _OUTSIDE.get(name, 0)) for name, x in fields.items()
  }
  for name, x in out.items():
    if name not in (*_PAIRS, 'prompts', 'prompt_length', 'group_tokens'):
      x = x[:, columns]
    if name in _TOKENS or name == 'values':
      x = _resized(x, t + (name == 'values'), _OUTSIDE.get(name, 0))
    out[name] = x
  out['prompts'] = _left_resized(out['prompts'], l)
  out['prompt_length'] = np.where(none, 1, out['prompt_length'])
  return RolloutBatch(**out)


def _rows(x, none, fill):
  shape = (-1,) + (1,) * (x.ndim - 1)
  return np.where(none.reshape(shape), x.dtype.type(fill), x)


def _resized(x, t, fill):
  x = x[..., :t]
  widths = ((0, 0), (0, 0), (0, t - x.shape[-1]))
  return np.pad(x, widths, constant_values=fill)


def _left_resized(x, l):
  x = x[:, max(x.shape[1] - l, 0) :]
  return np.pad(x, ((0, 0), (l - x.shape[1], 0)))


def gathered(
  parts: Iterator[Part] | list[Part],
  read: Callable[[RolloutBatch], Mapping[str, Any]],
  batch: RolloutBatch,
) -> dict[str, np.ndarray]:
  """What `read` gives of each micro-batch, put where the rollout has it.

  Quantities are [p, k, t] or [p, k, t+1]; 0 where no token is.
  """
  found: dict[str, np.ndarray] = {}
  p, k, t = batch.responses.shape
  for part in parts:
    real = part.rows >= 0
    width = part.batch.responses.shape[-1]
    for name, value in read(part.batch).items():
      value = np.asarray(value)
      more = value.shape[-1] - width
      if name not in found:
        found[name] = np.zeros((p, k, t + more), value.dtype)
      size = min(width, t) + more
      into = found[name][:, part.columns]
      into[part.rows[real], :, :size] = value[real][..., :size]
  return found
