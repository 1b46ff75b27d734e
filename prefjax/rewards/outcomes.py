"""From outcomes of responses to what is learnt from: pairs, balance, step labels."""

from collections.abc import Sequence
import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np

from prefjax.data.records import Pair, Record
from prefjax.errors import InputError
from prefjax.objectives import process

# [record][response][step][N]: outcomes of continuations of each step but the last.
Outcomes = Sequence[Sequence[Sequence[Sequence[float]]]]

STEP_LABELS = ('outcome', 'hard', 'soft')
BALANCES = ('none', 'dataset', 'instruction')
_ESTIMATES = {'hard': process.hard_labels, 'soft': process.soft_labels}


def labelled(
  records: Sequence[Record], how: str, outcomes: Outcomes | None = None
) -> list[Record]:
  """Records whose steps are labelled: `outcome`, or by continuations `hard`, `soft`.

  The last step of a response has its outcome for a label; with `outcome` it alone has
  one. Math-Shepherd (arXiv:2312.08935), Section 3.2.

  Raises:
    InputError: another way, or continuations that are missing.
  """
  _known('labels', how, STEP_LABELS)
  if how != 'outcome' and outcomes is None:
    raise InputError(f'Labels that are {how} are estimated from continuations.')
  if how == 'outcome':
    return [_relabelled(record, itertools.repeat(float('nan'))) for record in records]
  _check_counts(records, outcomes)
  drawn = [step for record in outcomes for steps in record for step in steps]
  # All at once: a call of each response would take minutes.
  flat = jnp.asarray(drawn, jnp.float32).reshape(len(drawn), -1)
  values = _ESTIMATES[how](flat, jnp.ones(flat.shape, bool)).tolist()
  estimates = iter(values)
  return [_relabelled(record, estimates) for record in records]


def _relabelled(record, estimates):
  """The record with the next estimates on its steps, and outcomes on the last ones."""
  labels = tuple(
    (*itertools.islice(estimates, len(steps) - 1), last)
    for steps, last in zip(record.steps, record.labels, strict=True)
  )
  return dataclasses.replace(record, step_labels=labels)


def _check_counts(records, outcomes):
  for record, given in zip(records, outcomes, strict=True):
    for steps, some in zip(record.steps, given, strict=True):
      if len(some) != len(steps) - 1:
        raise InputError(
          f'A response of {len(steps)} steps needs continuations of {len(steps) - 1}, '
          f'got {len(some)}.'
        )


def paired(records: Sequence[Record]) -> list[Record]:
  """Every right response against every wrong one; prompts without both are left out.

  As the code of Implicit PRM (arXiv:2412.01981) pairs them for DPO and NCA.
  """
  found = []
  for record in records:
    right, wrong = _sides(record)
    pairs = tuple(Pair(i, j) for i in right for j in wrong)
    if pairs:
      found.append(dataclasses.replace(record, pairs=pairs))
  return found


def balanced(records: Sequence[Record], how: str, seed: int) -> list[Record]:
  """As many right responses as wrong ones; `none` leaves them as they are.

  Of every prompt (`instruction`), or of all together (`dataset`). Which of the more
  frequent kind stay is drawn. Implicit PRM (arXiv:2412.01981), Table 1.

  Raises:
    InputError: another balance.
  """
  _known('balance', how, BALANCES)
  if how == 'none':
    return list(records)
  rng = np.random.default_rng(seed)
  sides = [_sides(record) for record in records]
  if how == 'instruction':
    kept = [_drawn(rng, *both) for both in sides]
  else:
    right, wrong = (
      [(i, k) for i, both in enumerate(sides) for k in both[side]] for side in (0, 1)
    )
    kept = [[] for _ in records]
    for i, k in _drawn(rng, right, wrong):
      kept[i].append(k)
  pairs = zip(records, kept, strict=True)
  return [_only(record, sorted(some)) for record, some in pairs if some]


def _drawn(rng, right, wrong):
  """As many of either side as the smaller one has."""
  size = min(len(right), len(wrong))
  return [side[i] for side in (right, wrong) for i in rng.permutation(len(side))[:size]]


def _sides(record):
  """The indices of right and of wrong responses."""
  both = range(len(record.responses))
  right = [record.labels[i] >= 0.5 for i in both]
  return [i for i in both if right[i]], [i for i in both if not right[i]]


def _only(record, kept):
  fields = ('responses', 'labels', 'steps', 'step_labels')
  part = {
    name: tuple(getattr(record, name)[i] for i in kept)
    for name in fields
    if getattr(record, name) is not None
  }
  return dataclasses.replace(record, pairs=(), **part)


def _known(what, how, known):
  if how not in known:
    raise InputError(f'Unknown {what} {how!r}; known are {list(known)}.')
