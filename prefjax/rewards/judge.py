"""From sampled responses to rewards: verifiers, models, penalties on length."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import logging
from typing import Any, NamedTuple

import numpy as np

from prefjax.errors import InputError
from prefjax.rewards import base, journal, lengths, steps
from prefjax.rewards.journal import Journal
from prefjax.rewards.pool import Scorer

_LOG = logging.getLogger(__name__)
_OVERLONG, _LENGTH = 'overlong', 'length'  # penalties, which no verifier may be called
# Rewards of groups by a model: (prompts [n, l], their lengths [n], tokens [n, k, t],
# lengths [n, k]) -> [n, k]. A `base.stepwise` one gives [n, k, t]: what the step earns
# that ends with a token, NaN where none ends; the response's reward is the sum.
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
  # Where single steps are rewarded, [n, k, t]: every reward where it was earned, and
  # the number of each token's step, -1 outside.
  placed: np.ndarray | None = None
  step: np.ndarray | None = None


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
    decode: token ids to text, to find the tokens of what verifiers of steps reward.
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
  decode: steps.Decode | None = None
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

  @property
  def stepwise(self) -> bool:
    """Whether any reward is of single steps."""
    verifiers = map(base.find, self.scorer.verifiers.values())
    return any(map(base.is_stepwise, (*verifiers, *self.models.values())))

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
    values, parts = {}, {}
    if pending is not None:
      scores = pending.result()
      for name, error in scores.errors.items():
        _LOG.warning('reward %s: %s, %s', name, scores.failures[name], error)
      values = {name: x.reshape(-1, k) for name, x in scores.values.items()}
      for name, rows in scores.steps.items():
        parts[name] = self._on_tokens(rows, groups, own)
    for name, model in self.models.items():
      arrays = (groups.prompts, groups.prompt_length, groups.tokens, groups.length)
      values[name] = model(*(x[own] for x in arrays))
      if base.is_stepwise(model):
        parts[name] = [[steps.listed(x) for x in row] for row in values[name]]
        values[name] = np.nansum(values[name], axis=-1)
    found = []
    for n, i in enumerate(own):
      row = {
        'values': {
          name: [None if np.isnan(v) else float(v) for v in x[n]]
          for name, x in values.items()
        }
      }
      if parts:
        row['steps'] = {name: rows[n] for name, rows in parts.items()}
      found.append((i, row))
    return found

  def _on_tokens(self, rows, groups, own):
    """Rewards of steps [n][k], their ends as tokens and no more as characters."""
    places = [(i, j) for i in own for j in range(groups.length.shape[1])]
    found = []
    for (i, j), row in zip(places, rows, strict=True):
      if row is not None:
        ids = groups.tokens[i, j, : groups.length[i, j]].tolist()
        ends = steps.token_ends(ids, [end for end, _ in row], self.decode)
        row = [(at, x) for at, (_, x) in zip(ends, row, strict=True)]
      found.append(row)
    k = groups.length.shape[1]
    return [found[start : start + k] for start in range(0, len(found), k)]

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
    if not self.stepwise:
      return Judged(reward, right, values)
    return Judged(reward, right, values, *_placed(groups, known, values, weights))

  def _penalties(self, length):
    found = {}
    if self.overlong:
      longest, cache = self.overlong
      found[_OVERLONG] = lengths.soft_overlong(length, longest=longest, cache=cache)
    if self.token_cost:
      found[_LENGTH] = lengths.length_penalty(length, per_token=self.token_cost)
    return found


def _placed(groups, known, values, weights):
  """Every reward where it was earned, and the number of each token's step.

  Those of steps stand where their steps end, all else on the last token; that one ends
  a step too where something stands there, or where a response has no other step.
  """
  rewards = np.zeros(groups.tokens.shape)
  ends = np.zeros(groups.tokens.shape, bool)
  whole = {name: np.nan_to_num(x) * weights[name] for name, x in values.items()}
  counted = {name: np.full(groups.length.shape, weights[name] != 0) for name in values}
  for i, row in enumerate(known):
    for name, found in row.get('steps', {}).items():
      for j, parts in enumerate(found):
        for end, reward in parts or ():
          rewards[i, j, end] += weights[name] * reward
          ends[i, j, end] = True
        if parts is not None:
          whole[name][i, j], counted[name][i, j] = 0.0, False
  last = np.maximum(groups.length - 1, 0)[..., None]
  rest = sum(whole.values())[..., None] + np.take_along_axis(rewards, last, axis=-1)
  np.put_along_axis(rewards, last, rest, axis=-1)
  ending = np.any([*counted.values()], axis=0) | ~ends.any(axis=-1)
  ending = (ending & (groups.length > 0))[..., None]
  ending |= np.take_along_axis(ends, last, axis=-1)
  np.put_along_axis(ends, last, ending, axis=-1)
  return rewards, steps.numbered(ends)
