"""A model that reads a prompt and two responses, and says which is better.

In the manner of PairRM (LLM-Blender, arXiv:2306.02561): unlike scores of single
responses, what it says of pairs may run in a cycle.
"""

from collections.abc import Callable
import itertools

from jaxtyping import Float64, Int
import numpy as np

from prefjax.data.ordered import joined
from prefjax.rewards import oracles
from prefjax.types import PreferenceBatch

# Scores [p, k] of a batch of responses, each `a SEP b`.
Score = Callable[[PreferenceBatch], np.ndarray]


def margins(
  score: Score,
  prompts: Int[np.ndarray, 'n l'],
  prompt_length: Int[np.ndarray, ' n'],
  tokens: Int[np.ndarray, 'n k t'],
  length: Int[np.ndarray, 'n k'],
  *,
  eos_id: int,
  pairs_at_once: int = 32,
) -> Float64[np.ndarray, 'n k k']:
  """d(a, b) = g(a, b) - g(b, a) for the k responses of each prompt, nats.

  Formed once for an unordered pair and mirrored, so that d(b, a) = -d(a, b) to the bit
  and d(a, a) = 0. The orders of a prompt's pairs are responses of one prompt, which is
  run once for `pairs_at_once` of them.

  Args:
    score: what the model gives at the end of each response of a batch.
    prompts: token ids, left-padded.
    tokens: those of the responses, right-padded, with their EOS.
    eos_id: the separator.
  """
  n, k = tokens.shape[:2]
  pairs = list(itertools.combinations(range(k), 2))
  found = np.zeros((n, k, k))
  size = max(min(pairs_at_once, len(pairs)), 1)
  rows = max(pairs_at_once // size, 1)
  for start, first in itertools.product(range(0, n, rows), range(0, len(pairs), size)):
    # The last prompt and the last pair fill what is missing: one shape compiles.
    at = np.minimum(np.arange(start, start + rows), n - 1)
    some = [pairs[min(first + i, len(pairs) - 1)] for i in range(size)]
    batch = _batch(prompts, prompt_length, tokens, length, at, some, eos_id)
    scores = np.asarray(score(batch), np.float64)
    for place, (a, b) in enumerate(some):
      found[at, a, b] = scores[:, 2 * place] - scores[:, 2 * place + 1]
  return oracles.mirrored(found)


def _batch(prompts, prompt_length, tokens, length, at, pairs, eos_id):
  """Both orders of these pairs of these prompts, in arrays of one shape."""
  p, k, t = len(at), 2 * len(pairs), 2 * tokens.shape[-1] + 1
  responses = np.zeros((p, k, t), np.int32)
  sizes = np.zeros((p, k), np.int32)
  for i, row in enumerate(at):
    for j, (a, b) in enumerate(o for pair in pairs for o in (pair, pair[::-1])):
      own = [tokens[row, x, : length[row, x]].astype(np.int32) for x in (a, b)]
      ids = joined(*own, eos_id)
      responses[i, j, : len(ids)], sizes[i, j] = ids, len(ids)
  return PreferenceBatch(
    prompts=prompts[at],
    responses=responses,
    prompt_length=prompt_length[at],
    response_length=sizes,
    mask=np.arange(t) < sizes[..., None],
    weight=np.ones((p, k), np.float32),
  )
