import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.types import Mean, PreferenceBatch, RolloutBatch, check_batch

SIZES = {'p': 2, 'k': 3, 't': 4, 'l': 5, 'm': 1}
AXES = {
  'prompts': ('p l', int),
  'responses': ('p k t', int),
  'prompt_length': ('p', int),
  'response_length': ('p k', int),
  'mask': ('p k t', bool),
  'weight': ('p k', float),
  'label': ('p k', float),
  'win_rate': ('p k', float),
  'reference_logps': ('p k t', float),
  'old_logps': ('p k t', float),
  'step': ('p k t', int),
  'step_label': ('p k t', float),
  'chosen': ('p m', int),
  'rejected': ('p m', int),
  'preference': ('p m', float),
  'pair_weight': ('p m', float),
  'truncated': ('p k', bool),
  'rewards': ('p k t', float),
  'implicit': ('p k t', float),
  'advantages': ('p k t', float),
  'returns': ('p k t', float),
  'values': ('p k t+1', float),
  'correction': ('p k t', float),
  'group_tokens': ('p', float),
}
REQUIRED = list(AXES)[:6]
PAIRS = ('chosen', 'rejected', 'preference', 'pair_weight')
NAMES = {int: 'integer', bool: 'bool', float: 'floating'}
each_field = pytest.mark.parametrize('field', AXES)


def shape(field):
  axes = AXES[field][0].split()
  return tuple(SIZES[a[0]] + a.endswith('+1') for a in axes)


def rollouts(**changes):
  """A batch with every field, on NumPy arrays."""
  fields = {f: np.zeros(shape(f), kind) for f, (_, kind) in AXES.items()}
  return RolloutBatch(**fields | changes)


def test_the_table_here_has_every_field():
  assert list(AXES) == list(RolloutBatch.__dataclass_fields__)


def test_a_batch_that_fits_comes_back():
  batch = rollouts()
  assert check_batch(batch) is batch
  required = {f: getattr(batch, f) for f in REQUIRED}
  check_batch(PreferenceBatch(**required))


@each_field
def test_a_wrong_rank_names_field_wanted_and_got(field):
  bad = shape(field)[:-1]
  with pytest.raises(InputError) as error:
    check_batch(rollouts(**{field: np.zeros(bad, AXES[field][1])}))
  assert f'`{field}` must have shape [' in str(error.value)
  assert f'got {list(bad)}' in str(error.value)


@pytest.mark.parametrize('field', [f for f in AXES if f != 'prompts'])
def test_a_wrong_number_of_prompts_names_field_wanted_and_got(field):
  bad = (7, *shape(field)[1:])
  with pytest.raises(InputError, match=rf'`{field}`.*\[p=2.*got \[7'):
    check_batch(rollouts(**{field: np.zeros(bad, AXES[field][1])}))


@pytest.mark.parametrize(
  ('field', 'wanted'),
  [
    ('mask', 'p=2, k=3, t=4'),
    ('rejected', 'p=2, m=1'),
    ('values', r'p=2, k=3, t\+1=5'),
  ],
)
def test_a_wrong_last_axis_says_which_size_it_should_have(field, wanted):
  bad = (*shape(field)[:-1], 9)
  with pytest.raises(InputError, match=rf'`{field}`.*\[{wanted}\]'):
    check_batch(rollouts(**{field: np.zeros(bad, AXES[field][1])}))


@each_field
@pytest.mark.parametrize('kind', NAMES)
def test_a_wrong_kind_names_field_wanted_and_got(field, kind):
  wanted = AXES[field][1]
  batch = rollouts(**{field: np.zeros(shape(field), kind)})
  if kind is wanted:
    check_batch(batch)
    return
  message = rf'`{field}` must be of {NAMES[wanted]} type, got {kind.__name__}'
  with pytest.raises(InputError, match=message):
    check_batch(batch)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
def test_every_float_is_a_float(dtype):
  check_batch(rollouts(weight=jnp.zeros(shape('weight'), dtype)))


@each_field
def test_only_the_required_fields_may_not_be_none(field):
  batch = rollouts(**{field: None})
  if field in REQUIRED:
    with pytest.raises(InputError, match=f'`{field}` is required, got None'):
      check_batch(batch)
  elif field in PAIRS:
    with pytest.raises(InputError, match=f"{field}'.* missing"):
      check_batch(batch)
  else:
    check_batch(batch)


def test_no_pairs_at_all_are_fine():
  check_batch(rollouts(**dict.fromkeys(PAIRS)))


def test_checked_in_a_compiled_function():
  assert jax.jit(lambda b: check_batch(b).weight)(rollouts()).shape == (2, 3)
  with pytest.raises(InputError, match='`weight`'):
    jax.jit(check_batch)(rollouts(weight=np.zeros((2, 9))))


@pytest.mark.parametrize('absent', [(), ('label', 'values')])
def test_a_batch_survives_the_trip_through_its_leaves(absent):
  batch = rollouts(**dict.fromkeys(absent))
  leaves, tree = jax.tree.flatten(batch)
  again = jax.tree.unflatten(tree, leaves)
  assert type(again) is RolloutBatch
  assert len(leaves) == len(AXES) - len(absent)
  for field in AXES:
    assert getattr(again, field) is getattr(batch, field)


# Mean -------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('total', 'weight', 'want'),
  [
    (6.0, 4.0, 1.5),
    (0.0, 0.0, 0.0),
    (5.0, 0.0, 0.0),  # nothing weighs: no division
    ([6.0, 1.0], [4.0, 2.0], 2.0),  # terms: 6 / 4 + 1 / 2
    ([6.0, 1.0], [4.0, 0.0], 1.5),
  ],
)
def test_the_value_of_a_mean_by_hand(total, weight, want):
  mean = Mean(jnp.array(total), jnp.array(weight))
  assert float(mean.value()) == want


def test_a_mean_under_another_denominator():
  mean = Mean(jnp.array(6.0), jnp.array(4.0))
  assert float(mean.value(weight=jnp.array(12.0))) == 0.5
  assert float(mean.value(weight=jnp.array(0.0))) == 0.0


def test_parts_merge_before_the_division():
  parts = (
    Mean(jnp.array(4.0), jnp.array(1.0)),
    Mean(jnp.array(3.0), jnp.array(3.0)),
  )
  assert float((parts[0] + parts[1]).value()) == 1.75  # not (4 + 1) / 2


def test_an_empty_mean_has_a_finite_gradient():
  gradient = jax.grad(lambda x: Mean(x, jnp.array(0.0)).value())(1.0)
  assert float(gradient) == 0.0


def test_a_mean_is_a_pytree():
  doubled = jax.tree.map(lambda x: 2 * x, Mean(1.0, 3.0))
  assert (doubled.total, doubled.weight) == (2.0, 6.0)
