import io
import types

import pytest

from prefjax.training import progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
  for name in ('FORCE_COLOR', 'TTY_COMPATIBLE', 'NO_COLOR', 'COLUMNS'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('TERM', 'xterm')


@pytest.fixture
def now(monkeypatch):
  at = types.SimpleNamespace(seconds=100.0)
  monkeypatch.setattr(
    progress, 'time', types.SimpleNamespace(perf_counter=lambda: at.seconds)
  )
  return at


def test_plain_line_by_hand(now):
  out = io.StringIO()
  with progress.Progress(200, 'dpo', stream=out) as bar:
    now.seconds += 30  # compiling
    bar.update(0, {'loss': 0.7})
    now.seconds += 40 * 0.25
    bar.update(
      40,
      {
        'loss': 0.61234,
        'accuracy': 0.6149,
        'time/tokens_per_s': 12345.0,
        'grad_norm': 3.0,
      },
    )
  # 160 steps left at 0.25 s are 40 s.
  assert out.getvalue().splitlines() == [
    'step 0/200  loss 0.7000',
    'step 40/200  loss 0.6123  accuracy 0.61  12.3k tokens/s  ETA 0:40',
  ]


@pytest.mark.parametrize('total', [1, 7, 20, 39, 200, 1013])
@pytest.mark.parametrize('stride', [1, 3, 50])
def test_few_lines_and_always_the_last(total, stride):
  out = io.StringIO()
  steps = [*range(1, total, stride), total]
  with progress.Progress(total, 'x', stream=out) as bar:
    for step in steps:
      bar.update(step, {'loss': 1.0})
  lines = out.getvalue().splitlines()
  assert 1 <= len(lines) <= 22
  assert len(lines) >= min(len(steps), 10)
  assert lines[-1].startswith(f'step {total}/{total} ')
  assert len(set(lines)) == len(lines)


def test_a_run_that_stops_early_shows_where():
  out = io.StringIO()
  with (
    pytest.raises(KeyboardInterrupt),
    progress.Progress(1000, 'x', stream=out) as bar,
  ):
    for step in range(1, 8):
      bar.update(step, {})
    raise KeyboardInterrupt
  assert out.getvalue().splitlines()[-1].startswith('step 7/1000')


def test_a_resumed_run_counts_from_where_it_began(now):
  out = io.StringIO()
  with progress.Progress(200, 'x', stream=out) as bar:
    bar.update(150, {})
    now.seconds += 10
    bar.update(160, {})
  # 40 steps left at 1 s each, not at 10 s for 160.
  assert 'ETA 0:40' in out.getvalue()


@pytest.mark.parametrize(
  'seconds, shown',
  [(0.4, '0:00'), (59.6, '1:00'), (61, '1:01'), (3600, '1:00:00')],
)
def test_clock_time(seconds, shown):
  assert progress._clock_time(seconds) == shown


def test_a_terminal_has_one_bar():
  out = Terminal()
  with progress.Progress(10, 'dpo [smoke]', stream=out) as bar:
    bar.update(4, {'loss': 0.5, 'reward': 0.25})
    bar.update(10, {'loss': 0.25})
  text = out.getvalue()
  assert 'dpo [smoke]' in text and '10/10' in text and 'loss 0.2500' in text
  assert 'step ' not in text
