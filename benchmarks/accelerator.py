"""DPO steps and sampling of a 1B Llama on one accelerator, beside what its chip allows.

  python -m benchmarks.accelerator [--tiny]

Prints a JSON line a layout and attention, and one for sampling: the median of several
calls, and its share of the bound by the data sheet: of a step, of the FLOPs that it
needs, a shared prompt counted once in both layouts. `--tiny` is for any machine, where
there is no data sheet and no share. Random weights and tokens, every row full.
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import numpy as np

from prefjax import objectives
from prefjax.data.buckets import Cell
from prefjax.data.pipeline import assemble
from prefjax.models import decoder
from prefjax.models.config import DecoderConfig, create
from prefjax.rollout.sampler import DecoderSampler, collect
from prefjax.training import chips, monitor
from prefjax.training.optimizers import Optimizer
from prefjax.training.step import Step, hyper
from prefjax.types import PreferenceBatch

# The shape of Llama-3.2-1B.
LARGE = dict(
  vocab_size=128_256,
  width=2048,
  num_layers=16,
  num_heads=32,
  num_kv_heads=8,
  head_dim=64,
  mlp_width=8192,
  max_positions=4096,
  rope_theta=500_000.0,
  tied_embeddings=True,
)
SMALL = LARGE | dict(
  vocab_size=256,
  width=64,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=16,
  mlp_width=128,
)
WAYS = (('shared', 'blocked'), ('plain', 'blocked'), ('plain', 'cudnn'))
CALLS, WARM = 10, 3  # measured calls, and those before them


def main() -> None:
  """Measures and prints."""
  flags = argparse.ArgumentParser()
  flags.add_argument('--tiny', action='store_true')
  tiny = flags.parse_args().tiny
  sizes = SMALL if tiny else LARGE
  for layout, attention in WAYS:
    if attention == 'cudnn' and jax.default_backend() != 'gpu':
      continue
    model = create(layout=layout, attention=attention, dtype='bfloat16', **sizes)
    emit(task='dpo', layout=layout, attention=attention, **dpo(model, tiny=tiny))
  model = create(dtype='bfloat16', param_dtype='bfloat16', **sizes)
  emit(task='generate', **generate(model, tiny=tiny))


def dpo(model: DecoderConfig, *, tiny: bool) -> dict[str, Any]:
  """An AdamW step on pairs with stored reference log-probs."""
  cell = Cell(2, 2, 16, 16) if tiny else Cell(8, 2, 512, 512)
  batch = pairs(cell, model.vocab_size)
  graph, _ = decoder.create(model)
  step = Step(
    forward=decoder.forward(graph),
    objective=objectives.create('dpo', beta=0.1),
    optimizer=Optimizer(name='adamw', learning_rate=1e-6, steps=100, clip_norm=1.0),
  )
  params = decoder.initial_params(model, jax.random.key(0))
  batch = batch.replace(reference_logps=np.asarray(step.score(params, batch).logps))
  numbers = hyper(step.objective, step.optimizer)
  state, batch = step.initial_state(params), jax.device_put(batch)

  def update():
    nonlocal state
    state, metrics = step.update(state, [batch], numbers)
    return float(metrics['loss'])

  seconds = timed(update)
  flops = monitor.training_flops(model, batch)
  bound = flops / chip.flops if (chip := here()) else None
  return measured(seconds, bound) | {
    'tokens': cell.p * (cell.l + cell.k * cell.t),
    'tflops_per_s': round(flops / seconds * 1e-12, 3),
  }


def generate(model: DecoderConfig, *, tiny: bool) -> dict[str, Any]:
  """Sampling at temperature 1; no response ends early."""
  p, k, l, t = (2, 2, 16, 8) if tiny else (16, 8, 256, 256)
  graph, _ = decoder.create(model)
  params = decoder.initial_params(model, jax.random.key(0))
  sampler = DecoderSampler(graph=graph, stop_ids=())
  rng = np.random.default_rng(0)
  prompts = rng.integers(model.vocab_size, size=(p, l)).astype(np.int32)
  keys = jax.random.split(jax.random.key(1), p)

  def call():
    sizes = dict(num_responses=k, max_tokens=t)
    length = np.full(p, l, np.int32)
    return collect(sampler.stream(params, prompts, length, keys, **sizes))

  seconds = timed(call)
  # For every token it reads all weights, the keys and values of each prompt, which its
  # group shares, and on average half of those of each response.
  weights = sum(x.nbytes for x in jax.tree.leaves(params))
  column = 2 * model.num_layers * model.num_kv_heads * model.head_dim * 2
  moved = t * (weights + p * column * (l + k * t / 2))
  bound = moved / chip.bandwidth if (chip := here()) else None
  return measured(seconds, bound) | {
    'tokens_per_s': round(p * k * t / seconds, 1),
    'token_ms': round(1e3 * seconds / t, 3),
  }


def pairs(cell: Cell, vocabulary: int) -> PreferenceBatch:
  """Random tokens, every prompt and response full, the first response chosen."""
  rng = np.random.default_rng(0)
  p, k, l, t = cell
  batch = assemble([None] * p, cell, pairs=1)
  return batch.replace(
    prompts=rng.integers(vocabulary, size=(p, l)).astype(np.int32),
    responses=rng.integers(vocabulary, size=(p, k, t)).astype(np.int32),
    prompt_length=np.full(p, l, np.int32),
    response_length=np.full((p, k), t, np.int32),
    mask=np.ones((p, k, t), bool),
    weight=np.ones((p, k), np.float32),
    rejected=np.ones((p, 1), np.int32),
    preference=np.ones((p, 1), np.float32),
    pair_weight=np.ones((p, 1), np.float32),
  )


def timed(call: Any) -> float:
  """Seconds of a call, the median; every call ends with numbers on the host."""
  for _ in range(WARM):
    call()
  seconds = []
  for _ in range(CALLS):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds)


def here() -> chips.Chip | None:
  """The data sheet of this machine's device."""
  return chips.of(jax.devices()[0].device_kind)


def measured(seconds: float, bound: float | None) -> dict[str, Any]:
  """A time beside its bound by the data sheet."""
  share = {} if bound is None else {'share_of_bound': round(bound / seconds, 4)}
  return {'ms': round(1e3 * seconds, 3)} | share


def emit(**fields: Any) -> None:
  """Prints a line, with the device that it is of and the most memory it has held."""
  device = jax.devices()[0]
  memory = (device.memory_stats() or {}).get('peak_bytes_in_use')
  line = {'device': device.device_kind, 'jax': jax.__version__} | fields
  print(json.dumps(line | {'peak_bytes_so_far': memory}), flush=True)


if __name__ == '__main__':
  main()
