"""How far a run is: a bar in a terminal, a few plain lines in a log file."""

from collections.abc import Mapping
import io
import sys
import time

from rich import console, progress

from prefjax.training import processes

_LINES = 20  # of a run without a terminal
_SHOWN = {'loss': '.4f', 'accuracy': '.2f', 'reward': '.4g'}
_SPEED = 'time/tokens_per_s'


class Progress:
  """Shows `step/total`, loss, accuracy or reward, tokens/s and the time left.

  Used as a context manager. Without a terminal it prints some 20 lines a run.
  """

  def __init__(
    self, total: int, description: str, *, stream: io.TextIOBase | None = None
  ):
    """Prepares to show `total` steps, on stderr unless a `stream` is given."""
    self._total = total
    self._description = description
    quiet = None if processes.first() else io.StringIO()
    self._console = console.Console(file=stream or quiet or sys.stderr)
    self._bar = _bar(self._console) if self._console.is_terminal else None
    self._task = None
    self._began: tuple[int, float] | None = None
    self._printed = -1
    self._last: tuple[int, str] | None = None

  def __enter__(self) -> 'Progress':
    if self._bar is not None:
      self._bar.start()
      self._task = self._bar.add_task(self._description, total=self._total, numbers='')
    return self

  def update(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows that `step` updates are done; unknown metrics are skipped."""
    now = time.perf_counter()
    # Time left is judged from the first update on: before it, a run compiles.
    self._began = self._began or (step, now)
    numbers = _numbers(metrics) + self._time_left(step, now)
    if self._bar is not None:
      self._bar.update(self._task, completed=step, numbers='  '.join(numbers))
      return
    self._last = step, '  '.join([f'step {step}/{self._total}', *numbers])
    every = max(1, -(-self._total // _LINES))
    if self._printed < 0 or step // every > self._printed // every:
      self._print_last()

  def __exit__(self, *_: object) -> None:
    if self._bar is not None:
      self._bar.stop()
    elif self._last is not None and self._last[0] != self._printed:
      self._print_last()

  def _print_last(self):
    self._printed, line = self._last
    print(line, file=self._console.file, flush=True)

  def _time_left(self, step, now):
    first, began = self._began
    if step <= first:
      return []
    left = (now - began) / (step - first) * max(0, self._total - step)
    return [f'ETA {_clock_time(left)}']


def _bar(shown_on):
  # markup=False: a description may hold brackets.
  return progress.Progress(
    progress.TextColumn('{task.description}', markup=False),
    progress.BarColumn(),
    progress.MofNCompleteColumn(),
    progress.TextColumn('{task.fields[numbers]}', markup=False),
    console=shown_on,
  )


def _numbers(metrics):
  shown = [
    f'{name} {metrics[name]:{form}}' for name, form in _SHOWN.items() if name in metrics
  ]
  if _SPEED in metrics:
    shown.append(f'{_compact(metrics[_SPEED])} tokens/s')
  return shown


def _compact(number):
  for unit, size in (('M', 1e6), ('k', 1e3)):
    if number >= size:
      return f'{number / size:.1f}{unit}'
  return f'{number:.0f}'


def _clock_time(seconds):
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minutes:02d}:{seconds:02d}'
  return f'{minutes}:{seconds:02d}'
