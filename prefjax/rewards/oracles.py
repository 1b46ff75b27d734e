"""Preference oracles: K responses of a prompt in, the chances that each beats each out.

One interface stands before a task's judge, a model that scores single responses, one
that reads two at once, a file of scores made elsewhere and a Python function.
"""

from collections.abc import Callable, Mapping, Sequence
import importlib
import json
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Float64
import numpy as np
from scipy import special

from prefjax.errors import InputError

Wins = Float64[np.ndarray, 'n k k']
Records = Sequence[Mapping[str, Any]]

_ROUNDING = 1e-5  # what a judge's own float32 may leave between a sum and 1


@runtime_checkable
class Oracle(Protocol):
  """P(response i beats response j) for the k responses of each of n prompts.

  `records` are what the data holds beside the prompts. `ask` says what an answer must
  be; an oracle need not check it.
  """

  def __call__(
    self,
    prompts: Sequence[str],
    responses: Sequence[Sequence[str]],
    records: Records,
  ) -> Any:
    """The win matrices [n, k, k], one a prompt, in their order."""
    ...


def ask(
  oracle: Oracle,
  prompts: Sequence[str],
  responses: Sequence[Sequence[str]],
  records: Records,
) -> Wins:
  """The win matrices of an oracle, in float64, if they are preferences.

  Raises:
    InputError: naming the index of the first prompt whose matrix is not k x k, holds a
      value that is not in [0, 1] (as a NaN is), or lacks P_ij + P_ji = 1.
  """
  found = oracle(prompts, responses, records)
  if len(found) != len(prompts):
    raise InputError(
      f'The oracle gave {len(found)} win matrices for {len(prompts)} prompts.'
    )
  checked = [
    _checked(matrix, len(texts), index)
    for index, (matrix, texts) in enumerate(zip(found, responses, strict=True))
  ]
  return np.stack(checked)


def _checked(matrix, k, index):
  where = f'Prompt {index}: the oracle'
  try:
    wins = np.asarray(matrix, np.float64)
  except (TypeError, ValueError) as error:
    raise InputError(f'{where} gave no matrix of numbers: {error}.') from error
  if wins.shape != (k, k):
    raise InputError(
      f'{where} must give {k} x {k} chances for {k} responses, got shape '
      f'{list(wins.shape)}.'
    )
  for rule, kept in (
    ('must give chances in [0, 1]', (wins >= 0.0) & (wins <= 1.0)),
    ('must give P_ij + P_ji = 1', abs(wins + wins.T - 1.0) <= _ROUNDING),
  ):
    if not kept.all():
      i, j = np.argwhere(~kept)[0]
      raise InputError(
        f'{where} {rule}, got P[{i},{j}] = {wins[i, j]} with P[{j},{i}] = {wins[j, i]}.'
      )
  return wins


# From other judgements to an oracle ---------------------------------------------


def by_prompt(
  function: Callable[[str, Sequence[str], Mapping[str, Any]], Any],
) -> Oracle:
  """An oracle of a function (prompt, its k responses, record) -> k x k chances."""

  def oracle(prompts, responses, records):
    return [function(*one) for one in zip(prompts, responses, records, strict=True)]

  return oracle


def from_scores(
  scores: Callable[[Sequence[str], Sequence[Sequence[str]], Records], np.ndarray],
) -> Oracle:
  """P_ij = sigmoid(s_i - s_j), of a model that scores single responses [n, k].

  Bradley-Terry: whatever the scores are, it holds no cycle.
  """

  def oracle(*asked):
    return chances(margins_of_scores(np.asarray(scores(*asked), np.float64)))

  return oracle


def margins_of_scores(scores: Float[np.ndarray, '*n k']) -> Float[np.ndarray, '*n k k']:
  """s_i - s_j, nats."""
  return scores[..., :, None] - scores[..., None, :]


def mirrored(margins: Float[np.ndarray, '*n k k']) -> Float[np.ndarray, '*n k k']:
  """The margins above the diagonal, and below it the same with the sign turned.

  d(b, a) = -d(a, b) to the bit, which two runs of a model need not give.
  """
  above = np.triu(margins, 1)
  return above - np.swapaxes(above, -1, -2)


def chances(margins: Float[np.ndarray, '*n k k']) -> Float64[np.ndarray, '*n k k']:
  """Sigmoid of margins, nats; those of a pair add up to 1 within one rounding."""
  return special.expit(margins.astype(np.float64))


def stored(path: Path) -> Oracle:
  """An oracle that reads what was judged elsewhere: PairRM, a language model, people.

  JSON lines of `prompt`, `responses` and either `scores`, one a response, of which
  P_ij = sigmoid(s_i - s_j), or `wins`, the k x k chances themselves. A row is found by
  its prompt and the list of its responses, so rows may be in any order and be added
  later. The file is read when it is asked, so that a run can start before it is there.

  Raises (when asked):
    InputError: naming the line that is no such row, or the first prompt without one.
  """

  def oracle(prompts, responses, records):
    del records
    table = dict(_stored_rows(path)) if path.exists() else {}
    asked = zip(prompts, responses, strict=True)
    keys = [(prompt, tuple(texts)) for prompt, texts in asked]
    missing = [index for index, key in enumerate(keys) if key not in table]
    if missing:
      raise InputError(
        f'Prompt {missing[0]}: {path} has no row with its responses (the same for '
        f'{len(missing)} of {len(keys)} prompts).'
      )
    return [table[key] for key in keys]

  return oracle


def _stored_rows(path):
  for number, line in enumerate(path.read_text().splitlines(), start=1):
    try:
      row = json.loads(line)
      key = row['prompt'], tuple(row['responses'])
      (kind,) = {'scores', 'wins'} & row.keys()
      found = np.asarray(row[kind], np.float64)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise InputError(
        f'{path}, line {number}, must hold `prompt`, `responses` and one of `scores` '
        f'and `wins`: {error!r}.'
      ) from error
    yield key, chances(margins_of_scores(found)) if kind == 'scores' else found


def imported(name: str) -> Oracle:
  """The oracle at an import path: (prompt, its k responses, record) -> k x k chances.

  Raises:
    InputError: where there is no such function.
  """
  module, _, function = name.rpartition('.')
  try:
    found = getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError, ValueError) as error:
    raise InputError(f'The oracle {name!r} cannot be imported: {error}.') from error
  if not callable(found):
    raise InputError(f'The oracle {name!r} is not a function.')
  return by_prompt(found)
