"""A model that reads two responses: what it reads, and what its margins obey."""

import jax
import numpy as np
import pytest
import tiny

from prefjax.models import heads
from prefjax.rewards import oracles, pairwise

EOS = 2
N, K, T = 3, 4, 5


def groups(seed=0, n=N, k=K, t=T, l=4):
  """Ragged responses [n, k, t] of prompts [n, l]; some end in EOS."""
  rng = np.random.default_rng(seed)
  prompt_length = rng.integers(1, l + 1, n).astype(np.int32)
  length = rng.integers(1, t + 1, (n, k)).astype(np.int32)
  tokens = rng.integers(3, 29, (n, k, t)).astype(np.int32)
  last = np.arange(t) == length[..., None] - 1
  tokens = np.where(last & (rng.random((n, k, 1)) < 0.5), EOS, tokens)
  real = np.arange(t) < length[..., None]
  prompts = np.where(
    np.arange(l) >= l - prompt_length[:, None], rng.integers(3, 29, (n, l)), 0
  )
  return prompts, prompt_length, np.where(real, tokens, 0), length


def spelled(batch):
  """Scores that spell what was read: the sum of (place + 1) * token, and the prompt."""
  place = 1 + np.arange(batch.responses.shape[-1])
  own = (batch.responses * place * batch.mask).sum(axis=-1)
  return own + 1000.0 * batch.prompts.sum(axis=-1)[:, None] + own % 7


def by_hand(prompts, prompt_length, tokens, length, i, a, b):
  first, second = (tokens[i, x, : length[i, x]].tolist() for x in (a, b))
  ids = first + ([] if first[-1] == EOS else [EOS]) + second
  own = sum((place + 1) * token for place, token in enumerate(ids))
  return own + 1000.0 * prompts[i].sum() + own % 7


@pytest.mark.parametrize('pairs_at_once', [1, 4, 6, 100])
def test_margins_are_differences_of_the_two_orders(pairs_at_once):
  given = groups()
  got = pairwise.margins(spelled, *given, eos_id=EOS, pairs_at_once=pairs_at_once)
  for i in range(N):
    for a in range(K):
      for b in range(K):
        want = by_hand(*given, i, a, b) - by_hand(*given, i, b, a)
        assert got[i, a, b] == want


def test_one_response_has_no_pair():
  given = groups(k=1)
  got = pairwise.margins(spelled, *given, eos_id=EOS)
  np.testing.assert_array_equal(got, np.zeros((N, 1, 1)))


@pytest.fixture(scope='module')
def score():
  """A tiny decoder with a random scalar head."""
  params = heads.with_scalar(tiny.params(), tiny.SIZES['width'])
  params['scalar'] = params['scalar'] + np.linspace(-1, 1, 9, dtype=np.float32)
  forward = heads.forward(tiny.forward())

  @jax.jit
  def apply(batch):
    return heads.scores(*forward(params, batch), batch)

  return apply


def test_a_decoders_margins_are_antisymmetric_to_the_bit(score):
  margins = pairwise.margins(score, *groups(), eos_id=EOS, pairs_at_once=6)
  np.testing.assert_array_equal(margins, -np.swapaxes(margins, 1, 2))
  assert abs(margins[:, ~np.eye(K, dtype=bool)]).min() > 1e-6
  chances = oracles.chances(margins)
  total = chances + np.swapaxes(chances, 1, 2)
  assert abs(total - 1.0).max() <= np.finfo(np.float64).eps


def test_the_order_of_responses_changes_the_place_of_a_margin_alone(score):
  prompts, prompt_length, tokens, length = groups()
  order = np.array([2, 0, 3, 1])
  got = pairwise.margins(
    score, prompts, prompt_length, tokens[:, order], length[:, order], eos_id=EOS,
    pairs_at_once=6,
  )  # fmt: skip
  whole = pairwise.margins(
    score, prompts, prompt_length, tokens, length, eos_id=EOS, pairs_at_once=6
  )
  np.testing.assert_allclose(got, whole[:, order][:, :, order], atol=1e-5)
