"""What a run costs: compilations, floating-point operations, share of the peak."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Int
import numpy as np

from prefjax.models.config import DecoderConfig
from prefjax.training import chips
from prefjax.types import PreferenceBatch

_COMPILED = '/jax/core/compile/backend_compile_duration'


@dataclasses.dataclass
class Compilations:
  """Counts compilations from now on, with their seconds, until `stop`."""

  count: int = 0
  seconds: float = 0.0

  def __post_init__(self):
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def stop(self) -> None:
    """Counts no more."""
    jax.monitoring.unregister_event_duration_listener(self._listen)

  def _listen(self, event: str, duration: float, **_: Any) -> None:
    if event == _COMPILED:
      self.count += 1
      self.seconds += duration


def training_flops(
  config: DecoderConfig, batch: PreferenceBatch, *, passes: int = 3
) -> float:
  """FLOPs that one update needs: three forwards' worth, padding not counted.

  Two `passes` are those of adapters beside frozen weights, themselves not counted.
  """
  real = batch.response_length.any(axis=1)  # filling has no response
  prompt = np.where(real, batch.prompt_length, 0)
  return passes * forward_flops(config, prompt, batch.response_length)


def forward_flops(
  config: DecoderConfig,
  prompt_length: Int[Any, ' p'],
  response_length: Int[Any, 'p k'],
) -> float:
  """FLOPs of a forward over prompts and their responses, or of sampling them.

  It takes 2 FLOPs a weight and token (prompts once, the head on response
  tokens alone) and 4 n h a layer for every query-key pair that attention sees.
  Counted analytically: a compiler's own count takes a scanned layer once.
  """
  prompt = np.asarray(prompt_length, np.float64)
  response = np.asarray(response_length, np.float64)
  tokens = prompt.sum() + response.sum()
  heads = config.num_heads * config.head_dim
  keys = config.num_kv_heads * config.head_dim
  gates = 3 if config.mlp.endswith('gated') else 2
  layer = config.width * (2 * heads + 2 * keys + gates * config.mlp_width)
  head = config.width * config.vocab_size
  seen = (prompt * (prompt + 1) / 2).sum() + (
    response * prompt[:, None] + response * (response + 1) / 2
  ).sum()
  forward = 2 * config.num_layers * (layer * tokens + 2 * heads * seen)
  return forward + 2 * head * response.sum()


def peak_flops(dtype: str) -> float:
  """The matmul peak of all devices together, FLOP/s: known, or measured here."""
  chip = chips.of(jax.devices()[0].device_kind)
  return jax.device_count() * (_measured(dtype) if chip is None else chip.flops)


def _measured(dtype: str, size: int = 1024, repeats: int = 3) -> float:
  x = jnp.ones((size, size), dtype)
  multiply = jax.jit(jnp.matmul)
  multiply(x, x).block_until_ready()
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    multiply(x, x).block_until_ready()
    seconds.append(time.perf_counter() - start)
  # Fake devices share one processor, so that each has its part of the peak.
  return 2 * size**3 / min(seconds) / jax.device_count()
