"""The exact trade-off of reward against KL, and whether a policy respects it.

No policy earns more reward at its distance from the reference than

  pi_beta(y | x) = ref(y | x) exp(r(x, y) / beta) / Z(x)

(https://arxiv.org/abs/2305.18290, Eq. 4). Its reward and KL are expectations,
here estimated by importance sampling from any samples whose log-probs are
known, so that the frontier is drawn for worlds too large to be enumerated. KL
is in nats a response, summed over its tokens; reward in its own unit.
"""

import dataclasses

from jaxtyping import Bool, Float, Float64, Int
import numpy as np
from scipy import special

from prefjax.errors import InputError
from prefjax.evaluation import statistics

_DRAWN_FROM = 100.0  # effective samples of the worst prompt
_STANDARD_ERRORS = 3.0
# Variance of ref / q that rounding of log-probs alone can make: where policy
# and reference are one, there is nothing to regress on.
_RIDGE = 1e-8
_ROUNDING = 1e-9  # relative: what an optimum that is met exactly may seem above


@dataclasses.dataclass(frozen=True)
class Frontier:
  """One point a beta, averaged over prompts; standard errors are over prompts.

  Along it reward and KL fall as beta rises, and d reward / d KL = beta.
  """

  betas: Float64[np.ndarray, ' b']
  reward: Float64[np.ndarray, ' b']  # E_beta[r]
  kl: Float64[np.ndarray, ' b']  # KL(pi_beta || ref), nats a response
  reward_se: Float64[np.ndarray, ' b']
  kl_se: Float64[np.ndarray, ' b']
  ess: Float64[np.ndarray, ' b']  # effective samples of the worst prompt
  mean_ess: Float64[np.ndarray, ' b']
  value: Float64[np.ndarray, 'b p']  # beta log Z of each prompt

  @property
  def drawn(self) -> Bool[np.ndarray, ' b']:
    """Which betas have 100 effective samples or more at every prompt."""
    return self.ess >= _DRAWN_FROM

  def reward_at(
    self, kl: Float[np.ndarray, '*n'] | float
  ) -> Float64[np.ndarray, '*n'] | np.float64:
    """The most reward that a mean KL of `kl` nats can buy.

    For any policy and any beta,

      E[r] - beta KL(pi || ref) = beta log Z - beta KL(pi || pi_beta)
                               <= beta log Z,

    and so E[r] <= min_beta mean_p[beta log Z_p] + beta KL: the lower envelope
    of the frontier's tangents at the drawn betas. It is concave, touches the
    frontier at each drawn beta, is above it between them (a finer grid of betas
    closes the gap), and is a valid bound, if loose, outside them.

    Raises:
      InputError: no beta is drawn.
    """
    beta, value = self._tangents()
    kl = np.asarray(kl, np.float64)
    return np.min(value + beta * kl[..., None], axis=-1)

  def excess(
    self,
    kl: Float[np.ndarray, '*n'] | float,
    reward: Float[np.ndarray, '*n'] | float,
  ) -> Float64[np.ndarray, '*n'] | np.float64:
    """How far (kl, reward) lies above the frontier; negative is below it."""
    return np.asarray(reward, np.float64) - self.reward_at(kl)

  def _tangents(self):
    if not np.any(self.drawn):
      raise InputError(
        f'No beta has {_DRAWN_FROM:g} effective samples at every prompt (the '
        f'most is {np.max(self.ess):.1f}): take more samples, from policies '
        'nearer to the frontier, or larger betas.'
      )
    return self.betas[self.drawn], self.value[self.drawn].mean(axis=1)


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Whether a policy lies above the frontier, which nothing can."""

  kl: float  # mean over prompts, nats a response
  reward: float
  beta: float  # whose tangent bounds the reward at this KL
  excess: float  # reward less its bound; negative is below the frontier
  standard_error: float  # of the excess, paired by prompt
  z: float
  above: bool  # by more than 3 standard errors
  drawn: bool  # the KL lies between those of the drawn betas


def frontier(
  rewards: Float[np.ndarray, 'p n'],
  logps: Float[np.ndarray, 'p n j'],
  counts: Int[np.ndarray, ' j'],
  betas: Float[np.ndarray, ' b'],
  reference: int = 0,
) -> Frontier:
  """Estimates the reward-KL frontier from samples of known policies.

  Under the balance heuristic a sample stands for the mixture it could have come
  from, whichever policy drew it:

    q(y) = sum_j (n_j / n) pi_j(y)    w(y) = ref(y) exp(r(y) / beta) / q(y)
    E_beta[r] = sum w r / sum w       KL = E_beta[r] / beta - log Z
    ESS = (sum w)^2 / sum w^2         log Z = log mean w - c log mean(ref / q)

  The mean of ref / q is known to be 1, which makes it a control variate; c is
  the regression of w on it, each divided by its mean. Without it the noise of
  beta log Z would grow with beta.

  Args:
    rewards: [p, n] reward of each of a prompt's n samples.
    logps: [p, n, j] log-prob of every sample under every policy, nats a
      response.
    counts: [j] how many of a prompt's samples each policy drew, n in all. A
      policy that drew none may be there for its log-probs.
    betas: [b] in reward a nat, positive, in any order.
    reference: which of the j policies is the reference.

  Raises:
    InputError: counts that do not add up to n, a beta that is not positive, an
      index without a policy, fewer than 2 prompts, or a reward or log-prob that
      is not finite. A log-prob may be -inf, but not under every policy that
      drew, nor may all of a prompt's under the reference.

  Source: Veach and Guibas, Optimally Combining Sampling Techniques for Monte
  Carlo Rendering (1995), the balance heuristic; control variates with a
  mixture: Owen and Zhou, Safe and Effective Importance Sampling (2000).
  """
  rewards, logps = rewards.astype(np.float64), logps.astype(np.float64)
  betas = betas.astype(np.float64)
  log_q = _check(rewards, logps, counts, betas, reference)
  log_base = logps[..., reference] - log_q  # [p, n]
  log_w = log_base + rewards / betas[:, None, None]  # [b, p, n]
  share = special.softmax(log_w, axis=-1)
  reward = np.sum(share * rewards, axis=-1)  # [b, p]
  log_z = _log_mean(log_w) - _control(share, log_base)
  ess = 1.0 / np.sum(share**2, axis=-1)
  mean_reward, reward_se = statistics.mean_and_standard_error(reward, axis=1)
  mean_kl, kl_se = statistics.mean_and_standard_error(
    reward / betas[:, None] - log_z, axis=1
  )
  return Frontier(
    betas=betas,
    reward=mean_reward,
    kl=mean_kl,
    reward_se=reward_se,
    kl_se=kl_se,
    ess=ess.min(axis=1),
    mean_ess=ess.mean(axis=1),
    value=betas[:, None] * log_z,
  )


def judge(
  frontier: Frontier,
  kl: Float[np.ndarray, ' p'],
  reward: Float[np.ndarray, ' p'],
) -> Verdict:
  """Whether a policy lies above the frontier by more than 3 standard errors.

  The averages over prompts obey, at every beta,

    mean_p[r_p] - beta mean_p[KL_p] <= mean_p[beta log Z_p],

  so the excess is the mean of d_p = r_p - beta KL_p - beta log Z_p at the beta
  whose bound is tightest at the mean KL, and its standard error is that of the
  d_p: paired, so that it holds the noise of the policy's figures and of the
  frontier's, and what they share (easy prompts, common samples) cancels.

  Args:
    frontier: over the same prompts, in the same order.
    kl: [p] the policy's KL from the reference at each prompt, nats a response;
      an unbiased estimate will do.
    reward: [p] its expected reward at each prompt, likewise.

  Raises:
    InputError: not one figure a prompt of the frontier, or no beta is drawn.

  Source: J(pi) = beta log Z - beta KL(pi || pi_beta), IPO
  (https://arxiv.org/abs/2310.12036), Appendix A.1.
  """
  prompts = frontier.value.shape[1]
  if not len(kl) == len(reward) == prompts:
    raise InputError(
      f'The frontier has {prompts} prompts, got {len(kl)} KLs and '
      f'{len(reward)} rewards.'
    )
  kl, reward = kl.astype(np.float64), reward.astype(np.float64)
  mean_kl, mean_reward = float(kl.mean()), float(reward.mean())
  beta, value = frontier._tangents()
  tightest = int(np.argmin(value + beta * mean_kl))
  chosen = float(beta[tightest])
  bound = frontier.value[frontier.drawn][tightest] + chosen * kl
  excess, error, z = statistics.paired_difference(reward, bound)
  drawn_kl = frontier.kl[frontier.drawn]
  slack = _ROUNDING * (abs(mean_reward) + float(np.max(np.abs(bound))))
  return Verdict(
    kl=mean_kl,
    reward=mean_reward,
    beta=chosen,
    excess=excess,
    standard_error=error,
    z=z,
    above=excess > _STANDARD_ERRORS * error + slack,
    drawn=bool(drawn_kl.min() <= mean_kl <= drawn_kl.max()),
  )


def _log_mean(x):
  return special.logsumexp(x, axis=-1) - np.log(x.shape[-1])


def _control(share, log_base):
  """The control variate's part of log Z: c log mean(ref / q), [b, p]."""
  # Both are divided by their means, as the difference of logs asks for: where
  # beta is so large that w is ref / q, c is exactly 1 and no noise is left.
  n = log_base.shape[-1]
  spread = n * special.softmax(log_base, axis=-1) - 1.0
  covariance = np.sum(share * spread, axis=-1)
  slope = covariance / (np.mean(spread**2, axis=-1) + _RIDGE)
  return slope * _log_mean(log_base)


def _check(rewards, logps, counts, betas, reference):
  """Refuses what cannot be estimated from; returns log q, [p, n]."""
  n, policies = logps.shape[1:]
  if rewards.shape != logps.shape[:2] or counts.shape != (policies,):
    raise InputError(
      'Expected rewards [p, n], logps [p, n, j] and counts [j], got '
      f'{rewards.shape}, {logps.shape} and {counts.shape}.'
    )
  if counts.sum() != n or np.any(counts < 0):
    raise InputError(
      f'counts must add up to the {n} samples of a prompt, got {counts.tolist()}.'
    )
  if not np.all((betas > 0) & np.isfinite(betas)):
    raise InputError(f'Every beta must be positive, got {betas.tolist()}.')
  if not 0 <= reference < policies:
    raise InputError(
      f'The reference must be one of the {policies} policies, got {reference}.'
    )
  if not np.all(np.isfinite(rewards)):
    raise InputError('Every reward must be finite.')
  if np.any(np.isnan(logps) | (logps == np.inf)):
    raise InputError('A log-prob may be -inf, but neither NaN nor inf.')
  if np.any(np.all(logps[..., reference] == -np.inf, axis=-1)):
    raise InputError('A prompt has no sample that the reference can write.')
  log_q = special.logsumexp(logps, b=counts / n, axis=-1)
  if not np.all(np.isfinite(log_q)):
    raise InputError(
      'A sample has probability 0 under every policy that drew: '
      'counts or logps are not those of these samples.'
    )
  return log_q
