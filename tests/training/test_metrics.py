import json
import math
import struct
import sys
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from prefjax.errors import InputError
from prefjax.training import metrics


def write(folder, *rows, **kwargs):
  with metrics.MetricWriter(folder, **kwargs) as writer:
    for step, row in rows:
      writer.write(step, row)
  return folder / 'metrics.jsonl'


def events(folder):
  """What the TensorBoard files hold, parsed by hand: length, crc, data, crc."""
  found = []
  for path in sorted((folder / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:
      (size,) = struct.unpack('<Q', data[:8])
      found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
  return found


def test_one_sorted_line_a_write(tmp_path):
  with metrics.MetricWriter(tmp_path) as writer:
    writer.write(3, {'loss': 0.5, 'accuracy': 1, 'time/tokens_per_s': 2e3})
  assert (tmp_path / 'metrics.jsonl').read_text() == (
    '{"step": 3, "accuracy": 1, "loss": 0.5, "time/tokens_per_s": 2000.0}\n'
  )


def test_who_watches_is_told_and_may_end_the_run(tmp_path):
  told = []

  def tell(step, values):
    told.append((step, values))
    if values.get('loss', 0.0) > 1.0:
      raise StopIteration

  with metrics.watched(tell), pytest.raises(StopIteration):
    write(tmp_path, (1, {'loss': 0.5}), (2, {'loss': jnp.float32(2.0)}))
  write(tmp_path, (3, {'loss': 0.25}))
  assert told == [(1, {'loss': 0.5}), (2, {'loss': 2.0})]
  steps = [row['step'] for row in metrics.read(tmp_path / 'metrics.jsonl')]
  assert steps == [1, 3]


def test_a_line_is_on_disk_before_the_writer_closes(tmp_path):
  with metrics.MetricWriter(tmp_path) as writer:
    writer.write(1, {'loss': 0.5})
    assert len(metrics.read(tmp_path / 'metrics.jsonl')) == 1


def test_floats_round_trip_bit_for_bit(tmp_path):
  bits = np.random.default_rng(0).integers(0, 2**64, 200, dtype=np.uint64)
  values = [
    *(float(v) for v in bits.view(np.float64) if math.isfinite(v)),
    *(0.1, 5e-324, -0.0, float(np.float32(0.1))),
  ]
  row = {f'm{i:03d}': value for i, value in enumerate(values)}
  (got,) = metrics.read(write(tmp_path, (0, row)))
  assert got.pop('step') == 0
  assert [struct.pack('<d', v) for v in got.values()] == [
    struct.pack('<d', v) for v in values
  ]


def test_device_numbers_keep_their_value(tmp_path):
  row = {
    'bf16': jnp.bfloat16(1.5),
    'f32': jnp.float32(0.1),
    'np': np.float32(0.1),
  }
  (got,) = metrics.read(write(tmp_path, (0, row)))
  assert got['bf16'] == 1.5
  assert got['np'] == got['f32'] == 0.10000000149011612


def test_what_is_not_finite_is_still_json(tmp_path):
  row = {'a': math.nan, 'b': math.inf, 'c': jnp.float32(-math.inf)}
  path = write(tmp_path, (1, row))

  def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')

  json.loads(path.read_text(), parse_constant=refuse)
  (got,) = metrics.read(path)
  assert math.isnan(got['a']) and got['b'] == math.inf and got['c'] == -math.inf


def test_step_is_no_metric(tmp_path):
  with (
    metrics.MetricWriter(tmp_path) as writer,
    pytest.raises(ValueError, match='first argument'),
  ):
    writer.write(1, {'step': 1.0})


def test_truncate_cuts_metrics_and_samples(tmp_path):
  path = write(tmp_path, *((s, {'loss': s / 3}) for s in (0, 1, 1, 2, 3)))
  before = path.read_text().splitlines()
  samples = tmp_path / 'samples.jsonl'
  samples.write_text('{"step": 2, "t": "a"}\n{"step": 1, "t": "b"}\n')
  metrics.truncate(tmp_path, 1)
  assert path.read_text().splitlines() == before[:3]
  assert samples.read_text() == '{"step": 1, "t": "b"}\n'
  metrics.truncate(tmp_path, -1)
  assert path.read_text() == samples.read_text() == ''


def test_truncate_without_files(tmp_path):
  metrics.truncate(tmp_path, 5)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('keep', range(1, 27))
def test_a_line_torn_anywhere_goes(tmp_path, keep):
  path = write(tmp_path, (1, {'loss': 0.25}))
  whole = path.read_text()
  torn = '{"step": 1, "loss": 0.125}\n'[:keep]
  path.write_text(whole + torn)
  assert [row['loss'] for row in metrics.read(path)] == [0.25]
  metrics.truncate(tmp_path, 9)
  assert path.read_text() == whole


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
  with pytest.raises(InputError, match=r'metrics\.jsonl, line 2, is not JSON'):
    metrics.read(path)
  text = path.read_text()
  with pytest.raises(InputError, match='line 2'):
    metrics.truncate(tmp_path, 3)
  assert path.read_text() == text


@pytest.mark.parametrize('line', ['{"a": 1}', '[1]', '{"step": "1"}'])
def test_a_line_without_a_step_is_named(tmp_path, line):
  (tmp_path / 'samples.jsonl').write_text(line + '\n')
  with pytest.raises(InputError, match='without a `step`'):
    metrics.truncate(tmp_path, 3)


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
  rows = [(step, {'loss': 1 / (step + 3)}) for step in range(6)]
  (tmp_path / 'a').mkdir()
  (tmp_path / 'b').mkdir()
  whole = write(tmp_path / 'a', *rows)
  resumed = write(tmp_path / 'b', *rows[:5])
  resumed.write_text(resumed.read_text()[:-4])
  metrics.truncate(tmp_path / 'b', 2)
  write(tmp_path / 'b', *rows[3:], purge_step=3)
  assert resumed.read_bytes() == whole.read_bytes()


def test_tensorboard_has_the_numbers_and_the_purge(tmp_path):
  write(tmp_path, (1, {'loss': 0.5}), (2, {'loss': 0.25}))
  assert [
    (event.step, value.tag, value.simple_value)
    for event in events(tmp_path)
    for value in event.summary.value
  ] == [(1, 'loss', 0.5), (2, 'loss', 0.25)]
  assert not any(e.HasField('session_log') for e in events(tmp_path))
  write(tmp_path, purge_step=2)
  # TensorBoard hides what an earlier session logged at this step or later.
  starts = [e for e in events(tmp_path) if e.HasField('session_log')]
  assert [(e.step, e.session_log.status) for e in starts] == [(2, 1)]


def test_wandb_gets_the_same_numbers(tmp_path, monkeypatch):
  calls = []
  fake = types.ModuleType('wandb')
  fake.log = lambda numbers, step: calls.append((step, numbers))
  fake.finish = lambda: calls.append('finish')
  fake.init = lambda **kwargs: calls.append(kwargs) or fake
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  write(tmp_path, (4, {'loss': 0.5}), wandb_project='p')
  started, *rest = calls
  assert started['project'] == 'p' and started['resume'] == 'allow'
  assert rest == [(4, {'loss': 0.5}), 'finish']
  write(tmp_path, wandb_project='p')
  assert calls[3] == started  # a resumed run goes on under its own id


def test_wandb_asked_for_but_absent(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(InputError, match='pip install wandb'):
    metrics.MetricWriter(tmp_path, wandb_project='p')


@pytest.fixture
def now(monkeypatch):
  at = types.SimpleNamespace(seconds=100.0)
  monkeypatch.setattr(time, 'perf_counter', lambda: at.seconds)
  return at


def test_phases_add_up_and_inner_ones_pause_the_outer(now):
  clock = metrics.PhaseClock()
  now.seconds += 5  # of no phase
  with clock('train'):
    now.seconds += 2
    with clock('compile'):
      now.seconds += 10
    now.seconds += 1
    assert clock.seconds() == {'compile': 10.0, 'train': 3.0}
  with clock('data'):
    now.seconds += 4
  with clock('train'):
    now.seconds += 1
  assert clock.seconds() == {'data': 4.0, 'compile': 10.0, 'train': 4.0}
  assert list(clock.seconds()) == ['data', 'compile', 'train']


def test_a_phase_that_fails_is_counted_and_closed(now):
  clock = metrics.PhaseClock()
  with pytest.raises(RuntimeError), clock('train'):
    now.seconds += 2
    raise RuntimeError
  now.seconds += 7
  assert clock.seconds() == {'train': 2.0}


def test_unknown_phase():
  with (
    pytest.raises(ValueError, match="'training'"),
    metrics.PhaseClock()('training'),
  ):
    pass
