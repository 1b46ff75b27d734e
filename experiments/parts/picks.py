"""What of an iteration's responses self-play trains on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prefjax.data.records import Pair, Record
from prefjax.rewards import wins

USES = ('best_and_worst', 'all')


def records(
  rows: Sequence[Mapping[str, Any]], compared: wins.Wins, use: str, *, soft: bool
) -> Iterator[Record]:
  """What is trained on: responses of a prompt with their win rates, and pairs.

  Of `best_and_worst` a prompt has two responses and one pair; it is left out where all
  win rates are equal. Of `all` it has its K responses and every pair that the oracle
  does not call even. Pairs are certain, as iterative DPO has them, or, where `soft`,
  have the oracle's own chance.
  """
  rates = wins.win_rates(compared)
  for row, matrix, rate, pick in zip(
    rows, compared, rates, zip(*wins.best_and_worst(rates), strict=True), strict=True
  ):
    if use == 'all':
      chosen, rejected = np.nonzero(matrix > 0.5)
      kept = range(len(rate))
    else:
      best, worst, tied = pick
      if tied:
        continue
      chosen, rejected, kept = [0], [1], [best, worst]
    yield Record(
      prompt=row['prompt'],
      responses=tuple(row['responses'][k] for k in kept),
      pairs=tuple(
        Pair(int(c), int(r), float(matrix[kept[c], kept[r]]) if soft else 1.0)
        for c, r in zip(chosen, rejected, strict=True)
      ),
      win_rates=tuple(float(rate[k]) for k in kept),
    )
