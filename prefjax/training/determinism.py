"""Whether a run that is made again on the same devices ends with the same bits.

CPUs and TPUs add in one order. GPUs do where XLA is asked for it, at some cost: else
they add by atomics, in the order in which threads come.
"""

from collections.abc import MutableMapping
import os

import jax

_FLAG = '--xla_gpu_deterministic_ops'


def ask(environment: MutableMapping[str, str] = os.environ) -> None:
  """Asks XLA for one order, before a device is used; a user's `XLA_FLAGS` stand."""
  flags = environment.get('XLA_FLAGS', '')
  if _FLAG not in flags:
    environment['XLA_FLAGS'] = f'{flags} {_FLAG}=true'.lstrip()


def holds(backend: str | None = None) -> bool:
  """Whether this process's devices add in one order."""
  backend = backend or jax.default_backend()
  asked = (flag.partition('=') for flag in os.environ.get('XLA_FLAGS', '').split())
  values = [value for name, _, value in asked if name == _FLAG]
  return backend != 'gpu' or (values[-1:] or ['false'])[0].lower() in ('', 'true', '1')
