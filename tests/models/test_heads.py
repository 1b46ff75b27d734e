"""Scalar heads, and what a step reads of a model beside log-probs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from prefjax import logprobs, objectives
from prefjax.errors import InputError
from prefjax.models import heads
from prefjax.training.optimizers import Optimizer
from prefjax.training.step import Step, hyper
from prefjax.types import Head, PreferenceBatch

ADAMW = Optimizer(name='adamw', learning_rate=1e-2, steps=10)
SCALARS = heads.forward(tiny.bag_forward)
QUANTITIES = ('entropy', 'collision')


def with_head(dtype=np.float32):
  """Parameters of the bag with a head that is not zero."""
  params = heads.with_scalar(tiny.bag_params(dtype=dtype), 8)
  drawn = np.random.default_rng(5).standard_normal(9)
  return params | {heads.SCALAR: jnp.asarray(drawn, dtype)}


# Values and scores ------------------------------------------------------------


HIDDEN = jnp.asarray([[[[1.0, 2], [3, 4], [5, 6]], [[0, 0], [1, 0], [0, 1]]]])
HEAD = Head(jnp.zeros((4, 2)), scalar=jnp.asarray([10.0, -1.0, 0.5]))


def lengths(*response_length):
  k = len(response_length)
  return PreferenceBatch(
    prompts=np.ones((1, 1), np.int32),
    responses=np.ones((1, k, 2), np.int32),
    prompt_length=np.ones(1, np.int32),
    response_length=np.array([response_length], np.int32),
    mask=np.ones((1, k, 2), bool),
    weight=np.ones((1, k), np.float32),
  )


def test_values_by_hand():
  # 10 a - b + 1/2 of each state (a, b).
  found = heads.values(HIDDEN, HEAD)
  np.testing.assert_array_equal(found, [[[8.5, 26.5, 44.5], [0.5, 10.5, -0.5]]])


@pytest.mark.parametrize(
  ('length', 'expected'),
  [((2, 2), [44.5, -0.5]), ((1, 2), [26.5, -0.5]), ((0, 1), [8.5, 10.5])],
)
def test_a_score_is_the_value_after_the_last_token(length, expected):
  found = heads.scores(HIDDEN, HEAD, lengths(*length))
  np.testing.assert_array_equal(found, [expected])


def test_padding_does_not_score():
  batch = tiny.batch()
  found = scored(batch)
  for rows, sizes in (([0, 1, 5], dict(l=9, t=12)), ([7, -1], {})):
    part = scored(tiny.take(batch, rows, **sizes))
    real = np.array(rows) >= 0
    wanted = found.scores[np.array(rows)[real]]
    np.testing.assert_allclose(part.scores[real], wanted, rtol=0, atol=1e-6)


def scored(batch):
  return jax.device_get(step('bradley_terry').score(with_head(), batch))


def test_a_new_head_is_0_everywhere():
  base = tiny.bag_params()
  params = heads.with_scalar(base, 8)
  assert params.keys() == base.keys() | {'scalar'}
  assert 'scalar' not in base
  assert params['scalar'].shape == (9,)
  batch = tiny.batch()
  hidden, head = SCALARS(params, batch)
  assert hidden.shape == (8, 3, 8, 8)
  assert not heads.values(hidden, head).any()
  assert not heads.scores(hidden, head, batch).any()


@pytest.mark.parametrize(
  ('states', 'params', 'values'),
  [
    ('bfloat16', 'float32', 'float32'),
    ('bfloat16', 'bfloat16', 'float32'),
    ('float32', 'bfloat16', 'float32'),
    ('float64', 'float32', 'float64'),
  ],
)
def test_values_are_at_least_float32(x64, states, params, values):
  base = {'w': {'kernel': jnp.ones(3, params)}}
  scalar = heads.with_scalar(base, 2)['scalar']
  assert scalar.dtype == params
  # 256 + 1 + 1 is 256 in bfloat16 sums.
  hidden = jnp.asarray([[[[256.0, 1.0]]]], states)
  found = heads.values(hidden, Head(jnp.ones((4, 2)), scalar=scalar + 1))
  assert found.dtype == values
  assert found.item() == 258.0


def test_the_trunk_is_the_model_without_its_head():
  base = tiny.bag_params()
  assert heads.trunk(heads.with_scalar(base, 8)) == base
  assert heads.trunk(base) == base


def test_a_forward_gives_its_model_the_trunk_and_passes_adapters_on():
  seen = []

  def base(params, batch, *, adapters=True):
    seen.append((set(params), adapters))
    return HIDDEN, Head(params['weight'], soft_cap=3.0)

  params = {'weight': jnp.ones((4, 2)), 'scalar': HEAD.scalar}
  for adapters in (True, False):
    hidden, head = heads.forward(base)(params, lengths(2, 2), adapters=adapters)
    assert hidden is HIDDEN
    assert head.weight is params['weight']
    assert head.scalar is params['scalar']
    assert head.soft_cap == 3.0
  assert seen == [({'weight'}, True), ({'weight'}, False)]


def test_a_head_on_a_decoder_leaves_its_states_as_they_are():
  batch, params = tiny.batch(p=2), tiny.params()
  made = jax.jit(heads.forward(tiny.forward()))
  plain, bare = jax.jit(tiny.forward())(params, batch)
  hidden, head = made(heads.with_scalar(params, 8), batch)
  np.testing.assert_allclose(hidden, plain, rtol=0, atol=1e-6)
  np.testing.assert_array_equal(head.weight, bare.weight)
  assert heads.values(hidden, head).shape == (2, 3, 8)


def test_without_a_head_there_are_neither_values_nor_scores():
  bare = HEAD.replace(scalar=None)
  with pytest.raises(InputError, match='this model has no scalar head'):
    heads.values(HIDDEN, bare)
  with pytest.raises(InputError, match='this model has no scalar head'):
    heads.scores(HIDDEN, bare, lengths(2, 2))
  for name in ('bradley_terry', 'critic'):
    headless = Step(tiny.bag_forward, objective(name), ADAMW)
    with pytest.raises(InputError, match='this model has no scalar head'):
      headless.score(tiny.bag_params(), tiny.batch())


# What a step reads ------------------------------------------------------------


def objective(name, **options):
  return objectives.create(name, **options)


@functools.cache
def step(name, want=(), **options):
  return Step(SCALARS, objective(name, **options), ADAMW, want=want, chunk=16)


@pytest.mark.parametrize(
  ('name', 'options', 'want', 'formed'),
  [
    ('bradley_terry', {}, (), {'scores'}),
    ('critic', {}, (), {'values'}),
    ('grpo', {}, (), {'logps'}),
    ('ppo', dict(trunk='separate'), (), {'logps'}),
    ('ppo', dict(trunk='shared'), (), {'logps', 'values'}),
    ('bradley_terry', {}, ('entropy',), {'entropy', 'scores'}),
    ('critic', {}, ('logps',), {'logps', 'values'}),
  ],
)
def test_a_step_forms_what_its_objective_reads_and_nothing_else(
  name, options, want, formed
):
  batch, params = tiny.batch(), with_head()
  found = step(name, want, **options).score(params, batch)
  assert {k for k, v in vars(found).items() if v is not None} == formed
  hidden, head = SCALARS(params, batch)
  if 'values' in formed:
    np.testing.assert_allclose(found.values, heads.values(hidden, head), atol=1e-6)
  if 'scores' in formed:
    wanted = heads.scores(hidden, head, batch)
    np.testing.assert_allclose(found.scores, wanted, atol=1e-6)


def test_the_first_gradient_of_a_reward_model_is_that_of_its_head_alone(x64):
  params = heads.with_scalar(tiny.bag_params(dtype=np.float64), 8)
  batch = tiny.batch(dtype=np.float64)
  state, metrics = tiny.updated(step('bradley_terry'), params, [batch])
  gradient = tiny.gradient(state)
  np.testing.assert_allclose(metrics['loss'], np.log(2), rtol=1e-13)
  for name in ('embedding', 'mix', 'unembedding'):
    assert not gradient[name].any()
  assert np.abs(gradient['scalar'][:-1]).min() > 1e-5
  # Both of a pair have the bias.
  np.testing.assert_allclose(gradient['scalar'][-1], 0.0, atol=1e-15)


def test_a_reward_models_gradient_is_exact_under_accumulation(x64):
  whole, params = tiny.batch(dtype=np.float64), with_head(np.float64)
  parts = [tiny.take(whole, rows, l=6, t=7) for rows in ([6, 1, 4, 3], [0, 5, 2, 7])]
  one, many = (
    tiny.updated(step('bradley_terry'), params, batches) for batches in ([whole], parts)
  )
  tiny.assert_same(tiny.gradient(one[0]), tiny.gradient(many[0]), 1e-10)
  tiny.assert_same(one[1], many[1], 1e-10)
  for name, leaf in tiny.gradient(one[0]).items():
    assert (np.abs(leaf).max() > 1e-3) == (name != 'unembedding')


# Temperature ------------------------------------------------------------------


@functools.cache
def bag():
  return Step(tiny.bag_forward, tiny.objective('dpo'), ADAMW, want=QUANTITIES, chunk=16)


@pytest.mark.parametrize('temperature', [0.5, 1, np.float32(1.7)])
def test_a_score_at_a_temperature_is_that_of_divided_logits(temperature, x64):
  batch, params = tiny.batch(dtype=np.float64), tiny.bag_params(dtype=np.float64)
  found = bag().score(params, batch, temperature)
  hidden, head = tiny.bag_forward(params, batch)
  logits = hidden[:, :, :-1] @ head.weight.T
  wanted = logprobs.from_logits(
    logits,
    jnp.asarray(batch.responses),
    jnp.asarray(batch.mask),
    temperature=float(temperature),
  )
  for name in ('logps', *QUANTITIES):
    np.testing.assert_allclose(
      getattr(found, name), getattr(wanted, name), rtol=1e-12, atol=1e-14
    )


def test_without_a_temperature_it_is_1(x64):
  batch, params = tiny.batch(dtype=np.float64), tiny.bag_params(dtype=np.float64)
  plain, one, two = (bag().score(params, batch, *t) for t in ((), (1,), (2,)))
  jax.tree.map(np.testing.assert_array_equal, plain, one)
  assert np.abs(plain.logps - two.logps).max() > 0.1
  assert hyper(bag().objective, ADAMW)['temperature'] == 1.0


def test_values_and_scores_have_no_temperature():
  for name in ('bradley_terry', 'critic'):
    hot, cold = (step(name).score(with_head(), tiny.batch(), t) for t in (2.0, 0.5))
    jax.tree.map(np.testing.assert_array_equal, hot, cold)


def test_another_temperature_compiles_nothing():
  traces = []

  def forward(params, batch):
    traces.append(None)
    return tiny.bag_forward(params, batch)

  made = Step(forward, tiny.objective('sft'), ADAMW, chunk=16)
  batch, params = tiny.batch(), tiny.bag_params()
  found = []
  for temperature in (1.0, 0.5, 2.0, np.float64(1.3)):
    numbers = hyper(made.objective, ADAMW, temperature)
    _, metrics = tiny.updated(made, params, [batch], numbers)
    for kind in (float, np.float32, jnp.asarray):
      made.score(params, batch, kind(temperature))
    found.append((float(metrics['loss']), made.evaluate(params, [batch], numbers)))
  assert len(traces) == 3  # update, score and evaluation
  assert len({loss for loss, _ in found}) == 4
  for loss, evaluated in found:
    np.testing.assert_allclose(evaluated['loss'], loss, rtol=1e-5)


@pytest.mark.parametrize('name', ['sft', 'bco'])
def test_a_temperature_is_a_smaller_unembedding(name, x64):
  """In the parts of an update and of an evaluation, and where these are coupled."""
  batch, params = tiny.batch(dtype=np.float64), tiny.bag_params(dtype=np.float64)
  batches = [tiny.take(batch, rows, l=6, t=7) for rows in ([6, 1, 4, 3], [0, 5, 2, 7])]
  made = Step(tiny.bag_forward, tiny.objective(name), ADAMW, chunk=16)

  def observed(params, temperature):
    numbers = hyper(made.objective, ADAMW, temperature)
    state, metrics = tiny.updated(made, params, batches, numbers)
    gradient = tiny.gradient(state)
    loss = metrics['loss'], made.evaluate(params, batches, numbers)['loss']
    return {'loss': loss, 'gradient': gradient}

  found = observed(params, 2.5)
  other = observed(params | {'unembedding': params['unembedding'] / 2.5}, 1.0)
  plain = observed(params, 1.0)
  other['gradient']['unembedding'] /= 2.5
  tiny.assert_same(other, found, 1e-10)
  assert abs(found['loss'][0] - plain['loss'][0]) > 1e-4
