import itertools

import numpy as np
import pytest

from prefjax.data import buckets
from prefjax.data.buckets import Cell, Grid
from prefjax.errors import InputError

GRID = Grid((4, 8), (4, 8))


def random_lengths(seed, b, k=2, longest=(30, 50)):
  rng = np.random.default_rng(seed)
  prompts = rng.integers(1, longest[0] + 1, b).astype(np.int32)
  responses = rng.integers(0, longest[1] + 1, (b, k)).astype(np.int32)
  return prompts, responses


# Lengths ----------------------------------------------------------------------


def test_lengths_by_hand():
  # 100 -> 112; 112 / 1.5 = 74 -> 64; 64 / 1.5 = 42 -> 32; 32 / 1.5 = 21 -> 16.
  assert buckets.lengths(100, multiple=16, growth=1.5) == (16, 32, 64, 112)
  assert buckets.lengths(100, multiple=1, growth=2.0) == (
    1,
    3,
    6,
    12,
    25,
    50,
    100,
  )
  assert buckets.lengths(3, multiple=4, growth=1.1) == (4,)


@pytest.mark.parametrize('longest', [1, 15, 16, 17, 200])
@pytest.mark.parametrize('growth', [1.01, 1.5, 4.0])
def test_lengths_ascend_and_hold_the_longest(longest, growth):
  found = buckets.lengths(longest, multiple=16, growth=growth)
  assert list(found) == sorted(set(found))
  assert all(edge % 16 == 0 and edge > 0 for edge in found)
  assert longest <= found[-1] < longest + 16


def test_infinite_growth_gives_one_bucket():
  one = buckets.grid(100, 30, multiple=8, growth=float('inf'))
  assert one == Grid((104,), (32,))


def test_growth_beyond_the_longest_gives_one_bucket():
  assert buckets.grid(8, 8, multiple=8, growth=1.5) == Grid((8,), (8,))


@pytest.mark.parametrize(('growth', 'multiple'), [(1.0, 16), (0.5, 16), (1.5, 0)])
def test_lengths_refuse(growth, multiple):
  with pytest.raises(InputError, match='growth > 1 and multiple >= 1'):
    buckets.lengths(10, multiple=multiple, growth=growth)


# The plan ---------------------------------------------------------------------

# Rounded up: prompts 4 8 4 8, responses 4 4 8 8. Sorted: rows 3, 2, 1, 0.
BY_HAND = (
  np.array([3, 8, 2, 5], np.int32),
  np.array([[2, 1], [4, 3], [7, 5], [0, 8]], np.int32),
)


@pytest.mark.parametrize(
  ('overhead', 'cells'),
  [
    # 24 + 20 + 16 + 12 tokens; two pairs are 48 + 32, all four 96.
    (
      3,
      [
        ((1, 2, 8, 8), [3]),
        ((1, 2, 4, 8), [2]),
        ((1, 2, 8, 4), [1]),
        ((1, 2, 4, 4), [0]),
      ],
    ),
    (5, [((2, 2, 8, 8), [3, 2]), ((2, 2, 8, 4), [1, 0])]),
    (20, [((4, 2, 8, 8), [3, 2, 1, 0])]),
  ],
)
def test_plan_by_hand(overhead, cells):
  found = buckets.plan(*BY_HAND, GRID, max_tokens=1000, overhead=overhead)
  assert [(tuple(m.cell), m.rows.tolist()) for m in found] == cells


def test_tokens_count_the_prompt_once():
  assert Cell(p=2, k=3, l=5, t=7).tokens == 2 * (5 + 3 * 7)


def test_short_micro_batch_is_filled():
  prompts, responses = (x[:3] for x in BY_HAND)
  (one,) = buckets.plan(prompts, responses, GRID, max_tokens=1000)
  assert one.cell == (4, 2, 8, 8)
  assert one.rows.tolist() == [2, 1, 0, -1]


def test_max_tokens_cuts():
  found = buckets.plan(*BY_HAND, GRID, max_tokens=48, overhead=10**6)
  assert [m.cell for m in found] == [(2, 2, 8, 8), (2, 2, 8, 4)]
  found = buckets.plan(*BY_HAND, GRID, max_tokens=47, overhead=10**6)
  assert [m.cell for m in found] == [(1, 2, 8, 8), (1, 2, 4, 8), (2, 2, 8, 4)]


@pytest.mark.parametrize('shards', [1, 2, 8])
@pytest.mark.parametrize('seed', range(5))
def test_plan_is_a_partition_into_cells_that_hold_it(seed, shards):
  prompts, responses = random_lengths(seed, b=48)
  grid = buckets.grid(30, 50, multiple=4, growth=1.4)
  # No less than the largest cell of one prompt a shard: see `plan`.
  max_tokens = grid.prompt[-1] + 2 * grid.response[-1] + 100
  found = buckets.plan(prompts, responses, grid, max_tokens=max_tokens, shards=shards)
  rows = np.concatenate([m.rows for m in found])
  assert sorted(rows[rows >= 0]) == list(range(48))
  assert set(rows[rows < 0]) <= {-1}
  for cell, rows in found:
    real = rows[rows >= 0]
    assert len(rows) == cell.p and cell.k == 2
    assert cell.p % shards == 0
    assert (cell.p // shards).bit_count() == 1
    # The smallest lengths of the grid that hold its longest, and no more.
    longest = prompts[real].max(), responses[real].max()
    assert cell.l == min(e for e in grid.prompt if e >= longest[0])
    assert cell.t == min(e for e in grid.response if e >= longest[1])
    assert cell.tokens <= max_tokens * shards
    # Never filled where half the cell would do.
    assert 2 * len(real) > cell.p or cell.p == shards


def cost_of_every_cut(prompts, responses, grid, max_tokens, shards, overhead):
  """The cheapest of all sequences of sizes, by trying them all."""
  k = responses.shape[1]

  def up(x, edges):
    return min(edge for edge in edges if edge >= x)

  rows = sorted(
    (
      (up(r.max(), grid.response), up(l, grid.prompt))
      for l, r in zip(prompts, responses, strict=True)
    ),
    reverse=True,
  )
  b = len(rows)
  sizes = [shards * 2**i for i in range(b.bit_length() + 1)]
  costs = []
  for count in range(1, b // shards + 1):
    for cut in itertools.product(sizes, repeat=count):
      if not sum(cut[:-1]) < b <= sum(cut):
        continue
      start, cost = 0, 0
      for size in cut:
        part = rows[start : start + size]
        tokens = size * (max(l for _, l in part) + k * max(t for t, _ in part))
        if size > shards and tokens > max_tokens * shards:
          break
        cost, start = cost + tokens + overhead, start + size
      else:
        costs.append(cost)
  return min(costs)


@pytest.mark.parametrize('overhead', [0, 20, 300])
@pytest.mark.parametrize(
  ('b', 'shards'), [(1, 1), (5, 1), (6, 1), (6, 2), (10, 2), (12, 3)]
)
def test_plan_is_the_cheapest_cut(b, shards, overhead):
  grid = buckets.grid(30, 50, multiple=4, growth=1.3)
  for seed in range(4):
    prompts, responses = random_lengths(seed, b)
    found = buckets.plan(
      prompts,
      responses,
      grid,
      max_tokens=300,
      shards=shards,
      overhead=overhead,
    )
    cost = sum(m.cell.tokens + overhead for m in found)
    assert cost == cost_of_every_cut(prompts, responses, grid, 300, shards, overhead)


def test_plan_is_a_pure_function_of_the_lengths():
  prompts, responses = random_lengths(0, 32)
  grid = buckets.grid(30, 50)
  before = prompts.copy(), responses.copy()
  first, second = (
    buckets.plan(prompts, responses, grid, max_tokens=2000) for _ in range(2)
  )
  for a, b in zip(first, second, strict=True):
    assert a.cell == b.cell
    np.testing.assert_array_equal(a.rows, b.rows)
  np.testing.assert_array_equal(prompts, before[0])
  np.testing.assert_array_equal(responses, before[1])


def test_equal_lengths_keep_their_order():
  prompts, responses = np.full(6, 3, np.int32), np.full((6, 2), 4, np.int32)
  found = buckets.plan(prompts, responses, GRID, max_tokens=24, overhead=0)
  rows = np.concatenate([m.rows for m in found])
  assert rows[rows >= 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_one_prompt_a_shard_may_pass_max_tokens():
  # Each takes 12 tokens, but on two shards they share the cell (8, 8).
  prompts, responses = np.array([4, 8], np.int32), np.array([[8], [4]], np.int32)
  (one,) = buckets.plan(prompts, responses, GRID, max_tokens=12, shards=2)
  assert one.cell == (2, 1, 8, 8)


# Refusals ---------------------------------------------------------------------


def test_a_batch_that_does_not_divide_is_refused():
  with pytest.raises(InputError, match='4 prompts, 3 shards'):
    buckets.plan(*BY_HAND, GRID, max_tokens=1000, shards=3)


def test_a_prompt_beyond_max_tokens_is_refused():
  buckets.plan(*BY_HAND, GRID, max_tokens=24)
  with pytest.raises(InputError, match=r'takes 24 tokens.*max_tokens=23'):
    buckets.plan(*BY_HAND, GRID, max_tokens=23)


def test_what_no_bucket_holds_is_refused():
  prompts, responses = BY_HAND
  with pytest.raises(InputError, match='prompt of 9 tokens'):
    buckets.plan(prompts + 1, responses, GRID, max_tokens=1000)
  with pytest.raises(InputError, match='response of 9 tokens'):
    buckets.plan(prompts, responses + 1, GRID, max_tokens=1000)
