"""The laws of every objective on rollouts, and what their papers state."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from objectives import test_laws as laws
import pytest
import reference as ref
import reference_rl as rl
from scipy import special

from prefjax import objectives
from prefjax.errors import InputError
from prefjax.objectives import aggregation, divergences, policy_gradient, surrogates
from prefjax.objectives.policy_gradient import PolicyObjective
from prefjax.types import Mean, Outputs, RolloutBatch

P, K, T, L = 2, 4, 4, 3
HUGE = 1e30
AXES = {
  'prompts': 'pl',
  'responses': 'pkt',
  'prompt_length': 'p',
  'response_length': 'pk',
  'mask': 'pkt',
  'weight': 'pk',
  'reference_logps': 'pkt',
  'old_logps': 'pkt',
  'step': 'pkt',
  'truncated': 'pk',
  'rewards': 'pkt',
  'implicit': 'pkt',
  'values': 'pkt',
}


# The table --------------------------------------------------------------------


class Case(NamedTuple):
  recipe: str
  hyper: dict[str, Any]
  # (x, batch, held) -> the loss of the log-probs and values x; what has no gradient
  # is read off `held`.
  reference: Callable[..., float]


def rewards(batch, kl, kl_coef):
  if kl != 'reward':
    return batch.rewards
  arrays = batch.rewards, batch.old_logps, batch.reference_logps
  return rl.kl_in_rewards(*arrays, batch.mask, batch.weight, beta=kl_coef)


def step_ends(batch):
  """Where the next token is of another step, or there is none."""
  ends = np.zeros((P, K, T), bool)
  for i, j, t in np.argwhere(batch.step >= 0):
    ends[i, j, t] = t == T - 1 or batch.step[i, j, t + 1] != batch.step[i, j, t]
  return ends


AGGREGATES = {
  'mean_of_sequence_means': rl.mean_of_sequence_means,
  'token_mean': rl.token_mean,
  'group_token_mean': rl.group_token_mean,
  'sequence_sum': functools.partial(rl.sum_over_length, length=1),
}
BOUNDS = {'low': 0.2, 'high': 0.28}
CLIPS = {'clip_low': 0.2, 'clip_high': 0.28}
NORMAL = {'ddof': 1, 'eps': 1e-6}


def of_parts(advantage, aggregate, *, kl, kl_coef=0.3, ratios=rl.token_log_ratios):
  """Aggregate(clipped surrogate + kl_coef KL), put together of the papers' parts."""

  def reference(x, batch, held):
    counted = batch.mask, batch.weight

    def loss(x, kl, beta):
      return rl.policy_loss(
        x['logps'],
        ratios(x['logps'], batch.old_logps, *counted),
        advantage(rewards(batch, kl, kl_coef), batch),
        *counted,
        surrogate=lambda ratio, a, _: rl.clipped(ratio, a, **BOUNDS),
        aggregate=aggregate,
        reference_logps=batch.reference_logps,
        kl=getattr(rl, kl, None),
        beta=beta,
      )

    if kl == 'k3_as_k2':
      learnt = loss(x, 'k2', kl_coef) - loss(held, 'k2', kl_coef)
      return learnt + loss(held, 'k3', kl_coef)
    return loss(x, kl, kl_coef if kl in divergences.DIVERGENCES else 0.0)

  return reference


def normalised(rewards, batch, *, ddof=1):
  counted = batch.mask, batch.weight, batch.response_length
  return rl.group_normalised(rewards, *counted, ddof=ddof, eps=1e-6)


def centred(rewards, batch):
  return rl.group_centred(rewards, batch.mask, batch.weight, batch.response_length)


def process(rewards, batch):
  return rl.process(rewards, step_ends(batch), batch.mask, batch.weight, **NORMAL)


def gae(batch):
  """Whitened advantages, and returns."""
  counted = batch.mask, batch.response_length, batch.truncated
  arrays = rewards(batch, 'reward', 0.3), batch.values
  found, returns = rl.gae(*arrays, *counted, gamma=0.9, lam=0.8)
  return rl.whiten(found, batch.mask, batch.weight, eps=1e-8), returns


def grpo_case(
  kl='k3', aggregate='mean_of_sequence_means', advantage=normalised, **structure
):
  hyper = CLIPS | {'kl': kl, 'kl_coef': 0.3, 'aggregate': aggregate} | structure
  return Case('grpo', hyper, of_parts(advantage, AGGREGATES[aggregate], kl=kl))


def family_case(
  recipe, hyper, *, before=('logps', 'old_logps'), kl_coef=0.0, **options
):
  """The reference of the same name on a whole rollout."""

  def reference(x, batch, held):
    x = {'logps': x['logps'], 'old_logps': batch.old_logps}
    more = {'factor_logps': held['logps']} if recipe == 'cispo' else {}
    return getattr(rl, recipe)(
      *(x[name] for name in before),
      rewards(batch, 'reward', kl_coef),
      batch.mask,
      batch.weight,
      batch.response_length,
      **options,
      **more,
    )

  return Case(recipe, hyper, reference)


def grpo(x, batch, held):
  return rl.grpo(
    x['logps'],
    batch.old_logps,
    batch.reference_logps,
    batch.rewards,
    batch.mask,
    batch.weight,
    batch.response_length,
    **NORMAL,
    clip=0.2,
    beta=0.3,
  )


def ppo(x, batch, held):
  counted = batch.mask, batch.weight
  return rl.ppo(x['logps'], batch.old_logps, gae(batch)[0], *counted, **BOUNDS)


def critic(x, batch, held):
  returns = gae(batch)[1]
  counted = batch.mask, batch.weight
  return rl.ppo_value(x['values'], batch.values, returns, *counted, clip=0.2)


def ppo_shared(x, batch, held):
  return ref.add((ppo(x, batch, held), 1.0), (critic(x, batch, held), 0.3))


def prime(x, batch, held):
  return rl.prime(
    x['logps'],
    batch.old_logps,
    batch.rewards,
    batch.implicit,
    batch.mask,
    batch.weight,
    batch.response_length,
    process=2.0,
    outcome=3.0,
    gamma=0.9,
    eps=1e-6,
    **BOUNDS,
  )


def online_dpo(x, batch, held):
  """DPO on the best and the worst present response, where one is better."""
  counted = batch.mask, batch.weight
  outcome = rl.outcomes(batch.rewards, *counted, batch.response_length)
  pairs = ref.Pairs(*np.zeros((2, P, 1), int), np.ones((P, 1)), np.zeros((P, 1)))
  for i, group in rl.groups(*counted):
    worst, *_, best = sorted([group[0], *group], key=lambda j, i=i: outcome[i, j])
    pairs.chosen[i], pairs.rejected[i] = best, worst
    pairs.pair_weight[i] = outcome[i, best] > outcome[i, worst]
  return ref.dpo(x['logps'], batch.reference_logps, batch.mask, pairs, beta=0.3)


PRIME = {'process_coef': 2.0, 'outcome_coef': 3.0, 'discount': 0.9}
GAE = {'discount': 0.9, 'trace': 0.8, 'kl_coef': 0.3, 'bootstrap': True}
CASES = {
  'grpo': Case('grpo', {'clip_high': 0.2, 'kl_coef': 0.3}, grpo),
  'grpo_ddof_0': grpo_case(advantage=functools.partial(normalised, ddof=0), ddof=0),
  'grpo_process': grpo_case(advantage=process, supervision='process'),
  'grpo_none': grpo_case('none'),
  'grpo_k1': grpo_case('k1'),
  'grpo_k2': grpo_case('k2'),
  'grpo_k3': grpo_case('k3'),
  'grpo_k3_as_k2': grpo_case('k3_as_k2'),
  'grpo_reward': grpo_case('reward'),
  **{
    f'grpo_{name}': grpo_case(aggregate=name)
    for name in ('token_mean', 'group_token_mean', 'sequence_sum')
  },
  'dr_grpo': family_case('dr_grpo', {'max_length': 8.0}, clip=0.2, length=8),
  'dr_grpo_k2': Case(
    'dr_grpo',
    CLIPS | {'max_length': 8.0, 'kl': 'k2', 'kl_coef': 0.3},
    of_parts(centred, functools.partial(rl.sum_over_length, length=8), kl='k2'),
  ),
  'dapo': family_case('dapo', {}, **NORMAL, **BOUNDS),
  'dapo_token_mean': family_case(
    'dapo', {'aggregate': 'token_mean'}, **NORMAL, **BOUNDS, aggregate=rl.token_mean
  ),
  'gspo': family_case('gspo', CLIPS, **NORMAL, **BOUNDS),
  # Of a response's one advantage, its loss and its gradient are GSPO's.
  'gspo_token': family_case(
    'gspo', CLIPS | {'log_ratio': 'sequence_token'}, **NORMAL, **BOUNDS
  ),
  'gspo_k3': Case(
    'gspo',
    CLIPS | {'kl': 'k3', 'kl_coef': 0.3},
    of_parts(
      normalised, rl.mean_of_sequence_means, kl='k3', ratios=rl.sequence_log_ratios
    ),
  ),
  'cispo': family_case('cispo', {'clip_high': 0.28}, **NORMAL, high=0.28),
  'cispo_token_mean': family_case(
    'cispo',
    {'clip_high': 0.28, 'aggregate': 'token_mean'},
    **NORMAL,
    high=0.28,
    aggregate=rl.token_mean,
  ),
  'rloo': family_case('rloo', {'kl_coef': 0.3}, before=('logps',), kl_coef=0.3),
  'rloo_none': family_case('rloo', {'kl': 'none'}, before=('logps',)),
  **{
    name: family_case(
      'reinforce_pp',
      CLIPS | {'kl_coef': 0.3, 'group_baseline': baseline},
      kl_coef=0.3,
      ddof=0,
      eps=1e-6,
      **BOUNDS,
      centre_group=baseline,
    )
    for name, baseline in (('reinforce_pp', False), ('reinforce_pp_baseline', True))
  },
  'ppo': Case('ppo', CLIPS | GAE, ppo),
  'ppo_shared': Case(
    'ppo', CLIPS | GAE | {'trunk': 'shared', 'value_coef': 0.3}, ppo_shared
  ),
  'critic': Case('critic', {'value_clip': 0.2}, critic),
  'online_dpo': Case('online_dpo', {'beta': 0.3}, online_dpo),
  'prime': Case('prime', CLIPS | PRIME, prime),
}
each_case = pytest.mark.parametrize('name', CASES)
# One a recipe, with every aggregate and ratio among them.
RECIPES = [
  'grpo',
  'dr_grpo',
  'dapo',
  'gspo',
  'cispo',
  'rloo',
  'reinforce_pp',
  'ppo_shared',
  'critic',
  'online_dpo',
  'prime',
]
each_recipe = pytest.mark.parametrize('name', RECIPES)


def test_every_recipe_is_in_a_table_of_laws():
  tables = (laws.CASES, CASES)
  covered = {case.recipe for table in tables for case in table.values()}
  alone = {'step_cross_entropy'}  # test_step_labels
  assert covered | alone == set(objectives.RECIPES)


# Batches ----------------------------------------------------------------------


def random_batch(seed=0):
  """What a forward gives, and a float64 rollout.

  Ratios and values are near no bound, where central differences would fail.
  """
  rng = np.random.default_rng(seed)
  length = rng.integers(1, T + 1, (P, K))
  length[0, 0] = T
  real = np.arange(T) < length[..., None]
  mask = real & (rng.random((P, K, T)) < 0.8)
  mask[..., 0] = True

  def near(centres, shape):
    return rng.choice(centres, shape) + rng.uniform(-0.005, 0.005, shape)

  old_logps = -rng.exponential(size=(P, K, T))
  values = rng.normal(size=(P, K, T + 1))
  x = {
    'logps': old_logps + near([-0.6, -0.15, 0.1, 0.215, 0.6], (P, K, T)),
    'values': values + near([-0.5, -0.1, 0.1, 0.5], (P, K, T + 1)),
  }
  batch = RolloutBatch(
    prompts=rng.integers(0, 9, (P, L)),
    responses=rng.integers(0, 9, (P, K, T)),
    prompt_length=np.full(P, L),
    response_length=length,
    mask=mask,
    weight=rng.uniform(0.5, 2.0, (P, K)),
    reference_logps=old_logps + rng.normal(scale=0.5, size=(P, K, T)),
    old_logps=old_logps,
    step=np.where(real, np.cumsum(rng.random((P, K, T)) < 0.5, axis=-1), -1),
    truncated=rng.random((P, K)) < 0.5,
    rewards=np.where(real, rng.normal(size=(P, K, T)), 0.0),
    implicit=np.where(real, rng.normal(size=(P, K, T)), 0.0),
    values=values,
  )
  return x, batch


def as_is(x, batch):
  return x, batch


def on_policy(x, batch):
  return x | {'logps': batch.old_logps}, batch


def one_step(x, batch):
  return x, batch.replace(step=np.where(batch.step < 0, -1, 0))


def last_tokens(batch):
  return np.arange(T) == batch.response_length[..., None] - 1


def equal_rewards(x, batch):
  return x, batch.replace(rewards=np.where(last_tokens(batch), 0.7, 0.0))


def empty_response(x, batch):
  """A response without a token that counts, and one without any."""
  mask, length = np.copy(batch.mask), np.copy(batch.response_length)
  mask[0, 0], mask[1, 1], length[1, 1] = False, False, 0
  real = np.arange(T) < length[..., None]
  return x, batch.replace(
    mask=mask,
    response_length=length,
    rewards=np.where(real, batch.rewards, 0.0),
    step=np.where(real, batch.step, -1),
  )


def without_weight(x, batch):
  """What was cut off is not trained on, as by overlong filtering."""
  return x, batch.replace(weight=np.where(batch.truncated, 0.0, batch.weight))


def one_a_group(x, batch):
  return x, batch.replace(weight=batch.weight * (np.arange(K) == 1))


def nothing(x, batch):
  return x, batch.replace(weight=np.zeros((P, K)))


def length_one(x, batch):
  first = np.arange(T) < 1
  return x, batch.replace(
    mask=np.broadcast_to(first, (P, K, T)),
    response_length=np.ones((P, K), int),
    rewards=np.where(first, batch.rewards, 0.0),
    step=np.where(first, batch.step, -1),
  )


def filled(x, batch):
  """Prompt 1 and the last response of prompt 0 are filling, and hold huge numbers."""
  weight = np.copy(batch.weight)
  weight[1], weight[0, -1] = 0.0, 0.0

  def fill(array, *huge):
    filling = (weight == 0)[..., None]
    return np.where(filling, np.resize(huge, array.shape), array)

  fields = ('reference_logps', 'old_logps', 'rewards', 'implicit', 'values')
  arrays = {field: fill(getattr(batch, field), HUGE, -HUGE) for field in fields}
  x = {key: fill(array, -HUGE, HUGE) for key, array in x.items()}
  return x, batch.replace(weight=weight, **arrays)


def poisoned(x, batch):
  """What does not count holds NaN and infinities."""
  bad = np.resize([np.nan, np.inf, -np.inf], (P, K, T))
  edge = np.concatenate([bad, bad[..., :1]], axis=-1)
  counted = np.pad(batch.mask, [(0, 0), (0, 0), (0, 1)])
  known = np.arange(T + 1) <= batch.response_length[..., None]
  x = {
    'logps': np.where(batch.mask, x['logps'], bad),
    'values': np.where(counted, x['values'], edge),
  }
  return x, batch.replace(
    old_logps=np.where(batch.mask, batch.old_logps, -bad),
    reference_logps=np.where(batch.mask, batch.reference_logps, bad[..., ::-1]),
    implicit=np.where(batch.mask, batch.implicit, bad),
    values=np.where(known, batch.values, edge),
  )


def huge(x, batch):
  """Log-ratios of 1e4 nats, of either sign, to both policies."""
  logps = np.copy(x['logps'])
  logps[:, 0, 0] += 1e4
  logps[:, 1, 0] -= 1e4
  return x | {'logps': logps}, batch


EDGES = (
  as_is,
  on_policy,
  equal_rewards,
  empty_response,
  without_weight,
  one_a_group,
  nothing,
  length_one,
  filled,
  poisoned,
)
each_edge = pytest.mark.parametrize('edge', EDGES, ids=lambda f: f.__name__)


# Evaluation -------------------------------------------------------------------


def create(name, **more):
  """The objective of a case; PPO's credit fills in what its critic is to predict."""
  case = CASES[name]
  built = objectives.create(case.recipe, **case.hyper | more).build()
  if case.recipe != 'critic':
    return built
  return PolicyObjective(objectives.create('ppo', **GAE).build().credit, built)


@functools.cache
def credit(name):
  return jax.jit(create(name).credit)


def graded(objective):
  """(x, batch) -> the loss and its gradients, of a batch with its advantages."""

  def value(x, batch):
    loss, _ = objective(Outputs(**x), batch)
    return loss.value()

  def run(x, batch):
    loss, gradient = jax.value_and_grad(value)(x, batch)
    return {'loss': loss, **gradient}

  return run


@jax.jit
def together(x, batch):
  """All cases in one program: they share most of what there is to compile."""
  made = {name: create(name) for name in CASES}
  return {name: graded(one)(x, one.credit(batch)) for name, one in made.items()}


def evaluate(name, x, batch):
  return together(*laws.as_jax(x, batch))[name]


def measured(name, x, batch):
  """The loss and the metrics as they are before they are divided."""
  loss, metrics = create(name)(Outputs(**x), batch)
  return {'loss': loss, **metrics}


def expected_gradient(name, x, batch):
  """Central differences of the reference at what counts, without their h^2 error."""
  case = CASES[name]
  held = {key: np.copy(array) for key, array in x.items()}
  reads = objectives.create(case.recipe, **case.hyper).reads
  gradient = {key: np.zeros_like(array) for key, array in x.items()}
  for key in reads & x.keys():
    counted = np.zeros(x[key].shape, bool)
    counted[..., :T] = batch.mask & (batch.weight != 0)[..., None]

    def loss(entries, key=key, counted=counted):
      moved = {**x, key: np.copy(x[key])}
      moved[key][counted] = entries
      return case.reference(moved, batch, held)

    coarse, fine = (
      ref.central_difference(loss, x[key][counted], h=h) for h in (2e-3, 1e-3)
    )
    gradient[key][counted] = (4.0 * fine - coarse) / 3.0
  return gradient


# Law 1: the reference ---------------------------------------------------------


@each_case
@each_edge
def test_value_and_gradient_are_the_papers(x64, name, edge):
  x, batch = edge(*random_batch())
  got = evaluate(name, x, batch)
  want = expected_gradient(name, x, batch)
  want['loss'] = CASES[name].reference(x, batch, x)
  laws.assert_same(got, want)


@each_case
@pytest.mark.parametrize('edge', [*EDGES, huge], ids=lambda f: f.__name__)
def test_float32_is_finite_and_near_float64(name, edge):
  x, batch = laws.as_float32(*edge(*random_batch(1)))
  got = evaluate(name, x, batch)
  with jax.enable_x64(True):
    want = evaluate(name, *jax.tree.map(laws.widen, (x, batch)))
  assert all(np.isfinite(value).all() for value in got.values())
  laws.assert_same(got, jax.tree.map(np.asarray, want), 1e-5)


@pytest.mark.parametrize('edge', [poisoned, huge, nothing], ids=lambda f: f.__name__)
def test_float32_metrics_are_finite(edge):
  x, batch = laws.as_jax(*edge(*random_batch(1)))
  metrics = measured('ppo_shared', x, credit('ppo_shared')(batch))
  assert all(np.isfinite(mean.value()) for mean in metrics.values())


SURROGATES = {
  'plain': (surrogates.plain(), lambda ratio, a, logp: rl.plain(ratio, a)),
  'likelihood': (surrogates.likelihood(), lambda ratio, a, logp: rl.reinforce(a, logp)),
  'clipped': (
    surrogates.clipped(**BOUNDS),
    lambda ratio, a, logp: rl.clipped(ratio, a, **BOUNDS),
  ),
  'dual_clipped': (
    surrogates.dual_clipped(**BOUNDS, cap=3.0),
    lambda ratio, a, logp: rl.dual_clipped(ratio, a, **BOUNDS, cap=3.0),
  ),
  'cispo': (
    surrogates.cispo(high=0.28),
    lambda ratio, a, logp: rl.cispo_term(ratio, a, logp, high=0.28),
  ),
}
LOG_RATIOS = [-1e4, -90.0, -1.0, -0.1, 0.0, 0.1, 0.3, 1.2, 79.0, 81.0, 1e4]


@pytest.mark.parametrize('name', SURROGATES)
@pytest.mark.parametrize('advantage', [-2.0, 0.0, 3.0])
def test_exponents_stop_at_80_and_with_them_the_slope(name, advantage):
  ours, papers = SURROGATES[name]
  ratios = jnp.array(LOG_RATIOS).reshape(1, 1, -1)

  def loss(ratios):
    value = ours(ratios, jnp.full_like(ratios, advantage), jnp.full_like(ratios, -1.5))
    return value.sum(), value

  slope, value = jax.grad(loss, has_aux=True)(ratios)
  want = [papers(min(r, 80.0), advantage, -1.5) for r in LOG_RATIOS]
  np.testing.assert_allclose(value.ravel(), want, rtol=2e-5, atol=1e-30)
  assert np.isfinite(slope).all()
  assert not slope[..., -2:].any()
  if name == 'plain':
    np.testing.assert_array_equal(slope[..., :-2], value[..., :-2])


# Law 3: what must not matter --------------------------------------------------


def pad(x, batch):
  """One more entry on every axis, that holds rubbish and counts for nothing."""

  def grow(field, array, axes):
    fill = 1 if array.dtype == int else np.nan
    if field in ('weight', 'rewards') or array.dtype == bool:
      fill = 0
    return np.pad(array, [(0, 1)] * len(axes), constant_values=fill)

  grown = {f: grow(f, getattr(batch, f), axes) for f, axes in AXES.items()}
  return {key: grow(key, a, 'pkt') for key, a in x.items()}, batch.replace(**grown)


@each_recipe
def test_padding_changes_nothing(x64, name):
  x, batch = without_weight(*random_batch(2))
  want = evaluate(name, x, batch)
  got = evaluate(name, *pad(x, batch))
  for key, array in x.items():
    p, k, t = array.shape
    assert np.count_nonzero(got[key]) == np.count_nonzero(want[key])
    got[key] = got[key][:p, :k, :t]
  laws.assert_same(got, want)


@each_case
@pytest.mark.parametrize('axis', 'pk')
def test_order_changes_nothing(x64, name, axis):
  x, batch = without_weight(*random_batch(3))

  def flip(array, axes):
    return np.flip(array, axes.index(axis)) if axis in axes else array

  def flipped(x):
    return {key: flip(np.asarray(x[key]), 'pkt') for key in ('logps', 'values')}

  want = evaluate(name, x, batch)
  fields = {f: flip(getattr(batch, f), axes) for f, axes in AXES.items()}
  got = evaluate(name, flipped(x), batch.replace(**fields))
  laws.assert_same(got | flipped(got), want)


@pytest.mark.parametrize('name', ['grpo', 'grpo_ddof_0', 'grpo_process', 'grpo_reward'])
def test_the_unit_and_the_zero_of_rewards_change_no_advantage(x64, name):
  _, batch = random_batch(4)
  batch = batch.replace(rewards=np.where(last_tokens(batch), batch.rewards, 0.0))
  moved = 100.0 * batch.rewards + np.where(last_tokens(batch), 7.0, 0.0)
  if name in ('grpo_process', 'grpo_reward'):
    # A step's reward stands on each of its ends; the KL has a unit of its own.
    moved = 100.0 * batch.rewards
    batch = batch.replace(reference_logps=batch.old_logps)
  got, want = (
    credit(name)(jax.tree.map(jnp.asarray, b)).advantages
    for b in (batch.replace(rewards=moved), batch)
  )
  # eps is 1e-6 beside a spread of about 1.
  np.testing.assert_allclose(got, want, rtol=1e-4)


# Law 3: micro-batches ---------------------------------------------------------


@jax.jit
def credited(batch):
  return {name: create(name).credit(batch) for name in RECIPES}


@jax.jit
def terms(x, batches):
  """Of each recipe what a micro-batch adds: the slopes of its total, and `Mean`s."""

  def of(name):
    def total(x):
      means = measured(name, x, batches[name])
      return means['loss'].total.sum(), means

    return jax.grad(total, has_aux=True)(x)

  return {name: of(name) for name in RECIPES}


def part(x, batches, axis, rows):
  """Rollouts with their advantages, cut along the prompts or the responses."""
  pairs = ('chosen', 'rejected', 'preference', 'pair_weight')
  axes = AXES | dict.fromkeys(('logps', 'advantages', 'returns'), 'pkt')
  axes |= dict.fromkeys(pairs, 'pm') | {'group_tokens': 'p'}

  def take(arrays):
    cut = {f: (slice(None),) * axes[f].find(axis) + (rows,) for f in arrays}
    return {f: a[cut[f]] if axis in axes[f] else a for f, a in arrays.items()}

  def of(batch):
    held = {f: a for f, a in vars(batch).items() if a is not None}
    return batch.replace(**take(held))

  return take(x), {name: of(batch) for name, batch in batches.items()}


@functools.cache
def split(axis):
  """The terms of a whole rollout and of its halves; a group knows its tokens."""
  with jax.enable_x64(True):
    x, batch = laws.as_jax(*empty_response(*random_batch(6)))
    batch = batch.replace(group_tokens=policy_gradient.group_tokens(batch))
    batches, middle = credited(batch), {'p': P, 'k': K}[axis] // 2
    rows = (slice(None), slice(0, middle), slice(middle, None))
    return [terms(*part(x, batches, axis, some)) for some in rows]


# A pair stays with its prompt.
SPLITS = [(n, a) for n in RECIPES for a in 'pk' if (n, a) != ('online_dpo', 'k')]
each_split = pytest.mark.parametrize(('name', 'axis'), SPLITS)


@each_split
def test_parts_add_up_to_the_whole(x64, name, axis):
  (gradient, want), *parts = (part[name] for part in split(axis))
  slopes, means = zip(*parts, strict=True)
  got = {key: (means[0][key] + means[1][key]).value() for key in want}
  laws.assert_same(got, {key: mean.value() for key, mean in want.items()})
  joined = jax.tree.map(lambda *a: np.concatenate(a, 'pk'.index(axis)), *slopes)
  laws.assert_same(joined, gradient)


# Numbers are arguments --------------------------------------------------------


@pytest.fixture(scope='module')
def swept():
  """(batch, {name: results of a sweep over two settings}), in one program."""
  with jax.enable_x64(True):
    x, batch = laws.as_jax(*random_batch(7))
    bound = {n: objectives.create(CASES[n].recipe, **CASES[n].hyper) for n in RECIPES}

    def run(factor):
      found = {}
      for name, objective in bound.items():
        made = objective.build({k: factor * a for k, a in objective.numbers.items()})
        credited = create(name) if objective.name == 'critic' else made
        found[name] = graded(made)(x, credited.credit(batch))
      return found

    return x, batch, jax.jit(jax.vmap(run))(jnp.array([1.0, 0.7]))


@each_recipe
def test_numbers_are_mapped_over_in_one_program(x64, swept, name):
  x, batch, found = swept
  first, second = ({k: a[i] for k, a in found[name].items()} for i in (0, 1))
  laws.assert_same(first, evaluate(name, x, batch))
  assert laws.differ(first['loss'], second['loss'])


# The papers' statements -------------------------------------------------------


def shares(name, batch):
  """Of the counted tokens in a loss: their weights over the denominators."""
  lengths = batch.mask.sum(axis=-1)
  weight = np.where(lengths > 0, batch.weight, 0.0)
  lengths = np.maximum(lengths, 1)
  tokens = weight * lengths
  share = {
    'mean_of_sequence_means': weight / lengths / weight.sum(),
    'token_mean': weight / tokens.sum(),
    'group_token_mean': weight / tokens.sum(axis=1, keepdims=True) / P,
    'sequence_sum': weight / weight.sum(),
    'sum_over_length': weight / weight.sum() / 8.0,
  }[name]
  return batch.mask * share[..., None]


AGGREGATE_OF = {
  'grpo_none': 'mean_of_sequence_means',
  'dr_grpo': 'sum_over_length',
  'dapo': 'group_token_mean',
  'dapo_token_mean': 'token_mean',
  'gspo': 'mean_of_sequence_means',
  'gspo_token': 'mean_of_sequence_means',
  'cispo': 'group_token_mean',
  'rloo': 'sequence_sum',
  'reinforce_pp': 'token_mean',
  'ppo': 'token_mean',
}


@pytest.fixture(scope='module')
def at_ratio_1():
  """(batch, {name: (advantages, gradient)}) where every bound is 1."""
  with jax.enable_x64(True):
    x, batch = on_policy(*empty_response(*random_batch(8)))

    @jax.jit
    def run(x, batch):
      found = {}
      for name in AGGREGATE_OF:
        known = objectives.fields(CASES[name].recipe).keys()
        tight = {'clip_low': 0.0, 'clip_high': 1e-20}
        objective = create(name, **{key: tight[key] for key in tight.keys() & known})
        ready = objective.credit(batch)
        found[name] = ready.advantages, graded(objective)(x, ready)['logps']
      return found

    return batch, run(*laws.as_jax(x, batch))


@pytest.mark.parametrize('name', AGGREGATE_OF)
def test_on_policy_the_gradient_is_a_grad_log_pi(x64, at_ratio_1, name):
  """Statement 4: at a ratio of 1 no bound holds, not even that of 1."""
  batch, found = at_ratio_1
  advantages, got = found[name]
  want = -np.asarray(advantages) * shares(AGGREGATE_OF[name], batch)
  np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-14)


def test_of_one_token_the_objectives_agree_on_policy(x64):
  """Statement 4: GRPO, GSPO, CISPO and DAPO's code, for responses of one token."""
  x, batch = on_policy(*length_one(*random_batch(9)))
  names = ('grpo_none', 'gspo', 'gspo_token', 'cispo_token_mean', 'dapo_token_mean')
  first, *others = (evaluate(name, x, batch)['logps'] for name in names)
  assert np.any(first != 0.0)
  for other in others:
    np.testing.assert_allclose(other, first, rtol=1e-12)


WITHOUT_KL = [
  'grpo_none',
  'dr_grpo',
  'dapo',
  'dapo_token_mean',
  'gspo',
  'gspo_token',
  'cispo',
  'rloo_none',
]


@pytest.mark.parametrize('name', WITHOUT_KL)
def test_groups_of_equal_rewards_teach_nothing(name):
  """Statement 5, to the last bit of float32."""
  x, batch = laws.as_float32(*equal_rewards(*random_batch(10)))
  assert not evaluate(name, x, batch)['logps'].any()


@pytest.mark.parametrize(
  ('name', 'kl', 'aggregate'),
  [
    ('grpo_k1', 'k1', 'mean_of_sequence_means'),
    ('grpo_k2', 'k2', 'mean_of_sequence_means'),
    ('grpo_k3', 'k3', 'mean_of_sequence_means'),
    ('grpo_k3_as_k2', 'k2', 'mean_of_sequence_means'),
    ('grpo_process', 'k3', 'mean_of_sequence_means'),
    ('grpo_token_mean', 'k3', 'token_mean'),
    ('dr_grpo_k2', 'k2', 'sum_over_length'),
  ],
)
def test_groups_of_equal_rewards_teach_their_kl_alone(x64, name, kl, aggregate):
  """Statement 5."""
  x, batch = one_step(*equal_rewards(*random_batch(10)))
  d = x['logps'] - batch.reference_logps
  slope = {'k1': np.ones_like(d), 'k2': d, 'k3': -np.expm1(-d)}[kl]
  want = 0.3 * slope * shares(aggregate, batch)
  got = evaluate(name, x, batch)['logps']
  np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize('name', ['reinforce_pp', 'reinforce_pp_baseline'])
def test_a_batch_of_equal_rewards_teaches_nothing(name):
  x, batch = laws.as_float32(*equal_rewards(*random_batch(10)))
  batch = batch.replace(reference_logps=batch.old_logps)
  assert not evaluate(name, x, batch)['logps'].any()


def test_the_asymmetric_clip(x64):
  """Statement 8: no slope iff rho > 1 + high where A > 0, rho < 1 - low where A < 0."""
  rho = np.array([0.3, 0.79, 0.81, 1.0, 1.19, 1.21, 1.27, 1.29, 4.0, 1e3])
  clipped = surrogates.clipped(**BOUNDS)
  for advantage in (1.5, -1.5):

    def loss(ratios, advantage=advantage):
      return clipped(ratios, jnp.full_like(ratios, advantage), ratios).sum()

    ratios = jnp.asarray(np.log(rho).reshape(1, 1, -1))
    cut = rho > 1.28 if advantage > 0 else rho < 0.8
    want = np.where(cut, 0.0, -rho * advantage)
    np.testing.assert_allclose(jax.grad(loss)(ratios).ravel(), want, rtol=1e-12)


@pytest.mark.parametrize('edge', [as_is, empty_response])
def test_prime_without_its_process_is_rloo(x64, edge):
  """Papers' statement 7 of implicit rewards: advantages, and the loss on-policy."""
  x, batch = on_policy(*edge(*random_batch(12)))
  numbers = {'process_coef': 0.0, 'outcome_coef': 1.0, 'whiten': False}
  options = {'kl': 'none', 'aggregate': 'sequence_sum'}
  ours = objectives.create('prime', **numbers, **options).build()
  rloo = objectives.create('rloo', kl='none').build()
  outputs = Outputs(logps=jnp.asarray(x['logps']))
  batch = jax.tree.map(jnp.asarray, batch)
  got, want = ours.credit(batch), rloo.credit(batch)
  np.testing.assert_array_equal(got.advantages, want.advantages)

  def slope(objective, batch):
    def loss(logps):
      return objective(outputs.replace(logps=logps), batch)[0].value()

    return jax.grad(loss)(outputs.logps)

  np.testing.assert_allclose(slope(ours, got), slope(rloo, want), rtol=1e-12)


def test_one_step_of_process_supervision_is_outcome_supervision(x64):
  """Statement 9."""
  x, batch = one_step(*empty_response(*random_batch(11)))
  batch = batch.replace(rewards=np.where(last_tokens(batch), batch.rewards, 0.0))
  process, outcome = (evaluate(name, x, batch) for name in ('grpo_process', 'grpo_k3'))
  laws.assert_same(process, outcome)


# Expectations over a policy of five one-token responses, each weighed by its chance.


def enumerated(theta=None):
  """(policy and reference logits, rewards, the rollout), exact in expectation."""
  drawn, other, values = np.random.default_rng(0).normal(size=(3, 5))
  theta = drawn if theta is None else theta
  logps, reference_logps = (
    jax.nn.log_softmax(jnp.asarray(z)).reshape(1, 5, 1) for z in (theta, other)
  )
  batch = RolloutBatch(
    prompts=jnp.zeros((1, 1), int),
    responses=jnp.arange(5).reshape(1, 5, 1),
    prompt_length=jnp.ones(1, int),
    response_length=jnp.ones((1, 5), int),
    mask=jnp.ones((1, 5, 1), bool),
    weight=jnp.exp(logps[..., 0]),
    old_logps=logps,
    reference_logps=reference_logps,
    rewards=jnp.zeros((1, 5, 1)),
    truncated=jnp.zeros((1, 5), bool),
  )
  return jnp.asarray(theta), jnp.asarray(other), jnp.asarray(values), batch


def expected_slope(theta, batch, recipe, **hyper):
  """The gradient in the policy's logits."""
  objective = objectives.create(recipe, **hyper).build()

  def loss(theta):
    logps = jax.nn.log_softmax(theta).reshape(1, 5, 1)
    return objective(Outputs(logps=logps), objective.credit(batch))[0].value()

  return jax.jit(jax.grad(loss))(theta)


def kl(z, other):
  p, q = jax.nn.log_softmax(z), jax.nn.log_softmax(other)
  return jnp.sum(jnp.exp(p) * (p - q))


@pytest.mark.parametrize('estimate', ['k1', 'k2', 'k3', 'k3_as_k2'])
def test_which_kl_an_estimate_in_the_loss_lowers(x64, estimate):
  """Statement 3: k1 none, k2 KL(pi || pi_ref), k3 KL(pi_ref || pi)."""
  theta, other, _, batch = enumerated()
  got = expected_slope(theta, batch, 'grpo', kl=estimate, kl_coef=0.5)
  reverse = 0.5 * jax.grad(kl)(theta, other)
  forward = 0.5 * jax.grad(lambda z: kl(other, z))(theta)
  want = {'k1': 0.0 * theta, 'k3': forward}.get(estimate, reverse)
  np.testing.assert_allclose(got, want, atol=1e-14)
  assert np.abs(forward - reverse).max() > 0.02


@pytest.mark.parametrize(('recipe', 'scale'), [('dr_grpo', 1.0), ('rloo', 5 / 4)])
def test_a_kl_in_the_reward_lowers_kl_to_the_reference(x64, recipe, scale):
  # The gradient is that of E[R] - beta KL(pi || pi_ref): a baseline changes nothing.
  theta, other, values, batch = enumerated()
  batch = batch.replace(rewards=values.reshape(1, 5, 1))
  more = {'max_length': 1.0} if recipe == 'dr_grpo' else {}
  got = expected_slope(theta, batch, recipe, kl='reward', kl_coef=0.5, **more)

  def value(z):
    return jnp.sum(jax.nn.softmax(z) * values) - 0.5 * kl(z, other)

  np.testing.assert_allclose(got, -scale * jax.grad(value)(theta), atol=1e-14)


def updated(theta, rewards, updates, clip_high):
  """The policy after so many exact gradient steps on one rollout of its own."""
  batch = enumerated(theta)[-1].replace(rewards=rewards.reshape(1, 5, 1))
  for _ in range(updates):
    theta = theta - 0.2 * expected_slope(theta, batch, 'dapo', clip_high=clip_high)
  return jax.nn.softmax(theta)


def test_clip_higher_lets_the_rare_and_right_rise_and_keeps_entropy(x64):
  """DAPO (arXiv:2503.14476), Section 3.1; at one update a rollout no bound holds."""
  theta = jnp.log(jnp.array([0.4, 0.3, 0.1, 0.1, 0.1]))
  right = jnp.array([0.0, 0.0, 1.0, 0.0, 0.0])
  once, same = (updated(theta, right, 1, high) for high in (0.2, 0.28))
  np.testing.assert_array_equal(once, same)
  low, high = (updated(theta, right, 16, high) for high in (0.2, 0.28))
  assert high[2] > low[2] + 0.003
  assert special.entr(high).sum() > special.entr(low).sum() + 0.001


# Aggregation ------------------------------------------------------------------


def long_and_short(long=100, short=10):
  """One prompt, two responses: losses 1 on the long one's tokens, 2 on the other's."""
  mask = np.arange(long) < np.array([[[long], [short]]])
  values = np.where(mask, [[[1.0], [2.0]]], np.nan)
  return jnp.asarray(values), jnp.asarray(mask), jnp.ones((1, 2))


@pytest.mark.parametrize(
  ('name', 'more', 'want'),
  # 100 x 1 + 10 x 2 is 120
  [
    ('token_mean', {}, 120 / 110),
    ('group_token_mean', {'group_tokens': [110.0]}, 120 / 110),
    ('group_token_mean', {'group_tokens': [220.0]}, 120 / 110),
    ('mean_of_sequence_means', {}, 1.5),
    ('sequence_sum', {}, 60.0),
    ('sum_over_length', {'length': 128.0}, 60 / 128),
  ],
)
def test_aggregates_of_a_long_and_a_short_response(x64, name, more, want):
  """Statement 6: in a token mean a response weighs by its length."""
  more = {key: jnp.asarray(value) for key, value in more.items()}
  mean = getattr(aggregation, name)(*long_and_short(), **more)
  np.testing.assert_allclose(mean.value(), want, rtol=1e-12)


def test_of_equal_lengths_two_means_are_one(x64):
  """Statement 6."""
  arrays = long_and_short(10, 10)
  means = [
    getattr(aggregation, name)(*arrays).value()
    for name in ('token_mean', 'mean_of_sequence_means')
  ]
  assert means == [1.5, 1.5]


def test_a_part_of_a_group_weighs_by_the_tokens_of_the_whole(x64):
  values, mask, weight = long_and_short()

  def parts(*group_tokens):
    first, second = (
      aggregation.group_token_mean(
        values[:, i : i + 1],
        mask[:, i : i + 1],
        weight[:, i : i + 1],
        group_tokens=jnp.array([count]),
      )
      for i, count in enumerate(group_tokens)
    )
    return float((first + second).value())

  assert parts(110.0, 110.0) == pytest.approx(120 / 110)
  assert parts(100.0, 10.0) == pytest.approx(1.5)  # each by its own: not the same


# Law 9: wrong variants, pinned as different -----------------------------------


def test_a_token_mean_is_no_mean_of_sequence_means(x64):
  x, batch = random_batch(12)
  token, sequence = (
    evaluate(name, x, batch)['loss'] for name in ('grpo_token_mean', 'grpo_k3')
  )
  assert laws.differ(token, sequence)


@pytest.mark.parametrize('name', [n for n in RECIPES if n != 'online_dpo'])
def test_the_mean_of_means_is_another_number(x64, name):
  whole, *means = (part[name][1]['loss'].value() for part in split('k'))
  assert laws.differ(np.mean(means), whole)


@pytest.mark.parametrize('name', ['grpo', 'dr_grpo', 'dapo', 'rloo', 'ppo_shared'])
def test_dividing_by_the_batch_twice_is_another_number(x64, name):
  loss = split('k')[0][name][1]['loss']
  assert laws.differ(Mean(loss.value(), loss.weight).value(), loss.value())


def test_k1_in_the_loss_does_not_see_the_reference(x64):
  x, batch = random_batch(13)
  elsewhere = batch.replace(reference_logps=batch.reference_logps - 1.0)
  for name in ('grpo_k1', 'grpo_k2', 'grpo_k3', 'grpo_k3_as_k2'):
    got, want = (evaluate(name, x, b)['logps'] for b in (elsewhere, batch))
    assert laws.differ(got, want) == (name != 'grpo_k1')


def test_two_ways_to_count_degrees_of_freedom_are_two_losses(x64):
  x, batch = random_batch(14)
  zero, one = (evaluate(name, x, batch)['loss'] for name in ('grpo_ddof_0', 'grpo_k3'))
  assert laws.differ(zero, one)


def test_an_estimate_and_its_gradient_are_two_choices(x64):
  x, batch = random_batch(15)
  k2, k3, both = (
    evaluate(name, x, batch) for name in ('grpo_k2', 'grpo_k3', 'grpo_k3_as_k2')
  )
  np.testing.assert_allclose(both['loss'], k3['loss'], rtol=1e-12)
  np.testing.assert_allclose(both['logps'], k2['logps'], rtol=1e-12)
  assert laws.differ(k2['loss'], k3['loss'])
  assert laws.differ(k2['logps'], k3['logps'])


def test_a_sequence_ratio_by_sequence_and_by_token(x64):
  # One response of two tokens with the advantages 1 and 3: s = exp((0.1 + 0.3) / 2).
  x, batch = small_rollout()
  batch = batch.replace(
    old_logps=x['logps'] - jnp.array([[[0.1, 0.3], [0.0, 0.0]]]),
    advantages=jnp.array([[[1.0, 3.0], [0.0, 0.0]]]),
    weight=jnp.array([[1.0, 0.0]]),
  )
  s = np.exp(0.2)
  wide = {'clip_low': 0.9, 'clip_high': 9.0}
  for name, want in (('gspo', [-s, -s]), ('gspo_token', [-s / 2, -3 * s / 2])):
    got = jax.jit(graded(create(name, **wide)))(x, batch)
    np.testing.assert_allclose(got['loss'], -2 * s, rtol=1e-12)
    np.testing.assert_allclose(got['logps'][0, 0], want, rtol=1e-12)


# By hand ----------------------------------------------------------------------


def small_rollout():
  """Two responses of ratios 1.5 and 1, and 1/2; advantages 2 and -1, and -3."""
  x = {'logps': jnp.array([[[-1.0, -2.0], [-4.0, 9.0]]])}
  ratios = jnp.log(jnp.array([[[1.5, 1.0], [0.5, 7.0]]]))
  to_reference = jnp.log(jnp.array([[[2.0, 1.0], [0.5, 7.0]]]))
  return x, RolloutBatch(
    prompts=jnp.zeros((1, 1), int),
    responses=jnp.zeros((1, 2, 2), int),
    prompt_length=jnp.ones(1, int),
    response_length=jnp.array([[2, 1]]),
    mask=jnp.array([[[True, True], [True, False]]]),
    weight=jnp.array([[2.0, 1.0]]),
    old_logps=x['logps'] - ratios,
    reference_logps=x['logps'] - to_reference,
    truncated=jnp.array([[True, False]]),
    rewards=jnp.array([[[0.0, 1.0], [-1.0, 0.0]]]),
    advantages=jnp.array([[[2.0, -1.0], [-3.0, 0.0]]]),
  )


def metrics_of(name, x, batch, **more):
  objective = create(name, **more)
  _, found = jax.jit(lambda x, batch: objective(Outputs(**x), batch))(x, batch)
  return {key: float(mean.value()) for key, mean in found.items()}


METRICS = {
  'ratio': 1.0,
  'log_ratio_abs': (np.log(1.5) + np.log(2.0)) / 3,
  'kl_to_old': (0.5 - np.log(1.5) - 0.5 + np.log(2.0)) / 3,
  'advantage_abs': 2.0,
  'entropy': 2.0,
  'response_length': 1.5,
  'truncated': 0.5,
  # (log 2 - 1/2) + 0 of the one, 1 - log 2 of the other
  'kl_to_reference': 0.25,
  'clipped_low': 1 / 3,  # ratio 1/2 where A is -3
  'clipped_high': 1 / 3,  # ratio 3/2 where A is 2
}


def test_metrics_count_each_token_and_response_once_whatever_its_weight(x64):
  x, batch = small_rollout()
  x['entropy'] = jnp.array([[[1.0, 2.0], [3.0, 99.0]]])
  got = metrics_of('grpo', x, batch)
  assert got == pytest.approx(METRICS, rel=1e-12)
  filling = batch.replace(weight=jnp.array([[2.0, 0.0]]))
  got = metrics_of('grpo', x, filling)
  assert got['ratio'] == pytest.approx(1.25)
  assert (got['response_length'], got['truncated'], got['entropy']) == (2.0, 1.0, 1.5)


def test_metrics_of_a_critic(x64):
  _, batch = small_rollout()
  x = {'values': jnp.array([[[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]]])}
  batch = batch.replace(
    values=jnp.zeros((1, 2, 3)), returns=jnp.array([[[2.0, 2.0], [1.0, 9.0]]])
  )
  # under the weights 2, 2 and 1
  want = {'value_error': (2 * 1 + 0 + 4) / 5, 'value': 9 / 5, 'return': 9 / 5}
  assert metrics_of('critic', x, batch) == pytest.approx(want)


def test_metrics_of_what_is_not_known_are_left_out(x64):
  x, batch = small_rollout()
  batch = batch.replace(truncated=None, reference_logps=None)
  missing = {'entropy', 'truncated', 'kl_to_reference'}
  assert metrics_of('dapo', x, batch).keys() == METRICS.keys() - missing
  assert not {'clipped_low', 'clipped_high'} & metrics_of('rloo_none', x, batch).keys()


def test_a_bound_on_the_sequence_holds_back_sequences(x64):
  # The ratio of the first response is the root of 1.5, below 1.3.
  x, batch = small_rollout()
  hyper = {'clip_low': 0.6, 'clip_high': 0.3}
  assert metrics_of('grpo', x, batch, **hyper)['clipped_high'] == pytest.approx(1 / 3)
  assert metrics_of('gspo', x, batch, **hyper)['clipped_high'] == 0.0
  hyper['clip_high'] = 0.2
  got = metrics_of('gspo', x, batch, **hyper)
  assert (got['clipped_low'], got['clipped_high']) == (0.0, pytest.approx(1 / 3))


@pytest.mark.parametrize('name', ['grpo', 'dr_grpo_k2', 'gspo_k3', 'cispo', 'rloo'])
def test_a_correction_multiplies_the_surrogate_alone(x64, name):
  x, batch = laws.as_jax(*random_batch(16))
  want = evaluate(name, x, batch)
  batch = credit(name)(batch)
  run = jax.jit(graded(create(name)))
  # A token's surrogate is linear in its advantage, and its KL has none.
  correction = np.random.default_rng(0).uniform(0.5, 2.0, (P, K, T))
  ones = np.where(batch.mask, 1.0, np.nan)
  got = run(x, batch.replace(correction=jnp.asarray(correction)))
  moved = batch.replace(
    advantages=correction * batch.advantages, correction=jnp.asarray(ones)
  )
  laws.assert_same(got, run(x, moved))
  laws.assert_same(run(x, batch.replace(correction=jnp.asarray(ones))), want)
  assert laws.differ(got['loss'], want['loss'])


def test_a_kl_in_the_reward_changes_advantages_and_not_the_loss(x64):
  x, batch = small_rollout()
  # log pi_old / pi_ref: log 4/3 and log 1, and log 1.
  outcome = np.array([1.0 - 0.3 * np.log(4 / 3), -1.0])
  reward, none = (
    credit(name)(batch).advantages for name in ('grpo_reward', 'grpo_none')
  )
  unit = (outcome - outcome.mean()) / (outcome.std(ddof=1) + 1e-6)
  np.testing.assert_allclose(reward[0, :, 0], unit, rtol=1e-12)
  np.testing.assert_allclose(none[0, :, 0], [0.5**0.5, -(0.5**0.5)], rtol=1e-5)
  losses = [
    create(n)(Outputs(**x), batch)[0].value() for n in ('grpo_reward', 'grpo_none')
  ]
  assert losses[0] == losses[1]


def test_pairs_are_the_best_and_the_worst_that_are_present():
  rewards = [[3.0, 1.0, 2.0], [1.0, 1.0, 9.0], [0.0, 5.0, 5.0], [4.0, 0.0, 0.0]]
  weight = jnp.array([[1.0, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]])
  batch = RolloutBatch(
    prompts=jnp.zeros((4, 1), int),
    responses=jnp.zeros((4, 3, 1), int),
    prompt_length=jnp.ones(4, int),
    response_length=jnp.ones((4, 3), int),
    mask=jnp.ones((4, 3, 1), bool),
    weight=weight,
    rewards=jnp.array(rewards)[..., None],
  )
  got = credit('online_dpo')(batch)
  assert got.pair_weight.ravel().tolist() == [1.0, 0.0, 1.0, 0.0]
  assert got.chosen[jnp.array([0, 2])].ravel().tolist() == [0, 1]
  assert got.rejected[jnp.array([0, 2])].ravel().tolist() == [1, 0]


# Declarations -----------------------------------------------------------------


@pytest.mark.parametrize(
  ('recipe', 'hyper', 'needs'),
  [
    ('grpo', {}, {'rewards', 'old_logps', 'reference_logps'}),
    ('grpo', {'kl': 'none'}, {'rewards', 'old_logps'}),
    ('grpo', {'kl': 'reward'}, {'rewards', 'old_logps', 'reference_logps'}),
    (
      'grpo',
      {'kl': 'none', 'supervision': 'process'},
      {'rewards', 'old_logps', 'step'},
    ),
    ('dapo', {}, {'rewards', 'old_logps'}),
    ('rloo', {}, {'rewards', 'old_logps', 'reference_logps'}),
    ('ppo', {'kl': 'none'}, {'rewards', 'old_logps', 'truncated'}),
    (
      'ppo',
      {'kl': 'none', 'trunk': 'shared'},
      {'rewards', 'old_logps', 'truncated', 'values'},
    ),
    ('critic', {}, {'rewards', 'values'}),
    ('online_dpo', {}, {'rewards', 'reference_logps'}),
    ('prime', {}, {'rewards', 'old_logps', 'implicit'}),
  ],
)
def test_what_a_recipe_needs_depends_on_its_structure(recipe, hyper, needs):
  objective = objectives.create(recipe, **hyper)
  assert objective.needs == needs
  assert objective.reads == needs | (set() if recipe == 'critic' else {'logps'})


@pytest.mark.parametrize(
  ('recipe', 'hyper', 'word'),
  [
    ('grpo', {'clip_low': 1.5}, r'clip_low .*\[0, 1\]'),
    ('grpo', {'clip_high': 0.0}, 'clip_high'),
    ('grpo', {'kl': 'k9'}, "k3_as_k2.*'k9'"),
    ('grpo', {'kl_coef': -0.1}, 'kl_coef'),
    ('grpo', {'eps': 0.0}, 'eps'),
    ('grpo', {'ddof': 1.0}, r'one of \[0, 1\]'),
    ('grpo', {'aggregate': 'mean'}, 'token_mean'),
    ('grpo', {'supervision': 'both'}, 'process'),
    ('grpo', {'clip': 0.2}, 'did you mean'),
    ('dr_grpo', {}, 'max_length .*no default'),
    ('dr_grpo', {'max_length': 0}, 'max_length'),
    ('gspo', {'log_ratio': 'token'}, 'sequence_token'),
    ('reinforce_pp', {'group_baseline': 1}, 'bool'),
    ('ppo', {'discount': 1.01}, 'discount'),
    ('ppo', {'trace': -0.1}, 'trace'),
    ('ppo', {'trunk': 'two'}, 'shared'),
    ('critic', {'value_clip': 0.0}, 'value_clip'),
  ],
)
def test_a_bad_hyperparameter_is_refused(recipe, hyper, word):
  with pytest.raises(InputError, match=word):
    objectives.create(recipe, **hyper)


def test_process_supervision_has_no_kl_in_its_rewards():
  objective = objectives.create('grpo', supervision='process', kl='reward')
  with pytest.raises(InputError, match='steps alone'):
    objective.build()


@pytest.mark.parametrize('name', ['grpo', 'grpo_k2', 'grpo_reward', 'rloo', 'ppo'])
def test_a_kl_without_a_reference_is_refused(name):
  x, batch = random_batch()
  x, batch = laws.as_jax(x, batch.replace(reference_logps=None))
  with pytest.raises(InputError, match='reference_logps'):
    create(name)(Outputs(**x), create(name).credit(batch))
