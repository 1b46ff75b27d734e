"""What is asked of XLA for the same bits, and what is said where it was not."""

import os
import subprocess
import sys

import pytest

from prefjax.training import determinism

ON, OFF = (f'--xla_gpu_deterministic_ops={value}' for value in ('true', 'false'))


@pytest.mark.parametrize(
  ('flags', 'wanted'),
  [
    (None, ON),
    ('--xla_dump_to=x', f'--xla_dump_to=x {ON}'),
    (OFF, OFF),
    (ON, ON),
  ],
)
def test_one_order_is_asked_for_unless_a_user_spoke_of_it(flags, wanted):
  environment = {} if flags is None else {'XLA_FLAGS': flags}
  determinism.ask(environment)
  assert environment == {'XLA_FLAGS': wanted}


@pytest.mark.parametrize(
  ('backend', 'flags', 'holds'),
  [
    ('cpu', '', True),
    ('tpu', OFF, True),
    ('gpu', '', False),
    ('gpu', OFF, False),
    ('gpu', ON, True),
    ('gpu', '--xla_gpu_deterministic_ops', True),
    ('gpu', f'{ON} {OFF}', False),
  ],
)
def test_bits_hold_on_a_gpu_only_where_it_was_asked(monkeypatch, backend, flags, holds):
  monkeypatch.setenv('XLA_FLAGS', flags)
  assert determinism.holds(backend) == holds


def test_experiments_ask_and_xla_knows_what_it_is_asked(tmp_path):
  code = (
    'import os, pathlib, sys\n'
    'from experiments.parts import launch\n'
    'launch.configure_jax(pathlib.Path(sys.argv[1]))\n'
    'import jax; print(jax.numpy.zeros(3).sum(), os.environ["XLA_FLAGS"])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path)],
    env={name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stdout == f'0.0 {ON}\n', done.stderr
