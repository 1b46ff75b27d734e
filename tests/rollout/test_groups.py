"""How batches of groups are filled, by hand and by what must add up."""

import jax
import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.rollout import groups as groups_lib
from prefjax.rollout.groups import COUNTS, Carry, Collector, Groups, Request

K, L, T = 3, 2, 4
MIXED = 'rww'


def row(position, attempt, outcomes, born=0, rewards=None):
  """One group: `r` is right, `w` wrong and `?` without a reward, whatever it says."""
  marks = np.array(list(outcomes))
  right, scored = marks != 'w', marks != '?'
  reward = np.where(marks == 'r', 1.0, 0.0) if rewards is None else np.array(rewards)
  rng = np.random.default_rng([position, attempt, born])
  return Groups(
    position=np.array([position]),
    attempt=np.array([attempt]),
    born=np.array([born]),
    prompts=rng.integers(3, 9, (1, L), np.int32),
    prompt_length=np.array([L], np.int32),
    tokens=rng.integers(3, 9, (1, K, T), np.int32),
    length=np.full((1, K), T, np.int32),
    logps=-rng.random((1, K, T), np.float32),
    truncated=np.zeros((1, K), bool),
    rewards=np.pad(reward[None, :, None], ((0, 0), (0, 0), (T - 1, 0))).astype('f4'),
    step=np.zeros((1, K, T), np.int32),
    scored=scored[None],
    right=right[None],
  )


class World:
  """Samples what a script says of a position: one word, or one for each attempt."""

  def __init__(self, script=None, iteration=0):
    self.script, self.iteration = script or {}, iteration
    self.asked, self.found = [], []

  def __call__(self, requests):
    self.asked.append([tuple(request) for request in requests])
    parts = [
      row(position, attempt, self.outcomes(position, attempt), self.iteration)
      for position, attempt in requests
    ]
    self.found.append(groups_lib.join(parts))
    return self.found[-1]

  def outcomes(self, position, attempt):
    words = self.script.get(position, MIXED)
    return words if isinstance(words, str) else words[attempt]


def empty(capacity=0, position=0):
  carry = groups_lib.empty_carry(row(0, 0, MIXED), capacity)
  return carry._replace(position=np.asarray(position))


def waiting(capacity, *rows, position=0):
  """A carry in which these groups wait."""
  surplus = jax.tree.map(np.copy, empty(capacity).surplus)
  for table, values in zip(surplus, groups_lib.join(rows), strict=True):
    table[: len(rows)] = values
  return Carry(np.asarray(position), np.asarray(len(rows)), surplus)


def collected(collector, world, carry=None, iteration=0):
  carry = empty(collector.capacity) if carry is None else carry
  return collector.collect(world, carry, iteration)


def counted(**counts):
  return dict.fromkeys(COUNTS, 0) | counts


def names(groups):
  return list(zip(groups.position.tolist(), groups.attempt.tolist(), strict=True))


def assert_same(a, b):
  for x, y in zip(a, b, strict=True):
    np.testing.assert_array_equal(x, y)
    assert x.dtype == y.dtype


# By hand ----------------------------------------------------------------------


def test_without_dynamic_sampling_one_round_is_kept_whole():
  collector = Collector(batch=3, oversample=2.0)
  world = World({0: 'rrr', 1: 'www', 2: '???'})
  batch, carry, counts = collected(collector, world)
  assert world.asked == [[(0, 0), (1, 0), (2, 0)]]
  assert_same(batch, world.found[0])
  assert counts == counted(kept=3, rounds=1)
  assert carry.position == 3
  world = World(iteration=1)
  _, carry, _ = collected(collector, world, carry, 1)
  assert world.asked == [[(3, 0), (4, 0), (5, 0)]]
  assert carry.position == 6


def test_groups_without_a_difference_are_replaced_group_by_group():
  collector = Collector(batch=3, dynamic=True)
  world = World({1: 'rrr', 2: 'www', 3: 'www'})
  batch, carry, counts = collected(collector, world)
  assert world.asked == [[(0, 0), (1, 0), (2, 0)], [(3, 0), (4, 0)], [(5, 0)]]
  assert names(batch) == [(0, 0), (4, 0), (5, 0)]
  assert counts == counted(kept=3, all_right=1, all_wrong=2, rounds=3)
  assert carry.position == 6
  # What is kept is what was sampled, all of it.
  chosen = zip(world.found, (0, 1, 0), strict=True)
  parts = [groups_lib.take(found, slice(i, i + 1)) for found, i in chosen]
  assert_same(batch, groups_lib.join(parts))


def test_oversampling_is_of_what_is_missing_and_rounded_up():
  collector = Collector(batch=3, dynamic=True, oversample=1.5)
  world = World({0: 'rrr', 1: 'rrr', 2: 'www', 5: 'www', 6: 'rrr'})
  batch, carry, counts = collected(collector, world)
  # 3 * 1.5 and 1 * 1.5, twice, each rounded up.
  assert world.asked == [
    [(i, 0) for i in range(5)],
    [(5, 0), (6, 0)],
    [(7, 0), (8, 0)],
  ]
  assert names(batch) == [(3, 0), (4, 0), (7, 0)]
  assert counts == counted(kept=3, all_right=3, all_wrong=2, dropped=1, rounds=3)
  assert carry.position == 9


def test_resampling_tries_the_same_prompt_again():
  collector = Collector(batch=2, dynamic=True, refill='resample')
  world = World({0: ['rrr', 'www', 'rwr']})
  batch, carry, counts = collected(collector, world)
  assert world.asked == [[(0, 0), (1, 0)], [(0, 1)], [(0, 2)]]
  assert names(batch) == [(1, 0), (0, 2)]
  assert counts == counted(kept=2, all_right=1, all_wrong=1, regenerated=2, rounds=3)
  assert carry.position == 2


def test_resampling_goes_on_to_new_prompts_where_it_oversamples():
  collector = Collector(batch=2, dynamic=True, refill='resample', oversample=2.0)
  world = World({i: ['rrr', MIXED] for i in range(3)})
  batch, carry, counts = collected(collector, world)
  # Of 0 to 3 the last is mixed; one is missing: two of the three again.
  assert world.asked == [[(i, 0) for i in range(4)], [(0, 1), (1, 1)]]
  assert names(batch) == [(3, 0), (0, 1)]
  assert counts == counted(kept=2, all_right=3, regenerated=2, dropped=1, rounds=2)
  assert carry.position == 4


def test_tries_that_a_round_leaves_over_come_first_in_the_next():
  collector = Collector(batch=2, dynamic=True, refill='resample', oversample=2.0)
  world = World({0: ['rrr', 'www', MIXED], 1: ['rrr', 'www'], 2: ['rrr', MIXED]})
  batch, carry, counts = collected(collector, world)
  assert world.asked == [
    [(i, 0) for i in range(4)],
    [(0, 1), (1, 1)],
    [(2, 1), (0, 2)],
  ]
  assert names(batch) == [(3, 0), (2, 1)]
  assert counts == counted(
    kept=2, all_right=3, all_wrong=2, regenerated=4, dropped=1, rounds=3
  )
  assert carry.position == 4


def test_surplus_waits_with_its_own_log_probs_and_is_used_first():
  collector = Collector(batch=2, dynamic=True, oversample=1.5, capacity=2)
  first = World(iteration=7)
  batch, carry, counts = collected(collector, first, iteration=7)
  assert names(batch) == [(0, 0), (1, 0)]
  assert counts == counted(kept=2, waiting=1, rounds=1)
  second = World(iteration=8)
  batch, carry, counts = collected(collector, second, carry, 8)
  assert second.asked == [[(3, 0), (4, 0)]]  # one is missing: 1.5, rounded up
  assert names(batch) == [(2, 0), (3, 0)]
  assert batch.born.tolist() == [7, 8]
  assert_same(
    groups_lib.take(batch, slice(1)), groups_lib.take(first.found[0], slice(2, 3))
  )
  assert counts == counted(kept=2, waiting=1, rounds=1)
  assert names(groups_lib.take(carry.surplus, slice(1))) == [(4, 0)]


def test_the_oldest_are_used_first_and_a_full_batch_samples_nothing():
  collector = Collector(batch=2, dynamic=True, max_staleness=9, capacity=4)
  rows = [row(position, 0, MIXED, born) for position, born in ((9, 3), (4, 5), (6, 5))]
  world = World(iteration=6)
  batch, carry, counts = collected(collector, world, waiting(4, *rows, position=10), 6)
  assert world.asked == []
  assert names(batch) == [(9, 0), (4, 0)]
  assert counts == counted(kept=2, waiting=1)
  assert carry.position == 10
  batch, carry, counts = collected(collector, world, carry, 6)
  assert names(batch) == [(6, 0), (10, 0)]
  assert carry.waiting == 0


def test_what_waited_too_long_is_dropped_and_counted():
  collector = Collector(batch=3, dynamic=True, max_staleness=2, capacity=3)
  rows = [row(position, 0, MIXED, born=position) for position in (1, 2, 3)]
  world = World(iteration=4)
  batch, _, counts = collected(collector, world, waiting(3, *rows, position=8), 4)
  assert names(batch) == [(2, 0), (3, 0), (8, 0)]
  assert batch.born.tolist() == [2, 3, 4]
  assert counts == counted(kept=3, stale=1, rounds=1)
  never = Collector(batch=1, dynamic=True, oversample=2.0, max_staleness=0, capacity=1)
  _, carry, counts = collected(never, World())
  assert counts == counted(kept=1, waiting=1, rounds=1)
  batch, _, counts = collected(never, World(iteration=1), carry, 1)
  assert names(batch) == [(2, 0)]
  assert counts == counted(kept=1, stale=1, waiting=1, rounds=1)


def test_the_newest_beyond_the_capacity_are_dropped_and_counted():
  collector = Collector(batch=2, dynamic=True, oversample=3.0, capacity=3)
  _, carry, counts = collected(collector, World())
  assert counts == counted(kept=2, waiting=3, dropped=1, rounds=1)
  assert carry.waiting == 3
  assert names(carry.surplus) == [(2, 0), (3, 0), (4, 0)]
  assert carry.position == 6


def test_after_the_last_round_a_batch_is_short():
  collector = Collector(batch=2, dynamic=True, max_rounds=3)
  world = World({i: 'rrr' for i in range(6)} | {1: MIXED})
  batch, carry, counts = collected(collector, world)
  assert world.asked == [[(0, 0), (1, 0)], [(2, 0)], [(3, 0)]]
  assert names(batch) == [(1, 0)]
  assert counts == counted(kept=1, all_right=3, short=1, rounds=3)
  assert carry.position == 4
  nothing = World({i: 'www' for i in range(9)})
  batch, _, counts = collected(collector, nothing)
  assert len(batch) == 0
  assert batch.tokens.shape == (0, K, T)
  assert counts == counted(all_wrong=6, short=2, rounds=3)


def test_the_outcome_gates_whatever_shapes_the_reward():
  shaped = row(0, 0, 'rrr', rewards=[1.0, 0.5, -0.5])
  equal = row(1, 0, 'rwr', rewards=[0.3, 0.3, 0.3])
  found = groups_lib.join([shaped, equal])
  assert groups_lib.mixed(found).tolist() == [False, True]
  collector = Collector(batch=2, dynamic=True, max_rounds=1)
  batch, _, counts = collected(collector, lambda requests: found)
  assert names(batch) == [(1, 0)]
  assert counts == counted(kept=1, all_right=1, short=1, rounds=1)


def test_responses_without_a_reward_count_on_neither_side():
  # An unscored one says `right` here, and is not heard.
  words = ['rw?', 'r??', 'w?w', '???', '?rr']
  world = World(dict(enumerate(words)))
  collector = Collector(batch=5, dynamic=True, max_rounds=1)
  batch, _, counts = collected(collector, world)
  assert names(batch) == [(0, 0)]
  assert counts == counted(
    kept=1, all_right=2, all_wrong=1, unscored=1, short=4, rounds=1
  )


# Laws -------------------------------------------------------------------------


class Random(World):
  """Outcomes drawn for every position and attempt."""

  def outcomes(self, position, attempt):
    rng = np.random.default_rng([position, attempt])
    return ''.join(rng.choice(list('rw?'), K, p=(0.5, 0.3, 0.2)))


SETTINGS = {
  'as they come': dict(batch=4),
  'next prompt': dict(batch=4, dynamic=True),
  'resample': dict(batch=4, dynamic=True, refill='resample', max_rounds=3),
  'surplus': dict(batch=4, dynamic=True, oversample=2.5, capacity=4, max_staleness=2),
  'much surplus': dict(
    batch=2, dynamic=True, oversample=8.0, capacity=9, max_staleness=1
  ),
  'both': dict(
    batch=3, dynamic=True, refill='resample', oversample=1.7, capacity=3, max_rounds=2
  ),
}


@pytest.mark.parametrize('name', SETTINGS)
def test_every_group_is_trained_on_once_or_counted(name):
  collector = Collector(**SETTINGS[name])
  carry, trained, sums = empty(collector.capacity), [], counted()
  for iteration in range(20):
    world = Random(iteration=iteration)
    before = carry
    batch, carry, counts = collector.collect(world, before, iteration)
    sampled = sum(map(len, world.asked))
    places = ('kept', 'all_right', 'all_wrong', 'unscored', 'stale', 'waiting')
    assert before.waiting + sampled == sum(counts[x] for x in (*places, 'dropped'))
    assert counts['kept'] + counts['short'] == collector.batch
    assert counts['rounds'] == len(world.asked) <= collector.max_rounds
    assert len(batch) == counts['kept']
    assert carry.waiting == counts['waiting'] <= collector.capacity
    again = sum(attempt > 0 for asked in world.asked for _, attempt in asked)
    assert counts['regenerated'] == again
    assert carry.position == before.position + sampled - again
    if collector.dynamic:
      assert groups_lib.mixed(batch).all()
    assert (np.diff(batch.born) >= 0).all()
    assert (iteration - batch.born <= collector.max_staleness).all()
    trained += names(batch)
    sums = {x: sums[x] + counts[x] for x in sums}
  assert len(set(trained)) == len(trained) > 20
  if collector.capacity:
    assert sums['waiting'] > 0
  if collector.dynamic:
    assert sums['all_right'] > 0
    assert sums['all_wrong'] > 0


@pytest.mark.parametrize('name', SETTINGS)
def test_the_carry_keeps_its_shapes_so_that_a_checkpoint_restores_into_it(name):
  collector = Collector(**SETTINGS[name])
  start = carry = empty(collector.capacity)

  def shapes(carry):
    return [(x.shape, x.dtype) for x in jax.tree.leaves(carry)]

  def wide(requests):
    # A sampler of float64 and int32, as under jax_enable_x64.
    found = Random()(requests)
    other = dict(logps=found.logps.astype('f8'), position=found.position.astype('i4'))
    return Groups(**found._asdict() | other)

  for iteration in range(4):
    _, carry, _ = collector.collect(wide, carry, iteration)
    assert shapes(carry) == shapes(start)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(carry))


@pytest.mark.parametrize('name', SETTINGS)
def test_collecting_is_pure(name):
  collector = Collector(**SETTINGS[name])
  _, carry, _ = collector.collect(Random(), empty(collector.capacity), 0)
  kept = jax.tree.map(np.copy, carry)
  first = collector.collect(Random(iteration=1), carry, 1)
  jax.tree.map(np.testing.assert_array_equal, carry, kept)
  second = collector.collect(Random(iteration=1), carry, 1)
  assert_same(first[0], second[0])
  jax.tree.map(np.testing.assert_array_equal, first[1], second[1])
  assert first[2] == second[2]
  # Nor does what came out share memory with what went in, or with each other.
  for leaf in jax.tree.leaves(first[0]):
    leaf[...] = 0
  jax.tree.map(np.testing.assert_array_equal, carry, kept)
  jax.tree.map(np.testing.assert_array_equal, first[1], second[1])


# Edges ------------------------------------------------------------------------


def test_taking_and_joining_are_inverse():
  rows = [row(position, 1, MIXED) for position in range(3)]
  whole = groups_lib.join(rows)
  assert len(whole) == 3
  for i, one in enumerate(rows):
    assert_same(groups_lib.take(whole, np.array([i])), one)
  assert names(groups_lib.take(whole, np.array([False, True, True]))) == [
    (1, 1),
    (2, 1),
  ]


def test_a_request_is_a_first_attempt_unless_it_says_otherwise():
  assert Request(3) == (3, 0)


@pytest.mark.parametrize(
  ('changes', 'match'),
  [
    (dict(batch=0), 'rollout.prompts must be at least 1, got 0'),
    (dict(oversample=0.5), 'rollout.oversample must be at least 1, got 0.5'),
    (dict(max_rounds=0), 'rollout.max_rounds must be at least 1, got 0'),
    (dict(max_staleness=-1), 'rollout.max_staleness must be at least 0, got -1'),
  ],
)
def test_settings_out_of_range_are_refused(changes, match):
  with pytest.raises(InputError, match=match):
    Collector(**dict(batch=1) | changes)


def test_an_unknown_refill_is_refused():
  collector = Collector(batch=1)
  # Past the type checker of the tests, which a user does not have.
  object.__setattr__(collector, 'refill', 'again')
  with pytest.raises(InputError, match="next_prompt or resample, got 'again'"):
    collector.__post_init__()
