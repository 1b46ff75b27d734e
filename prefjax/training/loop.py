"""The offline loop: step, log, evaluate, save, and go on where a killed run stopped."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import math
from pathlib import Path
import time
from typing import Any

import jax

from prefjax.data.pipeline import Batches
from prefjax.errors import InputError, Preempted
from prefjax.training import guards, session
from prefjax.training.checkpoints import Checkpoints
from prefjax.training.mesh import place, place_batch, placement
from prefjax.training.metrics import PhaseClock
from prefjax.training.step import Step, hyper


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """How long to train, and how often to log, evaluate and save, in steps."""

  steps: int
  log_every: int = 1
  eval_every: int = 100
  save_every: int = 100
  keep: int = 2
  best: str = ''  # an evaluation metric by which one more checkpoint is kept
  profile_from: int = 0  # 0 profiles nothing
  profile_steps: int = 3

  def __post_init__(self):
    session.check_plan(self, may_be_zero=('profile_from',))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MovingReference:
  """A reference that follows the policy: TR-DPO (arXiv:2404.09656), Eq. 2 and 3.

      pi_ref <- mix pi + (1 - mix) pi_ref    every `every` updates

  of the parameters; `mix` 1 is the paper's hard update.
  """

  every: int
  mix: float = 1.0

  def __post_init__(self):
    if self.every < 1:
      raise InputError(f'reference.move_every must be at least 1, got {self.every}.')
    if not 0 < self.mix <= 1:
      raise InputError(f'reference.move_mix must lie in (0, 1], got {self.mix}.')


@dataclasses.dataclass(kw_only=True)
class Loop:
  """One run of an offline objective in a folder; `run` starts or resumes it.

  Attributes:
    folder: where metrics, checkpoints and, on failure, a batch go.
    held_out: batches to evaluate on, or None.
    moving: how the reference moves, which is then in the loop's state; its log-probs
      are formed for every batch. None for one that stays, whose log-probs the batches
      hold.
    reference_memory: where one that moves waits between batches, `device` or `host`.
    flops: floating-point operations of an update on a batch; for the log alone.
    peak: FLOP/s of the machine; for the log alone.
  """

  step: Step
  batches: Batches
  plan: Plan
  folder: Path
  clock: PhaseClock
  description: str
  held_out: Batches | None = None
  moving: MovingReference | None = None
  reference_memory: str = 'device'
  flops: Callable[[Any], float] = lambda batch: 0.0
  peak: float = math.inf
  say: Callable[[str], None] = print
  wandb_project: str | None = None

  def run(self, params: Any) -> tuple[Any, dict[str, float]]:
    """The trained parameters and the last evaluation. `params` is not consumed."""
    self._hyper = hyper(self.step.objective, self.step.optimizer)
    self._profiling = False
    with contextlib.ExitStack() as stack:
      saver = stack.enter_context(
        Checkpoints(
          self.folder / 'checkpoints',
          keep=self.plan.keep,
          best=self.plan.best or None,
          mode='min' if self.plan.best.endswith('loss') else 'max',
        )
      )
      state, start = self._start(saver, params)
      if start < self.plan.steps:
        state = self._train(stack, saver, state, start)
    return state['policy']['params'], self._last

  def _start(self, saver: Checkpoints, params: Any) -> tuple[dict[str, Any], int]:
    with self.clock('checkpoint'):
      state = {'policy': self.step.initial_state(params)}
      if self.moving is not None:
        state['reference'] = self._waiting(params)
      if self.step.mesh is not None:
        self.say(placement(state['policy']['params'], self.step.mesh))
      going_on = f'{self.description}: going on from step'
      state, start, self._last = session.resumed(
        saver, state, self.folder, say=self.say, going_on=going_on
      )
    return state, start

  def _train(self, stack, saver, state, start):
    writer, progress, stop, compiled = session.opened(
      stack,
      self.folder,
      start=start,
      total=self.plan.steps,
      description=self.description,
      wandb_project=self.wandb_project,
    )
    log = _Log(self, writer, progress, compiled)
    if start == 0 and self.held_out is not None:
      self._evaluate(writer, state, 0)
    for n in range(start, self.plan.steps):
      self._profile(n)
      with self.clock('data'):
        host = self.batches.at(n)
        batch = [self._place(part) for part in host]
      with self.clock('train'):
        batch = self._referred(state, batch)
        policy, metrics = self.step.update(state['policy'], batch, self._hyper)
        state = self._moved({**state, 'policy': policy}, n + 1)
        # The numbers of the step before are read while this one runs.
        log.take(n + 1, metrics, host)
      self._settle(saver, writer, log, state, n + 1, stop())
    self._profile(None)
    return state

  def _settle(self, saver, writer, log, state, step, stopped):
    """Evaluates and saves where that is due, and leaves where it was asked to.

    All that belongs to a step is written before its checkpoint: a resume keeps what
    was written up to the checkpoint and nothing else.
    """
    done = step == self.plan.steps
    evaluates = self.held_out is not None and (done or step % self.plan.eval_every == 0)
    saves = done or stopped or step % self.plan.save_every == 0
    if evaluates or saves:
      log.drain()
    if evaluates:
      self._evaluate(writer, state, step)
    if saves:
      self._save(saver, state, step, evaluates)
    if stopped and not done:
      saver.wait()
      raise Preempted(f'{self.description}: stopped by SIGTERM; step {step} is saved.')
    if evaluates or saves:
      log.resume()

  def _referred(self, state, batches):
    """The micro-batches with log-probs of a reference that moves."""
    if self.moving is None:
      return batches
    reference = place(state['reference'], self.step.mesh)
    return [
      batch.replace(reference_logps=self.step.score(reference, batch).logps)
      for batch in batches
    ]

  def _moved(self, state, step):
    if self.moving is None or step % self.moving.every:
      return state
    mix = self.moving.mix
    reference = jax.tree.map(
      lambda ref, new: (mix * new + (1.0 - mix) * ref).astype(ref.dtype),
      place(state['reference'], self.step.mesh),
      state['policy']['params'],
    )
    return {**state, 'reference': self._waiting(reference)}

  def _waiting(self, reference):
    return place(reference, self.step.mesh, memory=self.reference_memory)

  def _place(self, batch):
    return batch if self.step.mesh is None else place_batch(batch, self.step.mesh)

  def _evaluate(self, writer, state, step):
    with self.clock('evaluate'):
      held_out = [self._place(batch) for _, batch in self.held_out.once()]
      held_out = self._referred(state, held_out)
      values = self.step.evaluate(state['policy']['params'], held_out, self._hyper)
      self._last = {f'eval/{name}': value for name, value in values.items()}
      writer.write(step, self._last)

  def _save(self, saver, state, step, evaluated):
    with self.clock('checkpoint'):
      saver.save(
        step,
        state,
        metadata={'evaluation': self._last},
        metrics=self._last if evaluated else None,
      )

  def _profile(self, n: int | None) -> None:
    first = self.plan.profile_from
    if n is not None and first and n == first:
      jax.profiler.start_trace(str(self.folder / 'profile'))
      self._profiling = True
    elif self._profiling and (n is None or n == first + self.plan.profile_steps):
      jax.profiler.stop_trace()
      self._profiling = False


class _Log:
  """Reads a step's numbers one step late, so that the device never waits."""

  def __init__(self, loop: Loop, writer, progress, compiled):
    self.loop, self.writer, self.progress = loop, writer, progress
    self.compiled, self.pending = compiled, None
    self.start = time.perf_counter()

  def take(self, step: int, metrics: Mapping[str, Any], batch: Any) -> None:
    self.drain()
    now = time.perf_counter()
    self.pending = (step, metrics, batch, now - self.start)
    self.start = now

  def resume(self) -> None:
    """Starts the clock of a step anew, after something that is no step."""
    self.start = time.perf_counter()

  def drain(self) -> None:
    if self.pending is None:
      return
    (step, metrics, batch, seconds), self.pending = self.pending, None
    values = {name: float(x) for name, x in jax.device_get(metrics).items()}
    guards.refuse_not_finite(
      values,
      batch,
      step=step,
      folder=self.loop.folder,
      description=self.loop.description,
    )
    count = sum(tokens(part) for part in batch)
    flops = sum(self.loop.flops(part) for part in batch)
    values['tokens'] = float(count)
    values['time/tokens_per_s'] = count / seconds
    values['time/mfu'] = flops / seconds / self.loop.peak
    values['time/compilations'] = float(self.compiled.count)
    values['time/compile_seconds'] = self.compiled.seconds
    self.progress.update(step, values)
    plan = self.loop.plan
    if step == 1 or step % plan.log_every == 0 or step == plan.steps:
      phases = self.loop.clock.seconds().items()
      self.writer.write(
        step, values | {f'time/{name}_seconds': s for name, s in phases}
      )


def tokens(batch) -> int:
  """Real tokens that a micro-batch runs over; a shared prompt counts once."""
  real = batch.response_length.any(axis=1)  # filling has no response
  return int(batch.prompt_length[real].sum() + batch.response_length.sum())
