"""Where pairs come from: what a config turns round."""

import numpy as np

from experiments.parts import build, corpus, preferences
from experiments.parts.corpus import Split
from prefjax.data.records import Pair, Record, Skipped

RECORDS = [
  Record('p', ('a', 'b', 'c'), (Pair(0, 1), Pair(2, 0, 0.75), Pair(1, 2)))
] * 400


def turned(share, records=RECORDS):
  rng = np.random.default_rng(0)
  return [preferences._flipped(record, share, rng) for record in records]


def test_none_and_all_by_hand():
  assert turned(0.0) == RECORDS
  assert turned(1.0)[0].pairs == (Pair(1, 0), Pair(0, 2, 0.75), Pair(2, 1))


def test_the_share_is_that_of_pairs_and_not_of_records():
  pairs = [(record.pairs, RECORDS[0].pairs) for record in turned(0.25)]
  turns = np.array([[a != b for a, b in zip(*both, strict=True)] for both in pairs])
  assert abs(turns.mean() - 0.25) < 0.04
  assert len(np.unique(turns, axis=0)) == 8  # each pair by itself


def test_what_is_no_record_stays():
  skipped = Skipped('empty', 'line 3')
  assert turned(1.0, [skipped]) == [skipped]


def test_only_training_pairs_are_turned_and_the_key_says_so(monkeypatch):
  prepared = []
  monkeypatch.setattr(build, 'prepared', lambda *given: prepared.append(given))
  config = {'seed': 1, 'data': {'flipped': 1.0, 'seed': 0}}
  preferences._turned(config, None, None, Split(RECORDS, RECORDS), 'key')
  preferences._turned({'data': {}}, None, None, Split(RECORDS, RECORDS), 'key')
  (*_, records, key), (*_, plain, same) = prepared
  assert records.train[0].pairs[0] == Pair(1, 0)
  assert records.held_out == RECORDS and plain.train == RECORDS
  assert (key, same) == (['key', 1.0], 'key')


def test_the_data_has_the_runs_seed_or_its_own():
  assert corpus.data_seed({'seed': 5, 'data': {}}) == 5
  assert corpus.data_seed({'seed': 5, 'data': {'seed': -1}}) == 5
  assert corpus.data_seed({'seed': 5, 'data': {'seed': 0}}) == 0
