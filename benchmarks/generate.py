"""Sampling on a workload that TRL and Tunix run too; prints one JSON line.

  python -m benchmarks.generate --workload=PATH/workload.py

Temperature 1, no truncation, no response ends early. Time runs from the end of a call
to the end of the next, the tokens being on the host.
"""

import statistics

from benchmarks.workload import llama, load


def main() -> None:
  """Measures and prints."""
  w = load()
  args = w.parse('generate')
  # jax is imported only now: the workload sets what it reads at import.
  import jax
  import numpy as np

  from prefjax.models import decoder
  from prefjax.rollout.sampler import DecoderSampler, collect

  shape, params = llama(w, args)
  graph, _ = decoder.create(shape)
  sampler = DecoderSampler(graph=graph, stop_ids=())
  length = np.full(args.batch, args.prompt, np.int32)
  clock = w.Clock()
  for n in range(args.warmup + args.steps):
    prompts = np.asarray(w.prompts(args, n), np.int32)
    keys = jax.random.split(jax.random.key(n), args.batch)
    sizes = dict(num_responses=args.group, max_tokens=args.response)
    samples = collect(sampler.stream(params, prompts, length, keys, **sizes))
    clock.tick()
    if not samples.truncated.all():
      raise AssertionError('a response ended early')
  ms = clock.step_ms(args.warmup)
  w.emit(
    'prefjax',
    'generate',
    args,
    ms,
    args.batch * args.group * args.response,
    decode_step_ms=round(statistics.median(ms) / args.response, 2),
  )


if __name__ == '__main__':
  main()
