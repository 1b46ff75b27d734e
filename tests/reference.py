"""The papers in float64 NumPy: what every objective is tested against.

Written from the papers alone, and kept plain on purpose: loops over prompts,
pairs and responses, one short function an equation, nothing of `prefjax`.

Axes: `p` prompts, `k` responses of a prompt, `m` pairs, `t` tokens, `v`
vocabulary. Inputs: `logps`, `reference_logps [p, k, t]` (nats), `mask [p, k,
t]` bool (True counts), `weight [p, k]`, and `pairs`, the arrays of `Pairs`.
What is masked out, or has weight 0, may hold anything, NaN included. A loss of
total weight 0 is 0.

Symbols: a, b = the summed log-ratios log(policy / reference) of the chosen and
the rejected response; h = a - b; s = the logistic sigmoid. A response with no
counted token has sum 0 and mean 0; only its weight can take it out of a mean.

A pair loss L(w, l) under the soft label q is q L(w, l) + (1 - q) L(l, w).
Equations are numbered as in the papers; where only a section is named, the
number was not at hand.
"""

from typing import Any, NamedTuple

import numpy as np


class Pairs(NamedTuple):
  """Pairs among the responses of each prompt."""

  chosen: Any  # [p, m] int, index into k
  rejected: Any  # [p, m] int, index into k
  preference: Any  # [p, m] float in [0, 1], P(chosen beats rejected)
  pair_weight: Any  # [p, m] float, 0 for filling


# Scalars ----------------------------------------------------------------------


def log_sigmoid(x):
  """The stable log s(x) = -log(1 + exp(-x))."""
  return -np.logaddexp(0.0, -np.asarray(x, np.float64))


def sigmoid(x):
  """1 / (1 + exp(-x)), through its logarithm so that nothing overflows."""
  return np.exp(log_sigmoid(x))


def log1mexp(x):
  """The log(1 - exp(x)), x <= 0, by the branch that does not cancel."""
  if x >= 0.0:
    return -np.inf
  return np.log(-np.expm1(x)) if x > -np.log(2.0) else np.log1p(-np.exp(x))


def log_odds(log_p):
  """The log(P / (1 - P)) of P = exp(log_p) (ORPO, 2403.07691, Eq. 4)."""
  return log_p - log1mexp(log_p)


# Responses --------------------------------------------------------------------


def sums(logps, mask):
  """[p, k]: log pi(y|x) = sum_t mask_t logps_t."""
  values, counted = np.asarray(logps, np.float64), np.asarray(mask, bool)
  result = np.zeros(values.shape[:2])
  for at in np.ndindex(result.shape):
    result[at] = values[at][counted[at]].sum()
  return result


def lengths(mask):
  """[p, k]: |y|, the counted tokens."""
  return np.asarray(mask, bool).sum(axis=-1)


def means(logps, mask):
  """[p, k]: log pi(y|x) / |y|."""
  return sums(logps, mask) / np.maximum(lengths(mask), 1)


def log_ratios(logps, reference_logps, mask, *, length_normalised=False):
  """[p, k]: log(pi(y|x) / pi_ref(y|x)), or that over |y|."""
  reduce = means if length_normalised else sums
  return reduce(logps, mask) - reduce(reference_logps, mask)


def _mean(weighted):
  """The sum of w x over the sum of w, of (w, x); 0 where nothing weighs."""
  total = weight = 0.0
  for w, x in weighted:
    total += w * x
    weight += w
  return float(total / weight) if weight != 0.0 else 0.0


def response_mean(term, weight):
  """The mean of `term(i, j)` over the responses j of the prompts i."""
  weight = np.asarray(weight, np.float64)
  counted = (at for at in np.ndindex(weight.shape) if weight[at] != 0.0)
  return _mean((weight[at], term(*at)) for at in counted)


# Pairs ------------------------------------------------------------------------


def each_pair(pairs):
  """Yields (weight, preference, prompt, chosen, rejected) of what counts."""
  chosen, rejected, preference, pair_weight = map(np.asarray, pairs)
  for at in np.ndindex(pair_weight.shape):
    if pair_weight[at] != 0.0:
      indices = int(chosen[at]), int(rejected[at])
      yield float(pair_weight[at]), float(preference[at]), at[0], *indices


def pair_mean(term, pairs):
  """The mean of q L(w, l) + (1 - q) L(l, w), where L is `term(i, w, l)`."""

  def soft(q, i, win, lose):
    value = q * term(i, win, lose) if q != 0.0 else 0.0
    return value + ((1.0 - q) * term(i, lose, win) if q != 1.0 else 0.0)

  return _mean((weight, soft(*pair)) for weight, *pair in each_pair(pairs))


def two_sided(link, logps, reference_logps, mask, pairs):
  """The mean of link(a, b): the losses that see both log-ratios."""
  r = log_ratios(logps, reference_logps, mask)
  return pair_mean(lambda i, win, lose: link(r[i, win], r[i, lose]), pairs)


def on_margin(link, logps, reference_logps, mask, pairs):
  """The mean of link(h): the losses that see the difference only."""
  return two_sided(lambda a, b: link(a - b), logps, reference_logps, mask, pairs)


def dpo(logps, reference_logps, mask, pairs, *, beta, label_smoothing=0.0):
  """-(1 - e) log s(beta h) - e log s(-beta h).

  DPO, 2305.18290, Eq. 7 (e = 0). Conservative DPO, Mitchell's `A note on DPO
  with noisy preferences and relationship to IPO`, Eq. 3 (e > 0).
  """
  e = label_smoothing
  return on_margin(
    lambda h: -(1.0 - e) * log_sigmoid(beta * h) - e * log_sigmoid(-beta * h),
    logps,
    reference_logps,
    mask,
    pairs,
  )


def robust_dpo(logps, reference_logps, mask, pairs, *, beta, flip_probability):
  """[(1 - e) L(w, l) - e L(l, w)] / (1 - 2 e), L = DPO, e in [0, 1/2).

  Robust DPO, 2403.00409, Sec. 3.1: unbiased where labels flip with chance e.
  """
  e = flip_probability

  def link(h):
    clean, flipped = -log_sigmoid(beta * h), -log_sigmoid(-beta * h)
    return ((1.0 - e) * clean - e * flipped) / (1.0 - 2.0 * e)

  return on_margin(link, logps, reference_logps, mask, pairs)


def ipo(logps, reference_logps, mask, pairs, *, tau, length_normalised):
  """(h - 1 / (2 tau))^2 (IPO, 2310.12036, Eq. 17).

  The paper's h is a difference of sums; with `length_normalised`, of the
  log-ratios each divided by its response's own length.
  """
  r = log_ratios(logps, reference_logps, mask, length_normalised=length_normalised)
  target = 1.0 / (2.0 * tau)
  return pair_mean(lambda i, win, lose: (r[i, win] - r[i, lose] - target) ** 2, pairs)


def hinge(logps, reference_logps, mask, pairs, *, beta):
  """max(0, 1 - beta h).

  SLiC-HF, 2305.10425, Sec. 2, on log-ratios as in RSO, 2309.06657 (the hinge
  on the normalised likelihood).
  """
  return on_margin(
    lambda h: max(0.0, 1.0 - beta * h), logps, reference_logps, mask, pairs
  )


def discopop(logps, reference_logps, mask, pairs, *, beta, tau=0.05):
  """(1 - m) (-log s(z)) + m exp(-z), z = beta h, m = s(z / tau).

  DiscoPOP (the log-ratio modulated loss), 2406.08414, Sec. 4. m exp(-z) is one
  exponential here: a factor may overflow where the product does not.
  """

  def link(h):
    z = beta * h
    logistic = -sigmoid(-z / tau) * log_sigmoid(z)
    return logistic + np.exp(log_sigmoid(z / tau) - z)

  return on_margin(link, logps, reference_logps, mask, pairs)


def exo_pair(logps, reference_logps, mask, pairs, *, beta, label_smoothing):
  """KL((q, 1 - q) || (1 - e, e)), q = s(beta h), e in (0, 1/2).

  EXO, 2402.00856, Eq. 16 with two responses.
  """
  e = label_smoothing

  def link(h):
    first, second = log_sigmoid(beta * h), log_sigmoid(-beta * h)
    kept = np.exp(first) * (first - np.log1p(-e))
    return kept + np.exp(second) * (second - np.log(e))

  return on_margin(link, logps, reference_logps, mask, pairs)


def nca_pair(logps, reference_logps, mask, pairs, *, beta):
  """-log s(beta a) - 1/2 log s(-beta a) - 1/2 log s(-beta b).

  NCA, 2402.05369, Sec. 4.1, for two responses and a hard label.
  """

  def link(a, b):
    noise = log_sigmoid(-beta * a) + log_sigmoid(-beta * b)
    return -log_sigmoid(beta * a) - 0.5 * noise

  return two_sided(link, logps, reference_logps, mask, pairs)


def bco_pair(logps, reference_logps, mask, pairs, *, beta, shift=0.0):
  """-log s(beta a - d) - log s(-(beta b - d)), d = `shift`, a constant.

  BCO, 2404.04656, Sec. 4, where d is the mean reward; pair variants in use
  have d = 0.
  """
  return two_sided(
    lambda a, b: -log_sigmoid(beta * a - shift) - log_sigmoid(shift - beta * b),
    logps,
    reference_logps,
    mask,
    pairs,
  )


def apo_zero(logps, reference_logps, mask, pairs, *, beta):
  """1 - s(beta a) + s(beta b) (APO-zero, 2408.06266, Eq. 7, plus 1)."""
  return two_sided(
    lambda a, b: sigmoid(-beta * a) + sigmoid(beta * b),
    logps,
    reference_logps,
    mask,
    pairs,
  )


def apo_down(logps, reference_logps, mask, pairs, *, beta):
  """s(beta a) + 1 - s(beta h) (APO-down, 2408.06266, Eq. 8, plus 1)."""
  return two_sided(
    lambda a, b: sigmoid(beta * a) + sigmoid(-beta * (a - b)),
    logps,
    reference_logps,
    mask,
    pairs,
  )


def dpo_normalised(logps, reference_logps, mask, pairs, *, beta):
  """-log s(beta (a / |y_w| - b / |y_l|)), DPO of log-ratios a token."""
  r = log_ratios(logps, reference_logps, mask, length_normalised=True)
  return pair_mean(
    lambda i, win, lose: -log_sigmoid(beta * (r[i, win] - r[i, lose])), pairs
  )


def f_dpo(logps, reference_logps, mask, pairs, *, beta, divergence, alpha=0.5):
  """-log s(beta (f'(e^a) - f'(e^b))) (f-DPO, 2309.16240, Table 1).

  f' is log u + 1, -1/u, log(2u / (1 + u)) or (1 - u^-alpha) / alpha; a constant of
  it cancels. u^-1 and u^-alpha end at exp(80), as they are said to.
  """
  f = {
    'reverse_kl': lambda x: x + 1.0,
    'forward_kl': lambda x: -np.exp(min(-x, 80.0)),
    'js': lambda x: np.log(2.0) + x - np.logaddexp(0.0, x),
    'alpha': lambda x: (1.0 - np.exp(min(-alpha * x, 80.0))) / alpha,
  }[divergence]
  return two_sided(
    lambda a, b: -log_sigmoid(beta * (f(a) - f(b))),
    logps,
    reference_logps,
    mask,
    pairs,
  )


def dpop(logps, reference_logps, mask, pairs, *, beta, penalty):
  """-log s(beta (h - lambda max(0, -a))) (DPO-Positive, 2402.13228)."""
  return two_sided(
    lambda a, b: -log_sigmoid(beta * (a - b - penalty * max(0.0, -a))),
    logps,
    reference_logps,
    mask,
    pairs,
  )


def odpo(logps, reference_logps, mask, pairs, label, *, beta, offset):
  """-log s(beta h - offset (label_w - label_l)) (ODPO, 2402.10571)."""
  r = log_ratios(logps, reference_logps, mask)

  def term(i, win, lose):
    apart = offset * (label[i, win] - label[i, lose])
    return -log_sigmoid(beta * (r[i, win] - r[i, lose]) - apart)

  return pair_mean(term, pairs)


def ld_dpo(logps, reference_logps, mask, pairs, *, beta, tail):
  """DPO whose tokens beyond the shorter length count `tail` (2409.06411)."""

  def ratio(i, k, shared):
    counted = np.flatnonzero(mask[i, k])
    d = [float(logps[i, k, t]) - float(reference_logps[i, k, t]) for t in counted]
    return sum(d[:shared]) + tail * sum(d[shared:])

  def term(i, win, lose):
    shared = min(int(mask[i, win].sum()), int(mask[i, lose].sum()))
    return -log_sigmoid(beta * (ratio(i, win, shared) - ratio(i, lose, shared)))

  return pair_mean(term, pairs)


def wpo_weights(logps, collision, mask):
  """w(y) = exp(mean_t log pi(y_t) - log sum_v pi(v)^2) (WPO, 2406.11827)."""
  with np.errstate(divide='ignore', invalid='ignore'):
    log_collision = np.log(collision)
  return np.exp(log_ratios(logps, log_collision, mask, length_normalised=True))


def wpo(logps, reference_logps, mask, pairs, *, beta, weights):
  """-w_w w_l log s(beta h); the weights are constants."""
  r = log_ratios(logps, reference_logps, mask)

  def term(i, win, lose):
    likely = weights[i, win] * weights[i, lose]
    return -likely * log_sigmoid(beta * (r[i, win] - r[i, lose]))

  return pair_mean(term, pairs)


def _atoms(pairs, agreeing, disagreeing):
  """(value, weight) of a pair: q of its weight on one order, 1 - q on the other."""
  for weight, q, i, win, lose in each_pair(pairs):
    yield agreeing(i, win, lose), weight * q
    yield disagreeing(i, win, lose), weight * (1.0 - q)


def quantile_mean(link, first, second):
  """The mean of link(F^-1(q) - G^-1(q)) over q: two sorted lists, walked together."""
  first, second = ([list(x) for x in sorted(xs)] for xs in (first, second))
  total = weight = 0.0
  i = j = 0
  while i < len(first) and j < len(second):
    step = min(first[i][1], second[j][1])
    if step > 0.0:
      total += step * link(first[i][0] - second[j][0])
      weight += step
    first[i][1] -= step
    second[j][1] -= step
    i, j = i + (first[i][1] <= 1e-14), j + (second[j][1] <= 1e-14)
  return total / weight if weight else 0.0


def aot(logps, reference_logps, mask, pairs, *, beta, label_smoothing=0.0):
  """The smoothed logistic of sorted policy margins minus sorted reference ones.

  AOT, paired, 2406.05882.
  """
  margins = [
    list(
      _atoms(
        pairs,
        lambda i, win, lose, s=s: s[i, win] - s[i, lose],
        lambda i, win, lose, s=s: s[i, lose] - s[i, win],
      )
    )
    for s in (sums(logps, mask), sums(reference_logps, mask))
  ]
  return quantile_mean(_smooth_logistic(beta, label_smoothing), *margins)


def aot_unpaired(logps, reference_logps, mask, pairs, *, beta, label_smoothing=0.0):
  """The smoothed logistic of sorted chosen log-ratios minus sorted rejected ones.

  AOT, unpaired, 2406.05882.
  """
  r = log_ratios(logps, reference_logps, mask)
  chosen = list(_atoms(pairs, lambda i, w, l: r[i, w], lambda i, w, l: r[i, l]))
  rejected = list(_atoms(pairs, lambda i, w, l: r[i, l], lambda i, w, l: r[i, w]))
  return quantile_mean(_smooth_logistic(beta, label_smoothing), chosen, rejected)


def _smooth_logistic(beta, e):
  return lambda h: -(1.0 - e) * log_sigmoid(beta * h) - e * log_sigmoid(-beta * h)


# Pairs without a reference ----------------------------------------------------


def unlikelihood(logps, mask, pairs, *, alpha):
  """-log pi(y_w) + alpha log pi(y_l) (DPO, 2305.18290, Sec. 6, the baseline)."""
  score = sums(logps, mask)
  return pair_mean(lambda i, win, lose: alpha * score[i, lose] - score[i, win], pairs)


def simpo(logps, mask, pairs, *, beta, gamma):
  """-log s(beta (log pi(y_w) / |y_w| - log pi(y_l) / |y_l|) - gamma).

  SimPO, 2405.14734, Eq. 6.
  """
  m = means(logps, mask)
  return pair_mean(
    lambda i, win, lose: -log_sigmoid(beta * (m[i, win] - m[i, lose]) - gamma),
    pairs,
  )


def chosen_nll(logps, mask, pairs, *, reduction):
  """-log pi(y_w), or that over |y_w| where `reduction` is 'mean', not 'sum'.

  The supervised term of CPO (2401.08417, Sec. 3; 'sum') and of iterative RPO
  (2404.19733, Sec. 2; 'mean').
  """
  score = {'sum': sums, 'mean': means}[reduction](logps, mask)
  return pair_mean(lambda i, win, lose: -score[i, win], pairs)


def odds_ratio(logps, mask, pairs):
  """-log s(log odds_w - log odds_l), odds of P = exp(log pi(y) / |y|).

  The preference term of ORPO, 2403.07691, Eq. 7.
  """
  m = means(logps, mask)
  return pair_mean(
    lambda i, win, lose: -log_sigmoid(log_odds(m[i, win]) - log_odds(m[i, lose])),
    pairs,
  )


def orpo(logps, mask, pairs, *, coefficient):
  """-log pi(y_w) / |y_w| + lambda L_OR (ORPO, 2403.07691, Eq. 6)."""
  nll = chosen_nll(logps, mask, pairs, reduction='mean')
  return add((nll, 1.0), (odds_ratio(logps, mask, pairs), coefficient))


def cpo(logps, mask, pairs, *, beta, nll_coefficient=1.0, nll_reduction='sum'):
  """-log s(beta (log pi(y_w) - log pi(y_l))) - alpha log pi(y_w).

  CPO, 2401.08417, Sec. 3.
  """
  score = sums(logps, mask)
  prefer = pair_mean(
    lambda i, win, lose: -log_sigmoid(beta * (score[i, win] - score[i, lose])),
    pairs,
  )
  nll = chosen_nll(logps, mask, pairs, reduction=nll_reduction)
  return add((prefer, 1.0), (nll, nll_coefficient))


def bradley_terry(scores, pairs, *, margin=0.0, centre_coefficient=0.0):
  """-log s(r_w - r_l - margin) + c (r_w + r_l)^2, of scores r [p, k].

  The reward model: DPO, 2305.18290, Eq. 2. The margin: Llama 2, 2307.09288,
  Sec. 3.2. The centring: 2312.09244.
  """
  r = np.asarray(scores, np.float64)

  def term(i, win, lose):
    rank = -log_sigmoid(r[i, win] - r[i, lose] - margin)
    return rank + centre_coefficient * (r[i, win] + r[i, lose]) ** 2

  return pair_mean(term, pairs)


# SPPO -------------------------------------------------------------------------


def win_probabilities(scores):
  """[k, k]: P(y_i > y_j) = s(r_i - r_j), from one score a response."""
  r = np.asarray(scores, np.float64)
  return sigmoid(r[:, None] - r[None, :])


def win_rates(probabilities):
  """[k]: P(y_i > pi) = (1/K) sum_j P(y_i > y_j), from [k, k].

  SPPO, 2405.00675, with Eq. 4.5. The sum includes j = i, which adds 1/2.
  """
  return np.asarray(probabilities, np.float64).mean(axis=-1)


def sppo(logps, reference_logps, mask, weight, win_rate, *, eta, log_normaliser=0.5):
  """(log(pi / pi_t) - eta (P(y > pi_t) - c))^2 a response, c = 1/2.

  SPPO, 2405.00675, Eq. 4.7; c eta stands for log Z. Over a pair, the mean is
  the `sppo` loss of the released code, whose beta is 1 / eta.
  """
  r = log_ratios(logps, reference_logps, mask)
  return response_mean(
    lambda i, j: (r[i, j] - eta * (win_rate[i, j] - log_normaliser)) ** 2,
    weight,
  )


def sppo_with(logps, reference_logps, mask, weight, win_rate, *, eta, log_z):
  """(log(pi / pi_t) - eta P(y > pi_t) + log Z)^2, log Z a number a prompt."""
  r = log_ratios(logps, reference_logps, mask)
  return response_mean(
    lambda i, j: (r[i, j] - eta * win_rate[i, j] + log_z[i]) ** 2, weight
  )


def log_mean_exp(values, weights):
  """Log of sum_k w_k exp(x_k) / sum_k w_k of what weighs; 0 of nothing."""
  counted = [(w, x) for w, x in zip(weights, values, strict=True) if w != 0.0]
  if not counted:
    return 0.0
  top = max(x for _, x in counted)
  return top + np.log(_mean((w, np.exp(x - top)) for w, x in counted))


def sppo_single(logps, reference_logps, mask, pairs, *, eta, factor=0.5):
  """1/2 [(a - eta (q - 1/2))^2 + (b + eta (q - 1/2))^2], q = the preference.

  SPPO, 2405.00675, `sppo_single` of the released code; `factor` is the 1/2.
  Here q sets the targets, so it does not mix the two orders.
  """
  r = log_ratios(logps, reference_logps, mask)

  def term(q, i, win, lose):
    target = eta * (q - 0.5)
    return factor * ((r[i, win] - target) ** 2 + (r[i, lose] + target) ** 2)

  return _mean((weight, term(*pair)) for weight, *pair in each_pair(pairs))


def sppo_hard(logps, reference_logps, mask, pairs, *, eta, factor=1.0):
  """(a - eta / 2)^2 + (b + eta / 2)^2, times `factor`.

  SPPO, 2405.00675, Eq. 4.15, which has it in units of eta: (a/eta - 1/2)^2 +
  (b/eta + 1/2)^2. 1 is TRL's factor, 1/2 that of the released `sppo_single`.
  """
  return two_sided(
    lambda a, b: factor * ((a - 0.5 * eta) ** 2 + (b + 0.5 * eta) ** 2),
    logps,
    reference_logps,
    mask,
    pairs,
  )


# Responses one by one ---------------------------------------------------------


def sft(logps, mask, weight, *, reduction):
  """The negative log-likelihood of the weighted responses.

  'token_mean': sum_y w_y (-log pi(y)) / sum_y w_y |y|, every token the same.
  'sequence_sum': sum_y w_y (-log pi(y)) / sum_y w_y, the SFT loss of the DPO
  repository.
  """
  score, length = sums(logps, mask), lengths(mask)
  if reduction == 'sequence_sum':
    return response_mean(lambda i, j: -score[i, j], weight)
  if reduction != 'token_mean':
    raise ValueError(f'Unknown reduction {reduction!r}.')
  counted = (at for at in np.ndindex(score.shape) if length[at] != 0)
  return _mean(
    (weight[at] * length[at], -score[at] / length[at])
    for at in counted
    if weight[at] != 0.0
  )


def kto_kl(logps, reference_logps, mask, mismatched_weight):
  """z0 = max(0, mean log-ratio of mismatched responses); has no gradient.

  KTO, 2402.01306, Sec. 4.1: the estimate of KL(pi || pi_ref).
  """
  r = log_ratios(logps, reference_logps, mask)
  return max(0.0, response_mean(lambda i, j: r[i, j], mismatched_weight))


def kto(
  logps,
  reference_logps,
  mask,
  weight,
  label,
  *,
  beta,
  kl,
  desirable_weight=1.0,
  undesirable_weight=1.0,
):
  """lambda_y - v, r = the log-ratio of a response, z0 = `kl`, a constant.

  Desirable: lambda_D (1 - s(beta (r - z0))); undesirable: lambda_U (1 - s(beta
  (z0 - r))). A label in (0, 1) mixes the two. KTO, 2402.01306, Eq. 7 (Eq. 8 in
  later versions). The denominator is the weight of the responses.
  """
  r = log_ratios(logps, reference_logps, mask)

  def term(i, j):
    desirable = desirable_weight * sigmoid(-beta * (r[i, j] - kl))
    undesirable = undesirable_weight * sigmoid(beta * (r[i, j] - kl))
    return label[i, j] * desirable + (1.0 - label[i, j]) * undesirable

  return response_mean(term, weight)


def bco_shift(logps, reference_logps, mask, weight, label, *, beta):
  """The middle of both classes' mean rewards (BCO, 2404.04656, Sec. 4)."""
  r = log_ratios(logps, reference_logps, mask)
  counted = [at for at in np.ndindex(weight.shape) if weight[at] != 0.0]
  desirable = _mean((weight[at] * label[at], beta * r[at]) for at in counted)
  undesirable = _mean((weight[at] * (1 - label[at]), beta * r[at]) for at in counted)
  return 0.5 * (desirable + undesirable)


def bco(logps, reference_logps, mask, weight, label, *, beta, shift):
  """Cross-entropy of beta r - shift, the shift a constant (BCO, 2404.04656)."""
  r = log_ratios(logps, reference_logps, mask)

  def term(i, j):
    right = -label[i, j] * log_sigmoid(beta * r[i, j] - shift)
    return right - (1.0 - label[i, j]) * log_sigmoid(shift - beta * r[i, j])

  return response_mean(term, weight)


def nca(logps, reference_logps, mask, weight, label, *, beta, temperature):
  """-sum_k q_k log s(beta r_k) - mean_k log s(-beta r_k) (NCA, 2402.05369).

  q = softmax(label / temperature); a weight scales a response's share in both.
  """
  r = log_ratios(logps, reference_logps, mask)
  losses = []
  for i in range(len(weight)):
    ks = np.flatnonzero(weight[i])
    if not len(ks):
      continue
    w = np.asarray(weight[i][ks], np.float64)
    q = w * np.exp(np.asarray(label[i][ks], np.float64) / temperature)
    right = q / q.sum() @ [log_sigmoid(beta * r[i, k]) for k in ks]
    noise = w / w.sum() @ [log_sigmoid(-beta * r[i, k]) for k in ks]
    losses.append((1.0, -right - noise))
  return _mean(losses)


def cross_entropy(logps, reference_logps, mask, weight, label, *, beta):
  """-y log s(beta r) - (1 - y) log s(-beta r), y = label, r = log-ratio.

  Implicit PRM, 2412.01981, Eq. 5, with the minus sign that is missing there.
  """
  r = log_ratios(logps, reference_logps, mask)

  def term(i, j):
    right = -label[i, j] * log_sigmoid(beta * r[i, j])
    return right - (1.0 - label[i, j]) * log_sigmoid(-beta * r[i, j])

  return response_mean(term, weight)


def step_cross_entropy(values, step_label, mask, weight):
  """-c log s(v) - (1 - c) log s(-v) where a step ends, every labelled step the same.

  Math-Shepherd, 2312.08935, Eq. 2. `values[i, j, t + 1]` is that after token t.
  """
  return _mean(
    (
      weight[i, j],
      -step_label[i, j, t] * log_sigmoid(values[i, j, t + 1])
      - (1.0 - step_label[i, j, t]) * log_sigmoid(-values[i, j, t + 1]),
    )
    for i, j, t in np.ndindex(step_label.shape)
    if step_label[i, j, t] >= 0 and mask[i, j, t] and weight[i, j] != 0.0
  )


def add(*terms):
  """The sum of c L over (loss L, coefficient c); each L is its own mean."""
  return float(sum(coefficient * value for value, coefficient in terms))


# Metrics ----------------------------------------------------------------------


def preference_metrics(logps, reference_logps, mask, pairs, *, scale):
  """Means over the pairs, as they are labelled: the preference does not enter.

  The reward is scale * log-ratio (DPO, 2305.18290, Sec. 4), the coefficient
  s(r_l - r_w) the weight in its gradient. Equal rewards are not accurate.
  """
  r = log_ratios(logps, reference_logps, mask)

  def mean(value):
    return _mean(
      (weight, value(r[i, win], r[i, lose]))
      for weight, _, i, win, lose in each_pair(pairs)
    )

  return {
    'chosen_reward': mean(lambda a, b: scale * a),
    'rejected_reward': mean(lambda a, b: scale * b),
    'margin': mean(lambda a, b: scale * (a - b)),
    'accuracy': mean(lambda a, b: float(scale * (a - b) > 0.0)),
    'chosen_drift': mean(lambda a, b: a),
    'rejected_drift': mean(lambda a, b: b),
    'gradient_coefficient': mean(lambda a, b: sigmoid(-scale * (a - b))),
  }


def reward_quality(scores, length, pairs):
  """Brier score, and how often the longer of two unequal ones is scored higher."""
  gaps = [
    (weight, q, scores[i, win] - scores[i, lose], length[i, win] - length[i, lose])
    for weight, q, i, win, lose in each_pair(pairs)
  ]
  return {
    'brier': _mean((w, (sigmoid(gap) - q) ** 2) for w, q, gap, _ in gaps),
    'longer_scored_higher': _mean(
      (w, float((gap > 0) == (more > 0))) for w, _, gap, more in gaps if more != 0
    ),
  }


def kl_k1(logps, reference_logps, mask, weight):
  """The mean summed log-ratio; estimates KL if the policy made the responses.

  Schulman's note `Approximating KL divergence`, k1.
  """
  r = log_ratios(logps, reference_logps, mask)
  return response_mean(lambda i, j: r[i, j], weight)


def kl_k3(logps, reference_logps, mask, weight):
  """The mean of sum_t exp(d_t) - 1 - d_t, d_t = log(pi_ref / pi) of a token.

  GRPO, 2402.03300, Eq. 4: never negative; unbiased for a token that pi drew.
  """
  policy = np.asarray(logps, np.float64)
  reference = np.asarray(reference_logps, np.float64)
  counted = np.asarray(mask, bool)

  def term(*at):
    d = reference[at][counted[at]] - policy[at][counted[at]]
    return np.sum(np.expm1(d) - d)

  return response_mean(term, weight)


# Tokens -----------------------------------------------------------------------


def transform_logits(logits, *, temperature=1.0, soft_cap=None):
  """The logits z -> cap tanh(z / cap) where there is a cap, / temperature."""
  logits = np.asarray(logits, np.float64)
  if soft_cap is not None:
    logits = soft_cap * np.tanh(logits / soft_cap)
  return logits / temperature


def log_softmax(logits, *, temperature=1.0, soft_cap=None):
  """[..., v]: z - log sum exp z, z = the transformed logits."""
  z = transform_logits(logits, temperature=temperature, soft_cap=soft_cap)
  z = z - z.max(axis=-1, keepdims=True)
  return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def token_logps(logits, tokens, *, temperature=1.0, soft_cap=None):
  """[...]: log p(token), of logits [..., v] and tokens [...]."""
  logp = log_softmax(logits, temperature=temperature, soft_cap=soft_cap)
  picked = np.asarray(tokens)[..., None]
  return np.take_along_axis(logp, picked, axis=-1)[..., 0]


def entropy(logits, *, temperature=1.0, soft_cap=None):
  """[...]: -sum p log p in nats; an impossible token adds 0."""
  logp = log_softmax(logits, temperature=temperature, soft_cap=soft_cap)
  p = np.exp(logp)
  return -np.sum(p * np.where(p > 0.0, logp, 0.0), axis=-1)


def collision(logits, *, temperature=1.0, soft_cap=None):
  """[...]: sum p^2, the chance that two draws agree."""
  logp = log_softmax(logits, temperature=temperature, soft_cap=soft_cap)
  return np.exp(2.0 * logp).sum(axis=-1)


def kl(logits, other_logits, *, temperature=1.0, soft_cap=None):
  """[...]: KL(p || q) = sum p (log p - log q) in nats; q of the other logits.

  Both sides take the same transform; for different ones, apply
  `transform_logits` first.
  """
  options = {'temperature': temperature, 'soft_cap': soft_cap}
  logp = log_softmax(logits, **options)
  logq = log_softmax(other_logits, **options)
  p = np.exp(logp)
  possible = p > 0.0
  ratio = np.where(possible, logp, 0.0) - np.where(possible, logq, 0.0)
  return np.sum(p * ratio, axis=-1)


# Gradients --------------------------------------------------------------------


def central_difference(f, x, h=1e-5):
  """df/dx_i = (f(x + h e_i) - f(x - h e_i)) / (2 h), for every entry of x."""
  x = np.array(x, np.float64)
  gradient = np.zeros_like(x)
  for at in np.ndindex(x.shape):
    up, down = x.copy(), x.copy()
    up[at] += h
    down[at] -= h
    gradient[at] = (f(up) - f(down)) / (2.0 * h)
  return gradient
