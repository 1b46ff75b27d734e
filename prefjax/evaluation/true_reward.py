"""A policy against its reference where the true reward is known."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from prefjax import logprobs
from prefjax.evaluation import best_of, statistics
from prefjax.evaluation import frontier as frontiers
from prefjax.evaluation.frontier import Frontier, Verdict
from prefjax.evaluation.statistics import Difference, Estimate
from prefjax.rollout.responses import Drawn, Writer
from prefjax.tasks import Task
from prefjax.types import Forward, PreferenceBatch

# In units of reward a nat: from nearly the reference to nearly the best response.
BETAS = np.geomspace(0.02, 50.0, 81)
BEST_OF = (1, 4, 16, 64, 128)  # the DPO paper's baselines


class Comparison(NamedTuple):
  """Means over prompts; rewards in the task's unit, KL in nats a response."""

  policy: Estimate
  reference: Estimate
  gain: Difference  # paired by prompt
  kl: Estimate  # KL(policy || reference)
  frontier: Frontier
  verdict: Verdict
  samples: list[dict[str, Any]]  # a few responses of the policy a prompt
  by_prompt: dict[str, np.ndarray]  # [p] reward of policy and reference, kl
  best_of: dict[int, Estimate]  # n -> reward of the best of n of the reference


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
  """Compares a policy with the reference on prompts of a task.

  KL is the exact one over the vocabulary at every step, summed over the steps of
  the policy's own samples. Samples of both models, scored under both, draw the
  frontier.
  """

  task: Task
  forward: Forward
  writer: Writer
  prompts: Sequence[str]
  seed: int
  shown: int = 2  # responses a prompt that are kept to be read

  def compare(self, params: Any, reference: Any) -> Comparison:
    """Draws from both, scores under both, and places the policy on the plane."""
    models = (reference, params)
    score = _scores(self.forward)
    rewards, logps, kls, samples = [], [], [], []
    for purpose, drawn_from in enumerate(models):
      key = jax.random.fold_in(jax.random.key(self.seed), purpose)
      parts = [
        self._measure(score, models, drawn)
        for drawn in self.writer.draw(drawn_from, self.prompts, key)
      ]
      reward, logp, kl, shown = zip(*parts, strict=True)
      rewards.append(np.concatenate(reward))
      logps.append(np.concatenate(logp))
      kls.append(np.concatenate(kl))
      samples = [row for part in shown for row in part]
    return self._judge(rewards, logps, kls[1], samples)

  def _measure(self, score, models, drawn: Drawn):
    prompts = self.prompts[drawn.index]
    reward = np.stack(
      [
        self.task.rewards([prompt] * len(texts), texts)
        for prompt, texts in zip(prompts, drawn.texts, strict=True)
      ]
    )
    batch = as_batch(drawn)
    outputs = [np.asarray(x, np.float64) for x in score(*models, batch)]
    logp = np.stack([x.sum(axis=-1) for x in outputs[:2]], axis=-1)
    shown = [
      {'prompt': prompt, 'response': text, 'reward': float(r)}
      for prompt, texts, rs in zip(prompts, drawn.texts, reward, strict=True)
      for text, r in zip(texts[: self.shown], rs, strict=False)
    ]
    return reward, logp, outputs[2].sum(axis=-1), shown

  def _judge(self, rewards, logps, kl, samples):
    count = self.writer.num_responses
    frontier = frontiers.frontier(
      np.concatenate(rewards, axis=1),
      np.concatenate(logps, axis=1),
      np.asarray([count, count]),
      BETAS,
    )
    reference, policy = (x.mean(axis=1) for x in rewards)
    kl = kl.mean(axis=1)
    return Comparison(
      policy=statistics.mean_and_standard_error(policy),
      reference=statistics.mean_and_standard_error(reference),
      gain=statistics.paired_difference(policy, reference),
      kl=statistics.mean_and_standard_error(kl),
      frontier=frontier,
      verdict=frontiers.judge(frontier, kl, policy),
      samples=samples,
      by_prompt={'reward': policy, 'reference': reference, 'kl': kl},
      best_of={
        n: statistics.mean_and_standard_error(best_of.best_of(rewards[0], n))
        for n in BEST_OF
        if n <= count
      },
    )


def as_batch(drawn: Drawn) -> PreferenceBatch:
  """Samples as a batch in which every sampled token counts."""
  samples = drawn.samples
  columns = np.arange(samples.tokens.shape[-1])
  return PreferenceBatch(
    prompts=drawn.prompts,
    responses=samples.tokens,
    prompt_length=drawn.prompt_length,
    response_length=samples.length,
    mask=columns < samples.length[..., None],
    weight=np.ones(samples.length.shape, np.float32),
  )


@functools.lru_cache(maxsize=8)
def _scores(forward: Forward) -> Callable:
  """(reference, policy, batch) -> log-probs under each, and KL(policy || reference)."""

  @jax.jit
  def score(reference, policy, batch):
    def read(hidden, head, **more):
      return logprobs.from_hidden(hidden, head, batch.responses, batch.mask, **more)

    hidden_q, head_q = forward(reference, batch)
    hidden_p, head_p = forward(policy, batch)
    q = (hidden_q[:, :, :-1], head_q)
    own = read(hidden_p[:, :, :-1], head_p, want=('logps', 'kl'), reference=q)
    return read(*q).logps, own.logps, own.kl

  return score
