import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from prefjax.errors import InputError
from prefjax.training.optimizers import Optimizer, warm_up

RATE = 0.1


def make(name='rmsprop', **changes):
  settings = dict(name=name, learning_rate=RATE, steps=100)
  return Optimizer(**(settings | changes))


def gradients(count=5):
  rng = np.random.default_rng(0)
  return [
    {'a': rng.standard_normal((3, 2)), 'b': 3.0 * rng.standard_normal(4)}
    for _ in range(count)
  ]


def start():
  rng = np.random.default_rng(1)
  return {'a': rng.standard_normal((3, 2)), 'b': rng.standard_normal(4)}


def run(transform, grads):
  """Parameters and optimiser state after these gradients."""
  params = jax.tree.map(jnp.asarray, start())
  state = transform.init(params)
  for grad in grads:
    updates, state = transform.update(grad, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def assert_close(a, b, rtol=1e-12):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-15), a, b
  )


# Updates ----------------------------------------------------------------------


def test_rmsprop_is_that_of_torch(x64):
  # torch.optim.RMSprop: v = alpha v + (1 - alpha) g^2, p -= lr g / (sqrt v + eps),
  # alpha 0.99, eps 1e-8. Small gradients make the place of eps visible.
  grads = [jax.tree.map(lambda g: 1e-7 * g, grad) for grad in gradients()]
  expected, square = start(), jax.tree.map(np.zeros_like, start())
  for grad in grads:
    for key, g in grad.items():
      square[key] = 0.99 * square[key] + (1 - 0.99) * g * g
      expected[key] -= RATE * g / (np.sqrt(square[key]) + 1e-8)
  found, _ = run(make().build(), grads)
  assert_close(expected, found)
  for other in (
    optax.rmsprop(RATE),
    optax.rmsprop(RATE, decay=0.99, eps=1e-8),
    optax.rmsprop(RATE, decay=0.9, eps=1e-8, eps_in_sqrt=False),
  ):
    wrong, _ = run(other, grads)
    assert np.abs(wrong['a'] - found['a']).max() > 1e-3


def test_adafactor_keeps_rows_and_columns_of_a_matrix(x64):
  rng = np.random.default_rng(2)
  params = {'a': rng.standard_normal((128, 130)), 'b': rng.standard_normal(4)}
  grads = {'a': rng.standard_normal((128, 130)), 'b': rng.standard_normal(4)}
  optimizer = make('adafactor', weight_decay=0.3).build()
  state = optimizer.init(jax.tree.map(jnp.asarray, params))
  updates, state = optimizer.update(grads, state, params)
  # In the first step the decay is 0: r and c are means of the squares themselves.
  square = np.square(grads['a'])
  rows, columns = square.mean(axis=1), square.mean(axis=0)
  ratio = grads['a'] / np.sqrt(np.outer(rows, columns) / rows.mean())
  for key, u in (('a', ratio), ('b', np.sign(grads['b']))):
    u = u / max(1.0, np.sqrt(np.square(u).mean()))
    expected = -RATE * (u + 0.3 * params[key])
    np.testing.assert_allclose(updates[key], expected, rtol=1e-10)
  held = sum(leaf.size for leaf in jax.tree.leaves(state))
  assert held < 128 + 130 + 4 + 16


@pytest.mark.parametrize('decay', [0.0, 0.3])
def test_adamw_by_hand(decay, x64):
  b1, b2 = 0.8, 0.95
  expected = start()
  m, v = (jax.tree.map(np.zeros_like, start()) for _ in range(2))
  for n, grad in enumerate(gradients(), start=1):
    for key, g in grad.items():
      m[key] = b1 * m[key] + (1 - b1) * g
      v[key] = b2 * v[key] + (1 - b2) * g * g
      step = m[key] / (1 - b1**n) / (np.sqrt(v[key] / (1 - b2**n)) + 1e-8)
      expected[key] -= RATE * (step + decay * expected[key])
  optimizer = make('adamw', b1=b1, b2=b2, weight_decay=decay)
  assert_close(expected, run(optimizer.build(), gradients())[0])


def test_the_rate_of_a_step_is_used(x64):
  # Equal gradients: the n-th AdamW update has the size of the n-th rate.
  optimizer = make('adamw', warmup_steps=3, schedule='linear', steps=6)
  params = {'a': jnp.zeros(2)}
  transform = optimizer.build()
  state, sizes = transform.init(params), []
  for _ in range(7):
    updates, state = transform.update({'a': jnp.ones(2)}, state, params)
    sizes.append(-float(updates['a'][0]))
  shape = [1 / 4, 2 / 4, 3 / 4, 1, 2 / 3, 1 / 3, 0]
  np.testing.assert_allclose(sizes, RATE * np.array(shape), rtol=1e-6)


# Clipping ---------------------------------------------------------------------


def seen_by(optimizer, grad):
  """The gradient after clipping, from the first moment of AdamW."""
  _, state = run(optimizer.build(), [grad])
  return jax.tree.map(
    lambda mu: mu / (1 - 0.9), tiny.moment({'optimizer': state}, 'mu')
  )


def norm_of(tree):
  return math.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(tree)))


def test_clipping_by_hand(x64):
  (grad,) = gradients(1)
  norm = norm_of(grad)
  assert norm > 4
  # torch.nn.utils.clip_grad_norm_ is g * min(1, c / (norm + 1e-6)): without 1e-6.
  for limit, factor in ((0.0, 1.0), (2.0, 2.0 / norm), (2 * norm, 1.0)):
    expected = jax.tree.map(lambda g, f=factor: f * g, grad)
    assert_close(expected, seen_by(make('adamw', clip_norm=limit), grad))
  large = jax.tree.map(lambda g: 1e6 * g, grad)
  assert_close(large, seen_by(make('adamw', clip_norm=0.0), large))
  ten = seen_by(make('adamw', clip_norm=10.0), large)
  np.testing.assert_allclose(norm_of(ten), 10.0, rtol=1e-12)


@pytest.mark.parametrize('limit', [0.0, 1.0])
def test_a_gradient_of_zero_is_no_division(limit, x64):
  zero = jax.tree.map(np.zeros_like, start())
  found, _ = run(make(clip_norm=limit).build(), [zero])
  assert_close(start(), found)


# Schedules --------------------------------------------------------------------


@pytest.mark.parametrize(
  ('step', 'share'),
  [(0, 1 / 151), (74, 75 / 151), (149, 150 / 151), (150, 1), (151, 1)],
)
def test_warm_up_of_the_dpo_code(step, share, x64):
  np.testing.assert_allclose(warm_up(step, 150), share, rtol=1e-12)
  optimizer = make(warmup_steps=150, learning_rate=5e-7)
  rate = optimizer.rate(jnp.int32(step), optimizer.numbers)
  np.testing.assert_allclose(rate, 5e-7 * share, rtol=1e-12)


def test_no_warm_up_begins_at_the_full_rate():
  assert warm_up(0, 0) == 1.0


@pytest.mark.parametrize(
  ('schedule', 'final', 'shares'),
  [
    # At steps 0, 20, 40, 60, 100 and 130, of 100 with 20 to warm up.
    ('constant', 0.0, [1 / 21, 1, 1, 1, 1, 1]),
    ('linear', 0.0, [1 / 21, 1, 0.75, 0.5, 0, 0]),
    ('linear', 0.2, [1 / 21, 1, 0.8, 0.6, 0.2, 0.2]),
    ('cosine', 0.0, [1 / 21, 1, 0.5 + math.sqrt(0.125), 0.5, 0, 0]),
    ('cosine', 0.1, [1 / 21, 1, 0.1 + 0.9 * (0.5 + math.sqrt(0.125)), 0.55, 0.1, 0.1]),
  ],
)  # fmt: skip
def test_schedules_by_hand(schedule, final, shares, x64):
  optimizer = make(schedule=schedule, final=final, warmup_steps=20)
  rates = [
    optimizer.rate(jnp.int32(n), optimizer.numbers) for n in (0, 20, 40, 60, 100, 130)
  ]
  np.testing.assert_allclose(rates, RATE * np.array(shares), atol=1e-15)


# Structure --------------------------------------------------------------------


@pytest.mark.parametrize('name', ['rmsprop', 'adamw', 'adafactor'])
def test_the_state_does_not_depend_on_the_numbers(name):
  def init(numbers):
    transform = make(name).build(numbers)
    params = jax.tree.map(jnp.asarray, start())
    state = transform.init(params)
    return transform.update(params, state, params)[1]

  usual = make(name).numbers
  zero = dict.fromkeys(usual, 0.0)
  traced = jax.jit(init)(usual)
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype), traced)
  for numbers in (usual, zero, jax.tree.map(jnp.float32, usual)):
    found = jax.tree.map(lambda x: (x.shape, x.dtype), init(numbers))
    assert jax.tree.structure(found) == jax.tree.structure(shapes)
    assert jax.tree.leaves(found) == jax.tree.leaves(shapes)


def test_traced_numbers_give_the_same_update(x64):
  optimizer = make(
    'adamw', clip_norm=1.0, weight_decay=0.1, final=0.2, schedule='cosine'
  )

  def last(numbers):
    return run(optimizer.build(numbers), gradients(3))[0]

  assert_close(last(None), jax.jit(last)(optimizer.numbers))


def test_the_numbers_are_floats():
  assert make(clip_norm=1.0).numbers == dict(
    learning_rate=RATE,
    clip_norm=1.0,
    weight_decay=0.0,
    b1=0.9,
    b2=0.999,
    final=0.0,
  )


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      dict(name='sgd'),
      r"optimizer.name must be one of .*'rmsprop'.* got 'sgd'",
    ),
    (dict(schedule='step'), "optimizer.schedule .*'cosine'.* got 'step'"),
    (dict(learning_rate=-1.0), 'optimizer.learning_rate must not be negative'),
    (dict(learning_rate=math.nan), 'optimizer.learning_rate must not be neg'),
    (dict(clip_norm=-1.0), 'optimizer.clip_norm'),
    (dict(weight_decay=-0.1), 'optimizer.weight_decay'),
    (dict(warmup_steps=-1), 'optimizer.warmup_steps'),
  ],
)
def test_refusals(changes, message):
  with pytest.raises(InputError, match=message):
    make(**changes)
