"""What the arms of a self-play run came to, beside each other."""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any, NamedTuple

import numpy as np

from experiments.parts import self_play
from experiments.parts.build import Config
from prefjax.evaluation.plots import Band, bands
from prefjax.evaluation.report import write_report
from prefjax.training.workdir import Run

Numbers = Mapping[str, float]


class Arm(NamedTuple):
  """One of the runs that are compared: its names, and its config."""

  label: str
  win_rate: str
  seed: int
  config: Config

  @property
  def folder(self) -> str:
    return f'{self.label}-{self.win_rate}-{self.seed}'


def report(
  config: Config, run: Run, found: Sequence[tuple[Arm, Numbers]]
) -> dict[str, Any]:
  """Writes the report of an arm, or of all arms beside each other."""
  title = f'Self-play on {config["data"]["source"]}'
  if len(found) == 1:
    ((_, numbers),) = found
    write_report(run.folder, title=title, table=numbers)
    return dict(numbers)
  last = config['self_play']['iterations']
  groups = _grouped(found)
  rows = [_row(name, numbers, last) for name, numbers in groups.items()]
  self_play.write(
    run.folder / 'metrics.jsonl',
    ({'step': t, **_at(groups, t)} for t in range(last + 1)),
  )
  write_report(
    run.folder,
    title=f'{title}: {len(config["compare"]["seeds"]) or 1} seeds',
    table=rows,
    images=_images(groups, last),
    notes=[_NOTE],
    rollouts=True,
  )
  print(_printed(rows))
  return {f'{row["arm"]}: {k}': v for row in rows for k, v in row.items() if k != 'arm'}


_NOTE = (
  'Win rates are those of the iterate against the base, by the oracle of the '
  'evaluation, on held-out prompts; every number is a mean over the seeds with its '
  'standard error over them, and arms of a seed share the base, the prompts and the '
  'number of updates.'
)


def _grouped(found):
  """The numbers of each arm's seeds, by `objective, kind of win rate`."""
  groups: dict[str, list[Numbers]] = {}
  for arm, numbers in found:
    full = {**numbers, 'win_rate/0_0': 0.5}
    groups.setdefault(f'{arm.label}, {arm.win_rate}', []).append(full)
  return groups


_MEASURES = {
  'win_rate': ('win_rate/{}_0', 'Win rate against the base', 'P(iterate > base)'),
  'gap': ('gap/{}', 'Duality gap', 'gap (0 at a von Neumann winner)'),
  'distance': (
    'distance/{}',
    'Distance to the von Neumann winner',
    'total variation over kinds',
  ),
}


def _values(numbers, measure, t):
  """[seeds] a measure of iterate t, or None where the task has no game."""
  key = _MEASURES[measure][0].format(t)
  return np.array([n[key] for n in numbers]) if key in numbers[0] else None


def _row(name, numbers, last):
  row = {'arm': name}
  for measure in _MEASURES:
    for t in range(measure == 'win_rate', last + 1):
      values = _values(numbers, measure, t)
      if values is not None:
        row[f'{measure} {t}'] = _shown(values)
  return row


def _shown(values):
  if len(values) < 2:
    return f'{values[0]:.3f}'
  return f'{values.mean():.3f} ± {values.std(ddof=1) / np.sqrt(len(values)):.3f}'


def _at(groups, t):
  return {
    f'{measure}, {name}': float(values.mean())
    for name, numbers in groups.items()
    for measure in _MEASURES
    if (values := _values(numbers, measure, t)) is not None
  }


def _images(groups, last):
  """A picture of each measure and kind of win rate; bands are one standard error."""
  images = {}
  kinds = dict.fromkeys(name.partition(', ')[2] for name in groups)
  for kind, (measure, (_, title, axis)) in itertools.product(kinds, _MEASURES.items()):
    lines = {
      name.partition(', ')[0]: _band(numbers, measure, last)
      for name, numbers in groups.items()
      if name.endswith(f', {kind}') and _values(numbers, measure, 0) is not None
    }
    if lines:
      png = bands(f'{title}, {kind} win rates', 'iteration', axis, lines)
      caption = f'{title} after each iteration, mean and standard error over seeds.'
      images[f'{measure}-{kind}'] = (png, f'{title}, {kind}', caption)
  return images


def _band(numbers, measure, last):
  table = np.stack([_values(numbers, measure, t) for t in range(last + 1)])
  mean = table.mean(axis=1)
  seeds = table.shape[1]
  error = table.std(axis=1, ddof=1) / np.sqrt(seeds) if seeds > 1 else 0.0 * mean
  return Band(np.arange(last + 1), mean, mean - error, mean + error)


def _printed(rows):
  """The table as text, columns aligned."""
  columns = list(rows[0])
  lines = [columns, *([str(row[c]) for c in columns] for row in rows)]
  widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
  return '\n'.join(
    '  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
    for line in lines
  )
