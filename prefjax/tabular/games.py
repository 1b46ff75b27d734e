"""Preference games among n responses: which there are, and who wins.

P[i, j] is the probability that response i beats response j, and P(y > pi) the win rate
of y against a response drawn from the policy pi, which is given as probabilities.
"""

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np
from scipy import optimize

from prefjax.errors import InputError
from prefjax.tabular import policies
from prefjax.tabular.policies import Preferences, Scalar

Game = Float[Array, 'n n']
Policy = Float[Array | np.ndarray, '*b n']
LogPolicy = Float[Array, ' n']

_ROUNDING = 1e-5  # what float32 may leave between a sum of probabilities and 1
_NEWTON_STEPS = 300
# Games ------------------------------------------------------------------------


def check_preferences(P: Preferences) -> Game:
  """Returns the game, if it is one: 0 <= P <= 1 and P + P^T = 1.

  Raises:
    InputError: P is not square, or naming the first entry that breaks a rule.
  """
  given = np.asarray(P)
  if given.ndim != 2 or len(given) != len(given.T):
    raise InputError(f'P must be square, got shape {list(given.shape)}.')
  rules = {
    'must be in [0, 1]': (given >= 0) & (given <= 1),
    'and its mirror image must add up to 1': abs(given + given.T - 1) <= _ROUNDING,
  }
  for rule, kept in rules.items():
    if not kept.all():
      i, j = np.argwhere(~kept)[0]
      raise InputError(
        f'P[{i},{j}] {rule}, got {given[i, j]}, with P[{j},{i}] = {given[j, i]}.'
      )
  return jnp.asarray(P)


def bradley_terry(scores: Float[Array | np.ndarray, ' n']) -> Game:
  """P(i > j) = sigmoid(s_i - s_j): transitive, and a matter of n numbers."""
  scores = jnp.asarray(scores)
  return jax.nn.sigmoid(scores[:, None] - scores[None, :])


def cyclic(n: int, strength: float) -> Game:
  """Response i beats the (n - 1) // 2 before it on a circle, as often as (1 + s) / 2.

  It loses as often to those after it, and ties with its opposite where n is even.

  Raises:
    InputError: a strength s outside [0, 1].
  """
  if not 0.0 <= strength <= 1.0:
    raise InputError(f'`strength` must be in [0, 1], got {strength}.')
  ahead = (np.arange(n)[:, None] - np.arange(n)) % n
  sign = np.sign(n - 2 * ahead) * (ahead > 0)
  return jnp.asarray(0.5 * (1.0 + strength * sign))


def rock_paper_scissors() -> Game:
  """Each of rock, paper, scissors (in this order) always beats the one before it."""
  return cyclic(3, 1.0)


def mixture(weight: float, first: Preferences, second: Preferences) -> Game:
  """A judge that follows the first with probability w: w P_first + (1 - w) P_second.

  Raises:
    InputError: a weight outside [0, 1].
  """
  if not 0.0 <= weight <= 1.0:
    raise InputError(f'`weight` must be in [0, 1], got {weight}.')
  return weight * jnp.asarray(first) + (1.0 - weight) * jnp.asarray(second)


def scalar_fit(P: Preferences) -> Game:
  """sigmoid(s_i - s_j), s_i = mean_j (M_ij - M_ji), M = logit P: cycles are lost.

  SPPO's released code ranks so, by PairRM's `max_logits` scores. As M_ji = -M_ij the
  scores of a Bradley-Terry game come out doubled.

  Raises:
    InputError: a preference of 0 or 1, which has no finite logit.
  """
  logits = policies.logit(check_preferences(P))
  infinite = np.argwhere(~np.isfinite(logits))
  if infinite.size:
    i, j = infinite[0]
    raise InputError(f'P[{i},{j}] = {P[i, j]} has no finite logit to average.')
  return bradley_terry(jnp.mean(logits - logits.T, axis=1))


def bradley_terry_fit(P: Preferences, log_policy: LogPolicy) -> Float[Array, ' n']:
  """The scores s that maximise E_{i, j ~ pi}[P_ij log sigmoid(s_i - s_j)].

  They have E_pi[s] = 0 and sum_j pi_j (P_ij - sigmoid(s_i - s_j)) = 0 at each i: the
  fit keeps every win rate against pi. Newton, damped by log(1 + w) / w for a step of
  width w (max less min), which descends from anywhere: the third derivative along a
  step is at most w times the second. NaN where that finds no fit: one exists if and
  only if no group of responses always wins against all others.
  """
  P, probability = jnp.asarray(P), jnp.exp(log_policy)
  tolerance = jnp.finfo(P.dtype).eps ** 0.5  # of the last step; its error is squared

  def newton(state):
    scores, _, count = state
    win = bradley_terry(scores)
    # P s(-x) - (1 - P) s(x), of which P - s(x) would round away the small ones.
    gradient = (P * win.T - P.T * win) @ probability
    weight = win * win.T * probability[None, :]
    # Rows divided by their pi_i, so that a rare response counts as much as another.
    curvature = jnp.diag(weight.sum(axis=1)) - weight + probability[None, :]
    step = jnp.linalg.solve(curvature, gradient)
    width = jnp.ptp(step)
    damping = jnp.where(width > 0, jnp.log1p(width) / width, 1.0)
    return scores + damping * step, width, count + 1

  def unfinished(state):
    _, width, count = state
    return (width > tolerance) & (count < _NEWTON_STEPS)

  start = jnp.zeros_like(probability), jnp.full_like(probability[0], jnp.inf), 0
  scores, width, _ = lax.while_loop(unfinished, newton, start)
  return jnp.where(width <= tolerance, scores, jnp.nan)


# Who wins ---------------------------------------------------------------------


def win_rates(P: Preferences, policy: Policy) -> Float[Array, '*b n']:
  """P(y > pi) = sum_y' P[y, y'] pi(y'); its mean under pi is 1/2."""
  return jnp.asarray(policy) @ jnp.asarray(P).T


def duality_gap(policy: Policy, P: Preferences) -> Float[Array, '*b']:
  """2 (max_y P(y > pi) - 1/2): 0 at a von Neumann winner, at most 1 anywhere.

  max_pi' P(pi' > pi) - min_pi' P(pi > pi'), where both players are pi.
  """
  return 2.0 * jnp.max(win_rates(P, policy), axis=-1) - 1.0


def von_neumann_winner(P: Preferences) -> Float[Array, ' n']:
  """A policy that no response beats more often than not: max_pi min_y P(pi > y).

  By linear programming over (pi, v): the largest v with pi P >= v in every column.

  Raises:
    InputError: P is no game.
  """
  given = np.asarray(check_preferences(P), np.float64)
  n = len(given)
  solved = optimize.linprog(
    c=np.append(np.zeros(n), -1.0),
    A_ub=np.column_stack([-given.T, np.ones(n)]),
    b_ub=np.zeros(n),
    A_eq=[np.append(np.ones(n), 0.0)],
    b_eq=[1.0],
    bounds=(0.0, 1.0),
  )
  return jnp.asarray(solved.x[:n])


def average_bound(n: int | float, eta: Scalar, steps: int) -> Array:
  """1 - (1 - e^-eta) / (2 eta) + log(n) / (eta T), which P(y > pi_avg) cannot exceed.

  For every y, pi_avg the mean of the first T iterates of `multiplicative_weights` from
  the uniform policy. SPPO (arXiv:2405.00675), App. B, its constants kept. From another
  start, n is 1 over its smallest probability.
  """
  eta = jnp.asarray(eta)
  return 1.0 + 0.5 * jnp.expm1(-eta) / eta + jnp.log(n) / (eta * steps)


def running_average(iterates: Float[Array, 't n']) -> Float[Array, 't n']:
  """The log of the mean probabilities of the first 1, 2, ..., t log-policies."""
  counts = jnp.arange(1, len(iterates) + 1)
  return lax.cumlogsumexp(iterates, axis=0) - jnp.log(counts)[:, None]
