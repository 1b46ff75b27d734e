"""Tables of a comparison: rows once, then Markdown, LaTeX, CSV."""

from collections.abc import Mapping, Sequence
import csv
import io
from typing import Any

import numpy as np

from prefjax.evaluation import statistics
from prefjax.evaluation.page import shown
from prefjax.evaluation.runs import Arm

Row = Mapping[str, Any]
# Where a run keeps the numbers of single prompts that a mean was made of.
_BY_PROMPT = {
  'true_reward/policy': 'reward',
  'true_reward/reference': 'reference',
  'kl': 'kl',
}
_LATEX = {c: f'\\{c}' for c in '&%$#_{}'} | {
  '\\': r'\textbackslash{}',
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
}


def rows(arms: Sequence[Arm], names: Sequence[str]) -> list[dict[str, Any]]:
  """One row a metric and arm: n seeds, mean, its error, difference to the first arm.

  The difference is paired by seed, and by prompt where runs have the numbers of each,
  with a bootstrap interval. The error of a single run is the run's own, over prompts.
  """
  out = []
  for name in names:
    for arm in arms:
      values = arm.numbers(name)
      if values:
        out.append(
          {'metric': name, 'arm': arm.label, **_mean(arm, name, values)}
          | _difference(arms[0], arm, name)
        )
  return out


def _mean(arm, name, values):
  each = np.array(list(values.values()))
  error = arm.runs[0].number(f'{name}_se')
  if len(each) > 1:
    error = float(statistics.mean_and_standard_error(each).standard_error)
  return {'n': len(each), 'mean': float(each.mean()), 'standard error': error}


def _difference(first: Arm, arm: Arm, name: str) -> dict[str, float]:
  if arm is first:
    return {}
  pairs = _paired(first, arm, name)
  if pairs is None:
    return {}
  # Of two seeds alone, the interval would be the two differences themselves.
  interval = statistics.paired_bootstrap(pairs) if pairs.size > 2 else (None, None)
  return {
    f'less {first.label}': float(pairs.mean()),
    '2.5 %': interval[0],
    '97.5 %': interval[1],
  }


def _paired(first, arm, name):
  """Differences [seed, prompt], or [seed, 1] of means; None without a common seed."""
  there = {run.seed: run for run in first.runs}
  runs = [(run, there[run.seed]) for run in arm.runs if run.seed in there]
  key = _BY_PROMPT.get(name)
  if key and all('prompts' in run.details for pair in runs for run in pair):
    return (
      np.array(
        [np.subtract(*(run.details['prompts'][key] for run in pair)) for pair in runs]
      ).reshape(len(runs), -1)
      if runs
      else None
    )
  numbers = [(a.number(name), b.number(name)) for a, b in runs]
  found = [a - b for a, b in numbers if a is not None and b is not None]
  return np.array(found).reshape(-1, 1) if found else None


def wide(arms: Sequence[Arm], names: Sequence[str]) -> list[dict[str, Any]]:
  """One row an arm, `mean ± standard error` of each metric: what a paper prints."""
  found = {(row['metric'], row['arm']): row for row in rows(arms, names)}
  out = []
  for arm in arms:
    row: dict[str, Any] = {'': arm.label, 'n': len(arm.runs)}
    for name in names:
      if (name, arm.label) in found:
        row[name] = _with_error(found[name, arm.label])
    out.append(row)
  return out


def _with_error(row):
  mean, error = row['mean'], row['standard error']
  if error is None or not error > 0:
    return f'{mean:.3f}'
  # Two digits of the error, and as many of the mean.
  digits = min(max(1 - int(np.floor(np.log10(error))), 0), 6)
  return f'{mean:.{digits}f} ± {error:.{digits}f}'


def markdown(table: Sequence[Row]) -> str:
  """A pipe table."""
  columns, cells = _cells(table)
  lines = [columns, ['---'] * len(columns), *cells]
  escaped = ([cell.replace('|', r'\|') for cell in line] for line in lines)
  return ''.join(f'| {" | ".join(line)} |\n' for line in escaped)


def latex(table: Sequence[Row]) -> str:
  """A `tabular` with the rules of booktabs."""
  columns, cells = _cells(table)
  head, *body = (
    ' & '.join(_escaped(cell) for cell in line) + r' \\' for line in (columns, *cells)
  )
  lines = [
    rf'\begin{{tabular}}{{l{"r" * (len(columns) - 1)}}}',
    r'\toprule',
    head,
    r'\midrule',
    *body,
    r'\bottomrule',
    r'\end{tabular}',
  ]
  return '\n'.join(lines) + '\n'


def _escaped(text):
  return ''.join(_LATEX.get(c, c) for c in text).replace('±', r'$\pm$')


def comma_separated(table: Sequence[Row]) -> str:
  """CSV with every digit."""
  columns = _columns(table)
  out = io.StringIO()
  writer = csv.DictWriter(out, columns, lineterminator='\n')
  writer.writeheader()
  writer.writerows(table)
  return out.getvalue()


def _columns(table):
  return list(dict.fromkeys(name for row in table for name in row))


def _cells(table):
  columns = _columns(table)
  return columns, [[shown(row.get(name)) for name in columns] for row in table]
