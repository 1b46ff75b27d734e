"""Controlled sentiment in miniature: short film reviews and their exact reward.

The first experiment of DPO (https://arxiv.org/abs/2305.18290, Section 6 and
Appendix C.1), small enough for a model that learns the language in a minute: a
review is cut after 2 to 8 words, the policy writes the rest, and a ground truth
reads the whole. There the ground truth is a classifier; here it is a rule, so
that nothing is downloaded and nothing is uncertain. Punctuation stands alone:
words are what single spaces separate.
"""

from collections.abc import Iterator, Sequence
import re

from jaxtyping import Float64
import numpy as np

from prefjax.tasks import base

ADJECTIVES = {
  'superb': 1.0, 'brilliant': 1.0, 'wonderful': 0.9, 'moving': 0.8,
  'gripping': 0.8, 'charming': 0.7, 'clever': 0.7, 'funny': 0.6, 'good': 0.6,
  'convincing': 0.5, 'warm': 0.5, 'solid': 0.4, 'pleasant': 0.4, 'fine': 0.3,
  'decent': 0.3, 'passable': 0.2,
  'dreadful': -1.0, 'awful': -1.0, 'terrible': -0.9, 'painful': -0.8,
  'hopeless': -0.8, 'tedious': -0.7, 'clumsy': -0.7, 'boring': -0.6,
  'bad': -0.6, 'dull': -0.5, 'weak': -0.5, 'flat': -0.4, 'thin': -0.4,
  'slow': -0.3, 'plain': -0.3, 'uneven': -0.2,
}  # fmt: skip
FEELINGS = {
  'delighted': 0.9, 'touched': 0.7, 'happy': 0.6, 'amused': 0.5,
  'content': 0.3,
  'furious': -0.9, 'annoyed': -0.7, 'bored': -0.6, 'sad': -0.5, 'tired': -0.3,
}  # fmt: skip
VERBS = {
  'loved': 0.9, 'admired': 0.7, 'enjoyed': 0.6, 'liked': 0.4,
  'hated': -0.9, 'despised': -0.7, 'regretted': -0.6, 'disliked': -0.4,
}  # fmt: skip
VALENCE = ADJECTIVES | FEELINGS | VERBS
INTENSIFIERS = {
  'truly': 1.6, 'very': 1.5, 'really': 1.4, 'quite': 0.8, 'rather': 0.6,
}  # fmt: skip
NEGATIONS = {'not': -0.5, 'never': -0.5, 'hardly': -0.5}

_MODIFIERS = INTENSIFIERS | NEGATIONS
_CLAUSE_ENDS = frozenset([*'.,;:!?', 'but', 'so', 'yet'])
_PRIOR = 1.0  # valence words of value 0 that every text is taken to hold


def _by_sign(table: dict[str, float]) -> tuple[tuple[str, ...], ...]:
  """(the negative words, the positive words), to be indexed by a boolean."""
  return tuple(tuple(w for w in table if (table[w] > 0) == up) for up in (0, 1))


_ADJECTIVES, _FEELINGS, _VERBS = map(_by_sign, (ADJECTIVES, FEELINGS, VERBS))
_DEGREES, _HIGH = tuple(INTENSIFIERS), ('really', 'truly')
_SINGULAR = (
  'film', 'movie', 'story', 'plot', 'script', 'acting', 'cast', 'music',
  'dialogue', 'ending', 'opening', 'pacing', 'direction', 'hero', 'villain',
)  # fmt: skip
_PLURAL = ('jokes', 'scenes', 'actors', 'costumes', 'songs', 'effects')
_NOUNS = _SINGULAR + _PLURAL
_WHOLES = ('film', 'movie', 'story')
_WHO = ('i', 'we', 'my sister', 'my brother', 'my friends', 'our teacher')
_WHEN = (
  'on sunday', 'last night', 'at home', 'with friends', 'in a small cinema',
  'on a long flight', 'after work', 'with my sister', 'in the rain', 'twice',
)  # fmt: skip
_TOPICS = (
  'war', 'love', 'sailors', 'horses', 'two sisters', 'a bank', 'a small town',
  'an old painter', 'robots', 'a long journey', 'music',
)  # fmt: skip
_MOMENTS = ('hour', 'scene', 'song', 'half')

_WORDS = (12, 24)  # of a review, punctuation included
_PROMPT_WORDS = (2, 8)


def reward(prompt: str, response: str) -> float:
  """The sentiment of the whole text, in (-1, 1); 0 where there is none.

  reward = (sum_i v_i) / (1 + n) over the n distinct valence words of
  `prompt + response`, v_i = clip(valence * modifiers, -1, 1). A modifier counts
  for the next valence word of its clause: an intensifier scales it, a negation
  multiplies it by -0.5, since "not superb" is not yet "dreadful".

  The mean is shrunk towards 0 by one neutral word, as a posterior mean is: a
  plain mean would give one superlative the best reward there is, and a sum, or
  its tanh, would pay for length. A word said again is no new evidence, so only
  its first use counts and repeating it earns nothing.

  Case is ignored; unknown words, and text of any kind, are read as neutral.
  """
  values = _valences(prompt + response)
  return sum(values) / (_PRIOR + len(values))


def rewards(
  prompts: Sequence[str], responses: Sequence[str]
) -> Float64[np.ndarray, ' n']:
  """`reward` of each prompt with its response; as many of one as of the other."""
  return base.rewards(reward, prompts, responses)


def documents(seed: int, count: int, split: str = 'train') -> list[tuple[str, str]]:
  """`count` reviews, each cut into (prompt, response) after 2 to 8 words.

  Review i is a pure function of (seed, split, i). The response begins with a
  space, so that prompt + response is the review. One prompt in five, chosen by
  a hash of its text alone, belongs to the test split, whatever the seed.

  Raises:
    InputError: a negative seed or count, or an unknown split.
  """
  base.check_request(seed, count, split)
  return [_review(seed, split, index) for index in range(count)]


def prompts(seed: int, count: int, split: str = 'train') -> list[str]:
  """The first `count` distinct prompts of the reviews of (seed, split).

  Raises:
    InputError: a negative seed or count, an unknown split, or more prompts than
      can be found.
  """
  base.check_request(seed, count, split)
  # Short prompts repeat, long ones hardly ever do: a bound that only a count
  # near the size of the language meets.
  tries = range(100 + 20 * count)
  return base.distinct((_review(seed, split, i)[0] for i in tries), count)


def vocabulary() -> list[str]:
  """Every word and punctuation mark that a review can hold, sorted."""
  fixed = (
    'the was were i we it this that saw watched found left home went and but '
    'so yet a an for about after first on . ,'
  )
  lists = (_SINGULAR, _PLURAL, _WHO, _WHEN, _TOPICS, _MOMENTS, [fixed])
  texts = [*VALENCE, *_MODIFIERS, *(' '.join(words) for words in lists)]
  return sorted({word for text in texts for word in text.split()})


def _valences(text: str) -> list[float]:
  values: dict[str, float] = {}
  factor = 1.0
  for word in re.findall(r"\w+(?:'\w+)*|[.,;:!?]", text.lower()):
    if word in _CLAUSE_ENDS:
      factor = 1.0
    elif word in _MODIFIERS:
      factor *= _MODIFIERS[word]
    elif word in VALENCE:
      value = min(1.0, max(-1.0, factor * VALENCE[word]))
      values.setdefault(word, value)
      factor = 1.0
  return list(values.values())


def _review(seed: int, split: str, index: int) -> tuple[str, str]:
  rng = np.random.default_rng([seed, base.split_number(split), index])
  while True:
    words = list(_compose(rng))
    size = rng.integers(_PROMPT_WORDS[0], _PROMPT_WORDS[1] + 1)
    prompt = ' '.join(words[:size])
    fits = _WORDS[0] <= len(words) <= _WORDS[1]
    if fits and base.split_of(prompt) == split:
      return prompt, ' ' + ' '.join(words[size:])


def _compose(rng: np.random.Generator) -> Iterator[str]:
  """The words of one review; its clauses lean the same way, but not always."""
  leaning = 1.5 * rng.standard_normal()
  clauses = int(rng.integers(2, 5))
  signs = (rng.random(clauses) < 1.0 / (1.0 + np.exp(-leaning))).tolist()
  nouns = (_NOUNS[i] for i in rng.permutation(len(_NOUNS)))
  yield from _opening(rng).split()
  for index, positive in enumerate(signs):
    ends = index == clauses - 1 and rng.random() < 0.5
    if index:
      turns = positive != signs[index - 1]
      yield from _join(rng, turns, ends).split()
    clause = _verdict(rng, positive) if ends else _clause(rng, positive, next(nouns))
    yield from clause.split()
  yield '.'


def _opening(rng: np.random.Generator) -> str:
  kind = rng.integers(5)
  if kind == 0:
    return f'after the first {_pick(rng, _MOMENTS)} ,'
  if kind == 1:
    return f'for a {_pick(rng, _WHOLES)} about {_pick(rng, _TOPICS)} ,'
  if kind <= 3:
    saw = f'{_pick(rng, _WHO)} {_pick(rng, ("saw", "watched"))}'
    film = f'{_pick(rng, ("this", "that"))} {_pick(rng, _WHOLES)}'
    return f'{saw} {film} {_pick(rng, _WHEN)} {_pick(rng, ("and", "."))}'
  return ''


def _join(rng: np.random.Generator, turns: bool, ends: bool) -> str:
  if turns:
    return _pick(rng, (', but', ', yet', '. but'))
  return _pick(rng, (', so', 'and')) if ends else _pick(rng, (', and', '.'))


def _clause(rng: np.random.Generator, positive: bool, noun: str) -> str:
  be = 'were' if noun in _PLURAL else 'was'
  kind = rng.random()
  if kind < 0.2:
    negation, word = _phrase(rng, positive, _VERBS, ('never', 'hardly'))
    return f'{_pick(rng, ("i", "we"))} {negation} {word} the {noun}'
  if kind < 0.35:
    negation, word = _phrase(rng, positive, _ADJECTIVES)
    article = 'an' if word[0] in 'aeiou' else 'a'
    return f'it was {negation} {article} {word} {_pick(rng, _WHOLES)}'
  negation, word = _phrase(rng, positive, _ADJECTIVES)
  if kind < 0.5 and not negation:
    return f'i found the {noun} {word}'
  return f'the {noun} {be} {negation} {word}'


def _verdict(rng: np.random.Generator, positive: bool) -> str:
  negation, word = _phrase(rng, positive, _FEELINGS)
  verb = 'was' if negation else _pick(rng, ('was', 'left', 'went home'))
  return f'i {verb} {negation} {word}'


def _phrase(
  rng: np.random.Generator,
  positive: bool,
  sides: tuple[tuple[str, ...], ...],
  negations: tuple[str, ...] = tuple(NEGATIONS),
) -> tuple[str, str]:
  """(a negation or '', a valence word perhaps intensified), of one sign."""
  negation = _pick(rng, negations) if rng.random() < 0.2 else ''
  word = _pick(rng, sides[positive != bool(negation)])
  if negation != 'hardly' and rng.random() < 0.3:
    # English denies a high degree only, and verbs take no "very".
    high = negation or sides is _VERBS
    word = f'{_pick(rng, _HIGH if high else _DEGREES)} {word}'
  return negation, word


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
  return words[int(rng.integers(len(words)))]
