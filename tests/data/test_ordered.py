"""Both orders of every pair, as a pairwise model reads them."""

import numpy as np
import tiny

from prefjax.data import buckets
from prefjax.data.ordered import joined, ordered
from prefjax.data.pipeline import Batches
from prefjax.data.records import Pair, Record

EOS = tiny.Letters.eos_id
A, B, C = 3, 4, 5  # the letters' ids

RECORDS = [
  Record('a', ('b', 'cc', 'a'), (Pair(0, 1, 0.8), Pair(2, 1))),
  Record('bb', ('a', 'b'), (Pair(1, 0),)),
]


def test_one_separator_stands_between_two_responses():
  first, second = np.array([A, EOS], np.int32), np.array([B, C], np.int32)
  np.testing.assert_array_equal(joined(first, second, EOS), [A, EOS, B, C])
  np.testing.assert_array_equal(joined(second, first, EOS), [B, C, EOS, A, EOS])
  nothing = np.array([EOS], np.int32)
  np.testing.assert_array_equal(joined(nothing, nothing, EOS), [EOS, EOS])


def test_every_pair_becomes_two_responses(tmp_path):
  data = ordered(tiny.prepared(tmp_path / 'data', RECORDS), EOS)
  example = data[0]
  b, cc, a = [B, EOS], [C, C, EOS], [A, EOS]
  assert [x.tolist() for x in example.responses] == [b + cc, cc + b, a + cc, cc + a]
  assert example.chosen.tolist() == [0, 2]
  assert example.rejected.tolist() == [1, 3]
  np.testing.assert_allclose(example.preference, [0.8, 1.0], rtol=1e-6)
  np.testing.assert_array_equal(data.response_length, [[5, 5, 5, 5], [4, 4, 0, 0]])


def test_batches_and_digest_are_those_of_the_ordered_data(tmp_path):
  plain = tiny.prepared(tmp_path / 'data', RECORDS)
  data = ordered(plain, EOS)
  assert data.digest == f'{plain.digest}-ordered'
  batches = Batches(
    data=data, batch_size=2, seed=0, grid=buckets.grid(8, 8, multiple=8), max_tokens=999
  )
  ((rows, batch),) = batches.once()
  assert batch.responses.shape == (2, 4, 8)
  second = list(rows).index(1)
  np.testing.assert_array_equal(batch.pair_weight[second], [1.0, 0.0])
  np.testing.assert_array_equal(batch.weight[second], [1.0, 1.0, 0.0, 0.0])
