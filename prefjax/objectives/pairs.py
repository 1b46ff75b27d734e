"""Recipes on pairs of responses, measured against a reference.

Below, a and b are the log-ratios log pi / pi_ref of chosen and rejected (nats), h is
a - b, and a soft preference P mixes both orders: P L(a, b) + (1 - P) L(b, a).
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from prefjax.objectives import links, scores
from prefjax.objectives.combine import add
from prefjax.objectives.links import Scalar
from prefjax.objectives.pairing import (
  compare,
  on_margin,
  on_scores,
  paired,
  pairwise,
  smoothed,
  unflipped,
)
from prefjax.objectives.recipes import (
  BelowHalf,
  Interval,
  NonNegative,
  Positive,
  recipe,
)
from prefjax.objectives.reference_free import chosen_nll
from prefjax.types import LossFn, Outputs, PreferenceBatch, check_batch

Share = Annotated[Scalar, Interval(low=0.0, high=1.0)]
OpenHalf = Annotated[Scalar, Interval(0.0, 0.5, open_low=True, open_high=True)]
OpenShare = Annotated[Scalar, Interval(0.0, 1.0, open_low=True, open_high=True)]


@recipe(needs=('pairs', 'reference_logps'))
def dpo(
  *,
  beta: Positive,
  label_smoothing: BelowHalf = 0.0,
  length_normalised: bool = False,
) -> LossFn:
  """Direct preference optimisation: -log sigmoid(beta h), h the margin of log-ratios.

  DPO (arXiv:2305.18290), Eq. 7. `label_smoothing` > 0 is cDPO: its minimum lies at
  beta h = log((1 - e) / e). Its derivative in h is -beta sigmoid(-beta h).
  `length_normalised` divides each log-ratio by its response's tokens, as Tulu 3 does
  (arXiv:2411.15124), with a larger beta.
  """
  score = scores.mean_log_ratio if length_normalised else scores.log_ratio
  link = on_margin(links.logistic(beta=beta))
  link = smoothed(link, epsilon=label_smoothing)
  return pairwise(link, score=score, scale=beta)


@recipe(needs=('pairs', 'reference_logps'))
def robust_dpo(*, beta: Positive, flip_probability: BelowHalf) -> LossFn:
  """DPO made unbiased where labels are flipped with a known probability e.

  ((1 - e) l(h) - e l(-h)) / (1 - 2 e). Robust DPO (arXiv:2403.00409), Eq. 11.
  """
  link = on_margin(links.logistic(beta=beta))
  return pairwise(unflipped(link, epsilon=flip_probability), scale=beta)


@recipe(needs=('pairs', 'reference_logps'))
def ipo(*, tau: Positive, length_normalised: bool = False) -> LossFn:
  """Identity preference optimisation: (h - 1 / (2 tau))^2.

  IPO (arXiv:2310.12036), Eq. 17, which sums the log-ratios over tokens, as the DPO
  authors' code does; `length_normalised` takes their means, as TRL and HALOs do.
  """
  score = scores.mean_log_ratio if length_normalised else scores.log_ratio
  link = on_margin(links.squared(tau=tau))
  return pairwise(link, score=score, scale=tau)


@recipe(needs=('pairs', 'reference_logps'))
def hinge(*, beta: Positive) -> LossFn:
  """max(0, 1 - beta h): SLiC's loss (arXiv:2305.10425) on the margin of log-ratios.

  This is RSO's normalised form (arXiv:2309.06657, Table 1 `hinge-norm`).
  """
  return pairwise(on_margin(links.hinge(beta=beta)), scale=beta)


@recipe(needs=('pairs', 'reference_logps'))
def exo_pair(*, beta: Positive, label_smoothing: OpenHalf = 1e-3) -> LossFn:
  """KL of the policy's preference (sigmoid(beta h), 1 - ...) from (1 - e, e).

  EXO (arXiv:2402.00856), Eq. 16: reverse KL where DPO has the forward one, so e = 0
  has no finite loss.
  """
  link = links.relative_entropy(beta=beta, epsilon=label_smoothing)
  return pairwise(on_margin(link), scale=beta)


@recipe(needs=('pairs', 'reference_logps'))
def discopop(*, beta: Positive, temperature: Positive = 0.05) -> LossFn:
  """The logistic loss, blended into exp(-beta h) by sigmoid(beta h / temperature).

  DiscoPOP (arXiv:2406.08414), Section 4.
  """
  link = links.discovered(beta=beta, temperature=temperature)
  return pairwise(on_margin(link), scale=beta)


@recipe(needs=('pairs', 'reference_logps'))
def nca_pair(*, beta: Positive) -> LossFn:
  """-log s(beta a) - log s(-beta a) / 2 - log s(-beta b) / 2, s the sigmoid.

  NCA (arXiv:2402.05369), Section 4.1, of two responses: log-ratios themselves are
  pinned, not their difference alone.
  """

  def loss(chosen, rejected):
    noise = _minus_log_sigmoid(-beta * chosen) + _minus_log_sigmoid(-beta * rejected)
    return _minus_log_sigmoid(beta * chosen) + 0.5 * noise

  return pairwise(on_scores(loss), scale=beta)


@recipe(needs=('pairs', 'reference_logps'))
def bco_pair(*, beta: Positive) -> LossFn:
  """-log s(beta a) - log s(-beta b): a classifier of each response.

  BCO (arXiv:2404.04656), Section 4, without the shift, as pair variants in use have
  it; `bco` has the shift.
  """

  def loss(chosen, rejected):
    return _minus_log_sigmoid(beta * chosen) + _minus_log_sigmoid(-beta * rejected)

  return pairwise(on_scores(loss), scale=beta)


@recipe(needs=('pairs', 'reference_logps'))
def apo_zero(*, beta: Positive) -> LossFn:
  """1 - s(beta a) + s(beta b): chosen up, rejected down.

  APO (arXiv:2408.06266), Eq. 7, plus 1.
  """

  def loss(chosen, rejected):
    return jax.nn.sigmoid(-beta * chosen) + jax.nn.sigmoid(beta * rejected)

  return pairwise(on_scores(loss), scale=beta)


@recipe(needs=('pairs', 'reference_logps'))
def apo_down(*, beta: Positive) -> LossFn:
  """s(beta a) + 1 - s(beta h): both down, rejected further.

  APO (arXiv:2408.06266), Eq. 8, plus 1.
  """

  def loss(chosen, rejected):
    apart = jax.nn.sigmoid(-beta * (chosen - rejected))
    return jax.nn.sigmoid(beta * chosen) + apart

  return pairwise(on_scores(loss), scale=beta)


@recipe(needs=('pairs', 'reference_logps'))
def dpop(*, beta: Positive, penalty: NonNegative = 50.0) -> LossFn:
  """-log s(beta (h - penalty max(0, -a))): chosen must not fall below the reference.

  DPO-Positive (Smaug, arXiv:2402.13228); `penalty` is its lambda.
  """
  link = links.logistic(beta=beta)

  def loss(chosen, rejected):
    return link(chosen - rejected - penalty * jax.nn.relu(-chosen))

  return pairwise(on_scores(loss), scale=beta)


@recipe(needs=('pairs', 'reference_logps', 'label'))
def odpo(*, beta: Positive, offset: NonNegative = 1.0) -> LossFn:
  """-log s(beta h - offset (label_w - label_l)): better by more, further apart.

  DPO with an offset (arXiv:2402.10571), with the identity for its scaling function;
  `label` is the graded score of a response.
  """
  link = on_margin(links.logistic(beta=beta))

  def loss_fn(outputs: Outputs, batch: PreferenceBatch):
    check_batch(batch)
    ratios = scores.log_ratio(outputs.logps, batch.reference_logps, batch.mask)
    better, worse = (offset / beta * x for x in paired(batch.label, batch))

    def pair_loss(chosen, rejected, preference):
      return link(chosen - better, rejected - worse, preference)

    return compare(pair_loss, *paired(ratios, batch), outputs, batch, scale=beta)

  return loss_fn


@recipe(needs=('pairs', 'reference_logps'))
def f_dpo(
  *,
  beta: Positive,
  divergence: Literal['reverse_kl', 'forward_kl', 'js', 'alpha'] = 'forward_kl',
  alpha: OpenShare = 0.5,
) -> LossFn:
  """-log s(beta (f'(e^a) - f'(e^b))): DPO regularised by another f-divergence.

  f-DPO (arXiv:2309.16240), Table 1; `alpha` is read by the
  alpha-divergence alone. Reverse KL is DPO itself.
  """
  derivative = scores.f_derivative(divergence, alpha=alpha)
  link = links.logistic(beta=beta)

  def loss(chosen, rejected):
    return link(derivative(chosen) - derivative(rejected))

  return pairwise(on_scores(loss), scale=beta)


@recipe(needs=('pairs', 'reference_logps'))
def ld_dpo(*, beta: Positive, tail: Share) -> LossFn:
  """DPO in which tokens beyond the shorter response's length weigh `tail`.

  LD-DPO (arXiv:2409.06411); `tail` is its alpha: 1 is DPO, 0 compares
  responses of one length.
  """
  link = on_margin(links.logistic(beta=beta))

  def loss_fn(outputs: Outputs, batch: PreferenceBatch):
    check_batch(batch)
    ratios = scores.log_ratio(outputs.logps, batch.reference_logps, batch.mask)
    shared = scores.shared_length_log_ratios(outputs.logps, batch, tail=tail)

    def pair_loss(chosen, rejected, preference):
      del chosen, rejected  # whole log-ratios: the rewards of the metrics
      return link(*shared, preference)

    return compare(pair_loss, *paired(ratios, batch), outputs, batch, scale=beta)

  return loss_fn


@recipe(needs=('pairs', 'reference_logps', 'collision'))
def wpo(*, beta: Positive) -> LossFn:
  """DPO with each pair's loss times w(chosen) w(rejected): likelier pairs weigh more.

  w(y) = exp(mean_t log pi(y_t) - log sum_v pi(v)^2), a constant. WPO
  (arXiv:2406.11827) with its sampled alignment.
  """
  link = on_margin(links.logistic(beta=beta))

  def loss_fn(outputs: Outputs, batch: PreferenceBatch):
    check_batch(batch)
    ratios = scores.log_ratio(outputs.logps, batch.reference_logps, batch.mask)
    likely = scores.mean_log_ratio(
      outputs.logps, jnp.log(outputs.collision), batch.mask
    )
    first, second = paired(jax.lax.stop_gradient(likely), batch)

    def pair_loss(chosen, rejected, preference):
      return jnp.exp(first + second) * link(chosen, rejected, preference)

    return compare(pair_loss, *paired(ratios, batch), outputs, batch, scale=beta)

  return loss_fn


@recipe(needs=('pairs', 'reference_logps'))
def rpo(
  *,
  beta: Positive,
  nll_coefficient: NonNegative = 1.0,
  nll_reduction: Literal['sum', 'mean'] = 'mean',
) -> LossFn:
  """DPO plus nll_coefficient times the negative log-likelihood of the chosen.

  RPO (arXiv:2405.16436) has the sum over tokens; iterative RPO
  (arXiv:2404.19733) the mean.
  """
  return add(dpo(beta=beta), (nll_coefficient, chosen_nll(reduction=nll_reduction)))


def _minus_log_sigmoid(x):
  return -jax.nn.log_sigmoid(x)
