"""The online loop: roll out, score, credit, update several times, and go on.

What an iteration samples is a function of the policy, the position in the stream of
prompts and the seed, and all three are in the checkpoint: a run that was killed between
rollout and update, in the middle of an accumulation or while it refilled a batch, does
the iteration again and gets the same bits.
"""

from collections.abc import Callable, Iterable, Mapping
import contextlib
import dataclasses
import math
from pathlib import Path
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prefjax.errors import Preempted
from prefjax.objectives.policy_gradient import group_tokens
from prefjax.training import guards, session, workdir
from prefjax.training import metrics as metrics_lib
from prefjax.training.checkpoints import Checkpoints
from prefjax.training.correction import Correction
from prefjax.training.loop import tokens
from prefjax.training.mesh import place, placement
from prefjax.training.metrics import PhaseClock
from prefjax.training.minibatches import Cutter
from prefjax.training.process import ProcessModel
from prefjax.training.scoring import Scoring, placed
from prefjax.training.step import Step, hyper
from prefjax.types import RolloutBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlinePlan:
  """How long to train, in iterations of one rollout each.

  Attributes:
    iterations: rollouts.
    epochs: times that each rollout is gone through (mu).
    minibatches: updates of an epoch, each on its own prompts.
    refresh_every: iterations after which the policy becomes the reference; 0 is never.
  """

  iterations: int
  epochs: int = 1
  minibatches: int = 1
  refresh_every: int = 0
  eval_every: int = 10
  save_every: int = 10
  keep: int = 2
  best: str = ''  # an evaluation metric by which one more checkpoint is kept

  def __post_init__(self):
    session.check_plan(self, may_be_zero=('refresh_every',))


class Collected(NamedTuple):
  """What an iteration rolled out."""

  batch: RolloutBatch  # NumPy arrays [p, ...], with rewards
  carry: Any  # nested dict of arrays, for the next iteration
  metrics: Mapping[str, float]
  samples: Iterable[Mapping[str, Any]]  # rows to be read by people


@dataclasses.dataclass(kw_only=True)
class OnlineLoop:
  """One run of an objective on its own samples, in a folder; starts or resumes it.

  Attributes:
    step: the policy's; its objective is a `PolicyObjective` when built.
    collect: (policy's parameters, carry, iteration) -> `Collected`.
    carry: what the first iteration starts from.
    reference: parameters that the KL is taken to; None is the first policy.
    reference_memory: where references wait between rollouts, `device` or `host`.
    critic: the step of a critic of its own, or None.
    critic_params: what the critic starts from.
    process: a model that rewards tokens and learns from outcomes, or None.
    filter_truncated: leave responses that were cut off out of the loss (DAPO's
      overlong filtering); they still count in their group's mean and spread.
    evaluate: (parameters, iteration) -> metrics of held-out prompts.
    seed: deals prompts to minibatches.
    flops: floating-point operations of an update on a micro-batch; for the log alone.
  """

  step: Step
  plan: OnlinePlan
  collect: Callable[[Any, Any, int], Collected]
  carry: Any
  cutter: Cutter
  folder: Path
  clock: PhaseClock
  description: str
  seed: int
  temperature: float = 1.0
  reference: Any = None
  reference_memory: str = 'device'
  critic: Step | None = None
  critic_params: Any = None
  process: ProcessModel | None = None
  correction: Correction = dataclasses.field(default_factory=Correction)
  filter_truncated: bool = False
  evaluate: Callable[[Any, int], Mapping[str, float]] | None = None
  flops: Callable[[Any], float] = lambda batch: 0.0
  peak: float = math.inf
  say: Callable[[str], None] = print
  wandb_project: str | None = None

  def run(self, params: Any) -> tuple[Any, dict[str, float]]:
    """The trained parameters and the last evaluation. `params` is not consumed."""
    self._numbers = hyper(self.step.objective, self.step.optimizer, self.temperature)
    self._scoring = Scoring(
      step=self.step,
      cutter=self.cutter,
      critic=self.critic,
      correction=self.correction,
      temperature=self.temperature,
    )
    with contextlib.ExitStack() as stack:
      saver = stack.enter_context(
        Checkpoints(
          self.folder / 'checkpoints',
          keep=self.plan.keep,
          best=self.plan.best or None,
          mode='max',
        )
      )
      state, start = self._start(saver, params)
      if start < self.plan.iterations:
        state = self._train(stack, saver, state, start)
    return state['policy']['params'], self._last

  def _start(self, saver, params):
    with self.clock('checkpoint'):
      state = {'policy': self.step.initial_state(params)}
      if self.step.mesh is not None:
        self.say(placement(state['policy']['params'], self.step.mesh))
      if self.critic is not None:
        state['critic'] = self.critic.initial_state(self.critic_params)
      if self.process is not None:
        state['process'] = self.process.start()
        self._process_reference = self._waiting(self.process.params)
      reference = params if self.reference is None else self.reference
      if self.plan.refresh_every:
        state['reference'] = self._waiting(reference)
      else:
        self._reference = self._waiting(reference)
      state['carry'] = self.carry
      going_on = f'{self.description}: going on from iteration'
      state, start, self._last = session.resumed(
        saver, state, self.folder, say=self.say, going_on=going_on
      )
    return state, start

  def _waiting(self, reference):
    return place(reference, self.step.mesh, memory=self.reference_memory)

  def _train(self, stack, saver, state, start):
    writer, progress, stop, compiled = session.opened(
      stack,
      self.folder,
      start=start,
      total=self.plan.iterations,
      description=self.description,
      wandb_project=self.wandb_project,
    )
    if start == 0:
      self._evaluate(writer, state, 0)
    for n in range(start, self.plan.iterations):
      began = time.perf_counter()
      state, values = self._iteration(state, n)
      seconds = time.perf_counter() - began
      values |= {
        'time/tokens_per_s': values['tokens'] / seconds,
        'time/mfu': values.pop('flops') / seconds / self.peak,
        'time/compilations': float(compiled.count),
        'time/compile_seconds': compiled.seconds,
      }
      phases = self.clock.seconds().items()
      progress.update(n + 1, values)
      writer.write(n + 1, values | {f'time/{name}_seconds': s for name, s in phases})
      self._settle(saver, writer, state, n + 1, stop())
    return state

  def _settle(self, saver, writer, state, step, stopped):
    """Evaluates and saves where that is due, and leaves where it was asked to."""
    done = step == self.plan.iterations
    evaluates = done or step % self.plan.eval_every == 0
    if evaluates:
      self._evaluate(writer, state, step)
    if done or stopped or step % self.plan.save_every == 0:
      with self.clock('checkpoint'):
        saver.save(
          step,
          state,
          metadata={'evaluation': self._last},
          metrics=self._last if evaluates else None,
        )
    if stopped and not done:
      saver.wait()
      raise Preempted(
        f'{self.description}: stopped by SIGTERM; iteration {step} is saved.'
      )

  def _evaluate(self, writer, state, step):
    if self.evaluate is not None:
      with self.clock('evaluate'):
        values = self.evaluate(state['policy']['params'], step)
      self._last = {f'eval/{name}': float(value) for name, value in values.items()}
      writer.write(step, self._last)

  # One iteration ----------------------------------------------------------------

  def _iteration(self, state, n):
    policy = state['policy']['params']
    with self.clock('rollout'):
      collected = self.collect(policy, state['carry'], n)
      workdir.append_samples(
        self.folder / metrics_lib.SAMPLES,
        ({'step': n + 1, **row} for row in collected.samples),
      )
    with self.clock('reference'):
      batch = self._scored(collected.batch, state)
    state, batch, values = self._judged(state, batch)
    with self.clock('train'):
      batch = self._credited(batch)
      state = {**state, 'carry': collected.carry}
      state, updated = self._update(state, batch, n)
    if self.plan.refresh_every and (n + 1) % self.plan.refresh_every == 0:
      reference = jax.tree.map(jnp.copy, state['policy']['params'])
      state['reference'] = self._waiting(reference)
    return state, {**collected.metrics, **values, **updated}

  def _judged(self, state, batch):
    """With the token rewards of a process reward model, which first learns."""
    if self.process is None:
      return state, batch, {}
    with self.clock('reward'):
      model, batch, values = self.process.judge(
        state['process'], self._process_reference, batch, self.cutter
      )
    return {**state, 'process': model}, batch, values

  def _scored(self, batch: RolloutBatch, state: Any) -> RolloutBatch:
    """With what other models say of the responses, as they are before any update."""
    reference = state.get('reference', None) or self._reference
    return self._scoring.scored(batch, state, reference)

  def _credited(self, batch: RolloutBatch) -> RolloutBatch:
    """With advantages, of whole groups, and then without what the loss leaves out."""
    batch = self.step.credit(batch, self._numbers['objective'])
    batch = jax.tree.map(np.asarray, batch)
    if self.filter_truncated:
      kept = np.where(batch.truncated, 0.0, batch.weight)
      batch = batch.replace(weight=kept.astype(batch.weight.dtype))
    return batch.replace(group_tokens=np.asarray(group_tokens(batch)))

  def _update(self, state, batch, n):
    """Every epoch's updates on a rollout; metrics are means over the updates."""
    found, flops, ran = [], 0.0, 0
    for rows in self._minibatches(len(batch.prompt_length), n):
      parts = [part.batch for part in self.cutter.cut(batch, rows)]
      there = [placed(part, self.step) for part in parts]
      policy, metrics = self.step.update(state['policy'], there, self._numbers)
      state = {**state, 'policy': policy}
      if self.critic is not None:
        numbers = hyper(self.critic.objective, self.critic.optimizer)
        critic, more = self.critic.update(state['critic'], there, numbers)
        state = {**state, 'critic': critic}
        metrics |= {f'critic/{name}': value for name, value in more.items()}
      found.append((metrics, parts))
      flops += sum(self.flops(part) for part in parts)
      ran += sum(tokens(part) for part in parts)
    return state, {**self._read(found, n), 'tokens': float(ran), 'flops': flops}

  def _read(self, found, n):
    rows = [jax.device_get(metrics) for metrics, _ in found]
    for row, (_, parts) in zip(rows, found, strict=True):
      guards.refuse_not_finite(
        {name: float(row[name]) for name in ('loss', 'grad_norm')},
        parts,
        step=n + 1,
        folder=self.folder,
        description=self.description,
      )
    values = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    # Before the first update the policy is the one that sampled.
    return values | {'mismatch': float(rows[0].get('log_ratio_abs', 0.0))}

  def _minibatches(self, count, n):
    for epoch in range(self.plan.epochs):
      order = np.arange(count)
      if self.plan.minibatches > 1:
        order = np.random.default_rng([self.seed, n, epoch]).permutation(count)
      yield from np.split(order, self.plan.minibatches)
