"""Groups of responses on their way to an update: kept, counted, and carried over.

Dynamic sampling (DAPO, arXiv:2503.14476, Section 3.2) goes group by group: a prompt
whose responses are all right or all wrong teaches nothing and is replaced. What was
sampled beyond a full batch waits for the next one with its own old log-probs, is used
first, and is dropped when it has become too old.
"""

from collections import Counter
from collections.abc import Callable, Sequence
import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from prefjax.errors import InputError

COUNTS = (
  'kept',
  'all_right',
  'all_wrong',
  'unscored',
  'regenerated',
  'stale',
  'waiting',
  'dropped',
  'short',
  'rounds',
)
"""What `Collector.collect` counts, in groups; `rounds` in rounds of sampling."""


class Groups(NamedTuple):
  """n prompts with their k responses and what was observed of them, on the host."""

  position: np.ndarray  # [n] of the prompt in the stream of all prompts
  attempt: np.ndarray  # [n] how often the prompt had been tried before
  born: np.ndarray  # [n] the iteration whose policy sampled
  prompts: np.ndarray  # [n, l] token ids, left-padded
  prompt_length: np.ndarray  # [n]
  tokens: np.ndarray  # [n, k, t]
  length: np.ndarray  # [n, k]
  logps: np.ndarray  # [n, k, t] nats, of the policy that sampled
  truncated: np.ndarray  # [n, k]
  rewards: np.ndarray  # [n, k, t]
  step: np.ndarray  # [n, k, t] number of a token's step, -1 where none is told
  scored: np.ndarray  # [n, k] False where no reward was to be had
  right: np.ndarray  # [n, k] the outcome that gates, whatever shapes the reward

  def __len__(self) -> int:
    return len(self.position)


class Request(NamedTuple):
  """A prompt to be sampled: its place in the stream, and which try it is."""

  position: int
  attempt: int = 0


class Carry(NamedTuple):
  """What goes from one iteration to the next; arrays of fixed shapes."""

  position: np.ndarray  # [] the next prompt of the stream
  waiting: np.ndarray  # [] how many of the surplus rows are groups
  surplus: Groups  # [capacity, ...]


Sample = Callable[[Sequence[Request]], Groups]


def take(groups: Groups, index: np.ndarray | slice) -> Groups:
  """Some of the groups."""
  return Groups(*(x[index] for x in groups))


def join(parts: Sequence[Groups]) -> Groups:
  """Groups end to end."""
  return Groups(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def mixed(groups: Groups) -> np.ndarray:
  """[n] whether some responses are right and some are not.

  Responses without an outcome count on neither side.
  """
  right, wrong = _sides(groups)
  return right & wrong


def _sides(groups: Groups) -> tuple[np.ndarray, np.ndarray]:
  """[n] whether some responses are right, and whether some are wrong."""
  right = (groups.right & groups.scored).any(axis=1)
  wrong = (~groups.right & groups.scored).any(axis=1)
  return right, wrong


def empty_carry(like: Groups, capacity: int) -> Carry:
  """Nothing waiting, at the beginning of the stream."""
  rows = Groups(*(np.zeros((capacity, *x.shape[1:]), x.dtype) for x in like))
  return Carry(np.zeros((), np.int64), np.zeros((), np.int64), rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collector:
  """Fills a batch of groups for every iteration.

  Attributes:
    batch: groups of a batch.
    dynamic: leave out groups that are all right or all wrong.
    refill: what takes their place: the `next_prompt` of the stream, or another try of
      the same one (`resample`), which conditions the distribution of its responses on
      being mixed.
    oversample: prompts of a round for every group that is missing, at least 1.
    max_rounds: after which a batch is trained on as it is, short.
    max_staleness: iterations that a group may wait for.
    capacity: groups that may wait; the newest beyond it are dropped and counted.
  """

  batch: int
  dynamic: bool = False
  refill: str = 'next_prompt'
  oversample: float = 1.0
  max_rounds: int = 10
  max_staleness: int = 1
  capacity: int = 0

  def __post_init__(self):
    least_of = dict(batch=1, oversample=1, max_rounds=1, max_staleness=0)
    for name, least in least_of.items():
      if getattr(self, name) < least:
        raise InputError(
          f'rollout.{"prompts" if name == "batch" else name} must be at least '
          f'{least}, got {getattr(self, name)}.'
        )
    if self.refill not in ('next_prompt', 'resample'):
      raise InputError(
        f'rollout.refill must be next_prompt or resample, got {self.refill!r}.'
      )

  def collect(
    self, sample: Sample, carry: Carry, iteration: int
  ) -> tuple[Groups, Carry, dict[str, int]]:
    """The groups of an iteration, at most `batch`; what waits now; the counts."""
    counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    waiting = take(carry.surplus, slice(int(carry.waiting)))
    fresh = iteration - waiting.born <= self.max_staleness
    counts['stale'] = int((~fresh).sum())
    kept = [take(waiting, fresh)]
    position, again = int(carry.position), []
    while sum(map(len, kept)) < self.batch and counts['rounds'] < self.max_rounds:
      missing = self.batch - sum(map(len, kept))
      requests, position, again = self._requests(missing, position, again)
      found = sample(requests)
      counts['rounds'] += 1
      counts['regenerated'] += sum(request.attempt > 0 for request in requests)
      good = mixed(found) if self.dynamic else np.ones(len(found), bool)
      self._count(found, good, counts)
      again += self._retries(found, good)
      kept.append(take(found, good))
    groups = join(kept)
    batch, rest = take(groups, slice(self.batch)), take(groups, slice(self.batch, None))
    counts['kept'] = len(batch)
    counts['short'] = self.batch - len(batch)
    counts['waiting'] = min(len(rest), self.capacity)
    counts['dropped'] = len(rest) - counts['waiting']
    return batch, self._carried(carry, position, rest), dict(counts)

  def _requests(self, missing, position, again):
    wanted = int(np.ceil(missing * (self.oversample if self.dynamic else 1.0)))
    requests, again = again[:wanted], again[wanted:]
    new = wanted - len(requests)
    requests = requests + [Request(position + i) for i in range(new)]
    return requests, position + new, again

  def _retries(self, found, good):
    if self.refill == 'next_prompt':
      return []
    return [
      Request(int(found.position[i]), int(found.attempt[i]) + 1)
      for i in np.flatnonzero(~good)
    ]

  def _count(self, found, good, counts):
    right, wrong = _sides(found)
    counts['all_right'] += int((right & ~good).sum())
    counts['all_wrong'] += int((wrong & ~good).sum())
    counts['unscored'] += int((~right & ~wrong & ~good).sum())

  def _carried(self, carry, position, rest):
    rest = take(rest, slice(self.capacity))
    surplus = jax.tree.map(np.copy, carry.surplus)
    for table, rows in zip(surplus, rest, strict=True):
      table[: len(rows)] = rows
    return Carry(np.asarray(position), np.asarray(len(rest)), surplus)
