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
