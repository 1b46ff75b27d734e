"""The laws of every objective: one table, and what holds for all of it."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

from prefjax import objectives
from prefjax.types import Mean, Outputs, PreferenceBatch

P, K, T, M, L = 2, 3, 4, 3, 3
AXES = {
  'prompts': 'pl',
  'responses': 'pkt',
  'prompt_length': 'p',
  'response_length': 'pk',
  'mask': 'pkt',
  'weight': 'pk',
  'label': 'pk',
  'win_rate': 'pk',
  'reference_logps': 'pkt',
  'old_logps': 'pkt',
  'chosen': 'pm',
  'rejected': 'pm',
  'preference': 'pm',
  'pair_weight': 'pm',
}


# The table --------------------------------------------------------------------


class Case(NamedTuple):
  recipe: str
  hyper: dict[str, Any]
  reference: Callable[..., float]  # (logps, batch, **constants) -> the loss
  scale: float | None = None  # from a score to the reward of the metrics
  score: str = 'ratio'  # what the reward is a multiple of
  on_margin: bool = False  # reads the difference of two log-ratios only
  constants: Callable[..., dict[str, Any]] = lambda logps, batch: {}
  more: Callable[..., dict[str, float]] = lambda logps, batch: {}  # own metrics


def on_pairs(function, **hyper):
  """A reference on pairs as a function of the log-probs and a batch."""
  return lambda logps, batch, **constants: function(
    logps, batch.reference_logps, batch.mask, pairs(batch), **hyper, **constants
  )


def on_policy(function, **hyper):
  """The same for a reference that reads no reference policy."""
  return lambda logps, batch: function(logps, batch.mask, pairs(batch), **hyper)


def on_responses(function, **hyper):
  return lambda logps, batch: function(logps, batch.mask, batch.weight, **hyper)


def on_labels(function, field='label', **hyper):
  return lambda logps, batch, **constants: function(
    logps,
    batch.reference_logps,
    batch.mask,
    batch.weight,
    getattr(batch, field),
    **hyper,
    **constants,
  )


def margin_case(recipe, *, scale, function=None, **hyper):
  function = on_pairs(function or getattr(ref, recipe), **hyper)
  return Case(recipe, hyper, function, scale, on_margin=True)


def pair_case(recipe, *, scale, **hyper):
  return Case(recipe, hyper, on_pairs(getattr(ref, recipe), **hyper), scale)


def free_case(recipe, *, scale, score, function=None, **hyper):
  function = on_policy(function or getattr(ref, recipe), **hyper)
  return Case(recipe, hyper, function, scale, score)


def sft_case(reduction):
  hyper = {'reduction': reduction}
  return Case('sft', hyper, on_responses(ref.sft, **hyper))


def sppo_case(kind):
  hyper = {'eta': 2.0, 'log_normaliser': kind}

  def reference(logps, batch):
    further = (batch.weight == 0) & batch.mask.any(-1)
    weights = {'samples': batch.weight, 'further': further.astype(float)}
    log_z = {
      'half': lambda i: 1.0,
      'ordered': lambda i: np.log((np.exp(2.0) - 1.0) / 2.0),
      'samples': lambda i: softmean(i),
      'further': lambda i: softmean(i),
    }[kind]

    def softmean(i):
      return ref.log_mean_exp(2.0 * batch.win_rate[i], weights[kind][i])

    function = on_labels(ref.sppo_with, 'win_rate', eta=2.0)
    return function(logps, batch, log_z=[log_z(i) for i in range(len(logps))])

  return Case('sppo', hyper, reference, 0.5)


def kto_constants(logps, batch):
  further = (batch.weight == 0) & batch.mask.any(-1)
  arrays = (logps, batch.reference_logps, batch.mask)
  return {'kl': ref.kto_kl(*arrays, further.astype(float))}


def bco_constants(logps, batch):
  return {'shift': on_labels(ref.bco_shift, beta=0.3)(logps, batch)}


def wpo_constants(logps, batch):
  return {'weights': ref.wpo_weights(logps, collision(logps), batch.mask)}


def reward_quality(logps, batch):
  return ref.reward_quality(
    ref.sums(logps, batch.mask), batch.response_length, pairs(batch)
  )


def rpo_reference(reduction):
  def reference(logps, batch):
    nll = on_policy(ref.chosen_nll, reduction=reduction)(logps, batch)
    return ref.add((on_pairs(ref.dpo, beta=0.3)(logps, batch), 1.0), (nll, 0.5))

  return reference


def odpo_reference(logps, batch):
  return ref.odpo(
    logps,
    batch.reference_logps,
    batch.mask,
    pairs(batch),
    batch.label,
    beta=0.3,
    offset=0.7,
  )


def collision(logps):
  """Any constants in (0, 1] that depend on the place."""
  return np.exp(0.5 * np.clip(logps, -10.0, 0.0))


BETA = {'beta': 0.3, 'scale': 0.3}
KTO = {'beta': 0.3, 'desirable_weight': 1.3, 'undesirable_weight': 0.8}
CASES = {
  'dpo': margin_case('dpo', **BETA),
  'cdpo': margin_case('dpo', label_smoothing=0.1, **BETA),
  'dpo_mean': Case(
    'dpo',
    {'beta': 0.3, 'length_normalised': True},
    on_pairs(ref.dpo_normalised, beta=0.3),
    0.3,
    'mean_ratio',
    on_margin=True,
  ),
  'robust': margin_case('robust_dpo', flip_probability=0.2, **BETA),
  'ipo': margin_case('ipo', tau=0.2, length_normalised=False, scale=0.2),
  'ipo_mean': margin_case('ipo', tau=0.2, length_normalised=True, scale=0.2)._replace(
    score='mean_ratio'
  ),
  'hinge': margin_case('hinge', **BETA),
  'exo_pair': margin_case('exo_pair', label_smoothing=0.01, **BETA),
  'discopop': Case(
    'discopop',
    {'beta': 0.3, 'temperature': 0.05},
    on_pairs(ref.discopop, beta=0.3, tau=0.05),
    0.3,
    on_margin=True,
  ),
  'nca_pair': pair_case('nca_pair', **BETA),
  'bco_pair': pair_case('bco_pair', **BETA),
  'apo_zero': pair_case('apo_zero', **BETA),
  'apo_down': pair_case('apo_down', **BETA),
  'dpop': pair_case('dpop', penalty=2.0, **BETA),
  'odpo': Case('odpo', {'beta': 0.3, 'offset': 0.7}, odpo_reference, 0.3),
  'f_forward': pair_case('f_dpo', divergence='forward_kl', **BETA),
  'f_reverse': pair_case('f_dpo', divergence='reverse_kl', **BETA),
  'f_js': pair_case('f_dpo', divergence='js', **BETA),
  'f_alpha': pair_case('f_dpo', divergence='alpha', alpha=0.4, **BETA),
  'ld_dpo': pair_case('ld_dpo', tail=0.3, **BETA),
  'wpo': pair_case('wpo', **BETA)._replace(constants=wpo_constants),
  'rpo': Case(
    'rpo',
    {'beta': 0.3, 'nll_coefficient': 0.5, 'nll_reduction': 'sum'},
    rpo_reference('sum'),
    0.3,
  ),
  'irpo': Case(
    'rpo', {'beta': 0.3, 'nll_coefficient': 0.5}, rpo_reference('mean'), 0.3
  ),
  'aot': pair_case('aot', **BETA),
  'aot_smooth': pair_case('aot', label_smoothing=0.1, **BETA),
  'aot_unpaired': pair_case('aot_unpaired', **BETA),
  'simpo': free_case('simpo', gamma=0.5, score='mean_prob', **BETA),
  'cpo': free_case('cpo', nll_coefficient=0.5, score='prob', **BETA),
  'orpo': free_case('orpo', coefficient=0.2, scale=1.0, score='mean_prob'),
  'preferred_ft': free_case(
    'preferred_ft', function=ref.chosen_nll, reduction='sum', scale=1.0, score='prob'
  ),
  'unlikelihood': free_case('unlikelihood', alpha=0.3, scale=1.0, score='prob'),
  'bradley_terry': Case(
    'bradley_terry',
    {'margin': 0.5, 'centre_coefficient': 0.1},
    lambda logps, batch: ref.bradley_terry(
      ref.sums(logps, batch.mask), pairs(batch), margin=0.5, centre_coefficient=0.1
    ),
    1.0,
    'prob',
    more=reward_quality,
  ),
  'kto': Case('kto', KTO, on_labels(ref.kto, **KTO), 0.3, constants=kto_constants),
  'bco': Case(
    'bco', {'beta': 0.3}, on_labels(ref.bco, beta=0.3), 0.3, constants=bco_constants
  ),
  'nca': Case(
    'nca',
    {'beta': 0.3, 'temperature': 0.5},
    on_labels(ref.nca, beta=0.3, temperature=0.5),
    0.3,
  ),
  'cross_entropy': Case(
    'cross_entropy', {'beta': 0.3}, on_labels(ref.cross_entropy, beta=0.3), 0.3
  ),
  'sppo': sppo_case('half'),
  'sppo_ordered': sppo_case('ordered'),
  'sppo_samples': sppo_case('samples'),
  'sppo_further': sppo_case('further'),
  'sppo_single': pair_case('sppo_single', eta=2.0, scale=0.5),
  'sppo_hard': pair_case('sppo_hard', eta=2.0, scale=0.5),
  'sft': sft_case('token_mean'),
  'sft_sum': sft_case('sequence_sum'),
}
COUPLED = [
  name
  for name, case in CASES.items()
  if objectives.create(case.recipe, **case.hyper).couples_batch
]
each_case = pytest.mark.parametrize('name', CASES)


# Batches ----------------------------------------------------------------------


def pairs(batch):
  return ref.Pairs(batch.chosen, batch.rejected, batch.preference, batch.pair_weight)


def random_batch(seed=0):
  """Log-probs and a float64 batch; every response has a token that counts."""
  rng = np.random.default_rng(seed)
  mask = rng.random((P, K, T)) < 0.7
  mask[..., 0] = True
  logps, reference_logps, old_logps = -rng.exponential(size=(3, P, K, T))
  chosen = rng.integers(0, K, (P, M))
  batch = PreferenceBatch(
    prompts=rng.integers(0, 9, (P, L)),
    responses=rng.integers(0, 9, (P, K, T)),
    prompt_length=np.full(P, L),
    response_length=T - mask[..., ::-1].argmax(-1),
    mask=mask,
    weight=rng.uniform(0.5, 2.0, (P, K)),
    label=rng.random((P, K)),
    win_rate=rng.random((P, K)),
    reference_logps=reference_logps,
    old_logps=old_logps,
    chosen=chosen,
    rejected=(chosen + rng.integers(1, K, (P, M))) % K,
    preference=rng.random((P, M)),
    pair_weight=rng.uniform(0.5, 2.0, (P, M)),
  )
  return logps, batch


def hard_labels(logps, batch):
  ones = np.ones((P, M))
  return logps, batch.replace(preference=ones, pair_weight=ones)


def empty_response(logps, batch):
  """Response 0 of prompt 0 has no token that counts, and so no weight."""
  mask, weight, length, pair_weight = map(
    np.copy,
    (batch.mask, batch.weight, batch.response_length, batch.pair_weight),
  )
  mask[0, 0], weight[0, 0], length[0, 0] = False, 0.0, 0
  touched = (batch.chosen[0] == 0) | (batch.rejected[0] == 0)
  pair_weight[0] = np.where(touched, 0.0, 1.0)
  return logps, batch.replace(
    mask=mask, weight=weight, response_length=length, pair_weight=pair_weight
  )


def filling(logps, batch):
  """Prompt 1 is filling, and so is the last pair of prompt 0."""
  rows = np.array([1.0, 0.0])[:, None]
  pair_weight = batch.pair_weight * rows
  pair_weight[0, -1] = 0.0
  return logps, batch.replace(
    mask=batch.mask & (rows[..., None] > 0),
    weight=batch.weight * rows,
    response_length=batch.response_length * rows.astype(int),
    chosen=batch.chosen * rows.astype(int),
    rejected=batch.rejected * rows.astype(int),
    pair_weight=pair_weight,
  )


def nothing(logps, batch):
  return logps, batch.replace(
    mask=np.zeros_like(batch.mask),
    weight=np.zeros((P, K)),
    response_length=np.zeros((P, K), int),
    pair_weight=np.zeros((P, M)),
  )


def length_one(logps, batch):
  mask = np.zeros_like(batch.mask)
  mask[..., 0] = True
  return logps, batch.replace(mask=mask, response_length=np.ones((P, K), int))


def huge(logps, batch):
  """Log-ratios of +-1e4 nats, of log-probs that are none above 0."""
  logps, reference_logps = np.copy(logps), np.copy(batch.reference_logps)
  logps[:, 1, 0] -= 1e4
  reference_logps[:, 0, 0] -= 1e4
  return logps, batch.replace(reference_logps=reference_logps)


def further(logps, batch):
  """Response 0 of each prompt has tokens, but is not trained on."""
  weight = np.copy(batch.weight)
  weight[:, 0] = 0.0
  touched = (batch.chosen == 0) | (batch.rejected == 0)
  return logps, batch.replace(
    weight=weight, pair_weight=np.where(touched, 0.0, batch.pair_weight)
  )


def poisoned(logps, batch):
  """What does not count holds NaN and infinities."""
  logps, batch = filling(*empty_response(logps, batch))
  bad = np.resize([np.nan, np.inf, -np.inf], batch.mask.shape)
  weighs = batch.pair_weight > 0
  return np.where(batch.mask, logps, bad), batch.replace(
    reference_logps=np.where(batch.mask, batch.reference_logps, -bad),
    preference=np.where(weighs, batch.preference, np.nan),
    label=np.where(batch.weight > 0, batch.label, np.nan),
    win_rate=np.where(batch.weight > 0, batch.win_rate, np.nan),
  )


def pad_is_eos(logps, batch):
  """Padding and every token that counts have one identity."""
  return logps, batch.replace(
    responses=np.full((P, K, T), 2), prompts=np.full((P, L), 2)
  )


def as_is(logps, batch):
  return logps, batch


EDGES = (
  as_is,
  hard_labels,
  empty_response,
  filling,
  nothing,
  length_one,
  huge,
  further,
  poisoned,
  pad_is_eos,
)
each_edge = pytest.mark.parametrize('edge', EDGES, ids=lambda f: f.__name__)


# Evaluation -------------------------------------------------------------------


def loss_fn(name):
  case = CASES[name]
  return objectives.create(case.recipe, **case.hyper).build()


@functools.cache
def graded(name):
  """(logps, batch) -> ((loss, (its Mean, metrics)), gradient)."""
  function = loss_fn(name)

  def value(logps, batch):
    loss, metrics = function(outputs(logps, batch), batch)
    return loss.value(), (loss, metrics)

  return jax.value_and_grad(value, has_aux=True)


def outputs(logps, batch):
  """What a forward gives: any collision, without gradient, and sums as scores."""
  constant = jax.lax.stop_gradient(logps)
  return Outputs(
    logps=logps,
    collision=jnp.exp(0.5 * jnp.clip(constant, -10.0, 0.0)),
    scores=jnp.sum(logps, axis=-1, where=batch.mask),
  )


def evaluate(name, logps, batch):
  (loss, (_, metrics)), gradient = graded(name)(*as_jax(logps, batch))
  metrics = {key: mean.value() for key, mean in metrics.items()}
  return {'loss': loss, 'gradient': gradient, **metrics}


def as_jax(logps, batch):
  """In the float type of the session: float32 without the fixture x64."""
  return jax.tree.map(jnp.asarray, (logps, batch))


def as_float32(logps, batch):
  return jax.tree.map(
    lambda x: x.astype(np.float32) if x.dtype == np.float64 else x,
    (logps, batch),
  )


def expected_gradient(case, logps, batch):
  """Central differences of the reference, without their h^2 and h^4 errors."""
  masked = np.where(batch.mask, logps, 0.0)
  constants = case.constants(masked, batch)
  coarse, middle, fine = (
    ref.central_difference(lambda x: case.reference(x, batch, **constants), masked, h=h)
    for h in (2e-3, 1e-3, 5e-4)
  )
  first, second = (4.0 * middle - coarse) / 3.0, (4.0 * fine - middle) / 3.0
  return (16.0 * second - first) / 15.0


def expected_metrics(case, logps, batch):
  present = (batch.weight > 0) & (batch.response_length > 0)
  mean = functools.partial(ref.response_mean, weight=present)
  counted = present & batch.mask.any(-1)
  want = {
    'response_length': mean(lambda i, j: batch.response_length[i, j]),
    # KL(reference || policy): the two change places. It stops at exp(20).
    'kl_to_reference': ref.kl_k3(
      batch.reference_logps,
      np.minimum(logps, batch.reference_logps + 20.0),
      batch.mask,
      counted,
    ),
  }
  if case.scale is None:
    hyper = {'reduction': 'token_mean'}
    return want | {'nll': on_responses(ref.sft, **hyper)(logps, batch)}
  measure = functools.partial(
    ref.preference_metrics,
    mask=batch.mask,
    pairs=pairs(batch),
    scale=case.scale,
  )
  arrays = [logps, batch.reference_logps]
  drift = {key: measure(*arrays)[key] for key in ('chosen_drift', 'rejected_drift')}
  if 'prob' in case.score:
    arrays[1] = np.zeros_like(logps)
  if 'mean' in case.score:
    length = np.maximum(ref.lengths(batch.mask), 1)[..., None]
    arrays = [x / length for x in arrays]
  return want | measure(*arrays) | drift | case.more(logps, batch)


def assert_same(got, want, tolerance=1e-10):
  assert got.keys() == want.keys()
  for key, value in want.items():
    scale = max(1.0, np.max(np.abs(value), initial=0.0))
    np.testing.assert_allclose(
      got[key], value, rtol=tolerance, atol=tolerance * scale, err_msg=key
    )


# Law 1: the reference ---------------------------------------------------------


@each_case
@each_edge
def test_value_gradient_and_metrics_are_the_papers(x64, name, edge):
  case, (logps, batch) = CASES[name], edge(*random_batch())
  got = evaluate(name, logps, batch)
  loss = case.reference(logps, batch, **case.constants(logps, batch))
  gradient = expected_gradient(case, logps, batch)
  # The differences of a loss of 1e8 carry its rounding.
  tolerance = 1e-10 * max(1.0, abs(loss) / max(1.0, np.abs(gradient).max()))
  assert_same({'gradient': got.pop('gradient')}, {'gradient': gradient}, tolerance)
  assert_same(got, {'loss': loss} | expected_metrics(case, logps, batch))


@each_case
@each_edge
def test_float32_is_finite_and_near_float64(name, edge):
  logps, batch = as_float32(*edge(*random_batch(1)))
  got = evaluate(name, logps, batch)
  with jax.enable_x64(True):
    want = evaluate(name, *jax.tree.map(widen, (logps, batch)))
  assert all(np.isfinite(value).all() for value in got.values())
  assert_same(got, jax.tree.map(np.asarray, want), 1e-5)


def widen(x):
  return x.astype(np.float64) if x.dtype == np.float32 else x


@pytest.mark.parametrize('preference', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('h', [-1e30, -1e4, 1e4, 1e18])
@pytest.mark.parametrize('name', [n for n, c in CASES.items() if c.on_margin])
def test_float32_saturates_and_is_never_nan(name, h, preference):
  logps, batch = one_pair(h, preference)
  want = CASES[name].reference(logps, batch)
  got = evaluate(name, *as_float32(logps, batch))
  assert np.isfinite(got['gradient']).all()
  if abs(want) > float(np.finfo(np.float32).max):
    want = np.inf  # only the square overflows, as it says
    assert CASES[name].recipe == 'ipo'
  np.testing.assert_allclose(got['loss'], want, rtol=1e-5)


def one_pair(h, preference=1.0):
  """One pair that counts, of one-token responses with the margin h."""
  logps, batch = length_one(*random_batch())
  logps[0, :2, 0] = h, 0.0
  pair_weight = np.zeros((P, M))
  pair_weight[0, 0] = 1.0
  return logps, batch.replace(
    reference_logps=np.where(np.arange(K) < 2, 0.0, 1.0)[:, None] * logps,
    chosen=np.zeros((P, M), int),
    rejected=np.ones((P, M), int),
    preference=np.full((P, M), preference),
    pair_weight=pair_weight,
  )


# Law 2: step 0 ----------------------------------------------------------------


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_at_the_reference_dpo_is_log_2(x64, smoothing):
  _, batch = random_batch()
  logps, batch = as_jax(batch.reference_logps, batch)
  dpo = objectives.create('dpo', beta=0.1, label_smoothing=smoothing).build()
  loss, metrics = dpo(outputs(logps, batch), batch)
  np.testing.assert_allclose(loss.value(), np.log(2.0), rtol=1e-12)
  for key, want in {
    'margin': 0.0,
    'accuracy': 0.0,  # strict: equal is not right
    'kl_to_reference': 0.0,
    'gradient_coefficient': 0.5,
    'chosen_drift': 0.0,
  }.items():
    np.testing.assert_allclose(metrics[key].value(), want, atol=1e-15)


@pytest.mark.parametrize('h', [-30.0, -1.0, 0.0, 2.0, 30.0])
def test_dpo_gradient_coefficient(x64, h):
  # dL/dh = -beta sigmoid(-beta h), minus it at the rejected one
  got = evaluate('dpo', *one_pair(h))
  want = np.zeros((P, K, T))
  want[0, :2, 0] = [-0.3 * ref.sigmoid(-0.3 * h), 0.3 * ref.sigmoid(-0.3 * h)]
  np.testing.assert_allclose(got['gradient'], want, rtol=1e-12)
  np.testing.assert_allclose(
    got['gradient_coefficient'], ref.sigmoid(-0.3 * h), rtol=1e-12
  )


# Law 3: what must not matter --------------------------------------------------


def pad(logps, batch):
  """One more entry on every axis, that holds rubbish and counts for nothing."""

  def grow(field, x, axes):
    fill = np.nan if x.dtype == np.float64 else 1
    if field in ('weight', 'pair_weight') or x.dtype == bool:
      fill = 0
    return np.pad(x, [(0, 1)] * len(axes), constant_values=fill)

  grown = {f: grow(f, getattr(batch, f), AXES[f]) for f in AXES}
  return grow('logps', logps, 'pkt'), batch.replace(**grown)


@each_case
def test_padding_changes_nothing(x64, name):
  logps, batch = random_batch(2)
  want = evaluate(name, logps, batch)
  got = evaluate(name, *pad(logps, batch))
  gradient = got.pop('gradient')
  assert np.count_nonzero(gradient) == np.count_nonzero(want['gradient'])
  assert_same(got | {'gradient': gradient[:P, :K, :T]}, want)


def reverse(logps, batch, axis):
  """Reverses the prompts or the pairs; or the responses, with their indices."""

  def flip(x, axes):
    return np.flip(x, axes.index(axis)) if axis in axes else x

  flipped = {f: flip(getattr(batch, f), AXES[f]) for f in AXES}
  if axis == 'k':
    for field in ('chosen', 'rejected'):
      flipped[field] = K - 1 - flipped[field]
  return flip(logps, 'pkt'), batch.replace(**flipped)


@each_case
@pytest.mark.parametrize('axis', 'pkm')
def test_order_changes_nothing(x64, name, axis):
  logps, batch = random_batch(3)
  want = evaluate(name, logps, batch)
  got = evaluate(name, *reverse(logps, batch, axis))
  got['gradient'], _ = reverse(got['gradient'], batch, axis)
  assert_same(got, want)


@each_case
def test_swapped_pairs_with_the_other_preference_are_the_same(x64, name):
  logps, batch = random_batch(4)
  swapped = batch.replace(
    chosen=batch.rejected,
    rejected=batch.chosen,
    preference=1.0 - batch.preference,
  )
  got, want = (evaluate(name, logps, b) for b in (swapped, batch))
  for key in ('loss', 'gradient'):
    assert_same({key: got[key]}, {key: want[key]})


@pytest.mark.parametrize('name', [n for n, c in CASES.items() if c.on_margin])
def test_a_constant_a_prompt_changes_no_margin_loss(x64, name):
  logps, batch = length_one(*random_batch(5))
  shift = np.array([3.0, -7.0]).reshape(P, 1, 1)
  got, want = (evaluate(name, x, batch) for x in (logps + shift, logps))
  for key in ('loss', 'gradient', 'margin'):
    assert_same({key: got[key]}, {key: want[key]})


@pytest.mark.parametrize(
  'name', ['sppo', 'sppo_single', 'kto', 'nca', 'nca_pair', 'cross_entropy', 'apo_zero']
)
def test_a_constant_a_prompt_moves_what_pins_the_log_ratio(x64, name):
  logps, batch = length_one(*random_batch(5))
  shift = np.array([3.0, -7.0]).reshape(P, 1, 1)
  got, want = (evaluate(name, x, batch)['loss'] for x in (logps + shift, logps))
  assert differ(got, want)


# Law 3: micro-batches ---------------------------------------------------------


def halves(logps, batch):
  for rows in (slice(0, 1), slice(1, P)):
    yield jax.tree.map(lambda x, rows=rows: x[rows], (logps, batch))


def measure(function, logps, batch):
  loss, metrics = function(outputs(logps, batch), batch)
  return {'loss': loss, **metrics}


def both(name):
  """DPO, a pair's mean, plus 0.3 of another objective's own mean."""
  return objectives.add(loss_fn('dpo'), (0.3, loss_fn(name)))


@pytest.mark.parametrize('make', [loss_fn, both], ids=['alone', 'added'])
@pytest.mark.parametrize('name', [name for name in CASES if name not in COUPLED])
def test_parts_add_up_to_the_whole(x64, name, make):
  logps, batch = as_jax(*empty_response(*random_batch(6)))
  function = functools.partial(measure, make(name))
  want = function(logps, batch)
  first, second = (function(*half) for half in halves(logps, batch))
  got = {key: (first[key] + second[key]).value() for key in want}
  assert_same(got, {key: mean.value() for key, mean in want.items()})

  def part(x, b):
    return function(x, b)['loss'].value(weight=want['loss'].weight)

  gradients = [jax.grad(part)(*half) for half in halves(logps, batch)]
  whole = jax.grad(part)(logps, batch)
  assert_same({'gradient': np.concatenate(gradients)}, {'gradient': whole})


@pytest.mark.parametrize('name', COUPLED)
def test_parts_of_a_coupled_batch_are_another_loss(x64, name):
  logps, batch = as_jax(*further(*random_batch(6)))
  function = functools.partial(measure, loss_fn(name))
  first, second = (function(*half)['loss'] for half in halves(logps, batch))
  assert differ((first + second).value(), function(logps, batch)['loss'].value())


def test_add_keeps_two_denominators(x64):
  logps, batch = random_batch(7)
  got = both('sft')(*as_outputs(logps, batch))[0].value()
  want = ref.add(
    (CASES['dpo'].reference(logps, batch), 1.0),
    (CASES['sft'].reference(logps, batch), 0.3),
  )
  np.testing.assert_allclose(got, want, rtol=1e-12)


def as_outputs(logps, batch):
  logps, batch = as_jax(logps, batch)
  return outputs(logps, batch), batch


# Law 9: wrong variants, pinned as different -----------------------------------


def differ(a, b):
  return not np.allclose(a, b, rtol=1e-3)


# The mean over prompts is a mean of means.
@pytest.mark.parametrize('name', [name for name in CASES if name != 'nca'])
def test_the_mean_of_means_is_another_number(x64, name):
  logps, batch = as_jax(*empty_response(*random_batch(6)))
  parts = [loss_fn(name)(*as_outputs(*half))[0] for half in halves(logps, batch)]
  whole = (parts[0] + parts[1]).value()
  assert differ(np.mean([part.value() for part in parts]), whole)


def test_dividing_by_the_batch_twice_is_another_number(x64):
  logps, batch = as_jax(*random_batch())
  loss = loss_fn('dpo')(*as_outputs(logps, batch))[0]
  again = Mean(loss.value(), loss.weight).value()
  assert differ(again, CASES['dpo'].reference(logps, batch))


def test_one_denominator_for_two_terms_is_another_number(x64):
  logps, batch = random_batch(7)
  terms = both('sft')(*as_outputs(logps, batch))[0]
  wrong = terms.total.sum() / terms.weight.sum()
  assert differ(wrong, terms.value())


def test_ipo_of_sums_and_of_means_are_two_losses(x64):
  logps, batch = random_batch()
  summed, mean = (evaluate(name, logps, batch)['loss'] for name in ('ipo', 'ipo_mean'))
  assert differ(summed, mean)


def test_sft_by_token_and_by_sequence_are_two_losses(x64):
  logps, batch = random_batch()
  token, sequence = (
    evaluate(name, logps, batch)['loss'] for name in ('sft', 'sft_sum')
  )
  assert differ(token, sequence)


def test_a_mask_that_multiplies_is_not_a_number():
  logps = np.array([[-1.0, -np.inf]], np.float32)
  mask = np.array([[True, False]])
  with np.errstate(invalid='ignore'):
    assert np.isnan(np.sum(logps * mask))
  scored = objectives.log_ratio(*map(jnp.asarray, (logps, 0 * mask - 1.0, mask)))
  np.testing.assert_array_equal(scored, [0.0])
