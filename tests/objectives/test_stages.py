"""Each stage against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax import objectives
from prefjax.errors import InputError
from prefjax.objectives import links, self_play, transport
from prefjax.objectives.metrics import label_accuracy
from prefjax.types import PreferenceBatch, weighted_mean

MASK = np.array([[True, False, False], [True, True, True]])


def arrays(*values):
  return [jnp.asarray(v) for v in values]


@pytest.mark.parametrize(
  ('link', 'margin', 'want', 'slope'),
  [
    # -log sigmoid(0.1 * 2) and -0.1 sigmoid(-0.2)
    (links.logistic(beta=0.1), 2.0, 0.598138869, -0.045016600),
    (links.logistic(beta=0.1), 0.0, 0.693147181, -0.05),
    (links.logistic(beta=1.0), -1e4, 1e4, -1.0),
    (links.logistic(beta=1.0), 1e4, 0.0, 0.0),
    # (2 - 1 / 0.2)^2 = 9
    (links.squared(tau=0.1), 2.0, 9.0, -6.0),
    (links.squared(tau=0.1), 5.0, 0.0, 0.0),
    (links.hinge(beta=0.1), 2.0, 0.8, -0.1),
    (links.hinge(beta=0.1), 20.0, 0.0, 0.0),
    (links.hinge(beta=0.1), -20.0, 3.0, -0.1),
  ],
)
def test_links(x64, link, margin, want, slope):
  got = jax.value_and_grad(link)(jnp.asarray(margin))
  np.testing.assert_allclose(got, (want, slope), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
  ('score', 'want'),
  # log-ratios 0.5 and then 1 + 1 - 5: the rest is masked out
  [
    (objectives.log_ratio, [0.5, -3.0]),
    (objectives.mean_log_ratio, [0.5, -1.0]),
  ],
)
def test_scores(score, want):
  logps = [[-1.0, np.nan, -np.inf], [-1.0, -1.0, -6.0]]
  reference = [[-1.5, np.inf, np.nan], [-2.0, -2.0, -1.0]]
  got = score(*arrays(np.float32(logps), np.float32(reference), MASK))
  np.testing.assert_allclose(got, want)


@pytest.mark.parametrize('score', [objectives.log_ratio, objectives.mean_log_ratio])
def test_scores_of_an_empty_response_and_without_a_reference(score):
  logps, mask = arrays(np.ones((1, 3), np.float32), np.zeros((1, 3), bool))
  np.testing.assert_array_equal(score(logps, 0.0 * logps, mask), [0.0])
  with pytest.raises(InputError, match='reference_logps'):
    score(logps, None, mask)


@pytest.mark.parametrize(
  ('aggregate', 'want'),
  # token losses [4] and [1, 1, 1]; sequence means would give 2.5
  [(objectives.token_mean, 1.75), (objectives.sequence_sum, 3.5)],
)
@pytest.mark.parametrize('rubbish', [0.0, np.nan])
def test_aggregation(aggregate, want, rubbish):
  losses = np.float32([[[4.0, rubbish, rubbish], [1.0, 1.0, 1.0]]])
  weight = np.ones((1, 2), np.float32)
  got = aggregate(*arrays(losses, MASK[None], weight))
  np.testing.assert_allclose(got.value(), want)


@pytest.mark.parametrize(
  ('aggregate', 'total', 'weight'),
  # weights 2 and 0.5: tokens 2 x 4 + 0.5 x 3 over 2 x 1 + 0.5 x 3
  [(objectives.token_mean, 9.5, 3.5), (objectives.sequence_sum, 9.5, 2.5)],
)
def test_aggregation_under_weights(aggregate, total, weight):
  losses = np.float32([[[4.0, 0.0, 0.0], [1.0, 1.0, 1.0]]])
  got = aggregate(*arrays(losses, MASK[None], np.float32([[2.0, 0.5]])))
  np.testing.assert_allclose((got.total, got.weight), (total, weight))


@pytest.mark.parametrize('aggregate', [objectives.token_mean, objectives.sequence_sum])
def test_an_empty_response_is_in_no_denominator(aggregate):
  losses = np.float32([[[4.0, 9.0], [np.nan, np.nan]]])
  mask = np.array([[[True, False], [False, False]]])
  got = aggregate(*arrays(losses, mask, np.ones((1, 2), np.float32)))
  assert (float(got.total), float(got.weight)) == (4.0, 1.0)


def prefer_chosen(chosen, rejected, preference):
  """A pair loss that shows the preference it is given."""
  return preference


@pytest.mark.parametrize(
  ('wrap', 'preference', 'want'),
  [
    (objectives.smoothed, 1.0, 0.9),
    (objectives.smoothed, 0.0, 0.1),
    (objectives.smoothed, 0.5, 0.5),
    (objectives.unflipped, 1.0, 1.125),  # 0.9 / 0.8
    (objectives.unflipped, 0.0, -0.125),
    (objectives.unflipped, 0.5, 0.5),
  ],
)
def test_label_noise(wrap, preference, want):
  pair_loss = wrap(prefer_chosen, epsilon=0.1)
  got = pair_loss(*map(jnp.asarray, (0.0, 0.0, preference)))
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize('epsilon', [0.0, 0.1, 0.49])
def test_unflipped_undoes_smoothed(x64, epsilon):
  P = jnp.linspace(0.0, 1.0, 5)
  there = objectives.smoothed(prefer_chosen, epsilon=epsilon)
  back = objectives.unflipped(there, epsilon=epsilon)
  np.testing.assert_allclose(back(P, P, P), P, atol=1e-13)
  unflipped = objectives.unflipped(prefer_chosen, epsilon=epsilon)
  there = objectives.smoothed(unflipped, epsilon=epsilon)
  np.testing.assert_allclose(there(P, P, P), P, atol=1e-13)


@pytest.mark.parametrize(('preference', 'want'), [(1.0, 1.0), (0.0, 9.0), (0.25, 7.0)])
def test_on_margin_mixes_both_orders(preference, want):
  # h = 2: (2 - 1)^2 = 1 and (-2 - 1)^2 = 9
  pair_loss = objectives.on_margin(links.squared(tau=0.5))
  got = pair_loss(*map(jnp.asarray, (3.0, 1.0, preference)))
  np.testing.assert_allclose(got, want)


@pytest.mark.parametrize(
  ('values', 'weights', 'total', 'weight', 'value'),
  [
    ([1.0, 4.0], [3.0, 1.0], 7.0, 4.0, 1.75),
    ([1.0, np.nan], [2.0, 0.0], 2.0, 2.0, 1.0),
    ([np.inf, np.nan], [0.0, 0.0], 0.0, 0.0, 0.0),
  ],
)
def test_weighted_mean(values, weights, total, weight, value):
  mean = weighted_mean(*arrays(np.float32(values), np.float32(weights)))
  assert (float(mean.total), float(mean.weight)) == (total, weight)
  assert float(mean.value()) == value


def test_weighted_mean_of_nothing_has_no_gradient():
  gradient = jax.grad(lambda x: weighted_mean(x, 0.0 * x).value())(jnp.ones(2))
  np.testing.assert_array_equal(gradient, [0.0, 0.0])


@pytest.mark.parametrize(
  ('eta', 'want'),
  # The paper prints 0.54 eta for 1, and about eta for 1e3.
  [
    (1e-6, 5e-7),
    (0.01, 0.00500417),
    (1.0, 0.541325),
    (5.0, 3.383800),
    (1e3, 993.09224),
  ],
)
def test_log_normaliser_of_a_strict_ranking(eta, want):
  got = self_play.ordered_log_normaliser(jnp.float32(eta))
  np.testing.assert_allclose(got, want, rtol=2e-6)


def test_log_normaliser_of_samples():
  # log((e + 3 e^0.5) / 4) and, for no sample, 0
  win_rate = jnp.array([[0.5, 0.25, np.nan], [np.nan, np.nan, np.nan]])
  weight = jnp.array([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
  got = self_play.sampled_log_normaliser(win_rate, weight, 2.0)
  np.testing.assert_allclose(got, [[0.6502975], [0.0]], rtol=1e-5)


def test_accuracy_of_labels_asks_who_scores_higher():
  batch = PreferenceBatch(
    *[None] * 5,
    weight=jnp.array([[1.0, 2.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0]]),
    label=jnp.array([[1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 1.0]]),
  )
  scores = jnp.array([[3.0, 1.0, -2.0, 3.0], [5.0, 1.0, 2.0, 3.0]])
  # Of the first prompt 0 against 1 (right, weight 2) and 3 (a tie), 2 against both.
  # The second has right ones alone.
  found = label_accuracy(scores, batch)['accuracy']
  assert (found.total, found.weight) == (2.0, 6.0)


@pytest.mark.parametrize(
  ('first', 'second', 'gaps'),
  # equal weights: sorted minus sorted; 3/4 and 1/4: the quantiles between
  [
    (([3.0, 1.0], [1.0, 1.0]), ([0.0, 5.0], [1.0, 1.0]), [(1.0, 1.0), (-2.0, 1.0)]),
    (
      ([2.0, 0.0], [0.25, 0.75]),
      ([1.0, 0.0], [0.5, 0.5]),
      [(0.0, 0.5), (-1.0, 0.25), (1.0, 0.25)],
    ),
  ],
)
def test_gaps_between_quantiles(first, second, gaps):
  found = transport.quantile_gaps(*map(jnp.asarray, (*first, *second)))
  lasting = [(float(g), float(w)) for g, w in zip(*found, strict=True) if w > 0]
  np.testing.assert_allclose(lasting, gaps)
