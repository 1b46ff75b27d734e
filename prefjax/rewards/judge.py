"""From sampled responses to rewards: verifiers, models, penalties on length."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import logging
from typing import Any, NamedTuple

import numpy as np

from prefjax.errors import InputError
from prefjax.rewards import base, journal, lengths
from prefjax.rewards.journal import Journal
from prefjax.rewards.pool import Scorer

_LOG = logging.getLogger(__name__)
_OVERLONG, _LENGTH = 'overlong', 'length'  # penalties, which no verifier may be called
# Rewards of groups by a model: (prompts [n, l], their lengths [n], tokens [n, k, t],
# lengths [n, k]) -> [n, k].
Model = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Sampled(NamedTuple):
  """n groups of k responses, as text and as tokens."""

  position: np.ndarray  # [n]
  attempt: np.ndarray  # [n]
  texts: Sequence[str]  # [n] prompts
  records: Sequence[Mapping[str, Any]]  # [n]
  responses: Sequence[Sequence[str]]  # [n][k]
  prompts: np.ndarray  # [n, l] token ids, left-padded
  prompt_length: np.ndarray  # [n]
  tokens: np.ndarray  # [n, k, t]
  length: np.ndarray  # [n, k]


class Judged(NamedTuple):
  """Rewards of n groups of k responses."""

  reward: np.ndarray  # [n, k] NaN where no reward applies
  right: np.ndarray  # [n, k] the outcome
  values: dict[str, np.ndarray]  # [n, k] each reward alone


@dataclasses.dataclass(kw_only=True)
class Judge:
  """The rewards of responses, and which of them are right.

  Attributes:
    scorer: runs the verifiers.
    weights: of every reward by name: verifiers', models', and, where it is given,
      `overlong`. What length costs, `length`, weighs 1.
    gate: the reward that says which responses are right: those with at least
      `threshold` of it. Shaping by other rewards does not move it.
    overlong: (longest, cache) of the soft overlong punishment, tokens, or None.
    token_cost: reward that every token costs; 0 is none.
    models: rewards by models, which run in this process.
    decided: where rewards are written before they are used; None for an evaluation.
    part: (i, n): of n processes that judge the same groups together, this is i.
    share: gives every process what each has found, in the processes' order.
  """

  scorer: Scorer
  weights: Mapping[str, float]
  gate: str
  threshold: float = 1.0
  overlong: tuple[int, int] | None = None
  token_cost: float = 0.0
  models: Mapping[str, Model] = dataclasses.field(default_factory=dict)
  decided: Journal | None = None
  part: tuple[int, int] = (0, 1)
  share: Callable[[Any], Sequence[Any]] = lambda found: [found]

  def __post_init__(self):
    judges = [*self.scorer.verifiers, *self.models]
    if len({*judges, _OVERLONG, _LENGTH}) < len(judges) + 2:
      raise InputError(
        f'Each reward needs a name of its own, other than {_OVERLONG!r} and '
        f'{_LENGTH!r}: got {sorted(judges)}.'
      )
    names = {*judges, _OVERLONG} if self.overlong else {*judges}
    if names != set(self.weights):
      raise InputError(
        f'Each reward needs a weight: rewards are {sorted(names)}, weights '
        f'{sorted(self.weights)}.'
      )
    if self.gate not in judges:
      raise InputError(
        f'rewards.gate must be a verifier or a model, {sorted(judges)}, got '
        f'{self.gate!r}.'
      )
    self._penalties(np.zeros(1, int))  # refused now if they are out of range

  def submit(self, groups: Sampled) -> Callable[[], Judged]:
    """Starts to judge groups; what it returns waits for the rewards.

    Verifiers run in other processes meanwhile, so that sampling can go on.
    """
    keys = [
      journal.key(*group)
      for group in zip(
        groups.position, groups.attempt, groups.tokens, groups.length, strict=True
      )
    ]
    known = [self.decided.get(key) if self.decided else None for key in keys]
    new = [i for i, row in enumerate(known) if row is None]
    own = new[self.part[0] :: self.part[1]]
    pending = self._verify(groups, own) if own and self.scorer.verifiers else None

    def judged() -> Judged:
      if new:
        rows = self._decide(groups, own, pending) if own else []
        for i, row in (pair for part in self.share(rows) for pair in part):
          known[i] = row
        if self.decided is not None:
          self.decided.put({keys[i]: known[i] for i in new})
      return self._summed(groups, known)

    return judged

  def _verify(self, groups, new):
    k = len(groups.responses[0])
    return self.scorer.submit(
      [groups.texts[i] for i in new for _ in range(k)],
      [text for i in new for text in groups.responses[i]],
      [groups.records[i] for i in new for _ in range(k)],
    )

  def _decide(self, groups, own, pending):
    """The rewards of these groups, as (index, row of the journal)."""
    k = len(groups.responses[0])
    values = {}
    if pending is not None:
      scores = pending.result()
      for name, error in scores.errors.items():
        _LOG.warning('reward %s: %s, %s', name, scores.failures[name], error)
      values = {name: x.reshape(-1, k) for name, x in scores.values.items()}
    for name, model in self.models.items():
      arrays = (groups.prompts, groups.prompt_length, groups.tokens, groups.length)
      values[name] = model(*(x[own] for x in arrays))
    found = []
    for n, i in enumerate(own):
      row = {
        name: [None if np.isnan(v) else float(v) for v in x[n]]
        for name, x in values.items()
      }
      found.append((i, {'values': row}))
    return found

  def _summed(self, groups, known):
    names = [*self.scorer.verifiers, *self.models]
    values = {
      name: np.array([row['values'][name] for row in known], np.float64)
      for name in names
    }
    right = values[self.gate] >= self.threshold
    unknown = np.isnan(values[self.gate])
    values |= {
      name: np.where(unknown, np.nan, x)
      for name, x in self._penalties(groups.length).items()
    }
    weights = {_LENGTH: 1.0} | dict(self.weights)
    shape = groups.length.shape
    reward = base.combine(
      {name: x.reshape(-1) for name, x in values.items()},
      {name: weights[name] for name in values},
    ).reshape(shape)
    # Without an outcome it is not known what the rest would shape.
    reward = np.where(unknown, np.nan, reward)
    return Judged(reward, right, values)

  def _penalties(self, length):
    found = {}
    if self.overlong:
      longest, cache = self.overlong
      found[_OVERLONG] = lengths.soft_overlong(length, longest=longest, cache=cache)
    if self.token_cost:
      found[_LENGTH] = lengths.length_penalty(length, per_token=self.token_cost)
    return found
