"""What ends a run before its time."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import tiny

from prefjax.errors import TrainingError
from prefjax.training import guards
from prefjax.types import PreferenceBatch

# SIGTERM ----------------------------------------------------------------------


@pytest.fixture
def outer():
  """A handler that was there before, and what it was called for."""
  seen = []
  before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
  yield seen
  signal.signal(signal.SIGTERM, before)


def terminate():
  os.kill(os.getpid(), signal.SIGTERM)


def told(stop, seconds=5.0):
  deadline = time.monotonic() + seconds
  while not stop() and time.monotonic() < deadline:
    time.sleep(0.01)
  return stop()


def test_sigterm_sets_the_event_and_the_handler_before_is_back_after(outer):
  with guards.stop_signal() as stop:
    assert not stop()
    terminate()
    assert told(stop)
    terminate()  # once more changes nothing
  assert outer == []
  terminate()
  assert outer == [signal.SIGTERM]


def test_the_handler_is_back_after_an_error_too(outer):
  with pytest.raises(KeyError), guards.stop_signal():
    raise KeyError
  terminate()
  assert outer == [signal.SIGTERM]


def test_the_inner_of_two_is_told(outer):
  with guards.stop_signal() as first:
    with guards.stop_signal() as second:
      terminate()
      assert told(second)
    assert not first()
    terminate()
    assert told(first)
  assert outer == []


def test_a_thread_that_may_catch_nothing_runs_all_the_same(outer):
  found = []

  def run():
    with guards.stop_signal() as stop:
      found.append(stop())

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert found == [False]
  terminate()
  assert outer == [signal.SIGTERM]


# Numbers ----------------------------------------------------------------------


def refuse(folder, **values):
  whole = tiny.batch()
  guards.refuse_not_finite(
    {'loss': 1.0, 'grad_norm': 2.0, 'reward': np.nan} | values,
    [tiny.take(whole, [0, 1]), tiny.take(whole, [2])],
    step=12,
    folder=folder,
    description='tiny grpo',
  )


def test_finite_numbers_pass_and_leave_nothing_behind(tmp_path):
  refuse(tmp_path, loss=-1e38)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('values', 'said'),
  [
    (dict(loss=np.nan), r'loss of step 12 is not finite \(loss=nan\)'),
    (dict(grad_norm=np.inf), r'grad_norm of step 12 is not finite \(grad_norm=inf\)'),
    (
      dict(loss=-np.inf, grad_norm=np.nan),
      r'loss and grad_norm of step 12 is not finite \(loss=-inf, grad_norm=nan\)',
    ),
  ],
)
def test_a_number_that_is_not_finite_ends_the_run_and_says_which(
  tmp_path, values, said
):
  with pytest.raises(TrainingError, match=f'^tiny grpo: {said}') as error:
    refuse(tmp_path, **values)
  path = tmp_path / 'not_finite_12.npz'
  assert str(path) in str(error.value)
  assert path.is_file()


def test_the_saved_batch_is_the_batch(tmp_path):
  with pytest.raises(TrainingError):
    refuse(tmp_path, loss=np.nan)
  with np.load(tmp_path / 'not_finite_12.npz') as saved:
    for i, rows in enumerate(([0, 1], [2])):
      part = tiny.take(tiny.batch(), rows)
      fields = {
        name.partition('/')[2]: x for name, x in saved.items() if name[0] == str(i)
      }
      there = {name: x for name, x in vars(part).items() if x is not None}
      assert fields.keys() == there.keys()
      found = PreferenceBatch(**fields)
      for name, x in there.items():
        np.testing.assert_array_equal(getattr(found, name), x)
