"""The report of a run: plots and one page, made from the run's folder."""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
import shutil
from typing import Any

import numpy as np

from prefjax.errors import InputError
from prefjax.evaluation import page, panels, plots, runs
from prefjax.evaluation.statistics import Estimate
from prefjax.training import metrics, processes

_HELD_OUT = 'eval/'
_CLOCK = 'time/'
_PLANE_CAPTION = (
  'The reward of each policy against its divergence from the reference in nats'
  ' a response, with one standard error; the line is the best that any policy'
  ' can have at that divergence, the band its standard error.'
)


def write_report(
  workdir: Path,
  *,
  title: str,
  points: Mapping[str, tuple[Estimate, Estimate]] | None = None,
  frontier: Mapping[str, np.ndarray] | None = None,
  table: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
  notes: Sequence[str] = (),
  rollouts: bool = False,
  images: Mapping[str, tuple[bytes, str, str]] | None = None,
  tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
  """Writes `report/` with PNG plots and `index.html`; returns the page's path.

  The same folder and arguments give the same bytes. Of several processes the first
  alone writes.

  Args:
    workdir: a run's folder, with `metrics.jsonl` and `config.json`.
    title: of the page.
    points: policies by name as (KL in nats a response, reward); the reference
      is one of them, at KL 0.
    frontier: `kl`, `reward` and `reward_se` of the best policies, where drawn.
    table: results to show above the summary of the metrics, by name, or rows of
      several columns.
    notes: sentences for the end of the page.
    rollouts: the run learnt from its own samples: steps are its iterations.
    images: further pictures by file name, as (PNG, title, caption). A run that gives
      some may be without metrics of its own.
    tables: more results, by heading.
  """
  if not processes.first():
    return workdir / 'report' / 'index.html'
  path = workdir / 'metrics.jsonl'
  series = runs.series(_rows(path)) if path.exists() or not images else {}
  drawn = {**(images or {}), **_images(series, points, frontier, rollouts)}
  results = {'Results': table} | dict(tables or {})
  sections = _sections(workdir, series, list(drawn.values()), results, notes)
  files = {f'{name}.png': image[0] for name, image in drawn.items()}
  return write_folder(workdir / 'report', page.render(title, sections), files)


def write_folder(folder: Path, text: str, files: Mapping[str, bytes]) -> Path:
  """Writes a page and files beside it, in the place of what was there; its path."""
  temporary = folder.with_name(f'{folder.name}.tmp')
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  for name, data in files.items():
    (temporary / name).write_bytes(data)
  (temporary / 'index.html').write_text(text, encoding='utf-8')
  return _put_in_place(temporary, folder) / 'index.html'


def _put_in_place(temporary, folder):
  # A folder cannot replace another in one step, so a kill between these renames
  # leaves no report; never half of one.
  old = folder.with_name(folder.name + '.old')
  shutil.rmtree(old, ignore_errors=True)
  if folder.exists():
    folder.rename(old)
  temporary.rename(folder)
  shutil.rmtree(old, ignore_errors=True)
  return folder


def _rows(path):
  if not path.exists():
    raise InputError(f'A report is made from {path}, which does not exist.')
  return metrics.read(path)


def _images(series, points, frontier, rollouts):
  """(PNG, title, caption) by file name."""
  images = {}
  if points or frontier is not None:
    png = plots.reward_kl_plane(points or {}, frontier)
    images['plane'] = (png, 'Reward against KL', _PLANE_CAPTION)
  shown = panels.OF_ROLLOUTS if rollouts else panels.OF_UPDATES
  x = 'iteration' if rollouts else 'step (updates)'
  for panel in shown:
    png = plots.over_steps(panel, series, x)
    if png is not None:
      images[panel.name] = (png, panel.title, panel.caption)
  return images


def _sections(workdir, series, images, results, notes):
  sections = [
    page.section(heading, page.table(_table_rows(table)))
    for heading, table in results.items()
    if table
  ]
  metrics = {n: s for n, s in series.items() if not n.startswith(_CLOCK)}
  clock = {n: s for n, s in series.items() if n.startswith(_CLOCK)}
  if metrics:
    sections.append(page.section('Summary', page.table(_summary(metrics))))
  if images:
    sections.append(page.section('Plots', page.plots(images)))
  if notes:
    sections.append(page.section('Notes', page.bullets(notes)))
  sections.append(page.section('Run', *_run(workdir)))
  if clock:
    rows = [
      {'field': name.removeprefix(_CLOCK), 'last': float(found.values[-1])}
      for name, found in clock.items()
    ]
    sections.append(page.section('Time', page.table(rows)))
  return sections


def _table_rows(table):
  if isinstance(table, Mapping):
    return [{'result': name, 'value': value} for name, value in table.items()]
  return table


def _summary(series):
  names = dict.fromkeys(name.removeprefix(_HELD_OUT) for name in series)
  rows = []
  for name in names:
    row: dict[str, Any] = {'metric': name}
    for kind, found in (
      ('train', series.get(name)),
      ('held out', series.get(_HELD_OUT + name)),
    ):
      ends = (None, None) if found is None else found.values[[0, -1]].tolist()
      row[f'{kind}, first'], row[f'{kind}, last'] = ends
    rows.append(row)
  rows.sort(key=lambda row: row['metric'])
  return rows


def _run(workdir):
  path = workdir / 'config.json'
  if not path.exists():
    return []
  stored = json.loads(path.read_text())
  labels = {
    'config': 'Resolved config',
    'environment': 'Environment',
    'fingerprints': 'Fingerprints of data and tokenizer',
  }
  return [
    page.folded(label, stored[part])
    for part, label in labels.items()
    if stored.get(part)
  ]
