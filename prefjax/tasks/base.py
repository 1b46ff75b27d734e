"""What a task with a known truth offers, and how its labels are drawn."""

from collections.abc import Callable, Iterable, Sequence
import hashlib
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Float64, Int, Int32
import numpy as np
from scipy import special

from prefjax.errors import InputError

SPLITS = ('train', 'test')

_TEST_ONE_IN = 5

# Keeps the draws of labels apart from those of documents, whose second word of
# seed is the number of a split.
_LABEL_STREAM = len(SPLITS)


@runtime_checkable
class Task(Protocol):
  """Documents, prompts and an exact reward, all made by code.

  A module can be a task: prefjax.tasks.sentiment is one. Text is always
  `prompt + response`, with nothing put between the two.
  """

  def documents(
    self, seed: int, count: int, split: str = 'train'
  ) -> list[tuple[str, str]]:
    """`count` pairs (prompt, response) for maximum likelihood."""
    ...

  def prompts(self, seed: int, count: int, split: str = 'train') -> list[str]:
    """`count` distinct prompts; no prompt is in two splits."""
    ...

  def reward(self, prompt: str, response: str) -> float:
    """The true reward, a pure function of the text, defined on any text."""
    ...

  def rewards(
    self, prompts: Sequence[str], responses: Sequence[str]
  ) -> Float64[np.ndarray, ' n']:
    """`reward` of each prompt with its response."""
    ...


@runtime_checkable
class Contest(Task, Protocol):
  """A task whose truth is a game: which of two responses is preferred, and how often.

  Preferences are a function of the responses' kinds alone, of which there are few.
  """

  KINDS: Sequence[str]

  def kinds(self, prompt: str, responses: Sequence[str]) -> Int[np.ndarray, ' k']:
    """The kind of each response to a prompt; defined on any text."""
    ...

  def game(self) -> Float64[np.ndarray, 'n n']:
    """P(kind i beats kind j)."""
    ...

  def winner(self) -> Float64[np.ndarray, ' n']:
    """The von Neumann winner of the game, as probabilities of the kinds."""
    ...

  def preferences(
    self, prompt: str, responses: Sequence[str]
  ) -> Float64[np.ndarray, 'k k']:
    """P(response i beats response j)."""
    ...


def split_number(split: str) -> int:
  """The number of a split in a seed, or InputError listing the splits."""
  if split not in SPLITS:
    raise InputError(f'The split must be one of {SPLITS}, got {split!r}.')
  return SPLITS.index(split)


def label(
  rewards: Float[np.ndarray, 'n k'], *, seed: int, scale: float
) -> tuple[Int32[np.ndarray, 'n m'], Int32[np.ndarray, 'n m']]:
  """Labels every pair among a prompt's responses by a Bradley-Terry draw.

  P(i beats j) = sigmoid(scale * (r_i - r_j)), drawn independently for each of
  the m = k (k - 1) / 2 pairs, in the order (0, 1), (0, 2), ..., (k - 2, k - 1).
  A pure function of its arguments; the first rows do not depend on how many
  follow.

  Args:
    rewards: [n, k] true rewards of k responses to each of n prompts.
    seed: not negative.
    scale: nats a unit of reward, not negative; 0 is a fair coin.

  Returns:
    (chosen [n, m], rejected [n, m]), indices into a prompt's own responses.

  Raises:
    InputError: fewer than two responses, a reward that is not finite, or a seed
      or scale out of range.

  Source: DPO (https://arxiv.org/abs/2305.18290), Eq. 1; all pairs of a prompt's
  responses as in its Appendix C.1.
  """
  check_seed(seed)
  if rewards.shape[1] < 2:
    raise InputError(
      f'A pair needs two responses of a prompt, got k={rewards.shape[1]}.'
    )
  if not np.all(np.isfinite(rewards)):
    raise InputError('Rewards must be finite to be compared.')
  if not 0 <= scale < np.inf:
    raise InputError(f'scale must be finite and not negative, got {scale}.')
  first, second = np.triu_indices(rewards.shape[1], 1)
  margin = rewards[:, first].astype(np.float64) - rewards[:, second]
  rng = np.random.default_rng([seed, _LABEL_STREAM])
  wins = rng.random(margin.shape) < special.expit(scale * margin)
  chosen = np.where(wins, first, second)
  rejected = np.where(wins, second, first)
  return chosen.astype(np.int32), rejected.astype(np.int32)


def check_request(seed: int, count: int, split: str) -> None:
  """Raises InputError for a negative seed or count, or an unknown split."""
  check_seed(seed)
  split_number(split)
  if count < 0:
    raise InputError(f'A count must not be negative, got {count}.')


def split_of(prompt: str) -> str:
  """The split of a prompt, a hash of its text: one in five is for tests."""
  digest = hashlib.sha256(prompt.encode()).digest()
  held_out = int.from_bytes(digest[:8], 'big') % _TEST_ONE_IN == 0
  return 'test' if held_out else 'train'


def rewards(
  reward: Callable[[str, str], float],
  prompts: Sequence[str],
  responses: Sequence[str],
) -> Float64[np.ndarray, ' n']:
  """`reward` of each prompt with its response.

  Raises:
    InputError: not as many prompts as responses.
  """
  if len(prompts) != len(responses):
    raise InputError(
      f'Each response needs its prompt: got {len(prompts)} prompts and '
      f'{len(responses)} responses.'
    )
  return np.array(
    [reward(*pair) for pair in zip(prompts, responses, strict=True)], np.float64
  )


def distinct(found: Iterable[str], count: int) -> list[str]:
  """The first `count` distinct prompts of those found.

  Raises:
    InputError: where there are fewer.
  """
  kept: dict[str, None] = {}
  for prompt in found:
    if len(kept) == count:
      break
    kept[prompt] = None
  if len(kept) < count:
    raise InputError(f'Found {len(kept)} distinct prompts, not {count}.')
  return list(kept)


def check_seed(seed: int) -> int:
  """The seed, or InputError if it is negative."""
  if seed < 0:
    raise InputError(f'A seed must not be negative, got {seed}.')
  return seed
