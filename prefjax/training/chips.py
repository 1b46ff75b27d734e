"""Data sheets of accelerators: what a bound on speed and memory is made of."""

from typing import NamedTuple


class Chip(NamedTuple):
  """One chip, by its maker's data sheet."""

  flops: float  # FLOP/s of dense bfloat16 products
  memory: float  # bytes, of which the runtime keeps some for itself
  bandwidth: float  # bytes/s from and to its memory
  links: float  # bytes/s that it can receive from other chips, over all its links


# cloud.google.com/tpu/docs, the page of each generation; interconnect in Gbit/s / 8.
TPUS = {
  'v4': Chip(275e12, 32 * 2**30, 1228e9, 300e9),
  'v5e': Chip(197e12, 16 * 2**30, 819e9, 200e9),
  'v5p': Chip(459e12, 95 * 2**30, 2765e9, 600e9),
  'v6e': Chip(918e12, 32 * 2**30, 1640e9, 448e9),
}

# What jax calls their devices; NVIDIA's data sheets, of the boards with these names.
_KINDS = {
  'TPU v4': TPUS['v4'],
  'TPU v5 lite': TPUS['v5e'],
  'TPU v5': TPUS['v5p'],
  'TPU v6 lite': TPUS['v6e'],
  'NVIDIA A100-SXM4-40GB': Chip(312e12, 40e9, 1555e9, 300e9),
  'NVIDIA A100-SXM4-80GB': Chip(312e12, 80e9, 2039e9, 300e9),
  'NVIDIA H100 80GB HBM3': Chip(989e12, 80e9, 3350e9, 450e9),
  'NVIDIA H200': Chip(989e12, 141e9, 4800e9, 450e9),
}


def of(device_kind: str) -> Chip | None:
  """The data sheet of what jax calls `device_kind`, or None where it has none here."""
  # The longest matching name counts: `TPU v5 lite` is no `TPU v5`.
  names = [name for name in _KINDS if device_kind.startswith(name)]
  return _KINDS[max(names, key=len)] if names else None
