import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from prefjax.training import monitor
from prefjax.training.monitor import Compilations, peak_flops, training_flops
from prefjax.types import PreferenceBatch

# Compilations -----------------------------------------------------------------


def test_compilations_are_counted_until_stop():
  x = jnp.ones(3)
  compiled, other = Compilations(), Compilations()
  first, second = jax.jit(lambda x: x * 2 + 1), jax.jit(lambda x: x * 3 + 1)
  first(x)
  assert compiled.count == 1 and compiled.seconds > 0
  first(x)  # is compiled already
  assert compiled.count == 1
  second(x)
  assert compiled.count == 2
  seconds = compiled.seconds
  compiled.stop()
  first(jnp.ones(4))
  assert compiled.count == 2 and compiled.seconds == seconds
  # Stopping one leaves the other.
  assert other.count > 2
  other.stop()


# FLOPs ------------------------------------------------------------------------


def lengths(prompt, response, padding=0):
  """A batch of these lengths; training_flops reads nothing else."""
  prompt, response = np.array(prompt, np.int32), np.array(response, np.int32)
  p, k = response.shape
  l, t = int(prompt.max()) + padding, int(response.max()) + padding
  return PreferenceBatch(
    prompts=np.zeros((p, l), np.int32),
    responses=np.zeros((p, k, t), np.int32),
    prompt_length=prompt,
    response_length=response,
    mask=np.arange(t) < response[..., None],
    weight=(response > 0).astype(np.float32),
  )


ONE_LAYER = dict(
  num_layers=1, width=8, num_heads=2, head_dim=4, num_kv_heads=1, mlp_width=12
)


def test_training_flops_by_hand():
  # Weights of a layer: query and out 8 x 8, key and value 8 x 4, MLP 3 of 8 x 12.
  layer = 2 * 64 + 2 * 32 + 3 * 96
  # 3 + 2 + 4 tokens. The prompt sees 1 + 2 + 3 keys, the responses (4 + 5) and
  # (4 + 5 + 6 + 7); scores and values take 2 FLOPs each on 2 heads of 4.
  attention = (6 + 9 + 22) * 4 * 8
  head = 2 * 8 * 29 * (2 + 4)
  expected = 3 * (2 * layer * 9 + attention + head)
  batch = lengths([3], [[2, 4]])
  found = training_flops(tiny.config(**ONE_LAYER), batch)
  assert found == expected


def test_flops_add_up_over_layers_and_prompts():
  def flops(batch, layers=1):
    return training_flops(tiny.config(**ONE_LAYER | {'num_layers': layers}), batch)

  one, two = lengths([3], [[2, 4]]), lengths([5], [[1, 0]])
  both = lengths([3, 5], [[2, 4], [1, 0]])
  assert flops(both) == flops(one) + flops(two)
  head = 3 * 2 * 8 * 29 * 6
  assert flops(one, layers=3) - head == 3 * (flops(one) - head)


def test_padding_and_filling_take_no_flops():
  config = tiny.config()
  plain = training_flops(config, lengths([3], [[2, 4]]))
  assert training_flops(config, lengths([3], [[2, 4]], padding=9)) == plain
  # Filling has one prompt token and no response.
  assert training_flops(config, lengths([3, 1], [[2, 4], [0, 0]])) == plain


def test_an_ungated_mlp_has_two_matrices():
  batch = lengths([3], [[2, 4]])
  gated, plain = (
    training_flops(tiny.config(**ONE_LAYER, mlp=mlp), batch)
    for mlp in ('silu_gated', 'gelu')
  )
  assert gated - plain == 3 * 2 * (8 * 12) * 9


# Peaks ------------------------------------------------------------------------


def test_the_peak_of_an_unknown_device_is_measured():
  found = peak_flops('float32')
  # 8 fake devices share a processor of at least 0.1 GFLOP/s and less than 1 PFLOP/s.
  assert 1e8 < found < 1e15


@pytest.mark.parametrize(
  ('kind', 'peak'),
  [
    ('TPU v5 lite', 197e12),
    ('TPU v5', 459e12),
    ('TPU v5p', 459e12),
    ('TPU v6 lite', 918e12),
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA A100-SXM4-40GB', 312e12),
  ],
)
def test_known_peaks_are_of_all_devices(kind, peak, monkeypatch):
  device = types.SimpleNamespace(device_kind=kind)
  monkeypatch.setattr(monitor.jax, 'devices', lambda: [device] * 4)
  monkeypatch.setattr(monitor.jax, 'device_count', lambda: 4)
  assert peak_flops('bfloat16') == 4 * peak
