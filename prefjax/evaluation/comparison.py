"""The report over several runs: arms beside each other, as figures, tables, a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from prefjax.evaluation import arm_plots, page, panels, report, tables
from prefjax.evaluation.runs import Arm
from prefjax.training.files import fingerprint

# What the first table shows, where runs have it: by what they are judged.
HEADLINES = (
  'true_reward/policy',
  'kl',
  'frontier/excess',
  'eval/accuracy',
  'eval/reward',
  'eval/response_length',
  'win_rate/3_0',
  'gap/3',
  'length/3',
  'held_out/accuracy',
  'held_out/calibration_error',
  'eval/loss',
)
_SHOWN = 4  # of them
_ROLLOUTS = 'iterations'  # a config.train that has it learnt from its own samples


def headlines(arms: Sequence[Arm], metric: str = '') -> list[str]:
  """The metrics that a comparison begins with; `metric` is one of them."""
  found = [name for name in HEADLINES if any(arm.numbers(name) for arm in arms)]
  found = found[:_SHOWN]
  own = metric and any(arm.numbers(metric) for arm in arms)
  return [metric, *found] if own and metric not in found else found


def write_comparison(
  folder: Path,
  arms: Sequence[Arm],
  *,
  title: str,
  metric: str = '',
  notes: Sequence[str] = (),
  beside: Mapping[str, str] | None = None,
) -> Path:
  """Writes figures, tables (Markdown, LaTeX, CSV) and `index.html`; the page's path.

  The same runs give the same bytes.

  Args:
    folder: replaced.
    arms: in the order of tables and legends; differences are to the first.
    metric: of the summaries, shown beside the usual ones.
    notes: sentences for the end of the page.
    beside: what a paper says of the same, and what differs, by name.
  """
  names = headlines(arms, metric)
  wide = tables.wide(arms, names)
  every = tables.rows(arms, _all_numbers(arms, names))
  images = _images(arms, names)
  sections = [page.section('Results', page.table(wide))]
  if beside:
    lines = [f'{name}: {text}' for name, text in beside.items()]
    sections.append(page.section('Beside the paper', page.bullets(lines)))
  differences = [row for row in every if row['metric'] in names]
  sections += [
    page.section('Differences', page.table(differences), page.bullets(_HOW)),
    page.section('Figures', page.plots(list(images.values()))),
  ]
  if notes:
    sections.append(page.section('Notes', page.bullets(notes)))
  sections.append(page.section('Runs', page.table(_runs(arms)), *_configs(arms)))
  files = {f'{name}.png': image[0] for name, image in images.items()}
  files |= {
    'table.md': tables.markdown(wide).encode(),
    'table.tex': tables.latex(wide).encode(),
    'table.csv': tables.comma_separated(every).encode(),
  }
  return report.write_folder(folder, page.render(title, sections), files)


_HOW = (
  'n counts seeds. The standard error is that of the mean over seeds; of a single '
  'seed, that over its prompts.',
  'Differences are to the first arm, paired by seed, and by prompt where the runs '
  'keep the numbers of each; 95 % intervals are percentiles of a bootstrap that draws '
  'seeds and prompts. Of three seeds alone it has ten samples: read it with care.',
)


def _images(arms, names):
  everyone = [run for arm in arms for run in arm.runs]
  if all(_ROLLOUTS in run.config.get('train', {}) for run in everyone):
    return arm_plots.figures(arms, panels.OF_ROLLOUTS, 'iteration', names)
  return arm_plots.figures(arms, panels.OF_UPDATES, 'step (updates)', names)


def _all_numbers(arms, first):
  found = dict.fromkeys(first)
  for arm in arms:
    for run in arm.runs:
      found |= dict.fromkeys(
        name
        for name in run.summary
        if run.number(name) is not None and not name.endswith(('_se', '_z'))
      )
  return list(found)


def _runs(arms):
  return [
    {
      'arm': arm.label,
      'seed': run.seed,
      'config': fingerprint(run.config),
      'folder': str(run.folder),
    }
    for arm in arms
    for run in arm.runs
  ]


def _configs(arms):
  return [page.folded(f'Config of {arm.label}', arm.runs[0].config) for arm in arms]
