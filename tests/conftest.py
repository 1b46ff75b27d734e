"""What every test runs under: CPU, eight fake devices, strict types."""

import os
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
_FLAGS = {
  '--xla_force_host_platform_device_count': '8',
  # Compiling is most of what tests do, and their programs are small.
  '--xla_backend_optimization_level': '0',
}
for flag, value in _FLAGS.items():
  if flag not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}={value}'
# XLA's pool has as many threads as devices, and each thread that waits in a collective
# holds one: with no more than that, the last device finds none, and the test hangs.
os.environ.setdefault('NPROC', '64')

import jax  # noqa: E402 - reads the environment
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture
def x64():
  """Float64 in the test, so that a factor of 1/B cannot hide in rounding."""
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope='module', autouse=True)
def few_programs():
  """Drops compiled programs before they fill a process's mappings of memory.

  Linux grants 65,530, and of all tests one worker held 49,000 and more.
  """
  yield
  maps = Path('/proc/self/maps')
  if maps.exists() and maps.read_text().count('\n') > 20_000:
    jax.clear_caches()
