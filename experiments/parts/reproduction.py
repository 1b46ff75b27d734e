"""docs/reproduction.md: what papers report, the commands, and what ours came to.

Made of the docstrings of configs and of docs/results, which `experiments.report
--publish` writes; nothing of it is typed. An ablation's docstring begins with its
question and has the paragraphs `Paper:`, `Scale:` (what differs) and `Ours:`.
"""

import ast
from collections.abc import Mapping, Sequence
import json
from pathlib import Path
import re
from typing import Any, NamedTuple

from experiments import points
from prefjax.errors import InputError
from prefjax.evaluation import comparison, runs, tables
from prefjax.training.files import fingerprint, write_json

CONFIGS = Path('experiments/configs')
RESULTS = Path('docs/results')
PAGE = Path('docs/reproduction.md')
NOT_YET = 'not yet run'
_HEAD = """# Reproduction

Written by `python -m experiments.report SWEEP --publish` from the results of sweeps and
the docstrings of their configs; not by hand. ± is one standard error of the mean over
seeds. What differs from a paper in scale stands beside each: a miniature can show a
direction, not a paper's number.
"""


class Told(NamedTuple):
  """What the docstring of an ablation says."""

  question: str
  command: str
  paper: str
  scale: str
  ours: str


def told(path: Path) -> Told:
  """Reads the docstring of a config.

  Raises:
    InputError: naming the paragraph that it lacks.
  """
  text = ast.get_docstring(ast.parse(path.read_text())) or ''
  paragraphs = [' '.join(part.split()) for part in text.split('\n\n')]
  found = {}
  for name in ('Paper', 'Scale', 'Ours'):
    part = next((p for p in paragraphs if p.startswith(f'{name}: ')), None)
    if part is None:
      raise InputError(f'The docstring of {path} has no paragraph `{name}: ...`.')
    found[name.lower()] = part.removeprefix(f'{name}: ')
  command = next((p for p in paragraphs if p.startswith('python -m ')), '')
  return Told(paragraphs[0], re.sub(r' \\ ', ' ', command), **found)


def ablations() -> list[Path]:
  """The configs that ask a question, in the order of their paths."""
  return sorted(
    path for path in CONFIGS.glob('*/ablations/*.py') if path.name != '__init__.py'
  )


def results_file(path: Path) -> Path:
  """Where the results of an ablation lie."""
  return RESULTS / f'{path.parent.parent.name}_{path.stem}.json'


def publish(folder: Path) -> Path:
  """Puts the results of a sweep's folder into the repository; the file's path."""
  asked = json.loads((folder / 'config.json').read_text())['config']
  if 'path' not in asked or Path(asked['path']) not in ablations():
    raise InputError(f'{folder} is not the sweep of an ablation in {CONFIGS}.')
  arms = runs.arms([folder])
  module = points.load(asked['path'])
  names = comparison.headlines(arms, getattr(module, 'METRIC', points.METRIC))
  names += getattr(module, 'BESIDE', ())
  path = results_file(Path(asked['path']))
  path.parent.mkdir(parents=True, exist_ok=True)
  write_json(
    path,
    {
      'variant': asked['variant'],
      'seeds': sorted({run.seed for arm in arms for run in arm.runs}),
      'config': fingerprint([run.config for arm in arms for run in arm.runs]),
      'table': tables.wide(arms, names),
      'differences': tables.rows(arms, names[:1]),
    },
  )
  return path


def write() -> Path:
  """Writes the page anew; its path."""
  PAGE.write_text(page())
  return PAGE


def page() -> str:
  """The page, from what is in the repository."""
  every = [(path, told(path), _results(path)) for path in ablations()]
  overview = [
    {
      'question': f'[{one.question}](#{_anchor(path)})' if found else one.question,
      'the paper': one.paper,
      'ours': _in_short(found) if found else NOT_YET,
      'config': f'`{path.relative_to(CONFIGS)}`',
    }
    for path, one, found in every
  ]
  parts = [_HEAD, tables.markdown(overview)]
  parts += [_section(path, one, found) for path, one, found in every if found]
  return '\n'.join(parts)


def _results(path: Path) -> dict[str, Any] | None:
  file = results_file(path)
  return json.loads(file.read_text()) if file.exists() else None


def _in_short(found: Mapping[str, Any]) -> str:
  metric = next(name for name in found['table'][0] if name not in ('', 'n'))
  each = '; '.join(f'{row[""]}: {row[metric]}' for row in found['table'])
  return f'{metric}: {each}'


def _anchor(path: Path) -> str:
  return f'{path.parent.parent.name}-{path.stem}'.replace('_', '-')


def _section(path: Path, one: Told, found: Mapping[str, Any]) -> str:
  rows: Sequence[Mapping[str, Any]] = found['table']
  variant = f':{found["variant"]}' if found['variant'] else ''
  seeds = ', '.join(map(str, found['seeds']))
  return f"""
<a id="{_anchor(path)}"></a>

## {one.question}

    {one.command}{variant}

Paper: {one.paper}

Ours, of seeds {seeds} (configs {found['config']}): {one.ours}

{tables.markdown(rows)}
{tables.markdown(found['differences'])}
Scale: {one.scale}
"""
