"""What is read off win matrices: win rates, transitive scores, who is picked."""

from typing import NamedTuple

from jaxtyping import Bool, Float64, Int
import numpy as np

from prefjax.errors import InputError
from prefjax.rewards import oracles
from prefjax.rewards.oracles import Wins

Rates = Float64[np.ndarray, 'n k']


class Picks(NamedTuple):
  """The best and the worst response of each prompt."""

  best: Int[np.ndarray, ' n']
  worst: Int[np.ndarray, ' n']
  tied: Bool[np.ndarray, ' n']  # all rates are equal: no response is picked


def win_rates(wins: Wins) -> Rates:
  """P(y_i > pi_t) = (1/K) sum_j P_ij, y_i itself among the K with 1/2.

  SPPO (arXiv:2405.00675), Eq. 4.5, as the paper and its code have it. With K = 2 and
  sure preferences the rates are 3/4 and 1/4, with K = 5 at most 9/10.
  """
  return wins.mean(axis=-1)


def transitive(wins: Wins) -> Wins:
  """sigmoid(s_i - s_j), s_i = mean_j (M_ij - M_ji), M = logit P: no cycle is left.

  What SPPO's released code makes of PairRM's logits (LLM-Blender's `max_logits`), where
  the paper has sigmoid(M_ij). As M_ji = -M_ij, scores of Bradley-Terry chances come out
  doubled.

  Raises:
    InputError: a chance of 0 or 1, which has no finite logit, naming the prompt.
  """
  sure = np.argwhere((wins <= 0.0) | (wins >= 1.0))
  if sure.size:
    n, i, j = sure[0]
    raise InputError(
      f'Prompt {n}: P[{i},{j}] = {wins[n, i, j]} has no finite logit to average; '
      'with such an oracle take win rates from the matrix.'
    )
  logits = np.log(wins) - np.log1p(-wins)
  scores = (logits - np.swapaxes(logits, -1, -2)).mean(axis=-1)
  return oracles.chances(oracles.margins_of_scores(scores))


WIN_RATES = ('matrix', 'scalar')
"""Whether preferences are used as they are, or by way of one score a response."""


def as_used(wins: Wins, kind: str) -> Wins:
  """The win matrices that rates are taken from: as they are, or made transitive."""
  if kind not in WIN_RATES:
    raise InputError(f'oracle.win_rate must be one of {WIN_RATES}, got {kind!r}.')
  return wins if kind == 'matrix' else transitive(wins)


def best_and_worst(rates: Rates) -> Picks:
  """The response of the highest and that of the lowest rate; the first of equals.

  As in SPPO's released code, which would train on one response against itself where
  all rates are equal.
  """
  best, worst = rates.argmax(axis=1), rates.argmin(axis=1)
  return Picks(best, worst, rates.max(axis=1) == rates.min(axis=1))
