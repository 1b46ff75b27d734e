"""Weights for a sampler whose log-probs are not the trainer's."""

import dataclasses
import math

import numpy as np

from prefjax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correction:
  """Weights for the difference between the sampler's log-probs and the trainer's.

      token      min(pi_trainer(y_t) / pi_sampler(y_t), cap)
      sequence   min(prod_t pi_trainer(y_t) / pi_sampler(y_t), cap)

  formed in log space; constants. Truncated importance sampling: Yao et al. (2025),
  `Your efficient RL framework secretly brings you off-policy RL training`. With
  `none` the sampler's log-probs are the old policy's: exact where sampler and trainer
  are one program and nothing truncates the support.
  """

  level: str = 'none'
  cap: float = 2.0

  def __post_init__(self):
    if self.level not in ('none', 'token', 'sequence'):
      raise InputError(
        f'rollout.correction must be none, token or sequence, got {self.level!r}.'
      )
    if not 1 <= self.cap < math.inf:
      raise InputError(f'rollout.correction_cap must be at least 1, got {self.cap}.')

  def weights(
    self, trainer: np.ndarray, sampler: np.ndarray, mask: np.ndarray
  ) -> np.ndarray:
    """The weight of each token [p, k, t]."""
    gap = np.where(mask, trainer - sampler, 0.0)
    if self.level == 'sequence':
      gap = np.broadcast_to(gap.sum(axis=-1, keepdims=True), gap.shape)
    return np.exp(np.minimum(gap, np.log(self.cap))).astype(trainer.dtype)
