"""The reference against numbers worked out by hand, and against itself."""

import numpy as np
import pytest
import reference as ref

BETA = 0.1
NAN = np.nan


def one_pair(preference=1.0):
  """One pair: log-ratios 3 x 0.5 and 1 x -0.5, so a = 1.5, b = -0.5, h = 2.

  The policy's sums are -3 and -2, its means -1 and -2. What does not count
  holds NaN and infinities; the filling pair holds NaN and wild indices.
  """
  logps = np.array([[[-1.0, -1.0, -1.0, NAN], [-2.0, np.inf, NAN, -np.inf]]])
  reference_logps = np.array([[[-1.5, -1.5, -1.5, np.inf], [-1.5, NAN, 1, 2]]])
  mask = np.array([[[1, 1, 1, 0], [1, 0, 0, 0]]], bool)
  pairs = ref.Pairs(
    np.array([[0, 99]]),
    np.array([[1, -99]]),
    np.array([[preference, NAN]]),
    np.array([[3.0, 0.0]]),
  )
  return logps, reference_logps, mask, pairs


def margin_batch(h, preference=1.0):
  """One pair of one-token responses with the margin h."""
  logps = np.array([[[h], [0.0]]])
  pairs = ref.Pairs([[0]], [[1]], [[preference]], [[1.0]])
  return logps, np.zeros_like(logps), np.ones_like(logps, bool), pairs


def random_batch(seed=0, p=3, k=4, m=3, t=5):
  rng = np.random.default_rng(seed)
  mask = rng.random((p, k, t)) < 0.7
  pairs = ref.Pairs(
    rng.integers(0, 2, (p, m)),
    rng.integers(2, k, (p, m)),
    rng.random((p, m)),
    rng.random((p, m)),
  )
  logps, reference_logps = -rng.exponential(size=(2, p, k, t))
  return logps, reference_logps, mask, pairs


WITH_REFERENCE = {
  'dpo': (ref.dpo, {'beta': BETA}),
  'cdpo': (ref.dpo, {'beta': BETA, 'label_smoothing': 0.1}),
  'robust': (ref.robust_dpo, {'beta': BETA, 'flip_probability': 0.1}),
  'ipo': (ref.ipo, {'tau': 0.1, 'length_normalised': False}),
  'ipo_mean': (ref.ipo, {'tau': 0.1, 'length_normalised': True}),
  'hinge': (ref.hinge, {'beta': BETA}),
  'discopop': (ref.discopop, {'beta': BETA}),
  'exo': (ref.exo_pair, {'beta': BETA, 'label_smoothing': 0.1}),
  'nca': (ref.nca_pair, {'beta': BETA}),
  'bco': (ref.bco_pair, {'beta': BETA}),
  'bco_shift': (ref.bco_pair, {'beta': BETA, 'shift': 0.05}),
  'apo_zero': (ref.apo_zero, {'beta': BETA}),
  'apo_down': (ref.apo_down, {'beta': BETA}),
  'sppo_single': (ref.sppo_single, {'eta': 10.0}),
  'sppo_hard': (ref.sppo_hard, {'eta': 10.0}),
}
WITHOUT_REFERENCE = {
  'simpo': (ref.simpo, {'beta': 2.0, 'gamma': 0.5}),
  'nll_sum': (ref.chosen_nll, {'reduction': 'sum'}),
  'nll_mean': (ref.chosen_nll, {'reduction': 'mean'}),
  'odds_ratio': (ref.odds_ratio, {}),
  'orpo': (ref.orpo, {'coefficient': 0.1}),
  'cpo': (ref.cpo, {'beta': BETA}),
  'cpo_mean': (ref.cpo, {'beta': BETA, 'nll_reduction': 'mean'}),
}
PAIR_LOSSES = WITH_REFERENCE | WITHOUT_REFERENCE


def evaluate(name, logps, reference_logps, mask, pairs):
  loss, options = PAIR_LOSSES[name]
  if name in WITHOUT_REFERENCE:
    return loss(logps, mask, pairs, **options)
  return loss(logps, reference_logps, mask, pairs, **options)


# softplus(-0.15) = 0.620957, softplus(0.15) = 0.770957, softplus(-0.05) =
# 0.668460, softplus(-0.2) = 0.598139, softplus(0.2) = 0.798139, s(0.15) =
# 0.537430, s(-0.05) = 0.487503, s(0.2) = 0.549834, s(4) = 0.982014.
BY_HAND = {
  'dpo': 0.598139,
  'cdpo': 0.9 * 0.598139 + 0.1 * 0.798139,
  'robust': (0.9 * 0.598139 - 0.1 * 0.798139) / 0.8,
  'ipo': (2.0 - 5.0) ** 2,
  'ipo_mean': (0.5 + 0.5 - 5.0) ** 2,
  'hinge': 0.8,
  'discopop': 0.017986 * 0.598139 + 0.982014 * 0.818731,
  'exo': 0.549834 * np.log(0.549834 / 0.9) + 0.450166 * np.log(0.450166 / 0.1),
  'nca': 0.620957 + 0.5 * 0.770957 + 0.5 * 0.668460,
  'bco': 0.620957 + 0.668460,
  'bco_shift': 0.644397 + 0.644397,  # softplus(-0.1), twice
  'apo_zero': 0.462570 + 0.487503,
  'apo_down': 0.537430 + 0.450166,
  'sppo_single': (3.5**2 + 4.5**2) / 2,
  'sppo_hard': 3.5**2 + 4.5**2,
  'simpo': 0.201413,  # softplus(-1.5)
  'nll_sum': 3.0,
  'nll_mean': 1.0,
  'odds_ratio': 0.238183,  # the odds' ratio is e + 1: log(1 + 1 / (e + 1))
  'orpo': 1.0238183,
  'cpo': 0.744397 + 3.0,  # softplus(0.1)
  'cpo_mean': 0.744397 + 1.0,
}


@pytest.mark.parametrize('name', PAIR_LOSSES)
def test_pair_loss_is_the_number_by_hand(name):
  assert evaluate(name, *one_pair()) == pytest.approx(BY_HAND[name], abs=3e-6)


@pytest.mark.parametrize('name', PAIR_LOSSES)
def test_soft_label_mixes_the_two_orders(name):
  logps, reference_logps, mask, pairs = random_batch()
  ones = np.ones_like(pairs.preference)
  batch = logps, reference_logps, mask
  soft = evaluate(name, *batch, pairs._replace(preference=0.3 * ones))
  right = evaluate(name, *batch, pairs._replace(preference=ones))
  swapped = ref.Pairs(pairs.rejected, pairs.chosen, ones, pairs.pair_weight)
  left = evaluate(name, *batch, swapped)
  if name == 'sppo_single':
    assert soft != pytest.approx(0.3 * right + 0.7 * left)
  else:
    assert soft == pytest.approx(0.3 * right + 0.7 * left, rel=1e-12)


@pytest.mark.parametrize('name', PAIR_LOSSES)
def test_swapping_a_pair_with_its_preference_changes_nothing(name):
  *batch, pairs = random_batch(1)
  swapped = ref.Pairs(
    pairs.rejected, pairs.chosen, 1.0 - pairs.preference, pairs.pair_weight
  )
  assert evaluate(name, *batch, swapped) == pytest.approx(
    evaluate(name, *batch, pairs), rel=1e-12
  )


@pytest.mark.parametrize('name', PAIR_LOSSES)
def test_no_weight_is_no_loss(name):
  *batch, pairs = one_pair()
  empty = pairs._replace(pair_weight=np.zeros((1, 2)))
  assert evaluate(name, *batch, empty) == 0.0


@pytest.mark.parametrize('name', PAIR_LOSSES)
def test_mean_over_pairs_is_weighted(name):
  *batch, pairs = random_batch(2, p=2, m=1)
  weight = np.array([[1.0], [3.0]])
  alone = [
    evaluate(name, *batch, pairs._replace(pair_weight=weight * only))
    for only in (np.array([[1], [0]]), np.array([[0], [1]]))
  ]
  both = evaluate(name, *batch, pairs._replace(pair_weight=weight))
  assert both == pytest.approx(0.25 * alone[0] + 0.75 * alone[1], rel=1e-12)


@pytest.mark.parametrize('name', PAIR_LOSSES)
def test_what_is_masked_out_does_not_count(name):
  logps, reference_logps, mask, pairs = random_batch(3)
  dirty = np.where(mask, logps, NAN)
  dirty_reference = np.where(mask, reference_logps, -np.inf)
  clean = evaluate(name, logps, reference_logps, mask, pairs)
  assert evaluate(name, dirty, dirty_reference, mask, pairs) == clean
  gradient = ref.central_difference(
    lambda x: evaluate(name, x, reference_logps, mask, pairs), logps
  )
  assert np.all(gradient[~mask] == 0.0)


@pytest.mark.parametrize('name', WITH_REFERENCE)
@pytest.mark.parametrize('h', [-1e4, 1e4])
def test_huge_margins_are_finite(name, h):
  if name == 'discopop' and h < 0:
    h = -100.0  # exp(-z) s(z / tau) falls there, its slope is 1 / tau - 1 = 19
  assert np.isfinite(evaluate(name, *margin_batch(h, 0.5)))


# Margins ----------------------------------------------------------------------


def test_step_zero():
  logps, _, mask, pairs = random_batch(4)
  batch = logps, logps, mask, pairs
  for name in ('dpo', 'cdpo', 'robust'):
    assert evaluate(name, *batch) == pytest.approx(np.log(2.0), rel=1e-12)
  assert evaluate('hinge', *batch) == 1.0
  assert evaluate('ipo', *batch) == pytest.approx(25.0)
  metrics = ref.preference_metrics(*batch, scale=BETA)
  assert metrics['accuracy'] == metrics['margin'] == 0.0
  assert metrics['gradient_coefficient'] == pytest.approx(0.5)
  assert ref.kl_k1(logps, logps, mask, np.ones((3, 4))) == 0.0
  assert ref.kl_k3(logps, logps, mask, np.ones((3, 4))) == 0.0


def test_dpo_gradient_is_beta_times_the_coefficient():
  logps, reference_logps, mask, pairs = one_pair()
  logps = np.where(mask, logps, 0.0)
  gradient = ref.central_difference(
    lambda x: ref.dpo(x, reference_logps, mask, pairs, beta=BETA), logps
  )
  slope = BETA * 0.450166  # beta s(-beta h)
  assert gradient[0, 0] == pytest.approx([-slope] * 3 + [0.0], abs=1e-7)
  assert gradient[0, 1] == pytest.approx([slope, 0, 0, 0], abs=1e-7)


def slope(loss, h, preference=1.0, **options):
  _, reference_logps, mask, pairs = margin_batch(0.0, preference)
  gradient = ref.central_difference(
    lambda x: loss(np.stack([x, 0 * x])[None], reference_logps, mask, pairs, **options),
    [h],
  )
  return gradient[0]


def test_cdpo_minimum():
  e = 0.2
  best = np.log((1 - e) / e) / BETA
  options = {'beta': BETA, 'label_smoothing': e}
  assert slope(ref.dpo, best, **options) == pytest.approx(0.0, abs=1e-10)
  assert slope(ref.dpo, best - 1, **options) < 0
  assert slope(ref.dpo, best + 1, **options) > 0


def test_soft_dpo_minimum_is_the_logit_over_beta():
  best = np.log(0.7 / 0.3) / BETA
  assert slope(ref.dpo, best, 0.7, beta=BETA) == pytest.approx(0.0, abs=1e-10)


def test_label_smoothing_is_a_soft_label():
  hard = ref.dpo(*one_pair(), beta=BETA, label_smoothing=0.1)
  assert hard == pytest.approx(ref.dpo(*one_pair(0.9), beta=BETA), rel=1e-14)


def test_soft_ipo_minimum():
  options = {'tau': 0.1, 'length_normalised': False}
  best = (2 * 0.7 - 1) / (2 * 0.1)
  assert best == pytest.approx(2.0)
  assert slope(ref.ipo, best, 0.7, **options) == pytest.approx(0.0, abs=1e-9)
  assert slope(ref.ipo, 2.0, 1.0, **options) == pytest.approx(2 * (2 - 5))


def test_ipo_lengths():
  """The long response must not win by its length where lengths are divided."""
  sums = ref.ipo(*one_pair(), tau=0.25, length_normalised=False)
  means = ref.ipo(*one_pair(), tau=0.25, length_normalised=True)
  assert sums == pytest.approx(0.0)  # h = 2 = 1 / (2 tau)
  assert means == pytest.approx(1.0)  # h = 1


def test_hinge_kink():
  assert ref.hinge(*margin_batch(9.0), beta=BETA) == pytest.approx(0.1)
  assert ref.hinge(*margin_batch(10.0), beta=BETA) == 0.0
  assert ref.hinge(*margin_batch(11.0), beta=BETA) == 0.0
  assert slope(ref.hinge, 9.0, beta=BETA) == pytest.approx(-BETA)
  assert slope(ref.hinge, 11.0, beta=BETA) == 0.0
  assert slope(ref.hinge, 10.0, beta=BETA) == pytest.approx(-BETA / 2)


@pytest.mark.parametrize('e', [0.0, 0.1, 0.4])
def test_robust_dpo_is_unbiased_under_flips(e):
  *batch, pairs = random_batch(5)
  options = {'beta': BETA, 'flip_probability': e}
  flipped = pairs._replace(preference=1.0 - pairs.preference)
  expected = (1 - e) * ref.robust_dpo(*batch, pairs, **options)
  expected += e * ref.robust_dpo(*batch, flipped, **options)
  clean = ref.dpo(*batch, pairs, beta=BETA)
  assert expected == pytest.approx(clean, rel=1e-12)


def test_robust_dpo_is_not_cdpo():
  robust = ref.robust_dpo(*one_pair(), beta=BETA, flip_probability=0.1)
  assert robust < ref.dpo(*one_pair(), beta=BETA)
  assert robust < ref.dpo(*one_pair(), beta=BETA, label_smoothing=0.1)


def test_exo_minimum():
  options = {'beta': BETA, 'label_smoothing': 0.1}
  best = np.log(0.9 / 0.1) / BETA
  value = ref.exo_pair(*margin_batch(best), **options)
  assert value == pytest.approx(0.0, abs=1e-15)
  assert slope(ref.exo_pair, best, **options) == pytest.approx(0.0, abs=1e-9)


def test_discopop_limits():
  """The logistic loss where the margin is below 0, the exponential above."""
  low = ref.discopop(*margin_batch(-20.0), beta=BETA)
  assert low == pytest.approx(np.log1p(np.exp(2.0)), abs=1e-9)
  high = ref.discopop(*margin_batch(20.0), beta=BETA)
  assert high == pytest.approx(np.exp(-2.0), abs=1e-9)
  middle = ref.discopop(*margin_batch(0.0), beta=BETA)
  assert middle == pytest.approx((np.log(2.0) + 1.0) / 2)


@pytest.mark.parametrize('name', WITH_REFERENCE)
def test_who_sees_a_prompt_constant(name):
  """A shift of both log-ratios leaves the losses of the margin alone."""
  logps, reference_logps, mask, pairs = random_batch(6)
  mask[:] = False
  mask[..., :2] = True
  shifted = logps + np.arange(1, 4)[:, None, None]
  before = evaluate(name, logps, reference_logps, mask, pairs)
  after = evaluate(name, shifted, reference_logps, mask, pairs)
  two_sided = ('nca', 'bco', 'apo', 'sppo')
  assert (after != pytest.approx(before, rel=1e-9)) == name.startswith(two_sided)


@pytest.mark.parametrize('name', PAIR_LOSSES)
def test_first_step_raises_the_chosen(name):
  """At the reference no loss but DiscoPOP lowers the chosen response."""
  logps, _, mask, pairs = one_pair()
  logps = np.where(mask, logps, 0.0)
  gradient = ref.central_difference(
    lambda x: evaluate(name, x, logps, mask, pairs), logps
  )
  sign = -1 if name == 'discopop' else 1
  assert np.all(sign * gradient[0, 0, :3] < 1e-9)
  assert np.all(sign * gradient[0, 1, 0] > -1e-9)


def test_discopop_rises_at_first():
  """At h = 0 the blend grows faster than its parts fall: a known local bump."""
  rise = (1.0 - np.log(2.0)) / (4 * 0.05) - (0.5 + 1.0) / 2
  value = slope(ref.discopop, 0.0, beta=BETA)
  assert value == pytest.approx(BETA * rise, rel=1e-6)
  assert value > 0.0


def test_apo_down_leaves_the_chosen_at_first():
  logps, _, mask, pairs = margin_batch(0.0)
  gradient = ref.central_difference(
    lambda x: ref.apo_down(x, logps, mask, pairs, beta=BETA), logps
  )
  assert gradient[0, :, 0] == pytest.approx([0.0, BETA / 4], abs=1e-9)


# Without a reference ----------------------------------------------------------


def test_simpo_margin_is_outside_beta():
  logps, _, mask, pairs = one_pair()
  value = ref.simpo(logps, mask, pairs, beta=2.0, gamma=2.0)
  assert value == pytest.approx(np.log(2.0))  # 2 (-1 + 2) = gamma


@pytest.mark.parametrize('p', [1e-12, 0.3, 0.5, 0.9])
def test_log_odds(p):
  assert ref.log_odds(np.log(p)) == pytest.approx(np.log(p / (1 - p)))


def test_log1mexp_does_not_cancel():
  assert ref.log1mexp(-1e-15) == pytest.approx(np.log(1e-15))
  assert ref.log1mexp(-50.0) == pytest.approx(-np.exp(-50.0))
  assert ref.log1mexp(0.0) == -np.inf


def test_bradley_terry():
  pairs = ref.Pairs([[0]], [[1]], [[1.0]], [[2.0]])
  scores = np.array([[1.0, 0.0]])
  assert ref.bradley_terry(scores, pairs) == pytest.approx(0.313262, abs=1e-6)
  value = ref.bradley_terry(scores, pairs, margin=1.0, centre_coefficient=0.01)
  assert value == pytest.approx(np.log(2.0) + 0.01)
  gradient = ref.central_difference(lambda x: ref.bradley_terry(x, pairs), scores)
  assert gradient[0] == pytest.approx([-0.268941, 0.268941], abs=1e-6)


# SPPO -------------------------------------------------------------------------


def test_win_rates_include_the_response_itself():
  hard = np.array([[0.5, 1.0], [0.0, 0.5]])
  assert ref.win_rates(hard) == pytest.approx([0.75, 0.25])
  five = np.triu(np.ones((5, 5)), 1) + 0.5 * np.eye(5)
  assert ref.win_rates(five) == pytest.approx([0.9, 0.7, 0.5, 0.3, 0.1])


def test_win_probabilities_of_scores():
  p = ref.win_probabilities([np.log(3.0), 0.0])
  assert p == pytest.approx(np.array([[0.5, 0.75], [0.25, 0.5]]))


def test_sppo_of_two_responses():
  logps, reference_logps, mask, _ = one_pair()
  value = ref.sppo(
    logps,
    reference_logps,
    mask,
    np.ones((1, 2)),
    np.array([[0.75, 0.25]]),
    eta=10.0,
  )
  assert value == pytest.approx(((1.5 - 2.5) ** 2 + (-0.5 + 2.5) ** 2) / 2)
  single = ref.sppo_single(*one_pair(0.75), eta=10.0)
  assert single == pytest.approx(value)


def test_sppo_normaliser_and_weights():
  logps, reference_logps, mask, _ = one_pair()
  options = {'eta': 10.0, 'log_normaliser': 0.75}
  win_rate = np.array([[0.75, NAN]])
  weight = np.array([[2.0, 0.0]])
  batch = logps, reference_logps, mask, weight, win_rate
  assert ref.sppo(*batch, **options) == pytest.approx(1.5**2)
  empty = logps, reference_logps, mask, 0 * weight, win_rate
  assert ref.sppo(*empty, **options) == 0.0


def test_sppo_targets():
  """The gradient vanishes at eta / 4 for K = 2, at eta / 2 for a hard label."""
  one, half = np.array([[[1.0], [-1.0]]]), 0.5
  zero, mask = np.zeros_like(one), np.ones_like(one, bool)
  pairs = ref.Pairs([[0]], [[1]], [[1.0]], [[1.0]])
  rates = np.array([[0.75, 0.25]])
  assert ref.sppo(one, zero, mask, [[1, 1]], rates, eta=4.0) == 0.0
  assert ref.sppo_hard(half * 4 * one, zero, mask, pairs, eta=4.0) == 0.0
  assert ref.sppo_single(half * 4 * one, zero, mask, pairs, eta=4.0) == 0.0


def test_sppo_hard_is_twice_single_at_a_hard_label():
  hard = ref.sppo_hard(*one_pair(), eta=7.0)
  assert hard == pytest.approx(2 * ref.sppo_single(*one_pair(), eta=7.0))
  halved = ref.sppo_hard(*one_pair(), eta=7.0, factor=0.5)
  assert hard == pytest.approx(2 * halved)


# Responses --------------------------------------------------------------------


def test_sft():
  logps, _, mask, _ = one_pair()
  weight = np.ones((1, 2))
  assert ref.sft(logps, mask, weight, reduction='token_mean') == 5 / 4
  assert ref.sft(logps, mask, weight, reduction='sequence_sum') == 5 / 2
  weight = np.array([[2.0, 1.0]])
  token = ref.sft(logps, mask, weight, reduction='token_mean')
  assert token == pytest.approx((2 * 3 + 2) / (2 * 3 + 1))
  sequence = ref.sft(logps, mask, weight, reduction='sequence_sum')
  assert sequence == pytest.approx((2 * 3 + 2) / 3)


@pytest.mark.parametrize('reduction', ['token_mean', 'sequence_sum'])
def test_sft_filling(reduction):
  logps, _, mask, _ = one_pair()
  only = ref.sft(logps, mask, np.array([[0.0, 5.0]]), reduction=reduction)
  assert only == pytest.approx(2.0)
  nothing = ref.sft(logps, mask, np.zeros((1, 2)), reduction=reduction)
  assert nothing == 0.0


def test_sft_of_an_empty_response():
  """No token, no share in a mean of tokens; a mean of responses counts it."""
  logps, _, mask, _ = one_pair()
  mask[0, 1] = False
  weight = np.ones((1, 2))
  assert ref.sft(logps, mask, weight, reduction='token_mean') == 1.0
  assert ref.sft(logps, mask, weight, reduction='sequence_sum') == 1.5


def test_sft_gradient_and_unknown_reduction():
  logps, _, mask, _ = one_pair()
  logps = np.where(mask, logps, 0.0)
  weight = np.array([[2.0, 1.0]])
  gradient = ref.central_difference(
    lambda x: ref.sft(x, mask, weight, reduction='token_mean'), logps
  )
  assert gradient == pytest.approx(-weight[..., None] * mask / 7, abs=1e-9)
  with pytest.raises(ValueError, match='mean_of_means'):
    ref.sft(logps, mask, weight, reduction='mean_of_means')


def test_kto():
  logps, reference_logps, mask, _ = one_pair()
  value = ref.kto(
    logps,
    reference_logps,
    mask,
    np.ones((1, 2)),
    np.array([[1.0, 0.0]]),
    beta=BETA,
    kl=0.5,
    desirable_weight=1.0,
    undesirable_weight=2.0,
  )
  # 1 - s(0.1 (1.5 - 0.5)) and 2 (1 - s(0.1 (0.5 + 0.5))).
  assert value == pytest.approx((0.475021 + 2 * 0.475021) / 2, abs=1e-6)


def test_kto_weights_keep_the_count_as_denominator():
  logps, _, mask, _ = one_pair()
  batch = logps, logps, mask, np.array([[1.0, 0.0]]), np.array([[1.0, NAN]])
  value = ref.kto(*batch, beta=BETA, kl=0.0, desirable_weight=3.0)
  assert value == pytest.approx(1.5)


def test_kto_kl():
  logps, reference_logps, mask, _ = one_pair()
  batch = logps, reference_logps, mask
  assert ref.kto_kl(*batch, [[1, 1]]) == pytest.approx(0.5)
  assert ref.kto_kl(*batch, [[1, 0]]) == pytest.approx(1.5)
  assert ref.kto_kl(*batch, [[0, 1]]) == 0.0  # -0.5 is cut at 0
  assert ref.kto_kl(*batch, [[0, 0]]) == 0.0


def test_cross_entropy():
  logps, reference_logps, mask, _ = one_pair()
  batch = logps, reference_logps, mask, np.ones((1, 2))
  value = ref.cross_entropy(*batch, np.array([[1.0, 0.0]]), beta=BETA)
  assert value == pytest.approx((0.620957 + 0.668460) / 2, abs=1e-6)
  soft = ref.cross_entropy(*batch, np.array([[0.5, 0.0]]), beta=BETA)
  mixed = (0.620957 + 0.770957) / 2
  assert soft == pytest.approx((mixed + 0.668460) / 2, abs=1e-6)


def test_add():
  assert ref.add() == 0.0
  assert ref.add((2.0, 1.0), (3.0, 0.5)) == 3.5


# Metrics ----------------------------------------------------------------------


def test_metrics():
  metrics = ref.preference_metrics(*one_pair(0.3), scale=BETA)
  assert metrics == {
    'chosen_reward': pytest.approx(0.15),
    'rejected_reward': pytest.approx(-0.05),
    'margin': pytest.approx(0.2),
    'accuracy': 1.0,
    'chosen_drift': pytest.approx(1.5),
    'rejected_drift': pytest.approx(-0.5),
    'gradient_coefficient': pytest.approx(0.450166, abs=1e-6),
  }


def test_metrics_without_weight_are_zero():
  *batch, pairs = one_pair()
  empty = pairs._replace(pair_weight=np.zeros((1, 2)))
  metrics = ref.preference_metrics(*batch, empty, scale=BETA)
  assert set(metrics.values()) == {0.0}


def test_kl_estimates():
  logps, reference_logps, mask, _ = one_pair()
  batch = logps, reference_logps, mask
  assert ref.kl_k1(*batch, np.ones((1, 2))) == pytest.approx(0.5)
  k3 = (3 * 0.106531 + 0.148721) / 2  # e^-0.5 - 0.5 and e^0.5 - 1.5
  assert ref.kl_k3(*batch, np.ones((1, 2))) == pytest.approx(k3, abs=1e-6)
  assert ref.kl_k1(*batch, np.array([[0.0, 2.0]])) == pytest.approx(-0.5)


@pytest.mark.parametrize('estimate', [ref.kl_k1, ref.kl_k3])
def test_kl_estimates_are_unbiased_under_the_policy(estimate):
  """All tokens, each weighted by its probability: the expectation itself."""
  logits, other = np.random.default_rng(0).normal(size=(2, 6))
  logp = ref.log_softmax(logits)[None, :, None]
  logq = ref.log_softmax(other)[None, :, None]
  mask = np.ones_like(logp, bool)
  value = estimate(logp, logq, mask, np.exp(logp[..., 0]))
  assert value == pytest.approx(ref.kl(logits, other), rel=1e-12)


# Tokens -----------------------------------------------------------------------


def test_token_functions_by_hand():
  logits = np.log([[2.0, 1.0, 1.0], [1.0, 1.0, 1.0]]) + 5.0
  assert ref.token_logps(logits, [0, 2]) == pytest.approx(-np.log([2.0, 3.0]))
  assert ref.entropy(logits) == pytest.approx([1.5 * np.log(2), np.log(3)])
  assert ref.collision(logits) == pytest.approx([3 / 8, 1 / 3])
  kl = 0.5 * np.log(1.5) + 0.5 * np.log(0.75)
  assert ref.kl(logits[0], logits[1]) == pytest.approx(kl)
  assert ref.kl(logits, logits) == pytest.approx([0.0, 0.0], abs=1e-15)


def test_temperature():
  """Temperature 1/2 squares the odds: 2 : 1 becomes 4 : 1."""
  logits = np.log([2.0, 1.0])
  logp = ref.log_softmax(logits, temperature=0.5)
  assert np.exp(logp) == pytest.approx([0.8, 0.2])
  assert ref.collision(logits, temperature=0.5) == pytest.approx(0.68)
  entropy = -0.8 * np.log(0.8) - 0.2 * np.log(0.2)
  assert ref.entropy(logits, temperature=0.5) == pytest.approx(entropy)
  kl = ref.kl(logits, [0.0, 0.0], temperature=0.5)
  assert kl == pytest.approx(np.log(2.0) - entropy)


def test_soft_cap_comes_before_temperature():
  options = {'temperature': 2.0, 'soft_cap': 3.0}
  value = ref.transform_logits([0.0, 1.0, -1e6], **options)
  assert value == pytest.approx([0.0, 3.0 * np.tanh(1.0 / 3.0) / 2.0, -1.5])
  logp = ref.log_softmax([1e6, 0.0], soft_cap=3.0)
  assert logp[0] - logp[1] == pytest.approx(3.0)


def test_impossible_tokens_and_huge_logits():
  logits = np.array([1e4, 1e4, -np.inf])
  assert ref.entropy(logits) == pytest.approx(np.log(2.0))
  assert ref.collision(logits) == pytest.approx(0.5)
  assert ref.kl(logits, [0.0, 0.0, 0.0]) == pytest.approx(np.log(1.5))
  assert ref.token_logps(logits, np.array(2)) == -np.inf


def test_entropy_gradient():
  """dH/dz = -p (log p + H)."""
  z = np.random.default_rng(1).normal(size=5)
  logp = ref.log_softmax(z)
  expected = -np.exp(logp) * (logp + ref.entropy(z))
  gradient = ref.central_difference(ref.entropy, z)
  assert gradient == pytest.approx(expected, abs=1e-9)


# Scalars and gradients --------------------------------------------------------


def test_log_sigmoid_is_stable():
  assert ref.log_sigmoid(-1e5) == -1e5
  assert ref.log_sigmoid(0.0) == pytest.approx(-np.log(2.0))
  assert ref.log_sigmoid(40.0) == pytest.approx(-np.exp(-40.0), rel=1e-12)
  assert ref.sigmoid(-1e5) == 0.0
  assert ref.sigmoid(1e5) == 1.0


def test_central_difference():
  x = np.array([[1.0, -2.0], [0.5, 3.0]])
  gradient = ref.central_difference(lambda y: np.sum(y**3), x)
  assert gradient == pytest.approx(3 * x**2, rel=1e-8)
  assert np.array_equal(x, [[1.0, -2.0], [0.5, 3.0]])
