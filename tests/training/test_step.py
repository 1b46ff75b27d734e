"""The step: how a batch is taken changes nothing, and nothing compiles twice."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from prefjax import objectives
from prefjax.training.monitor import Compilations
from prefjax.training.optimizers import Optimizer
from prefjax.training.step import Step, hyper

# The first moment of one AdamW step is the gradient: see `tiny.gradient`.
ADAMW = Optimizer(name='adamw', learning_rate=1e-2, steps=10, warmup_steps=3)
RMSPROP = Optimizer(name='rmsprop', learning_rate=1e-2, steps=10)
TOLERANCE = {'float64': 1e-10, 'float32': 1e-5}
EVERYTHING = ('entropy', 'collision')

each_objective = pytest.mark.parametrize('name', tiny.OBJECTIVES)


@pytest.fixture
def precision(dtype):
  with jax.enable_x64(dtype == 'float64'):
    yield dtype


@functools.cache
def bag(name, chunk=5, optimizer=ADAMW):
  return Step(
    tiny.bag_forward,
    tiny.objective(name),
    optimizer,
    want=EVERYTHING,
    chunk=chunk,
  )


@functools.cache
def decoder(dtype, chunk=5, **model):
  forward = tiny.forward(dtype=dtype, param_dtype=dtype, **model)
  return Step(forward, tiny.objective('sum'), ADAMW, chunk=chunk)


def observed(step, params, batches):
  """What must not depend on how a batch is taken."""
  state, metrics = tiny.updated(step, params, batches)
  assert state['step'] == 1
  return {'gradient': tiny.gradient(state), 'metrics': metrics}


# Law 3: the ways to take a batch ------------------------------------------------


def by_length(whole):
  """Sorted and cut into cells as short as they can be, the last one filled."""
  order = np.argsort(-whole.response_length.max(axis=1))
  parts = [order[:2], np.append(order[2:], [-1] * 2)]
  return [tiny.take(whole, part) for part in parts]


def same_cells(whole, *parts):
  return [tiny.take(whole, part, l=6, t=7) for part in parts]


WAYS = {
  'padded ones': lambda b: [tiny.take(b, [i], l=9, t=12) for i in range(8)],
  'fours': lambda b: same_cells(b, [0, 1, 2, 3], [4, 5, 6, 7]),
  'order of fours': lambda b: same_cells(b, [6, 1, 4, 3], [0, 5, 2, 7]),
  'filled': lambda b: same_cells(b, [0, 1, 2, -1], [-1, 3, 4, 5], [6, 7, -1, -1]),
  'nothing but filling': lambda b: same_cells(b, [-1] * 4, [0, 1, 2, 3], [4, 5, 6, 7]),
  'buckets': by_length,
  'order': lambda b: same_cells(b, [3, 1, 7, 0, 2, 6, 5, 4]),
}  # fmt: skip


@functools.cache
def bag_whole(name, dtype):
  batch = tiny.batch(dtype=np.dtype(dtype))
  return observed(bag(name), tiny.bag_params(dtype=dtype), [batch])


@pytest.mark.parametrize(
  ('way', 'dtype'),
  [*((way, 'float64') for way in WAYS), ('buckets', 'float32')],
)
@each_objective
def test_the_way_to_take_a_batch_changes_nothing(name, way, dtype, precision):
  batches = WAYS[way](tiny.batch(dtype=np.dtype(dtype)))
  assert sum(len(b.prompts) for b in batches) >= 8
  found = observed(bag(name), tiny.bag_params(dtype=dtype), batches)
  tiny.assert_same(bag_whole(name, dtype), found, TOLERANCE[dtype])


def test_what_is_compared_is_worth_comparing(x64):
  # A loss that hardly depends on the parameters would pass every law.
  for name in tiny.OBJECTIVES:
    whole = bag_whole(name, 'float64')
    for leaf in jax.tree.leaves(whole['gradient']):
      assert leaf.dtype == np.float64
      assert np.abs(leaf).max() > 5e-3
    assert {'loss', 'grad_norm', 'learning_rate', 'response_length'} < set(
      whole['metrics']
    )
    assert all(np.isfinite(x) and x != 0 for x in whole['metrics'].values())


@pytest.mark.parametrize('name', ['dpo', 'sft', 'sum'])
def test_the_mean_of_micro_batch_means_is_another_number(name, x64):
  # The well-known wrong accumulation: each micro-batch divides by its own weight.
  params = tiny.bag_params(dtype=np.float64)
  batches = WAYS['fours'](tiny.batch(dtype=np.float64))
  apart = [observed(bag(name), params, [batch]) for batch in batches]
  whole = bag_whole(name, 'float64')
  wrong = jax.tree.map(lambda a, b: (a + b) / 2, *apart)
  assert abs(wrong['metrics']['loss'] - whole['metrics']['loss']) > 1e-4
  gaps = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), wrong['gradient'], whole['gradient']
  )
  assert max(jax.tree.leaves(gaps)) > 1e-4


@pytest.mark.parametrize('chunk', [1, 64, 512])
def test_the_chunk_changes_nothing(chunk, x64):
  batch = tiny.batch(dtype=np.float64)
  step = bag('sum', chunk=chunk)
  found = observed(step, tiny.bag_params(dtype=np.float64), [batch])
  tiny.assert_same(bag_whole('sum', 'float64'), found, 1e-10)


@functools.cache
def decoder_whole(dtype):
  batch = tiny.batch(dtype=np.dtype(dtype))
  params = tiny.params(dtype=dtype, param_dtype=dtype)
  return observed(decoder(dtype), params, [batch])


DECODER_WAYS = {
  'micro-batches in another cell': (
    {},
    lambda b: [
      tiny.take(b, rows, l=8, t=9) for rows in ([6, 1, 4], [0, 5, 2], [7, 3, -1])
    ],
  ),
  'plain': ({'layout': 'plain'}, lambda b: [b]),
  'remat': ({'remat': 'full'}, lambda b: [b]),
}


@pytest.mark.parametrize('way', DECODER_WAYS)
def test_the_decoder_keeps_the_law(way, x64):
  changes, take = DECODER_WAYS[way]
  batches = take(tiny.batch(dtype=np.float64))
  params = tiny.params(dtype='float64', param_dtype='float64')
  found = observed(decoder('float64', **changes), params, batches)
  tiny.assert_same(decoder_whole('float64'), found, 1e-10)


def test_the_decoder_keeps_the_law_in_float32():
  _, take = DECODER_WAYS['micro-batches in another cell']
  found = observed(decoder('float32'), tiny.params(), take(tiny.batch()))
  tiny.assert_same(decoder_whole('float32'), found, 1e-5)


# Values -------------------------------------------------------------------------


def test_the_gradient_is_the_slope_of_the_loss(x64):
  batch = tiny.batch(dtype=np.float64)
  params = tiny.params(dtype='float64', param_dtype='float64')
  step = decoder('float64')
  numbers = hyper(step.objective, step.optimizer)
  gradient = decoder_whole('float64')['gradient']
  rng = np.random.default_rng(0)
  for _ in range(4):
    way = jax.tree.map(lambda x: rng.standard_normal(x.shape), params)
    ahead, behind = (
      step.evaluate(
        jax.tree.map(lambda x, w, h=h: x + h * w, params, way), [batch], numbers
      )['loss']
      for h in (1e-5, -1e-5)
    )
    slope = sum(
      np.vdot(g, w)
      for g, w in zip(jax.tree.leaves(gradient), jax.tree.leaves(way), strict=True)
    )
    assert abs(slope) > 1e-2
    np.testing.assert_allclose((ahead - behind) / 2e-5, slope, rtol=1e-6)


@pytest.mark.parametrize(
  ('name', 'loss'),
  [
    ('dpo', lambda nll: math.log(2)),
    ('ipo', lambda nll: (1 / (2 * 0.2)) ** 2),
    ('sum', lambda nll: math.log(2) + 0.3 * nll),
  ],
)
def test_step_zero(name, loss, x64):
  params = tiny.bag_params(dtype=np.float64)
  batch, step = tiny.batch(dtype=np.float64), bag(name)
  own = np.asarray(step.score(params, batch).logps)
  assert own[batch.mask].max() < 0 and not own[~batch.mask].any()
  batch = batch.replace(reference_logps=own)
  found = observed(step, params, [batch])['metrics']
  np.testing.assert_allclose(found['loss'], loss(found.get('nll')), rtol=1e-13)
  for metric in ('margin', 'kl_to_reference', 'chosen_drift'):
    np.testing.assert_allclose(found[metric], 0.0, atol=1e-13)
  np.testing.assert_allclose(found['gradient_coefficient'], 0.5, rtol=1e-13)


def test_the_metrics_of_the_step_itself(x64):
  found = bag_whole('dpo', 'float64')
  leaves = jax.tree.leaves(found['gradient'])
  norm = math.sqrt(sum(np.square(leaf).sum() for leaf in leaves))
  np.testing.assert_allclose(found['metrics']['grad_norm'], norm, rtol=1e-12)
  np.testing.assert_allclose(
    found['metrics']['learning_rate'], 1e-2 * 1 / 4, rtol=1e-12
  )


def test_grad_norm_is_that_before_clipping(x64):
  clipped = Optimizer(name='rmsprop', learning_rate=1e-2, steps=9, clip_norm=1e-3)
  step = bag('dpo', optimizer=clipped)
  batch = tiny.batch(dtype=np.float64)
  state, metrics = tiny.updated(step, tiny.bag_params(dtype=np.float64), [batch])
  whole = bag_whole('dpo', 'float64')
  np.testing.assert_allclose(
    metrics['grad_norm'], whole['metrics']['grad_norm'], rtol=1e-12
  )
  # nu is 0.01 of the squared gradient, whose norm is now the limit.
  nu = sum(x.sum() for x in jax.tree.leaves(tiny.moment(state, 'nu')))
  np.testing.assert_allclose(nu, 0.01 * 1e-6, rtol=1e-9)


@each_objective
def test_evaluate_is_that_of_the_whole(name, x64):
  params = tiny.bag_params(dtype=np.float64)
  whole = tiny.batch(dtype=np.float64)
  step = bag(name)
  numbers = hyper(step.objective, step.optimizer)
  one = step.evaluate(params, [whole], numbers)
  parts = step.evaluate(params, WAYS['fours'](whole), numbers)
  tiny.assert_same(one, parts, 1e-10)
  update = bag_whole(name, 'float64')['metrics']
  assert set(update) == set(one) | {'grad_norm', 'learning_rate'}
  tiny.assert_same({key: update[key] for key in one}, one, 1e-10)


def test_what_is_wanted_is_formed_and_nothing_else():
  batch, params = tiny.batch(), tiny.bag_params()
  outputs = bag('dpo').score(params, batch)
  formed = {k for k, v in vars(outputs).items() if v is not None}
  assert formed == {'logps', 'entropy', 'collision'}
  plain = Step(tiny.bag_forward, tiny.objective('dpo'), ADAMW, chunk=5)
  formed = {k for k, v in vars(plain.score(params, batch)).items() if v is not None}
  assert formed == {'logps'}


# Hyperparameters as arguments -----------------------------------------------------


@pytest.mark.parametrize('number', [2, 2.0, np.float32(2), np.float64(2)])
def test_hyper_has_one_type(number, x64):
  for on, dtype in ((True, np.float64), (False, np.float32)):
    with jax.enable_x64(on):
      numbers = hyper(
        objectives.create('dpo', beta=number),
        Optimizer(name='adamw', learning_rate=np.float64(number), steps=3),
      )
    assert set(numbers) == {'objective', 'optimizer', 'temperature'}
    for leaf in jax.tree.leaves(numbers):
      assert leaf.dtype == dtype and not leaf.weak_type and leaf.shape == ()
    assert numbers['objective']['beta'] == 2
    assert numbers['optimizer']['learning_rate'] == 2


def test_a_sweep_compiles_no_more_than_its_first_trial():
  step = Step(tiny.bag_forward, tiny.objective('dpo'), RMSPROP, chunk=5)
  whole = tiny.batch()
  steps = [[whole], WAYS['fours'](whole), [whole]]

  def trial(beta, rate):
    goal = objectives.create('dpo', beta=beta)
    optimizer = Optimizer(name='rmsprop', learning_rate=rate, steps=10)
    numbers = hyper(goal, optimizer)
    state = step.initial_state(tiny.bag_params())
    losses = []
    for batches in steps:
      state, metrics = step.update(state, batches, numbers)
      losses.append(float(metrics['loss']))
    losses.append(step.evaluate(state['params'], steps[1], numbers)['loss'])
    return losses

  first = trial(0.1, 1e-3)
  compiled = Compilations()
  try:
    others = [
      trial(beta, rate)
      for beta in (1, np.float32(0.5), 0.1)
      for rate in (1e-3, 0.0, np.float64(1e-2))
    ]
  finally:
    compiled.stop()
  assert compiled.count == 0
  # The numbers were used: only the trial of the same numbers is the same.
  assert [trial == first for trial in others] == [False] * 6 + [
    True,
    False,
    False,
  ]


def with_numbers(name='dpo', beta=0.1, **changes):
  knob = {'dpo': 'beta', 'ipo': 'tau'}[name]
  objective = objectives.create(name, **{knob: beta})
  optimizer = dataclasses.replace(ADAMW, **changes)
  return Step(tiny.bag_forward, objective, optimizer, chunk=6)


def test_steps_that_differ_in_numbers_run_the_same_programs():
  whole = [tiny.batch()]
  first = with_numbers()
  mine = tiny.updated(first, tiny.bag_params(), whole)
  compiled = Compilations()
  try:
    other = with_numbers(beta=2.0, learning_rate=0.5)
    theirs = tiny.updated(other, tiny.bag_params(), whole)
  finally:
    compiled.stop()
  assert compiled.count == 0
  assert first == other and first._fused is other._fused
  assert mine[1]['loss'] != theirs[1]['loss']  # each its own numbers
  assert theirs[1]['learning_rate'] == pytest.approx(0.5 / 4)


@pytest.mark.parametrize(
  'other',
  [
    with_numbers('ipo'),
    with_numbers(schedule='cosine'),
    with_numbers(steps=11),
    dataclasses.replace(with_numbers(), chunk=5),
    dataclasses.replace(with_numbers(), want=('entropy',)),
    dataclasses.replace(with_numbers(), forward=tiny.forward()),
  ],
)
def test_steps_that_differ_otherwise_share_nothing(other):
  assert with_numbers() != other
  assert with_numbers()._fused is not other._fused


def test_what_couples_a_batch_compiles_once_a_cell():
  jax.clear_caches()  # steps of one kind share their programs
  step = Step(tiny.bag_forward, tiny.objective('aot'), ADAMW, chunk=5)
  batches = same_cells(tiny.batch(), [0, 1, 2, 3], [4, 5, 6, 7])
  state = step.initial_state(tiny.bag_params())
  numbers = hyper(step.objective, step.optimizer)
  for _ in range(3):
    state, _ = step.update(state, batches, numbers)
  sizes = dict(_zeros=1, _score=1, _slopes=1, _pull=1, _apply=1)
  assert sizes == {name: getattr(step, name)._cache_size() for name in sizes}


def test_each_function_compiles_once_a_cell():
  jax.clear_caches()  # steps of one kind share their programs
  step = Step(tiny.bag_forward, tiny.objective('dpo'), ADAMW, chunk=5)
  whole = tiny.batch()
  a, b = same_cells(whole, [0, 1, 2, 3]), same_cells(whole, [4, 5])
  state = step.initial_state(tiny.bag_params())
  numbers = hyper(step.objective, step.optimizer)
  for batches in (a, a + b, a, b + a + a, a + b, a, b + b):
    state, _ = step.update(state, batches, numbers)
    step.evaluate(state['params'], batches, numbers)
    for batch in batches:
      step.score(state['params'], batch)
  assert int(state['step']) == 7
  sizes = dict(
    _fused=1, _accumulate=2, _start=2, _weigh=2, _apply=1, _measure=2, _score=2
  )
  assert sizes == {name: getattr(step, name)._cache_size() for name in sizes}


# Buffers --------------------------------------------------------------------------


@pytest.mark.parametrize('way', ['order', 'fours'])
@pytest.mark.parametrize('optimizer', [ADAMW, RMSPROP], ids=lambda o: o.name)
def test_the_state_is_donated_and_the_initial_parameters_are_not(way, optimizer):
  step = bag('dpo', optimizer=optimizer)
  params = tiny.bag_params()
  kept = jax.tree.map(np.array, params)
  state = step.initial_state(params)
  numbers = hyper(step.objective, optimizer)
  new, _ = step.update(state, WAYS[way](tiny.batch()), numbers)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
  for leaf in jax.tree.leaves((params, new, numbers)):
    assert not leaf.is_deleted()
  jax.tree.map(np.testing.assert_array_equal, params, kept)
  assert all(np.any(new['params'][name] != kept[name]) for name in kept)


def test_evaluating_and_scoring_donate_nothing():
  step, params, batch = bag('dpo'), tiny.bag_params(), tiny.batch()
  step.evaluate(params, [batch], hyper(step.objective, step.optimizer))
  step.score(params, batch)
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_an_empty_batch_has_no_gradient():
  params = tiny.bag_params()
  nothing = tiny.take(tiny.batch(), [-1] * 4, l=6, t=7)
  found = observed(bag('sum'), params, [nothing])
  assert all(not leaf.any() for leaf in jax.tree.leaves(found['gradient']))
  assert found['metrics']['loss'] == 0.0
  assert all(jnp.isfinite(x) for x in found['metrics'].values())
