"""Prepared data to batches: the batch of a step is a pure function of (seed, step)."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
from typing import NamedTuple

import grain
from jaxtyping import Bool, Float, Int
import numpy as np

from prefjax.data import buckets
from prefjax.data.buckets import Cell, Grid, MicroBatch
from prefjax.data.encoding import Example
from prefjax.data.prepare import Prepared
from prefjax.errors import InputError
from prefjax.types import PreferenceBatch

Logps = Float[np.ndarray, ' tokens']


class Stored(NamedTuple):
  """Log-probs of every response token of a data set, in its order, nats."""

  logps: Logps
  offset: Int[np.ndarray, 'n k']  # where a response's tokens begin

  def response(self, example: int, k: int, length: int) -> Logps:
    """The log-probs of one response."""
    start = self.offset[example, k]
    return self.logps[start : start + length]


def offsets(response_length: Int[np.ndarray, 'n k']) -> Int[np.ndarray, 'n k']:
  """Where each response begins when all responses' tokens are laid end to end."""
  flat = response_length.reshape(-1).astype(np.int64)
  ends = np.cumsum(flat)
  return (ends - flat).reshape(response_length.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches:
  """Batches of a data set: `batch_size` prompts a step, cut into micro-batches.

  Attributes:
    data: what is read.
    batch_size: prompts a step.
    seed: decides the order; every epoch is another permutation of the prompts.
      None keeps the data's own order.
    grid: the lengths that arrays may have.
    max_tokens: padded tokens of a micro-batch on one data shard, at most.
    shards: data shards.
    reference: log-probs to give along, or None.
    pad_id: what stands where no token is; never read as a sign of anything.
    here: of a number of prompts, which ones this process is to read; None is all.
      Of the others a batch has the lengths alone.
  """

  data: Prepared
  batch_size: int
  seed: int | None
  grid: Grid
  max_tokens: int
  shards: int = 1
  reference: Stored | None = None
  pad_id: int = 0
  here: Callable[[int], Bool[np.ndarray, ' p']] | None = None

  def __post_init__(self):
    if self.batch_size < 1 or self.batch_size % self.shards:
      raise InputError(
        f'data.batch_size={self.batch_size} prompts must be a positive multiple '
        f'of the {self.shards} data shards.'
      )

  def indices(self, step: int) -> Int[np.ndarray, ' b']:
    """The prompts of a step; batches go on over the end of an epoch."""
    order = grain.MapDataset.range(len(self.data))
    if self.seed is not None:
      order = order.seed(self.seed).shuffle()
    order = order.repeat()
    start = step * self.batch_size
    return np.asarray([order[start + i] for i in range(self.batch_size)])

  def at(self, step: int) -> list[PreferenceBatch]:
    """The micro-batches of a step, the longest first."""
    return [batch for _, batch in self._cut(self.indices(step))]

  def once(self) -> Iterator[tuple[Int[np.ndarray, ' p'], PreferenceBatch]]:
    """Every prompt once, in the data's order, with the prompts' indices (-1: none).

    Canonical: it depends on the data and the grid, not on the seed.
    """
    for start in range(0, len(self.data), self.batch_size):
      stop = min(start + self.batch_size, len(self.data))
      indices = np.arange(start, stop)
      short = -len(indices) % self.shards
      yield from self._cut(np.pad(indices, (0, short), constant_values=-1))

  def _cut(self, indices):
    real = indices >= 0
    prompt = np.where(real, self.data.prompt_length[indices], 1)
    response = np.where(real[:, None], self.data.response_length[indices], 0)
    plan = buckets.plan(
      prompt,
      response,
      self.grid,
      max_tokens=self.max_tokens,
      shards=self.shards,
    )
    micros = [
      MicroBatch(m.cell, np.where(m.rows >= 0, indices[m.rows], -1)) for m in plan
    ]
    own = [self._own(micro.rows) for micro in micros]
    wanted = np.concatenate(own)
    wanted = wanted[wanted >= 0]
    examples = dict(zip(wanted, self.data.read(wanted), strict=True))
    for micro, rows in zip(micros, own, strict=True):
      yield micro.rows, self._assemble(micro, [examples.get(row) for row in rows])

  @functools.cached_property
  def _first(self):
    return self.data[0]

  def _own(self, rows):
    """The rows that this process reads; -1 for the others."""
    return rows if self.here is None else np.where(self.here(len(rows)), rows, -1)

  def _assemble(self, micro: MicroBatch, examples: Sequence[Example | None]):
    pairs = int(self.data.num_pairs.max())
    batch = assemble(
      examples, micro.cell, pairs=pairs, pad_id=self.pad_id, like=self._first
    )
    real = micro.rows >= 0
    batch.prompt_length[real] = self.data.prompt_length[micro.rows[real]]
    batch.response_length[real] = self.data.response_length[micro.rows[real]]
    if self.reference is None:
      return batch
    logps = np.zeros(batch.mask.shape, np.float32)
    for i, row in enumerate(self._own(micro.rows)):
      for k in range(micro.cell.k if row >= 0 else 0):
        length = batch.response_length[i, k]
        logps[i, k, :length] = self.reference.response(int(row), k, int(length))
    return batch.replace(reference_logps=logps)


def assemble(
  examples: Sequence[Example | None],
  cell: Cell,
  *,
  pairs: int,
  pad_id: int = 0,
  like: Example | None = None,
) -> PreferenceBatch:
  """Examples as the arrays of one cell; None is filling and counts for nothing.

  The batch has the fields of every example and of `like`, whose data is not in it.
  """
  p, k, l, t = cell
  batch = PreferenceBatch(
    prompts=np.full((p, l), pad_id, np.int32),
    responses=np.full((p, k, t), pad_id, np.int32),
    # A filled prompt has one token, so that no softmax over it is empty.
    prompt_length=np.ones(p, np.int32),
    response_length=np.zeros((p, k), np.int32),
    mask=np.zeros((p, k, t), np.bool_),
    weight=np.zeros((p, k), np.float32),
  )
  if pairs:
    batch = batch.replace(
      chosen=np.zeros((p, pairs), np.int32),
      rejected=np.zeros((p, pairs), np.int32),
      preference=np.zeros((p, pairs), np.float32),
      pair_weight=np.zeros((p, pairs), np.float32),
    )
  for extra, field in (('labels', 'label'), ('win_rates', 'win_rate')):
    if pairs or any(getattr(e, extra, None) is not None for e in (*examples, like)):
      batch = batch.replace(**{field: np.zeros((p, k), np.float32)})
  for field, kind in (('step', np.int32), ('step_label', np.float32)):
    if any(getattr(e, f'{field}s', None) is not None for e in examples):
      batch = batch.replace(**{field: np.full((p, k, t), -1, kind)})
  for i, example in enumerate(examples):
    if example is not None:
      _write(batch, i, example)
      _write_steps(batch, i, example)
  return batch


def _write(batch: PreferenceBatch, i: int, example: Example) -> None:
  l = batch.prompts.shape[1]
  batch.prompts[i, l - len(example.prompt) :] = example.prompt
  batch.prompt_length[i] = len(example.prompt)
  for k, response in enumerate(example.responses):
    batch.responses[i, k, : len(response)] = response
    batch.response_length[i, k] = len(response)
    batch.mask[i, k, : len(response)] = True
  batch.weight[i, : len(example.responses) - example.further] = 1.0
  m = len(example.chosen)
  if m:
    batch.chosen[i, :m] = example.chosen
    batch.rejected[i, :m] = example.rejected
    batch.preference[i, :m] = example.preference
    batch.pair_weight[i, :m] = 1.0
  labels, win_rates = _shares_of_pairs(example)
  for field, given, derived in (
    (batch.label, example.labels, labels),
    (batch.win_rate, example.win_rates, win_rates),
  ):
    if field is not None:
      values = derived if given is None else given
      field[i, : len(values)] = values


def _write_steps(batch: PreferenceBatch, i: int, example: Example) -> None:
  """The number of each token's step, and a step's label on its last token."""
  for k, sizes in enumerate(example.steps or ()):
    batch.step[i, k, : sizes.sum()] = np.repeat(np.arange(len(sizes)), sizes)
    if example.step_labels is not None:
      labels = example.step_labels[k]
      known = (sizes > 0) & ~np.isnan(labels)
      batch.step_label[i, k, (np.cumsum(sizes) - 1)[known]] = labels[known]


def _shares_of_pairs(example: Example):
  """What pairs say of single responses: the share won, and P(y > pi_t) from it.

  A label is the mean preference over a response's pairs (1/2 for one in none); a win
  rate counts the response itself too, with 1/2, as SPPO (arXiv:2405.00675) does.
  """
  won, met = np.zeros((2, len(example.responses)), np.float32)
  np.add.at(won, example.chosen, example.preference)
  np.add.at(won, example.rejected, 1.0 - example.preference)
  np.add.at(met, np.concatenate([example.chosen, example.rejected]), 1.0)
  labels = np.where(met > 0, won / np.maximum(met, 1.0), 0.5)
  return labels, (won + 0.5) / (met + 1.0)
