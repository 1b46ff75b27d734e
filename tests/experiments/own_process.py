"""What experiments run under that tests start as processes of their own."""

import os


def environment(**changes: str) -> dict[str, str]:
  """One device, unless changed; compiling is most of what a small run does."""
  quick = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_backend_optimization_level=0'}
  return {**os.environ, **quick, **changes}
