"""GRPO iterations on a workload that TRL and Tunix run too; prints one JSON line.

  python -m benchmarks.grpo --workload=PATH/workload.py

The shipped loop: sampling, reference log-probs, rewards on the host, one update. Time
runs from the beginning of an iteration to that of the next.
"""

from collections.abc import Iterator
import contextlib
from pathlib import Path
import statistics
import tempfile
import time
from typing import Any

from benchmarks.workload import Words, llama, load


def main() -> None:
  """Measures and prints."""
  w = load()
  args = w.parse('grpo')
  # jax is imported only now: the workload sets what it reads at import.
  import jax
  import numpy as np

  jax.config.update('jax_cpu_enable_async_dispatch', False)
  clock, generate = w.Clock(), []
  with tempfile.TemporaryDirectory() as folder:
    loop, params = online_loop(w, args, Path(folder), clock, generate)
    loop.run(params)
    rows = (Path(folder) / 'metrics.jsonl').read_text()
  ms = clock.step_ms(args.warmup + 1)  # the first mark is the beginning of all
  mid, sampled = statistics.median(ms), 1e3 * statistics.median(generate[args.warmup :])
  n = args.batch * args.group
  w.emit(
    'prefjax',
    'grpo',
    args,
    ms,
    n * args.response,
    losses(rows),
    samples_per_s=round(n / mid * 1e3, 2),
    generate_ms=round(sampled, 1),
    train_ms=round(mid - sampled, 1),
    generate_tokens_per_s=round(n * args.response / sampled * 1e3, 1),
    first_step_s=round(float(np.diff(clock.marks)[1]), 2),
  )


def losses(rows: str) -> list[float]:
  """The loss of every iteration."""
  import json

  return [json.loads(row)['loss'] for row in rows.splitlines()]


def online_loop(w: Any, args: Any, folder: Path, clock: Any, generate: list[float]):
  """The loop with the peers' settings, and the parameters that it starts from."""
  from prefjax import objectives
  from prefjax.data import buckets
  from prefjax.models import decoder
  from prefjax.training.metrics import PhaseClock
  from prefjax.training.minibatches import Cutter
  from prefjax.training.online import OnlineLoop, OnlinePlan
  from prefjax.training.optimizers import Optimizer
  from prefjax.training.step import Step

  shape, params = llama(w, args)
  graph, _ = decoder.create(shape)
  count = args.warmup + args.steps + 1
  loop = OnlineLoop(
    step=Step(
      forward=decoder.forward(graph),
      objective=objectives.create('grpo', kl_coef=args.beta),
      optimizer=Optimizer(
        name='adamw', learning_rate=args.lr, steps=count, clip_norm=1.0
      ),
    ),
    plan=OnlinePlan(iterations=count, save_every=count),
    collect=collector(w, args, graph, clock, generate),
    carry={},
    cutter=Cutter(
      grid=buckets.grid(args.prompt, args.response, multiple=16, growth=float('inf')),
      max_tokens=65_536,
    ),
    folder=folder,
    clock=PhaseClock(),
    description='grpo',
    seed=args.seed,
  )
  return loop, params


def collector(w: Any, args: Any, graph: Any, clock: Any, generate: list[float]):
  """Samples the workload's prompts of an iteration and scores them."""
  import jax
  import numpy as np

  from experiments.parts.rollouts import as_batch
  from prefjax.rewards.judge import Judged
  from prefjax.rollout.groups import Request
  from prefjax.rollout.responses import Roller
  from prefjax.rollout.sampler import DecoderSampler
  from prefjax.training.online import Collected

  tokenizer = Words(w, args.vocab)

  def question(position: int):
    ids = w.prompts(args, position // args.batch)[position % args.batch]
    return '', ids, {}

  def judge(**groups: Any):
    reward = np.asarray([[w.reward(x) for x in row] for row in groups['responses']])
    return lambda: Judged(reward, reward >= 1.0, {})

  roller = Roller(
    sampler=DecoderSampler(graph=graph, stop_ids=(), pad_id=tokenizer.pad_id),
    tokenizer=tokenizer,
    question=question,
    judge=judge,
    num_responses=args.group,
    max_prompt=args.prompt,
    max_tokens=args.response,
    seed=jax.random.key(args.seed),
  )

  def collect(params: Any, carry: Any, n: int) -> Collected:
    clock.tick()
    with timed(generate):
      requests = [Request(n * args.batch + i) for i in range(args.batch)]
      groups = roller.sample(params, requests, n).groups
    return Collected(as_batch(groups, args.batch, tokenizer.pad_id), carry, {}, ())

  return collect


@contextlib.contextmanager
def timed(into: list[float]) -> Iterator[None]:
  """Appends the seconds that it took."""
  start = time.perf_counter()
  yield
  into.append(time.perf_counter() - start)


if __name__ == '__main__':
  main()
