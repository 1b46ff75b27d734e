"""The cycle task: kinds and preferences by hand, the winner, and what scores lose."""

import jax.numpy as jnp
import numpy as np
import pytest

from prefjax import tasks
from prefjax.tabular import dynamics, games, policies
from prefjax.tasks import base, cycle


def sigmoid(x):
  return 1.0 / (1.0 + np.exp(-x))


@pytest.mark.parametrize(
  ('response', 'kind'),
  [
    ('rbade', 'r4'),
    ('pbade', 'p4'),
    ('sbadf', 's3'),
    ('rhhhh', 'r0'),
    ('rebad', 'r0'),  # the right letters in other places
    ('bade', 'formless'),
    ('rbad', 'formless'),
    ('rbadee', 'formless'),
    ('qbade', 'formless'),
    ('rbadr', 'formless'),
    ('', 'formless'),
    ('rbade\n', 'formless'),
  ],
)
def test_kinds_by_hand(response, kind):
  assert cycle.KINDS[cycle.kind('bade:', response)] == kind
  assert cycle.KINDS[cycle.kind('bad:', response)] == 'formless'  # no prompt


@pytest.mark.parametrize(
  ('first', 'second', 'style', 'gap'),
  [
    ('rbade', 'rbade', 0.5, 0.0),
    ('rbade', 'sbade', 0.95, 0.0),
    ('pbade', 'rbade', 0.8, 0.0),
    ('sbade', 'pbade', 0.65, 0.0),
    ('rbade', 'sbadf', 0.95, 0.25),
    ('rhhhh', 'pbade', 0.2, -1.0),
    ('rbade', 'nothing', 0.5, 2.0),
    ('', 'nothing', 0.5, 0.0),
  ],
)
def test_preferences_by_hand(first, second, style, gap):
  want = 0.6 * style + 0.4 * sigmoid(4.0 * gap)
  got = cycle.preferences('bade:', [first, second])
  np.testing.assert_allclose(got, [[0.5, want], [1 - want, 0.5]], rtol=1e-12)


def test_the_reward_is_the_quality_alone():
  texts = ['rbade', 'pbadf', 'shhhh', 'nothing']
  got = cycle.rewards(['bade:'] * 4, texts)
  np.testing.assert_array_equal(got, [1.0, 0.75, 0.0, -1.0])


def test_the_winner_is_one_sixth_rock_half_paper_and_a_third_scissors(x64):
  want = {'r4': 1 / 6, 'p4': 1 / 2, 's4': 1 / 3}
  winner = cycle.winner()
  got = {kind: p for kind, p in zip(cycle.KINDS, winner, strict=True) if p}
  assert got == pytest.approx(want, abs=1e-15)
  game = games.check_preferences(cycle.game())
  assert abs(float(games.duality_gap(winner, game))) < 1e-12
  np.testing.assert_allclose(games.von_neumann_winner(game), winner, atol=1e-6)


def base_policy(count=4000):
  kinds = [cycle.kind(*document) for document in cycle.documents(0, count)]
  return np.bincount(kinds, minlength=len(cycle.KINDS)) / count


def test_bradley_terry_names_one_style_and_stays_away_from_the_winner(x64):
  """The gap of SPPO's average closes; that of the fit's best policy never does."""
  game, start = cycle.game(), base_policy() + 1e-3
  start = start / start.sum()
  log_start = jnp.log(start)
  scores = games.bradley_terry_fit(game, log_start)
  full = np.array([scores[cycle.KINDS.index(f'{style}4')] for style in 'rps'])
  assert np.ptp(full) > 0.1
  for beta in (0.01, 0.1, 1.0):
    fitted = np.exp(policies.kl_optimum(log_start, scores, beta=beta))
    assert games.duality_gap(fitted, game) > 0.1
  iterates = dynamics.sppo(game, steps=2000, start=start, eta=0.1)
  average = np.exp(games.running_average(iterates)[-1])
  assert games.duality_gap(average, game) < 0.03


def test_documents_are_mostly_rock_and_of_mixed_quality():
  policy = base_policy()
  by_style = [policy[i * 5 : i * 5 + 5].sum() for i in range(3)]
  np.testing.assert_allclose(by_style, [0.5, 0.3, 0.2], atol=0.03)
  assert policy[cycle.KINDS.index('formless')] == 0
  assert all(set(p + r) <= set(cycle.CHARACTERS) for p, r in cycle.documents(0, 100))


def test_documents_are_a_function_of_seed_split_and_index():
  assert cycle.documents(3, 20)[:5] == cycle.documents(3, 5)
  assert cycle.documents(3, 5) != cycle.documents(4, 5)
  for split in ('train', 'test'):
    found = cycle.prompts(1, 200, split)
    assert len(set(found)) == 200
    assert {base.split_of(prompt) for prompt in found} == {split}


def test_it_is_a_task_and_a_contest():
  assert isinstance(tasks.get('cycle'), tasks.Contest)
  assert not isinstance(tasks.get('sentiment'), tasks.Contest)
