"""One page, figures and tables over any runs and sweeps.

  python -m experiments.report runs/dpo/sentiment runs/sweep/dpo/beta

Runs that differ in their seed alone are one arm. With `--publish` the results of the
sweep of an ablation go to docs/results, and docs/reproduction.md is written anew.
"""

from collections.abc import Sequence
import json
from pathlib import Path

from absl import flags

from experiments import points
from experiments.parts import launch, reproduction
from prefjax.errors import InputError
from prefjax.evaluation import comparison, runs

_OUT = flags.DEFINE_string(
  'out', '', "The report's folder; default `report` in the first folder, or beside it."
)
_PUBLISH = flags.DEFINE_bool('publish', False, 'Write docs/reproduction.md anew.')


def main(arguments: list[str]) -> None:
  """Reports on the folders that are named."""
  if not arguments:
    raise InputError('Name folders of runs or sweeps: python -m experiments.report ...')
  folders = [Path(argument) for argument in arguments]
  if _PUBLISH.value:
    for folder in folders:
      print(f'results: {reproduction.publish(folder)}')
    print(f'written: {reproduction.write()}')
  out = Path(_OUT.value) if _OUT.value else _place(folders)
  print(f'report: {write(folders, out)}')


def _place(folders: Sequence[Path]) -> Path:
  # The folder `report` of a run is the run's own page.
  if len(folders) == 1 and (folders[0] / runs.POINTS).exists():
    return folders[0] / 'report'
  return folders[0].parent / 'report'


def write(folders: Sequence[Path], out: Path) -> Path:
  """Writes the report on these runs and sweeps to `out`; the page's path."""
  arms = runs.arms(folders)
  asked = [_asked(folder) for folder in folders]
  path = asked[0].get('path', '') if len(asked) == 1 else ''
  path = path if Path(path).is_file() else ''
  metric = getattr(points.load(path), 'METRIC', '') if path else ''
  if Path(path) not in reproduction.ablations():
    title = f'Runs {", ".join(folder.name for folder in folders)}'
    return comparison.write_comparison(out, arms, title=title, metric=metric)
  told = reproduction.told(Path(path))
  beside = {'the paper': told.paper, 'what differs': told.scale}
  return comparison.write_comparison(
    out, arms, title=told.question, metric=metric, beside=beside
  )


def _asked(folder: Path) -> dict[str, str]:
  path = folder / 'config.json'
  if not path.exists():
    raise InputError(f'{folder} is the folder of neither a run nor a sweep.')
  return json.loads(path.read_text())['config']


if __name__ == '__main__':
  launch.command(main)
