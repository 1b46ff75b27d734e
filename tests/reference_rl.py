"""The papers of reinforcement learning in float64 NumPy, beside `reference.py`.

Written from the papers alone, and kept plain on purpose: loops over prompts,
responses and tokens, one short function an equation, nothing of `prefjax`.

Axes: `p` prompts, `k` responses of a prompt (its group), `t` tokens. Inputs:
`logps`, `old_logps`, `reference_logps` (nats), `rewards`, `advantages [p, k, t]`,
`mask [p, k, t]` bool (True counts), `lengths [p, k]` (the real tokens, counted or
not), `weight [p, k]`, and of a critic `values [p, k, t + 1]`.

A response is present if it has a weight and a counted token. What is not present
enters no sum, no mean and no std; what is masked out may hold anything, NaN
included. A group's mean and std count each present response once, whatever its
weight: weights enter the losses only. Rewards are read on real tokens, so that an
outcome on a last token that does not count is still seen. A loss of total weight
0 is 0.

Symbols: rho = pi / pi_old, d = log(pi / pi_ref), A = the advantage, G = the size
of a group, T_i = the counted tokens of response i, w_i = its weight. A loss is the
negative of the paper's objective. Equations are numbered as in the papers; where
only a section is named, the number was not at hand.
"""

from collections import Counter
import math

import numpy as np

# What counts ------------------------------------------------------------------


def present(mask, weight):
  """[p, k] bool: the responses with a weight and a counted token."""
  result = np.zeros(np.shape(weight), bool)
  for at in np.ndindex(result.shape):
    result[at] = weight[at] != 0.0 and np.any(mask[at])
  return result


def groups(mask, weight):
  """Yields (prompt, its present responses) of each prompt that has any."""
  counted = present(mask, weight)
  for i in range(len(counted)):
    if counted[i].any():
      yield i, [int(j) for j in np.flatnonzero(counted[i])]


def tokens(mask, weight):
  """Yields (prompt, response, token) of each counted token that is present."""
  for i, group in groups(mask, weight):
    for j in group:
      for t in np.flatnonzero(mask[i, j]):
        yield i, j, int(t)


def per_token(term, mask, weight, *arrays):
  """[p, k, t]: `term` of the arrays' entries at each counted token, 0 elsewhere."""
  result = np.zeros(np.shape(mask))
  for at in tokens(mask, weight):
    result[at] = term(*(float(array[at]) for array in arrays))
  return result


def broadcast(scores, mask, weight):
  """[p, k, t]: the score [p, k] of a response on each of its counted tokens."""
  result = np.zeros(np.shape(mask))
  for i, j, t in tokens(mask, weight):
    result[i, j, t] = scores[i, j]
  return result


# Rewards ----------------------------------------------------------------------


def outcomes(rewards, mask, weight, lengths):
  """[p, k]: R, the sum of a response's rewards over its real tokens."""
  result = np.zeros(np.shape(weight))
  for i, group in groups(mask, weight):
    for j in group:
      result[i, j] = sum(float(rewards[i, j, t]) for t in range(lengths[i, j]))
  return result


def returns_to_go(rewards, mask, weight, lengths):
  """[p, k, t]: sum_{s >= t} r_s over the real tokens, at each counted token."""
  result = np.zeros(np.shape(mask))
  for i, j, t in tokens(mask, weight):
    result[i, j, t] = sum(float(rewards[i, j, s]) for s in range(t, lengths[i, j]))
  return result


def kl_in_rewards(rewards, logps, reference_logps, mask, weight, *, beta):
  """r_t - beta d_t at the counted tokens; the rewards themselves elsewhere.

  InstructGPT, 2203.02155, Eq. 2; RLOO, 2402.14740 (d summed over the response);
  REINFORCE++, 2501.03262 (k1 of a token, and the sum from t on). The logps are
  those of the policy that made the responses: rewards have no gradient.
  """
  result = np.array(rewards, np.float64)
  for at in tokens(mask, weight):
    result[at] -= beta * k1(float(logps[at]) - float(reference_logps[at]))
  return result


def soft_overlong(length, *, max_length, cache):
  """0, then a line from 0 to -1 over the last `cache` tokens, then -1.

  DAPO, 2503.14476, Eq. 13. It is added to the outcome reward.
  """
  expected = max_length - cache
  if length <= expected:
    return 0.0
  if length <= max_length:
    return (expected - length) / cache
  return -1.0


def mixed(rewards, mask, weight, lengths):
  """[p] bool: the group's outcomes are not all the same.

  DAPO, 2503.14476, Eq. 8: the constraint 0 < #correct < G of binary rewards.
  """
  outcome = outcomes(rewards, mask, weight, lengths)
  result = np.zeros(len(outcome), bool)
  for i, group in groups(mask, weight):
    result[i] = len({float(outcome[i, j]) for j in group}) > 1
  return result


# Advantages -------------------------------------------------------------------


def standardised(x, *, ddof, eps):
  """[n]: (x - mean) / (std + eps); 0 where all are equal, as of one alone."""
  x = np.asarray(x, np.float64)
  if np.all(x == x[:1]):
    return np.zeros_like(x)
  return (x - x.mean()) / (x.std(ddof=ddof) + eps)


def group_normalised(rewards, mask, weight, lengths, *, ddof, eps):
  """A = (R - mean(R)) / (std(R) + eps) of the group, the same on every token.

  GRPO, 2402.03300, Sec. 4.1.2 (outcome supervision), which has no eps and names
  no ddof; DAPO, 2503.14476, Eq. 9.
  """
  outcome = outcomes(rewards, mask, weight, lengths)
  result = np.zeros_like(outcome)
  for i, group in groups(mask, weight):
    result[i, group] = standardised(outcome[i, group], ddof=ddof, eps=eps)
  return broadcast(result, mask, weight)


def group_centred(rewards, mask, weight, lengths):
  """A = R - mean(R) of the group (Dr. GRPO, 2503.20783, Sec. 3.2)."""
  outcome = outcomes(rewards, mask, weight, lengths)
  result = np.zeros_like(outcome)
  for i, group in groups(mask, weight):
    for j in group:
      result[i, j] = outcome[i, j] - outcome[i, group].mean()
  return broadcast(result, mask, weight)


def leave_one_out(rewards, mask, weight, lengths):
  """A_i = R_i - mean_{j != i} R_j; 0 of a response alone (RLOO, 2402.14740)."""
  outcome = outcomes(rewards, mask, weight, lengths)
  result = np.zeros_like(outcome)
  for i, group in groups(mask, weight):
    for j in group:
      others = [outcome[i, other] for other in group if other != j]
      if others:
        result[i, j] = outcome[i, j] - sum(others) / len(others)
  return broadcast(result, mask, weight)


def token_leave_one_out(rewards, mask, weight, *, gamma):
  """sum_{s >= t} gamma^(s-t) (r_s - mean_{j != i} mean_u r_{j,u}); 0 if alone.

  PRIME, 2502.01456: the leave-one-out baseline of a response's token rewards is of
  the other responses' mean token rewards.
  """
  result = np.zeros(np.shape(mask))
  for i, group in groups(mask, weight):
    at = {j: [int(t) for t in np.flatnonzero(mask[i, j])] for j in group}
    mean = {j: sum(rewards[i, j, t] for t in at[j]) / len(at[j]) for j in group}
    for j in group:
      others = [mean[other] for other in group if other != j]
      for t in at[j] if others else ():
        baseline = sum(others) / len(others)
        result[i, j, t] = sum(
          gamma ** (s - t) * (rewards[i, j, s] - baseline) for s in at[j] if s >= t
        )
  return result


def prime(
  logps,
  old_logps,
  rewards,
  implicit,
  mask,
  weight,
  lengths,
  *,
  process,
  outcome,
  gamma,
  eps,
  low,
  high,
):
  """PRIME, 2502.01456, with its code's two normalisations over the whole batch.

  The token rewards are divided by their largest return's size, and the advantages
  whitened; then PPO's clipped loss.
  """
  counted = list(tokens(mask, weight))
  largest = max(
    (
      abs(sum(implicit[i, j, s] for s in np.flatnonzero(mask[i, j]) if s >= t))
      for i, j, t in counted
    ),
    default=0.0,
  )
  scaled = np.asarray(implicit, np.float64) / (largest + eps)
  steps = token_leave_one_out(scaled, mask, weight, gamma=gamma)
  whole = leave_one_out(rewards, mask, weight, lengths)
  advantages = whiten(process * steps + outcome * whole, mask, weight, eps=eps)
  return ppo(logps, old_logps, advantages, mask, weight, low=low, high=high)


def whiten(advantages, mask, weight, *, eps, ddof=0):
  """(A - mean) / (std + eps) over all counted tokens of the batch.

  PPO for language models, 2403.17031; its eps is under the root, this one beside.
  """
  result = np.zeros(np.shape(mask))
  counted = list(tokens(mask, weight))
  values = standardised([advantages[at] for at in counted], ddof=ddof, eps=eps)
  for at, value in zip(counted, values, strict=True):
    result[at] = value
  return result


def batch_normalised(rewards, mask, weight, lengths, *, ddof, eps, centre_group):
  """The returns-to-go, or R - mean(R) of the group, whitened over the batch.

  REINFORCE++, 2501.03262: the returns (discount 1), and with `centre_group` its
  -baseline. Every counted token of the batch enters the mean and the std once.
  """
  if centre_group:
    values = group_centred(rewards, mask, weight, lengths)
  else:
    values = returns_to_go(rewards, mask, weight, lengths)
  return whiten(values, mask, weight, eps=eps, ddof=ddof)


def process(rewards, step_end, mask, weight, *, ddof, eps):
  """A_t = sum of the normalised rewards of the steps that end at or after t.

  GRPO, 2402.03300, Sec. 4.1.3 (process supervision): one mean and one std over
  all step rewards of the group. A step's reward sits where `step_end [p, k, t]`
  is True; rewards elsewhere are not read.
  """
  result = np.zeros(np.shape(mask))
  for i, group in groups(mask, weight):
    ends = [(j, int(t)) for j in group for t in np.flatnonzero(step_end[i, j])]
    values = standardised([rewards[i, j, t] for j, t in ends], ddof=ddof, eps=eps)
    for j in group:
      for t in np.flatnonzero(mask[i, j]):
        for (of, end), value in zip(ends, values, strict=True):
          if of == j and end >= t:
            result[i, j, t] += value
  return result


def gae(rewards, values, mask, lengths, truncated, *, gamma, lam):
  """[p, k, t] twice: A_t = delta_t + gamma lam A_{t+1}, and A_t + V_t.

  GAE, 1506.02438, Eq. 16, with delta_t = r_t + gamma V_{t+1} - V_t over the real
  tokens. V after the last one is 0 where the response ended, and the critic's
  where it was truncated. Both results are 0 outside the mask.
  """
  advantages, returns = np.zeros(np.shape(mask)), np.zeros(np.shape(mask))
  for at in np.ndindex(np.shape(lengths)):
    length = int(lengths[at])
    following = 0.0
    after = float(values[at][length]) if truncated[at] else 0.0
    for t in reversed(range(length)):
      value = float(values[at][t])
      delta = float(rewards[at][t]) + gamma * after - value
      following = delta + gamma * lam * following
      after = value
      if mask[at][t]:
        advantages[at][t] = following
        returns[at][t] = following + value
  return advantages, returns


# Log-ratios -------------------------------------------------------------------


def token_log_ratios(logps, old_logps, mask, weight):
  """[p, k, t]: log rho_t = log pi(y_t) - log pi_old(y_t).

  PPO, 1707.06347, Eq. 6; GRPO, 2402.03300, Eq. 3.
  """
  return per_token(lambda new, old: new - old, mask, weight, logps, old_logps)


def sequence_log_ratios(logps, old_logps, mask, weight):
  """[p, k, t]: log s_i = (1 / T_i) sum_t log rho_t, on every counted token.

  GSPO, 2507.18071, Eq. 7.
  """
  ratios = token_log_ratios(logps, old_logps, mask, weight)
  means = np.zeros(np.shape(weight))
  for i, group in groups(mask, weight):
    for j in group:
      counted = [ratios[i, j, t] for t in np.flatnonzero(mask[i, j])]
      means[i, j] = sum(counted) / len(counted)
  return broadcast(means, mask, weight)


# Surrogates of a token --------------------------------------------------------


def clipped(log_ratio, advantage, *, low, high):
  """-min(rho A, clip(rho, 1 - low, 1 + high) A).

  PPO, 1707.06347, Eq. 7; DAPO, 2503.14476, Eq. 8, with two bounds.
  """
  rho = np.exp(log_ratio)
  bounded = min(max(rho, 1.0 - low), 1.0 + high)
  return -min(rho * advantage, bounded * advantage)


def dual_clipped(log_ratio, advantage, *, low, high, cap):
  """-max(min(rho A, clip(rho) A), cap A) where A < 0, `clipped` elsewhere.

  Dual-clip PPO, 1912.09729; cap > 1.
  """
  loss = clipped(log_ratio, advantage, low=low, high=high)
  return -max(-loss, cap * advantage) if advantage < 0.0 else loss


def plain(log_ratio, advantage):
  """-rho A (PPO, 1707.06347, Eq. 6)."""
  return -np.exp(log_ratio) * advantage


def cispo_term(log_ratio, advantage, logp, *, high):
  """-min(rho, 1 + high) A log pi, the first factor a constant.

  CISPO, MiniMax-M1, 2506.13585, Eq. 4 and 5, without the lower bound.
  """
  return -min(np.exp(log_ratio), 1.0 + high) * advantage * logp


def cispo_slope(log_ratio, advantage, *, high):
  """-min(rho, 1 + high) A, what `cispo_term` gives log pi as its gradient."""
  return -min(np.exp(log_ratio), 1.0 + high) * advantage


def reinforce(advantage, logp):
  """-A log pi (REINFORCE, as in RLOO, 2402.14740)."""
  return -advantage * logp


# KL of a token ----------------------------------------------------------------


def k1(d):
  """The estimate d (Schulman's note `Approximating KL divergence`)."""
  return d


def k2(d):
  """The estimate d^2 / 2 (Schulman's note)."""
  return 0.5 * d**2


def k3(d):
  """The estimate exp(-d) - 1 + d (GRPO, 2402.03300, Eq. 4)."""
  return np.expm1(-d) + d


# Aggregation ------------------------------------------------------------------


def token_mean(values, mask, weight):
  """The sum of m w l over the sum of m w: every token of the batch the same.

  The token-level loss of DAPO, 2503.14476, Sec. 3.3, over the batch.
  """
  total = denominator = 0.0
  for i, j, t in tokens(mask, weight):
    total += weight[i, j] * values[i, j, t]
    denominator += weight[i, j]
  return float(total / denominator) if denominator else 0.0


def mean_of_sequence_means(values, mask, weight):
  """The mean under w_i of (1 / T_i) sum_t m l, i over the present responses.

  GRPO, 2402.03300, Eq. 3, over the responses of all prompts at once.
  """
  total = denominator = 0.0
  for i, group in groups(mask, weight):
    for j in group:
      counted = [values[i, j, t] for t in np.flatnonzero(mask[i, j])]
      total += weight[i, j] * sum(counted) / len(counted)
      denominator += weight[i, j]
  return float(total / denominator) if denominator else 0.0


def group_token_mean(values, mask, weight):
  """The mean over prompts of sum_i w_i sum_t m l / sum_i w_i T_i of its group.

  DAPO, 2503.14476, Eq. 8 as it is printed. A prompt without a token is left out.
  """
  prompts = []
  for i, group in groups(mask, weight):
    total = denominator = 0.0
    for j in group:
      for t in np.flatnonzero(mask[i, j]):
        total += weight[i, j] * values[i, j, t]
        denominator += weight[i, j]
    prompts.append(total / denominator)
  return float(sum(prompts) / len(prompts)) if prompts else 0.0


def sum_over_length(values, mask, weight, *, length):
  """The mean under w_i of (1 / L) sum_t m l, i over the present, L = `length`.

  Dr. GRPO, 2503.20783, Sec. 3.2 and its code: L is a constant, the longest
  response allowed. L = 1 is the mean of the responses' sums.
  """
  total = denominator = 0.0
  for i, group in groups(mask, weight):
    for j in group:
      for t in np.flatnonzero(mask[i, j]):
        total += weight[i, j] * values[i, j, t] / length
      denominator += weight[i, j]
  return float(total / denominator) if denominator else 0.0


# Objectives -------------------------------------------------------------------


def policy_loss(
  logps,
  log_ratios,
  advantages,
  mask,
  weight,
  *,
  surrogate,
  aggregate,
  reference_logps=None,
  kl=k3,
  beta=0.0,
):
  """aggregate(surrogate + beta kl): the form of every objective below.

  `surrogate(log_ratio, advantage, logp)` and `kl(d)` are of a token, `aggregate(
  values, mask, weight)` makes the scalar. GRPO, 2402.03300, Eq. 3 has the KL
  inside the mean, and so does this.
  """
  values = per_token(surrogate, mask, weight, log_ratios, advantages, logps)
  if beta != 0.0:
    values += beta * per_token(
      lambda new, reference: kl(new - reference), mask, weight, logps, reference_logps
    )
  return aggregate(values, mask, weight)


def grpo(
  logps,
  old_logps,
  reference_logps,
  rewards,
  mask,
  weight,
  lengths,
  *,
  ddof,
  eps,
  clip,
  beta,
):
  """GRPO, 2402.03300, Eq. 3, with outcome supervision and k3 (Eq. 4)."""
  return policy_loss(
    logps,
    token_log_ratios(logps, old_logps, mask, weight),
    group_normalised(rewards, mask, weight, lengths, ddof=ddof, eps=eps),
    mask,
    weight,
    surrogate=lambda ratio, a, _: clipped(ratio, a, low=clip, high=clip),
    aggregate=mean_of_sequence_means,
    reference_logps=reference_logps,
    beta=beta,
  )


def dr_grpo(logps, old_logps, rewards, mask, weight, lengths, *, clip, length):
  """Dr. GRPO, 2503.20783, Sec. 3.2: no std, no 1 / T_i, no KL."""
  return policy_loss(
    logps,
    token_log_ratios(logps, old_logps, mask, weight),
    group_centred(rewards, mask, weight, lengths),
    mask,
    weight,
    surrogate=lambda ratio, a, _: clipped(ratio, a, low=clip, high=clip),
    aggregate=lambda *args: sum_over_length(*args, length=length),
  )


def dapo(
  logps,
  old_logps,
  rewards,
  mask,
  weight,
  lengths,
  *,
  ddof,
  eps,
  low,
  high,
  aggregate=group_token_mean,
):
  """DAPO, 2503.14476, Eq. 8: two bounds, no KL, the group's tokens together.

  Its code aggregates by `token_mean`. Overlong punishment is in the rewards.
  """
  return policy_loss(
    logps,
    token_log_ratios(logps, old_logps, mask, weight),
    group_normalised(rewards, mask, weight, lengths, ddof=ddof, eps=eps),
    mask,
    weight,
    surrogate=lambda ratio, a, _: clipped(ratio, a, low=low, high=high),
    aggregate=aggregate,
  )


def gspo(logps, old_logps, rewards, mask, weight, lengths, *, ddof, eps, low, high):
  """GSPO, 2507.18071, Eq. 5: the ratio s_i of the whole response is clipped."""
  return policy_loss(
    logps,
    sequence_log_ratios(logps, old_logps, mask, weight),
    group_normalised(rewards, mask, weight, lengths, ddof=ddof, eps=eps),
    mask,
    weight,
    surrogate=lambda ratio, a, _: clipped(ratio, a, low=low, high=high),
    aggregate=mean_of_sequence_means,
  )


def cispo(
  logps,
  old_logps,
  rewards,
  mask,
  weight,
  lengths,
  *,
  ddof,
  eps,
  high,
  factor_logps=None,
  aggregate=group_token_mean,
):
  """CISPO, MiniMax-M1, 2506.13585, Eq. 4, which averages as DAPO's Eq. 8 does.

  The clipped ratio is a constant: to differentiate the value numerically, hold
  the `factor_logps` it is made of, which are the logps themselves if None.
  """
  held = logps if factor_logps is None else factor_logps
  return policy_loss(
    logps,
    token_log_ratios(held, old_logps, mask, weight),
    group_normalised(rewards, mask, weight, lengths, ddof=ddof, eps=eps),
    mask,
    weight,
    surrogate=lambda ratio, a, logp: cispo_term(ratio, a, logp, high=high),
    aggregate=aggregate,
  )


def cispo_gradient(
  logps, old_logps, rewards, mask, weight, lengths, *, ddof, eps, high
):
  """[p, k, t]: the gradient of `cispo` with respect to the logps, as derived."""
  ratios = token_log_ratios(logps, old_logps, mask, weight)
  advantages = group_normalised(rewards, mask, weight, lengths, ddof=ddof, eps=eps)
  slopes = per_token(
    lambda ratio, a: cispo_slope(ratio, a, high=high), mask, weight, ratios, advantages
  )
  found = list(groups(mask, weight))
  for i, group in found:
    denominator = sum(weight[i, j] * np.sum(mask[i, j]) for j in group)
    for j in group:
      slopes[i, j] *= weight[i, j] / denominator / len(found)
  return slopes


def rloo(logps, rewards, mask, weight, lengths):
  """-(1 / k) sum_i A_i log pi(y_i), A = leave-one-out (RLOO, 2402.14740).

  The log-probability is of the whole response, a sum over its tokens. The KL is
  in the rewards already: `kl_in_rewards`.
  """
  return policy_loss(
    logps,
    np.zeros(np.shape(mask)),
    leave_one_out(rewards, mask, weight, lengths),
    mask,
    weight,
    surrogate=lambda _, a, logp: reinforce(a, logp),
    aggregate=lambda *args: sum_over_length(*args, length=1),
  )


def reinforce_pp(
  logps,
  old_logps,
  rewards,
  mask,
  weight,
  lengths,
  *,
  ddof,
  eps,
  low,
  high,
  centre_group,
):
  """REINFORCE++, 2501.03262, or its -baseline: PPO's loss without a critic.

  The KL is in the rewards already: `kl_in_rewards`.
  """
  return ppo(
    logps,
    old_logps,
    batch_normalised(
      rewards, mask, weight, lengths, ddof=ddof, eps=eps, centre_group=centre_group
    ),
    mask,
    weight,
    low=low,
    high=high,
  )


def ppo(logps, old_logps, advantages, mask, weight, *, low, high, cap=None):
  """PPO, 1707.06347, Eq. 7, the mean over tokens; with a cap, dual-clip PPO."""

  def surrogate(ratio, advantage, _):
    if cap is None:
      return clipped(ratio, advantage, low=low, high=high)
    return dual_clipped(ratio, advantage, low=low, high=high, cap=cap)

  return policy_loss(
    logps,
    token_log_ratios(logps, old_logps, mask, weight),
    advantages,
    mask,
    weight,
    surrogate=surrogate,
    aggregate=token_mean,
  )


def ppo_value(values, old_values, returns, mask, weight, *, clip):
  """1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2), the token mean.

  The L^VF of PPO, 1707.06347, Eq. 9, clipped as in its authors' code (2005.12729).
  The last of the t + 1 values takes no part.
  """

  def term(v, old, target):
    near = min(max(v, old - clip), old + clip)
    return 0.5 * max((v - target) ** 2, (near - target) ** 2)

  losses = per_token(term, mask, weight, values, old_values, returns)
  return token_mean(losses, mask, weight)


# Evaluation -------------------------------------------------------------------


def pass_at_k(n, correct, k):
  """1 - C(n - c, k) / C(n, k), k <= n: some of k of the n samples is correct.

  Codex, 2107.03374, Eq. 1.
  """
  return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def maj_at_k(answers, target):
  """The chance that the most common answer is the target.

  Self-consistency, 2203.11171. Of answers equally common, each is as likely.
  """
  counts = Counter(answers)
  top = max(counts.values())
  best = [answer for answer, count in counts.items() if count == top]
  return float(target in best) / len(best)
