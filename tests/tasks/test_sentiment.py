import numpy as np
import pytest

from prefjax import tasks
from prefjax.errors import InputError
from prefjax.tasks import base, sentiment

# Valences, with modifiers, summed and divided by one more than there are words:
# superb 1, good 0.6, fine 0.3, dull -0.5, bored -0.6, dreadful -1.
BY_HAND = [
  ('', 0.0),
  ('we watched the film on sunday .', 0.0),
  ('the acting was superb .', 1.0 / 2),
  ('the acting was dreadful .', -1.0 / 2),
  ('the plot was good and the music was fine .', (0.6 + 0.3) / 3),
  ('the plot was good but the cast was dreadful .', (0.6 - 1.0) / 3),
  ('the plot was not good .', -0.3 / 2),
  ('the plot was never dull .', 0.25 / 2),
  ('it was not a very good film .', 0.6 * 1.5 * -0.5 / 2),
  ('the plot was very good .', 0.9 / 2),
  ('the plot was rather dull .', -0.5 * 0.6 / 2),
  # A word counts for 1 at most, whatever is said before it.
  ('it was truly superb .', 1.0 / 2),
  # A negation ends with its clause, by punctuation or by a conjunction.
  ('i did not , it was superb .', 1.0 / 2),
  ('not mine but superb .', 1.0 / 2),
  # It is spent on the first valence word.
  ('not superb and dull .', (-0.5 - 0.5) / 3),
  # Once is enough.
  ('superb superb superb', 1.0 / 2),
  ('superb , not superb', 1.0 / 2),
  # Case, glued punctuation and longer words that hold a valence word.
  ('Superb! NOT dull.', (1.0 + 0.25) / 3),
  ('superbly un-dullable', 0.0),
  ('⁇ <s> 日本語 \n\t 42', 0.0),
  (
    'the acting was superb but the plot was not convincing , so i left bored .',
    (1.0 - 0.25 - 0.6) / 4,
  ),
]


@pytest.mark.parametrize(('text', 'expected'), BY_HAND)
def test_rewards_equal_those_worked_out_by_hand(text, expected):
  assert sentiment.reward('', text) == pytest.approx(expected, abs=1e-12)


def test_the_reward_reads_prompt_and_response_as_one_text():
  assert sentiment.reward('the plot was not', ' good .') == pytest.approx(-0.15)
  # No space, no new word: what is written is what is read.
  assert sentiment.reward('good', 'ness') == 0.0


def test_no_text_reaches_the_bounds():
  best = ' '.join(w for w, v in sentiment.VALENCE.items() if v > 0.8)
  assert 0.7 < sentiment.reward('', best) < 1.0
  assert sentiment.reward('', 'superb ' * 24) == 0.5


def test_rewards_are_those_of_each_pair():
  prompts, responses = ['it was', 'it was not'], [' superb .', ' superb .']
  np.testing.assert_allclose(
    sentiment.rewards(prompts, responses), [0.5, -0.25], rtol=1e-12
  )
  assert sentiment.rewards([], []).shape == (0,)
  with pytest.raises(InputError, match='1 prompts and 2 responses'):
    sentiment.rewards(['a'], ['b', 'c'])


@pytest.fixture(scope='module')
def documents():
  return {
    'train': sentiment.documents(0, 1500),
    'test': sentiment.documents(0, 400, 'test'),
  }


def test_reviews_are_cut_where_they_should_be(documents):
  words = set()
  for prompt, response in documents['train'] + documents['test']:
    text = prompt + response
    assert 2 <= len(prompt.split(' ')) <= 8
    assert 12 <= len(text.split(' ')) <= 24
    assert response.startswith(' ')
    assert text.endswith(' .')
    assert text == ' '.join(text.split())
    words.update(text.split())
  assert sorted(words) == sentiment.vocabulary()
  assert 120 <= len(words) <= 180


def test_review_i_depends_on_seed_split_and_i_alone(documents):
  assert sentiment.documents(0, 40) == documents['train'][:40]
  assert sentiment.documents(0, 40, 'test') == documents['test'][:40]
  other = set(sentiment.documents(1, 200))
  assert len(other & set(documents['train'])) < 10


def test_the_first_reviews_are_pinned(documents):
  # A change of grammar, draws or split changes every result on this task.
  assert documents['train'][0] == (
    'for a story about a long',
    ' journey , i regretted the songs . i truly hated the film .',
  )


def test_no_prompt_is_in_both_splits(documents):
  # Two seeds, for it must hold whatever the seed.
  more = sentiment.documents(1, 300, 'test')
  train = {prompt for prompt, _ in documents['train']}
  test = {prompt for prompt, _ in documents['test'] + more}
  assert len(train) > 600
  assert len(test) > 200
  assert not train & test


def test_reviews_are_mixed_and_their_rewards_spread(documents):
  for split in base.SPLITS:
    r = sentiment.rewards(*zip(*documents[split], strict=True))
    assert abs(r.mean()) < 4 * r.std() / np.sqrt(r.size)
    assert 0.28 < r.std() < 0.40
    assert 0.6 < r.max() < 1.0
    assert -1.0 < r.min() < -0.6


def test_the_beginning_of_a_review_tells_of_its_end(documents):
  pairs = [
    (sentiment.reward(p, ''), sentiment.reward('', r)) for p, r in documents['train']
  ]
  told = np.array([pair for pair in pairs if pair[0] != 0])
  assert len(told) > 200
  assert 0.1 < np.corrcoef(told.T)[0, 1] < 0.8


def test_prompts_are_distinct_and_those_of_the_reviews(documents):
  prompts = sentiment.prompts(0, 300)
  assert len(set(prompts)) == 300
  assert prompts == list(dict.fromkeys(p for p, _ in documents['train']))[:300]
  assert sentiment.prompts(0, 0) == []


def test_more_prompts_than_there_are_is_an_error(monkeypatch):
  monkeypatch.setattr(sentiment, '_review', lambda *_: ('the plot', ' was'))
  with pytest.raises(InputError, match='Found 1 distinct prompts, not 2'):
    sentiment.prompts(0, 2)


def test_wrong_arguments_name_what_is_right():
  with pytest.raises(InputError, match=r"'train', 'test'.*'valid'"):
    sentiment.documents(0, 1, 'valid')
  with pytest.raises(InputError, match='seed'):
    sentiment.prompts(-1, 1)
  with pytest.raises(InputError, match='count'):
    sentiment.documents(0, -1)


def test_tasks_are_got_by_name():
  task = tasks.get('sentiment')
  assert isinstance(task, tasks.Task)
  assert task.reward('it was', ' superb .') == 0.5
  with pytest.raises(InputError, match=r"'sentimental'.*\['arithmetic', .*'sentiment'"):
    tasks.get('sentimental')


def test_labels_are_every_pair_once():
  chosen, rejected = tasks.label(np.zeros((5, 4)), seed=0, scale=1.0)
  assert chosen.shape == rejected.shape == (5, 6)
  pairs = np.sort(np.stack([chosen, rejected], -1), axis=-1)
  every = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
  assert all(list(map(tuple, row)) == every for row in pairs.tolist())


def test_labels_are_drawn_by_bradley_terry():
  n, scale, rewards = 20_000, 2.0, np.array([0.4, -0.3, 0.1])
  chosen, _ = tasks.label(np.tile(rewards, (n, 1)), seed=3, scale=scale)
  for column, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
    p = 1 / (1 + np.exp(-scale * (rewards[i] - rewards[j])))
    won = np.mean(chosen[:, column] == i)
    assert abs(won - p) < 4 * np.sqrt(p * (1 - p) / n)
  # The pairs of a prompt are drawn independently of one another.
  wins = (chosen == [0, 0, 1]).astype(float)
  correlation = np.corrcoef(wins.T)[np.triu_indices(3, 1)]
  assert np.all(np.abs(correlation) < 4 / np.sqrt(n))


def test_labels_are_a_function_of_the_seed():
  rewards = np.random.default_rng(0).normal(size=(50, 3))
  first = tasks.label(rewards, seed=1, scale=1.0)
  np.testing.assert_equal(first, tasks.label(rewards, seed=1, scale=1.0))
  fewer = tasks.label(rewards[:20], seed=1, scale=1.0)
  np.testing.assert_equal([x[:20] for x in first], list(fewer))
  other = tasks.label(rewards, seed=2, scale=1.0)
  assert np.any(first[0] != other[0])


def test_a_large_scale_is_certain_and_does_not_overflow():
  rewards = np.array([[1.0, -1.0, 0.0]])
  chosen, rejected = tasks.label(rewards, seed=0, scale=1e6)
  np.testing.assert_array_equal(chosen, [[0, 0, 2]])
  np.testing.assert_array_equal(rejected, [[1, 2, 1]])


@pytest.mark.parametrize(
  ('rewards', 'seed', 'scale', 'match'),
  [
    (np.zeros((2, 1)), 0, 1.0, 'two responses'),
    (np.full((2, 2), np.nan), 0, 1.0, 'finite'),
    (np.zeros((2, 2)), -1, 1.0, 'seed'),
    (np.zeros((2, 2)), 0, -1.0, 'scale'),
    (np.zeros((2, 2)), 0, np.inf, 'scale'),
  ],
)
def test_labels_refuse_what_cannot_be_compared(rewards, seed, scale, match):
  with pytest.raises(InputError, match=match):
    tasks.label(rewards, seed=seed, scale=scale)
