import dataclasses

import numpy as np
import pytest
import tiny

from prefjax.data.buckets import Cell, Grid
from prefjax.data.encoding import Example
from prefjax.data.mismatched import mismatched
from prefjax.data.pipeline import Batches, Stored, assemble, offsets
from prefjax.data.records import Pair, Record
from prefjax.errors import InputError
from prefjax.types import check_batch

LETTERS = 'abcdefghijklm'
GRID = Grid((4, 8, 16), (4, 8, 16))


def ints(*values):
  return np.array(values, np.int32)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """13 prompts, told apart by their first letter; every third lacks a response."""
  records = []
  for i, letter in enumerate(LETTERS):
    responses = ('x' * (i % 5 + 1), 'y' * (7 - i % 4))[: 1 if i % 3 == 2 else 2]
    pairs = (Pair(0, 1, 1.0),) if len(responses) == 2 else ()
    records.append(Record(letter + 'z' * i, responses, pairs))
  return tiny.prepared(tmp_path_factory.mktemp('data') / 'd', records)


@pytest.fixture
def make(data):
  def make(**changes):
    settings = dict(data=data, batch_size=5, seed=3, grid=GRID, max_tokens=100)
    return Batches(**(settings | changes))

  return make


def prompts_of(micro_batches):
  """Which prompts a batch holds: their numbers, from the letter after BOS."""
  found = []
  for batch in micro_batches:
    check_batch(batch)
    for row, length in zip(batch.prompts, batch.prompt_length, strict=True):
      real = row[len(row) - length :]
      if real[0]:  # filling has the pad token
        found.append(int(real[1]) - 3)
  return found


# Order ------------------------------------------------------------------------


def assert_equal_batches(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b, strict=True):
    for field in dataclasses.fields(x):
      left, right = getattr(x, field.name), getattr(y, field.name)
      assert (left is None) == (right is None)
      np.testing.assert_array_equal(left, right, strict=True)


def test_a_batch_is_a_pure_function_of_seed_and_step(make):
  batches = make()
  in_order = [batches.at(n) for n in range(8)]
  for n in (7, 0, 3):
    assert_equal_batches(make().at(n), in_order[n])
    assert_equal_batches(batches.at(n), in_order[n])


def test_every_prompt_once_an_epoch_and_batches_straddle_epochs(make):
  batches = make()
  order = np.concatenate([batches.indices(n) for n in range(13)])
  epochs = order.reshape(5, 13)
  for epoch in epochs:
    assert sorted(epoch) == list(range(13))
  assert len({tuple(epoch) for epoch in epochs}) == 5
  # Step 2 holds the last three of an epoch and the first two of the next one.
  assert batches.indices(2).tolist() == [*epochs[0, 10:], *epochs[1, :2]]


def test_the_seed_decides_the_order(make):
  assert make(seed=3).indices(0).tolist() != make(seed=4).indices(0).tolist()


def test_without_a_seed_the_order_is_that_of_the_data(make):
  batches = make(seed=None)
  order = np.concatenate([batches.indices(n) for n in range(4)])
  assert order.tolist() == [*range(13), *range(7)]


def test_the_batch_holds_the_prompts_of_its_indices(make):
  batches = make()
  for n in range(4):
    assert sorted(prompts_of(batches.at(n))) == sorted(batches.indices(n))


def test_a_batch_larger_than_the_data_repeats_prompts(make):
  found = prompts_of(make(batch_size=26).at(0))
  assert sorted(found) == sorted([*range(13), *range(13)])


def test_the_cut_changes_no_prompt(make):
  one = make(grid=Grid((16,), (16,)), max_tokens=10_000)
  many = make(max_tokens=48)
  assert len(one.at(1)) == 1 < len(many.at(1))
  assert sorted(prompts_of(one.at(1))) == sorted(prompts_of(many.at(1)))


def test_the_longest_micro_batch_is_the_first(make):
  sizes = [batch.responses.shape[-1] for batch in make(max_tokens=48).at(0)]
  assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize('shards', [1, 2])
def test_once_covers_everything_in_an_order_without_seed(make, shards):
  settings = dict(batch_size=4, shards=shards)
  found = list(make(**settings).once())
  indices = [rows[rows >= 0].tolist() for rows, _ in found]
  flat = [i for part in indices for i in part]
  assert sorted(flat) == list(range(13))
  # Block after block of the data's own order.
  assert [i // 4 for i in flat] == sorted(i // 4 for i in flat)
  for part, (rows, batch) in zip(indices, found, strict=True):
    assert batch.prompts.shape[0] == len(rows)
    assert len(rows) % shards == 0
    assert prompts_of([batch]) == part
    assert not batch.weight[rows < 0].any()
  other = list(make(**settings, seed=99).once())
  assert_equal_batches([b for _, b in found], [b for _, b in other])


@pytest.mark.parametrize(('size', 'shards'), [(0, 1), (5, 2), (3, 4)])
def test_a_batch_size_that_does_not_divide_is_refused(make, size, shards):
  with pytest.raises(InputError, match=rf'batch_size={size} .* {shards} data'):
    make(batch_size=size, shards=shards)


# Arrays -----------------------------------------------------------------------


def test_assemble_by_hand():
  first = Example(
    prompt=ints(1, 5),
    responses=(ints(7, 2), ints(8, 9, 2)),
    chosen=ints(1),
    rejected=ints(0),
    preference=np.array([0.75], np.float32),
    labels=np.array([1.0, 0.5], np.float32),
    win_rates=np.array([0.25, 0.5], np.float32),
  )
  alone = Example(
    prompt=ints(1, 3, 4),
    responses=(ints(6),),
    chosen=ints(),
    rejected=ints(),
    preference=np.zeros(0, np.float32),
  )
  cell = Cell(p=3, k=2, l=3, t=4)
  batch = check_batch(assemble([first, alone, None], cell, pairs=2, pad_id=10))
  expected = dict(
    prompts=[[10, 1, 5], [1, 3, 4], [10, 10, 10]],
    responses=[
      [[7, 2, 10, 10], [8, 9, 2, 10]],
      [[6, 10, 10, 10], [10, 10, 10, 10]],
      [[10, 10, 10, 10], [10, 10, 10, 10]],
    ],
    prompt_length=[2, 3, 1],
    response_length=[[2, 3], [1, 0], [0, 0]],
    mask=[
      [[1, 1, 0, 0], [1, 1, 1, 0]],
      [[1, 0, 0, 0], [0, 0, 0, 0]],
      [[0, 0, 0, 0], [0, 0, 0, 0]],
    ],
    weight=[[1, 1], [1, 0], [0, 0]],
    label=[[1, 0.5], [0.5, 0], [0, 0]],
    win_rate=[[0.25, 0.5], [0.5, 0], [0, 0]],
    chosen=[[1, 0], [0, 0], [0, 0]],
    rejected=[[0, 0], [0, 0], [0, 0]],
    preference=[[0.75, 0], [0, 0], [0, 0]],
    pair_weight=[[1, 0], [0, 0], [0, 0]],
  )
  for name, value in expected.items():
    np.testing.assert_array_equal(getattr(batch, name), value, err_msg=name)
  assert batch.reference_logps is None


def test_steps_stand_on_tokens_and_their_labels_on_the_last(tmp_path):
  nan = float('nan')
  records = [
    Record(
      'ab',
      ('cde', 'f'),
      steps=(('c', 'de'), ('f',)),
      step_labels=((0.5, 1.0), (nan,)),
    ),
    Record('a', ('b',)),
  ]
  data = tiny.prepared(tmp_path / 'data', records)
  batch = check_batch(assemble([data[0], data[1], None], Cell(3, 2, 3, 5), pairs=0))
  nothing = [-1] * 5
  np.testing.assert_array_equal(
    batch.step,
    [[[0, 1, 1, 1, -1], [0, 0, -1, -1, -1]], [nothing] * 2, [nothing] * 2],
  )
  np.testing.assert_array_equal(
    batch.step_label, [[[0.5, -1, -1, 1, -1], nothing], [nothing] * 2, [nothing] * 2]
  )


def test_labels_and_win_rates_are_counted_from_pairs():
  # 0 beats 1 (0.75 to 0.25) and 2 for sure; 3 is in no pair
  example = Example(
    prompt=ints(1),
    responses=(ints(4), ints(5), ints(6), ints(7)),
    chosen=ints(0, 0),
    rejected=ints(1, 2),
    preference=np.array([0.75, 1.0], np.float32),
  )
  batch = assemble([example], Cell(1, 4, 1, 1), pairs=2)
  np.testing.assert_allclose(batch.label, [[1.75 / 2, 0.25, 0.0, 0.5]])
  # itself included with a half
  np.testing.assert_allclose(batch.win_rate, [[2.25 / 3, 0.75 / 2, 0.25, 0.5]])


@pytest.mark.parametrize(('k', 'want'), [(2, 0.75), (5, 0.9)])
def test_the_win_rate_of_one_that_beats_all_counts_itself_a_half(k, want):
  # The targets of SPPO are eta / 4 and 0.4 eta.
  losers = np.arange(1, k, dtype=np.int32)
  example = Example(
    prompt=ints(1),
    responses=(ints(4),) * k,
    chosen=np.zeros_like(losers),
    rejected=losers,
    preference=np.ones(k - 1, np.float32),
  )
  batch = assemble([example], Cell(1, k, 1, 1), pairs=k - 1)
  np.testing.assert_allclose(batch.win_rate[0, 0], want, rtol=1e-6)


def test_mismatched_responses_are_the_next_prompts_and_weigh_nothing(make, data):
  shifted = mismatched(data)
  assert shifted.digest != data.digest
  assert shifted.response_length.shape == (13, 3)
  for i in range(13):
    example, plain, other = shifted[i], data[i], data[(i + 1) % 13]
    assert len(example.responses) == len(plain.responses) + 1
    np.testing.assert_array_equal(example.responses[-1], other.responses[0])
    lengths = [len(response) for response in example.responses]
    np.testing.assert_array_equal(shifted.response_length[i][: len(lengths)], lengths)
  (batch,) = make(data=shifted, batch_size=13, max_tokens=10_000).at(0)
  check_batch(batch)
  further = (batch.weight == 0) & batch.mask.any(axis=-1)
  np.testing.assert_array_equal(further.sum(axis=1)[:13], 1)
  assert batch.weight.sum() == (data.response_length > 0).sum()


def test_without_pairs_labels_or_win_rates_the_fields_are_none():
  alone = Example(ints(1), (ints(6),), ints(), ints(), np.zeros(0, np.float32))
  batch = check_batch(assemble([alone], Cell(1, 1, 1, 1), pairs=0))
  for name in ('chosen', 'pair_weight', 'label', 'win_rate'):
    assert getattr(batch, name) is None


def test_missing_responses_and_filling_weigh_nothing(make, data):
  (batch,) = make(batch_size=13, max_tokens=10_000).at(0)
  assert batch.prompts.shape[0] == 16
  number = prompts_of([batch])
  assert batch.weight.sum() == (data.response_length > 0).sum()
  for i, row in enumerate(number):
    missing = row % 3 == 2
    assert batch.weight[i].tolist() == ([1, 0] if missing else [1, 1])
    assert batch.pair_weight[i].tolist() == ([0] if missing else [1])
    assert batch.mask[i].sum(-1).tolist() == data.response_length[row].tolist()
  assert not batch.mask[13:].any() and not batch.weight[13:].any()
  assert not batch.pair_weight[13:].any()
  assert batch.prompt_length[13:].tolist() == [1, 1, 1]


# Stored log-probs -------------------------------------------------------------


def test_offsets_by_hand():
  found = offsets(np.array([[2, 0], [3, 1]], np.int32))
  np.testing.assert_array_equal(found, [[0, 2], [2, 5]])


@pytest.mark.parametrize('max_tokens', [48, 10_000])
def test_stored_log_probs_land_on_their_tokens(make, data, max_tokens):
  # The stored value of a token names it: prompt, response and place.
  flat = [
    -(10_000 * i + 100 * k + j)
    for i, row in enumerate(data.response_length)
    for k, length in enumerate(row)
    for j in range(length)
  ]
  stored = Stored(np.array(flat, np.float32), offsets(data.response_length))
  batches = make(reference=stored, batch_size=6, shards=2, max_tokens=max_tokens)
  seen = 0
  for n in range(3):
    for batch in batches.at(n):
      check_batch(batch)
      for i, row in enumerate(prompts_of([batch])):
        for k, length in enumerate(data.response_length[row]):
          expected = np.zeros(batch.mask.shape[-1])
          expected[:length] = -(10_000 * row + 100 * k + np.arange(length))
          np.testing.assert_array_equal(batch.reference_logps[i, k], expected)
          seen += 1
      filled = batch.response_length.sum(axis=1) == 0
      assert not batch.reference_logps[filled].any()
  assert seen == 2 * 18
