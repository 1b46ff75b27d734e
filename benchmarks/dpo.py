"""DPO steps on a workload that TRL and Tunix run too; prints one JSON line.

  python -m benchmarks.dpo --workload=PATH/workload.py [--ragged] [--precompute_ref] ...

The workload gives weights, token ids and the fields of the line; the steps are those of
the shipped pipeline: records, prepared data, buckets, `Step.update`. Time runs from the
end of a step to the end of the next, batching and reading the loss included.
"""

import dataclasses
from pathlib import Path
import tempfile
import time
from typing import Any

from benchmarks.workload import Words, llama, load


def main() -> None:
  """Measures and prints."""
  w = load()
  args = w.parse('dpo')
  # jax is imported only now: the workload sets what it reads at import.
  import jax
  import numpy as np

  from prefjax.training.monitor import Compilations
  from prefjax.training.step import hyper

  jax.config.update('jax_cpu_enable_async_dispatch', False)
  rows = [w.dpo_batch(args, i) for i in range(args.warmup + args.steps)]
  model, params = llama(w, args)
  step = dpo_step(args, model)
  with tempfile.TemporaryDirectory() as folder:
    batches = pipeline(w, args, rows, Path(folder))
    start = time.perf_counter()
    if args.precompute_ref:
      from prefjax.training.reference import stored_logps

      stored = stored_logps(step, params, batches, Path(folder) / 'logps')
      batches = dataclasses.replace(batches, reference=stored)
    setup = time.perf_counter() - start
    compiled = Compilations()
    numbers = hyper(step.objective, step.optimizer)

    def update(state, n):
      micro = batches.at(n)
      if not args.precompute_ref:
        micro = [
          part.replace(reference_logps=step.score(params, part).logps) for part in micro
        ]
      state, metrics = step.update(state, micro, numbers)
      return state, float(metrics['loss'])

    compile_cells(batches, len(rows), update, step.initial_state(params))
    state = step.initial_state(params)
    clock, losses = w.Clock(), []
    for n in range(len(rows)):
      state, loss = update(state, n)
      losses.append(loss)
      clock.tick()
  ms = clock.step_ms(args.warmup)
  measured = rows[args.warmup :]
  flops = sum(w.dpo_flops(args, some) for some in measured)
  w.emit(
    'prefjax',
    'dpo',
    args,
    ms,
    [w.dpo_tokens(some) for some in measured],
    losses,
    setup_s=round(setup, 2),
    compile_s=round(compiled.seconds, 2),
    gflops_per_s=round(flops / sum(ms) * 1e-6, 1),
    first_step_s=round(float(np.diff(clock.marks)[0]), 2),
  )


def compile_cells(batches: Any, steps: int, update: Any, state: Any) -> None:
  """Runs, on a state to throw away, the steps that bring a shape not yet compiled.

  A long run meets every shape in its first steps; the few steps measured here would
  each pay for their own.
  """
  seen = set()
  for n in range(steps):
    micro = batches.at(n)
    shapes = {(len(micro) > 1, b.prompts.shape, b.responses.shape) for b in micro}
    if not shapes <= seen:
      state, _ = update(state, n)
    seen |= shapes


def dpo_step(args: Any, model: Any) -> Any:
  """The peers' settings: AdamW at a constant rate, clipped at norm 1, no decay."""
  from prefjax import objectives
  from prefjax.models import decoder
  from prefjax.training.optimizers import Optimizer
  from prefjax.training.step import Step

  graph, _ = decoder.create(model)
  return Step(
    forward=decoder.forward(graph),
    objective=objectives.create('dpo', beta=args.beta),
    optimizer=Optimizer(
      name='adamw', learning_rate=args.lr, steps=args.steps, clip_norm=1.0
    ),
  )


def pipeline(w: Any, args: Any, rows: Any, folder: Path) -> Any:
  """The workload's batches through records, prepared data and buckets, in order."""
  from prefjax.data import buckets, prepare
  from prefjax.data.pipeline import Batches
  from prefjax.data.records import Pair, Record

  records = [
    Record(
      prompt=w.text(row['prompt']),
      # The tokenizer ends a response itself.
      responses=(w.text(row['chosen'][:-1]), w.text(row['rejected'][:-1])),
      pairs=(Pair(0, 1),),
    )
    for some in rows
    for row in some
  ]
  data = prepare.prepare(
    records,
    Words(w, args.vocab),
    directory=folder / 'data',
    max_prompt=2048,
    max_response=2048,
  )
  grid = buckets.grid(
    int(data.prompt_length.max()),
    int(data.response_length.max()),
    multiple=64,
    growth=1.3,
  )
  return Batches(
    data=data, batch_size=args.batch, seed=None, grid=grid, max_tokens=8192
  )


if __name__ == '__main__':
  main()
