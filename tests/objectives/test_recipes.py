import inspect
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax import objectives
from prefjax.errors import InputError
from prefjax.objectives import recipes
from prefjax.types import Outputs, RolloutBatch

# What has no default, and must be chosen.
NOTHING = [
  'bradley_terry',
  'cispo',
  'critic',
  'dapo',
  'grpo',
  'gspo',
  'online_dpo',
  'ppo',
  'preferred_ft',
  'prime',
  'reinforce_pp',
  'rloo',
  'sft',
  'step_cross_entropy',
]
BETA_ALONE = [
  'aot',
  'aot_unpaired',
  'apo_down',
  'apo_zero',
  'bco',
  'bco_pair',
  'cpo',
  'cross_entropy',
  'discopop',
  'dpo',
  'dpop',
  'exo_pair',
  'f_dpo',
  'hinge',
  'kto',
  'nca',
  'nca_pair',
  'odpo',
  'rpo',
  'wpo',
]
SMALLEST = {
  **{name: {} for name in NOTHING},
  **{name: {'beta': 0.1} for name in BETA_ALONE},
  **{name: {'eta': 2.0} for name in ('sppo', 'sppo_hard', 'sppo_single')},
  'dr_grpo': {'max_length': 8.0},
  'ipo': {'tau': 0.1},
  'ld_dpo': {'beta': 0.1, 'tail': 0.5},
  'orpo': {'coefficient': 0.2},
  'robust_dpo': {'beta': 0.1, 'flip_probability': 0.2},
  'simpo': {'beta': 2.0, 'gamma': 0.5},
  'unlikelihood': {'alpha': 0.1},
}
OWN = '''
"""An objective that no one here has heard of."""
from typing import Literal
from prefjax.objectives import Positive, recipe
from prefjax.types import Mean

@recipe(needs=('label', 'entropy'), couples_batch=True)
def mine(*, sharpness: Positive, shift: float = 0.5, top: int = 3,
         side: Literal['left', 'right'] = 'left'):
  return lambda outputs, batch: (Mean(sharpness * outputs.logps.sum(), 1.0), {})

@recipe(
  needs=('rewards',),
  needs_where=lambda structure: ('values',) if structure['judged'] else (),
  logps=False,
)
def judged(*, judged: bool = True):
  return lambda outputs, batch: (Mean(outputs.values.sum(), 1.0), {})

def undeclared(*, beta: Positive):
  return None

def positional(beta):
  return None

number = 3
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
  (tmp_path / 'someones_objective.py').write_text(OWN)
  monkeypatch.syspath_prepend(str(tmp_path))
  yield 'someones_objective.mine'
  sys.modules.pop('someones_objective', None)


@pytest.mark.parametrize('name', objectives.RECIPES)
def test_every_recipe_has_a_signature_that_says_all(name):
  known = objectives.fields(name)
  required = {key for key, field in known.items() if field.required}
  assert required == SMALLEST[name].keys()
  objective = objectives.create(name, **SMALLEST[name])
  assert objective.numbers.keys() | objective.structure.keys() == known.keys()
  assert objective.needs <= set(recipes.NEEDS)
  assert callable(objective.build())
  for key in objective.numbers:
    assert known[key].kind is float


def test_fields_of_dpo():
  beta, smoothing, _ = objectives.fields('dpo').values()
  assert (beta.required, str(beta.interval)) == (True, '(0, inf)')
  assert (smoothing.default, str(smoothing.interval)) == (0.0, '[0, 0.5)')
  normalised = objectives.fields('ipo')['length_normalised']
  assert (normalised.kind, normalised.interval) == (bool, None)


@pytest.mark.parametrize(
  ('name', 'given', 'words'),
  [
    ('dpoo', {}, ("'dpoo'", "did you mean 'dpo'", *objectives.RECIPES)),
    ('grpo_9000', {}, ('grpo_9000', *objectives.RECIPES)),
    (
      'dpo',
      {'beta': 1.0, 'label_smooth': 0.1},
      ("did you mean 'label_smoothing'",),
    ),
    ('dpo', {'zeta': 1.0}, ('objective.zeta', 'beta', 'label_smoothing')),
    ('dpo', {}, ('objective.beta', 'no default')),
    ('dpo', {'beta': None}, ('objective.beta', 'no default')),
    (
      'ipo',
      {'tau': 0.1, 'length_normalised': 1},
      ('length_normalised', 'bool'),
    ),
    ('ipo', {'tau': 0.1, 'length_normalised': 'yes'}, ('bool', "'yes'")),
    ('sft', {'reduction': 'mean'}, ('token_mean', 'sequence_sum', "'mean'")),
    (
      'no_such_package.objective',
      {},
      ('no_such_package.objective', 'imported'),
    ),
    ('math.no_such_function', {}, ('math.no_such_function', 'imported')),
    ('math.pi', {}, ('math.pi', 'not a function')),
    ('./mine.py', {}, ('./mine.py', 'imported')),
  ],
)
def test_a_refusal_says_what_and_what_exists(name, given, words):
  with pytest.raises(InputError) as error:
    objectives.create(name, **given)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    *[('beta', v) for v in (0.0, -0.1, np.nan, np.inf, -np.inf, True, '0.1')],
    *[('label_smoothing', v) for v in (-0.01, 0.5, np.nan, False, [0.1])],
  ],
)
def test_a_number_out_of_range_or_of_another_type_is_refused(key, value):
  with pytest.raises(InputError, match=rf'objective\.{key} of dpo .*got ') as e:
    objectives.create('dpo', **{'beta': 0.1, key: value})
  assert repr(value) in str(e.value)


@pytest.mark.parametrize('value', [2, 2.0, np.float32(2), np.float64(2), np.int32(2)])
def test_numbers_end_as_python_floats(value):
  (beta, smoothing) = objectives.create('dpo', beta=value).numbers.values()
  assert (type(beta), beta, type(smoothing)) == (float, 2.0, float)


@pytest.mark.parametrize('key', ['label_smoothing', 'flip_probability'])
def test_the_ends_of_an_interval(key):
  name = {'label_smoothing': 'dpo', 'flip_probability': 'robust_dpo'}[key]
  for value in (0.0, 0.4999):
    given = objectives.create(name, **{'beta': 0.1, key: value})
    assert given.numbers[key] == value


# Numbers are arguments --------------------------------------------------------


def one_pair():
  return jax.tree.map(
    jnp.asarray,
    RolloutBatch(
      prompts=np.zeros((1, 1), np.int32),
      responses=np.zeros((1, 2, 1), np.int32),
      prompt_length=np.ones(1, np.int32),
      response_length=np.ones((1, 2), np.int32),
      mask=np.ones((1, 2, 1), bool),
      weight=np.ones((1, 2), np.float32),
      label=np.array([[1.0, 0.0]], np.float32),
      win_rate=np.array([[0.75, 0.25]], np.float32),
      step_label=np.array([[[1.0], [0.0]]], np.float32),
      reference_logps=np.zeros((1, 2, 1), np.float32),
      chosen=np.zeros((1, 1), np.int32),
      rejected=np.ones((1, 1), np.int32),
      preference=np.ones((1, 1), np.float32),
      pair_weight=np.ones((1, 1), np.float32),
      old_logps=np.zeros((1, 2, 1), np.float32),
      advantages=np.array([[[1.0], [-1.0]]], np.float32),
      returns=np.zeros((1, 2, 1), np.float32),
      values=np.zeros((1, 2, 2), np.float32),
    ),
  )


def test_eight_betas_compile_once():
  traces = []
  logps, batch = jnp.array([[[1.0], [-1.0]]]), one_pair()
  objective = objectives.create('dpo', beta=1.0)

  @jax.jit
  def loss(numbers):
    traces.append(numbers)
    return objective.build(numbers)(Outputs(logps=logps), batch)[0].value()

  betas = [2.0**i for i in range(-4, 4)]
  got = [loss(objectives.create('dpo', beta=beta).numbers) for beta in betas]
  np.testing.assert_allclose(got, np.logaddexp(0.0, -2.0 * np.array(betas)), rtol=1e-5)
  assert len(traces) == 1


@pytest.mark.parametrize('name', objectives.RECIPES)
def test_every_recipe_takes_traced_numbers(name):
  logps, batch = jnp.array([[[1.0], [-1.0]]]), one_pair()
  objective = objectives.create(name, **SMALLEST[name])

  def loss(numbers):
    outputs = Outputs(
      logps=logps,
      collision=jnp.full((1, 2, 1), 0.5),
      scores=logps[..., 0],
      values=jnp.ones((1, 2, 2)),
    )
    return objective.build(numbers)(outputs, batch)[0].value()

  traced = jax.jit(loss)(objective.numbers)
  np.testing.assert_allclose(traced, loss(None), rtol=1e-6)


def test_no_module_hides_what_the_package_offers():
  # Importing `objectives.x` gives the package an attribute `x`.
  for name in objectives.__all__:
    assert not inspect.ismodule(getattr(objectives, name)), name


# One's own --------------------------------------------------------------------


def test_an_import_path_is_a_recipe(own):
  objective = objectives.create(own, sharpness=2, top=5)
  assert objective.numbers == {'sharpness': 2.0, 'shift': 0.5}
  assert objective.structure == {'top': 5, 'side': 'left'}
  assert objective.needs == {'label', 'entropy'}
  assert objective.couples_batch
  loss, _ = objective.build()(Outputs(logps=jnp.ones(3)), None)
  assert float(loss.value()) == 6.0


@pytest.mark.parametrize(
  ('given', 'word'),
  [
    ({}, 'objective.sharpness'),
    ({'sharpness': -1.0}, r'\(0, inf\)'),
    ({'sharpness': 1.0, 'shift': np.inf}, 'objective.shift'),
    ({'sharpness': 1.0, 'top': 2.0}, 'type int'),
    ({'sharpness': 1.0, 'side': 'up'}, "'left', 'right'"),
    ({'sharpnes': 1.0}, "did you mean 'sharpness'"),
  ],
)
def test_ones_own_objective_is_checked_too(own, given, word):
  with pytest.raises(InputError, match=word):
    objectives.create(own, **given)


@pytest.mark.parametrize(
  ('name', 'word'),
  [
    ('positional', 'keyword-only'),
    ('number', 'not a function'),
    ('min', 'min'),
  ],
)
def test_what_is_no_recipe_is_refused(own, name, word):
  with pytest.raises(InputError, match=word):
    objectives.create(f'someones_objective.{name}', beta=1.0)


@pytest.mark.parametrize(
  ('name', 'given', 'needs', 'reads'),
  [
    ('mine', {'sharpness': 1.0}, {'label', 'entropy'}, {'label', 'entropy', 'logps'}),
    ('judged', {}, {'rewards', 'values'}, {'rewards', 'values'}),
    ('judged', {'judged': False}, {'rewards'}, {'rewards'}),
    ('undeclared', {'beta': 1.0}, set(), {'logps'}),
  ],
)
def test_what_is_needed_may_depend_on_structure_and_leave_out_logps(
  own, name, given, needs, reads
):
  objective = objectives.create(f'someones_objective.{name}', **given)
  assert (objective.needs, objective.reads) == (needs, reads)


def test_a_reward_model_reads_no_logps_and_dpo_does():
  assert objectives.create('bradley_terry').reads == {'pairs', 'scores'}
  dpo = objectives.create('dpo', beta=0.1)
  assert dpo.reads == {'pairs', 'reference_logps', 'logps'}


def test_an_unknown_need_is_refused():
  with pytest.raises(InputError, match=r"\['teacher'\].*reference_logps"):
    objectives.recipe(needs=('pairs', 'teacher'))
