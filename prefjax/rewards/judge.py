"""From sampled responses to rewards: verifiers, models, penalties on length."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from prefjax.errors import InputError
from prefjax.rewards import base, journal, lengths
from prefjax.rewards.journal import Journal
from prefjax.rewards.pool import Scorer

_OVERLONG = 'overlong'
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
    weights: of every reward by name: verifiers', models', and `overlong`.
    gate: the reward that says which responses are right: those with at least
      `threshold` of it. Shaping by other rewards does not move it.
    overlong: (longest, cache) of the soft overlong punishment, tokens, or None.
    models: rewards by models, which run in this process.
    decided: where rewards are written before they are used; None for an evaluation.
  """

  scorer: Scorer
  weights: Mapping[str, float]
  gate: str
  threshold: float = 1.0
  overlong: tuple[int, int] | None = None
  models: Mapping[str, Model] = dataclasses.field(default_factory=dict)
  decided: Journal | None = None

  def __post_init__(self):
    judges = [*self.scorer.verifiers, *self.models]
    if len({*judges, _OVERLONG}) <= len(judges):
      raise InputError(
        f'Each reward needs a name of its own, other than {_OVERLONG!r}: got '
        f'{sorted(judges)}.'
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
    if self.overlong:  # refused now if it is no range
      self._overlong(np.zeros(1, int))

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
    pending = self._verify(groups, new) if new and self.scorer.verifiers else None

    def judged() -> Judged:
      if new:
        self._decide(groups, new, keys, known, pending)
      return self._summed(groups, known)

    return judged

  def _verify(self, groups, new):
    k = len(groups.responses[0])
    return self.scorer.submit(
      [groups.texts[i] for i in new for _ in range(k)],
      [text for i in new for text in groups.responses[i]],
      [groups.records[i] for i in new for _ in range(k)],
    )

  def _decide(self, groups, new, keys, known, pending):
    """Fills `known` for the new groups and writes it down."""
    k = len(groups.responses[0])
    values = {}
    if pending is not None:
      scores = pending.result()
      values = {name: x.reshape(-1, k) for name, x in scores.values.items()}
    for name, model in self.models.items():
      arrays = (groups.prompts, groups.prompt_length, groups.tokens, groups.length)
      values[name] = model(*(x[new] for x in arrays))
    for n, i in enumerate(new):
      known[i] = {
        'values': {
          name: [None if np.isnan(v) else float(v) for v in x[n]]
          for name, x in values.items()
        }
      }
    if self.decided is not None:
      self.decided.put({keys[i]: known[i] for i in new})

  def _summed(self, groups, known):
    names = [name for name in self.weights if name != _OVERLONG]
    values = {
      name: np.array([row['values'][name] for row in known], np.float64)
      for name in names
    }
    right = values[self.gate] >= self.threshold
    if self.overlong:
      found = self._overlong(groups.length)
      values[_OVERLONG] = np.where(np.isnan(values[self.gate]), np.nan, found)
    shape = groups.length.shape
    flat = {name: x.reshape(-1) for name, x in values.items()}
    reward = base.combine(flat, self.weights).reshape(shape)
    return Judged(reward, right, values)

  def _overlong(self, length):
    longest, cache = self.overlong
    return lengths.soft_overlong(length, longest=longest, cache=cache)
