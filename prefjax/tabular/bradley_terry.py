"""Bradley-Terry strengths from counts of wins: P(i beats j) = sigmoid(s_i - s_j).

In float64 NumPy: a table of a few hundred players needs no accelerator, and standard
errors need the precision.
"""

from collections.abc import Callable
import dataclasses

from jaxtyping import Float
import numpy as np
from scipy.sparse import csgraph

from prefjax.errors import InputError

Wins = Float[np.ndarray, 'n n']  # [i, j]: how often i beat j; a tie is half for each
Scores = Float[np.ndarray, ' n']  # log-strengths, nats, of mean 0

_SWEEPS = 100_000


@dataclasses.dataclass(frozen=True)
class Fit:
  """What maximises the likelihood.

  Attributes:
    scores: log-strengths, nats, of mean 0.
    home: what playing at home adds to a score, nats; 0 where it was not asked for.
    covariance: of the scores, then of the home effect: the pseudo-inverse of the
      Fisher information.
  """

  scores: Scores
  home: float
  covariance: Float[np.ndarray, 'n+1 n+1']
  log_likelihood: float

  def difference(self, i: int, j: int) -> tuple[float, float]:
    """s_i - s_j, nats, and its standard error."""
    c = self.covariance
    variance = c[i, i] + c[j, j] - 2.0 * c[i, j]
    return float(self.scores[i] - self.scores[j]), float(np.sqrt(variance))


def probabilities(scores: Scores) -> Wins:
  """[i, j]: P(i beats j) = sigmoid(s_i - s_j)."""
  return 1.0 / (1.0 + np.exp(scores[None, :] - scores[:, None]))


def log_likelihood(scores: Scores, wins: Wins, home: float = 0.0) -> float:
  """sum_ij wins_ij log sigmoid(s_i - s_j + home), nats, up to a constant."""
  margin = scores[:, None] - scores[None, :] + home
  return float(-np.sum(wins * np.logaddexp(0.0, -margin)))


def fit(
  wins: np.ndarray,
  *,
  away_wins: np.ndarray | None = None,
  method: str = 'newton',
  ridge: float = 0.0,
  tolerance: float = 1e-12,
) -> Fit:
  """The strengths of the greatest likelihood, less (ridge / 2) sum_i s_i^2.

  Args:
    wins: `[n, n]`, how often i beat j; at home, where `away_wins` is given.
    away_wins: how often i beat j away; then the home effect is fitted too.
    method: `newton`; `mm` (Hunter 2004, Eq. 3; Zermelo 1929) or `newman`
      (arXiv:2207.00076), which know neither a ridge nor a home effect.
    ridge: above 0 there is always a fit.
    tolerance: of the largest change of a score in the last iteration, nats.

  Raises:
    InputError: counts that are no counts, a method that cannot do what is asked, or
      no fit: some group never lost to the others. The message names the groups.
  """
  home_effect = away_wins is not None
  total = wins = _checked(wins, 'wins')
  if home_effect:
    away_wins = _checked(away_wins, 'away_wins')
    total = wins + away_wins
  if ridge == 0.0:
    _check_connected(total)
  if method in _SWEPT:
    if home_effect or ridge:
      raise InputError(f'method={method!r} fits neither a ridge nor a home effect.')
    scores, home = _swept(total, _SWEPT[method], tolerance), 0.0
  elif method == 'newton':
    scores, home = _newton(wins, away_wins, ridge, tolerance)
  else:
    raise InputError(
      f'Unknown method {method!r}; known are {sorted([*_SWEPT, "newton"])}.'
    )
  _, information = _slopes(scores, home, *_games(wins, away_wins), home_effect)
  if home_effect:
    likelihood = log_likelihood(scores, wins, home)
    likelihood += log_likelihood(scores, away_wins, -home)
  else:
    likelihood = log_likelihood(scores, wins)
  return Fit(scores, home, np.linalg.pinv(information, hermitian=True), likelihood)


def _checked(wins, name):
  wins = np.asarray(wins, np.float64)
  if wins.ndim != 2 or wins.shape[0] != wins.shape[1]:
    raise InputError(f'{name} must be a square matrix, got {list(wins.shape)}.')
  wrong = ~(np.isfinite(wins) & (wins >= 0.0))
  wrong |= np.eye(len(wins), dtype=bool) & (wins != 0.0)
  if wrong.any():
    i, j = np.argwhere(wrong)[0]
    raise InputError(
      f'{name}[{i}, {j}] must be a count, and 0 of a player against itself; '
      f'got {wins[i, j]:g}.'
    )
  return wins


def _check_connected(wins):
  """Ford (1957): there is a fit where every group lost to some other, and won."""
  count, group = csgraph.connected_components(wins > 0, connection='strong')
  if count > 1:
    groups = [np.flatnonzero(group == c).tolist() for c in range(count)]
    raise InputError(
      f'The likelihood has no maximum: players fall into groups {groups} that never '
      f'lost to one another, or never won. More games, or ridge > 0, would give one.'
    )


# Sweeps -------------------------------------------------------------------------


def mm_sweep(strength: Scores, wins: Wins) -> Scores:
  """g_i <- W_i / sum_j N_ij / (g_i + g_j). Hunter (2004), Eq. 3; climbs always."""
  games = wins + wins.T
  return wins.sum(axis=1) / np.sum(games / np.add.outer(strength, strength), axis=1)


def newman_sweep(strength: Scores, wins: Wins) -> Scores:
  """g_i <- sum_j w_ij g_j / (g_i + g_j) over sum_j w_ji / (g_i + g_j), one by one.

  Newman (arXiv:2207.00076). Each player sees the others' new strengths: all at once it
  may not converge.
  """
  strength = strength.copy()
  for i in range(len(strength)):
    share = 1.0 / (strength[i] + strength)
    strength[i] = (wins[i] @ (strength * share)) / (wins[:, i] @ share)
  return strength


Sweep = Callable[[Scores, Wins], Scores]
_SWEPT: dict[str, Sweep] = {'mm': mm_sweep, 'newman': newman_sweep}


def _swept(wins, sweep, tolerance):
  scores = np.zeros(len(wins))
  for _ in range(_SWEEPS):
    new = np.log(sweep(np.exp(scores), wins))
    new -= new.mean()
    if np.abs(new - scores).max() <= tolerance:
      return new
    scores = new
  raise InputError(f'No convergence to {tolerance:g} in {_SWEEPS} sweeps: use newton.')


# Newton -------------------------------------------------------------------------


def _games(wins, away_wins):
  """Wins and games [i, j] with i at home; without homes, of each pair once."""
  if away_wins is None:
    return np.triu(wins), np.triu(wins + wins.T)
  return wins, wins + away_wins.T


def _slopes(scores, home, won, games, home_effect):
  """The gradient of the log-likelihood in (scores, home), and minus its Hessian."""
  n = len(scores)
  p = probabilities_at_home(scores, home)
  surprise, weight = won - games * p, games * p * (1.0 - p)
  gradient = np.append(surprise.sum(axis=1) - surprise.sum(axis=0), surprise.sum())
  both = weight + weight.T
  hessian = np.zeros((n + 1, n + 1))
  hessian[:n, :n] = np.diag(both.sum(axis=1)) - both
  hessian[n, :n] = hessian[:n, n] = weight.sum(axis=1) - weight.sum(axis=0)
  hessian[n, n] = weight.sum()
  if not home_effect:
    gradient[n] = 0.0
    hessian[n, :] = hessian[:, n] = 0.0
  return gradient, hessian


def probabilities_at_home(scores: Scores, home: float) -> Wins:
  """[i, j]: P(i beats j) where i is at home: sigmoid(s_i - s_j + home)."""
  return 1.0 / (1.0 + np.exp(scores[None, :] - scores[:, None] - home))


def _newton(wins, away_wins, ridge, tolerance):
  """Newton's method, damped so that it climbs from anywhere.

  log(1 + w) / w of a step as wide as w: the third derivative along a step is at most
  w times the second.
  """
  won, games = _games(wins, away_wins)
  n = len(won)
  theta = np.zeros(n + 1)
  penalty = np.append(np.full(n, ridge), 0.0)
  for _ in range(1000):
    gradient, information = _slopes(
      theta[:n], theta[n], won, games, away_wins is not None
    )
    information = information + np.diag(penalty)
    step = np.linalg.lstsq(information, gradient - penalty * theta, rcond=None)[0]
    width = np.ptp(step[:n]) + abs(step[n])
    theta = theta + step * (np.log1p(width) / width if width > 0.0 else 1.0)
    if width <= tolerance:
      return theta[:n] - theta[:n].mean(), float(theta[n])
  raise InputError(f'No convergence to {tolerance:g}; the fit may not exist.')
