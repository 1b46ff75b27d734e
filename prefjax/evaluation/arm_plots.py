"""Plots of several runs beside each other: an arm is a line, a point or a row."""

from collections.abc import Callable, Mapping, Sequence
import itertools
import re
from typing import Any

from matplotlib.ticker import NullFormatter, ScalarFormatter
import numpy as np

from prefjax.evaluation import plots
from prefjax.evaluation.panels import Panel
from prefjax.evaluation.plots import COLOURS, INK, Band, Series
from prefjax.evaluation.runs import Arm, Told
from prefjax.evaluation.statistics import mean_and_standard_error

_WINDOWS = 25  # of the moving mean over a run's training metrics
# Lines of a figure: as many styles as plots.bands has.
_MOST = 18

_AXES = {
  'true_reward/policy': 'true reward (unit of the task)',
  'true_reward/gain': 'gain in true reward (unit of the task)',
  'kl': 'KL to the reference (nats a response)',
  'frontier/excess': 'true reward above the frontier (unit of the task)',
  'eval/accuracy': 'held-out accuracy (share)',
  'eval/reward': 'held-out reward (unit of the task)',
  'eval/response_length': 'length of held-out responses (tokens)',
  'eval/loss': 'held-out loss (unit of the objective)',
  'eval/chosen_drift': 'log-prob of the chosen, less the reference (nats)',
  'eval/rejected_drift': 'log-prob of the rejected, less the reference (nats)',
}
# Of metrics with a number in their name.
_NUMBERED_AXES = {
  r'win_rate/(\d+)_(\d+)': r'win rate of iterate \1 over iterate \2 (share)',
  r'gap/(\d+)': r'duality gap of iterate \1 (0 at a von Neumann winner)',
  r'length/(\d+)': r'length of iterate \1 (tokens)',
  r'(.+)@(\d+)': r'best of \2 by \1 (share right)',
}

Drawn = tuple[bytes, str, str]  # PNG, what it is, caption


def curves(arms: Sequence[Arm], panel: Panel, x: str) -> dict[str, Drawn]:
  """The panel's metrics over steps, a figure each: means over seeds and their range.

  What is held out where it was measured three times or more, else training, as a
  moving mean.
  """
  out = {}
  for metric, label in panel.lines.items():
    lines = {arm.label: _band(arm, metric) for arm in arms[:_MOST]}
    lines = {name: band for name, band in lines.items() if band is not None}
    if not lines:
      continue
    several = len(panel.lines) > 1
    title = f'{panel.title}, {label}' if several else panel.title
    caption = f'{panel.caption} {_source(arms, metric)}'
    name = f'{panel.name}_{label}'.replace(' ', '_') if several else panel.name
    out[name] = (plots.bands(title, x, panel.axis, lines), title, caption)
  return out


def _held_out(runs: Sequence[Told], metric: str) -> bool:
  name = f'eval/{metric}'
  return all(name in run.series and len(run.series[name].steps) > 2 for run in runs)


def _source(arms, metric):
  held_out = all(_held_out(arm.runs, metric) for arm in arms)
  of = 'Held-out prompts' if held_out else 'Training, as a moving mean'
  return f'{of}; lines are means over seeds, bands their range.'


def _band(arm: Arm, metric: str) -> Band | None:
  if _held_out(arm.runs, metric):
    found = [run.series[f'eval/{metric}'] for run in arm.runs]
  else:
    found = [_smooth(run.series[metric]) for run in arm.runs if metric in run.series]
  if not found:
    return None
  steps = found[0].steps
  for one in found[1:]:
    steps = np.intersect1d(steps, one.steps)
  if not len(steps):
    return None
  values = np.stack([one.values[np.isin(one.steps, steps)] for one in found])
  return Band(steps, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def _smooth(series: Series) -> Series:
  window = len(series.values) // _WINDOWS // 2 * 2 + 1
  return plots.moving_mean(series, window)


def plane(arms: Sequence[Arm]) -> Drawn | None:
  """Each arm's reward against its KL, every seed small beside it, and the frontier."""
  placed = [
    (arm, [run for run in arm.runs if run.number('kl') is not None]) for arm in arms
  ]
  placed = [(arm, runs) for arm, runs in placed if runs]
  if not placed:
    return None
  title = 'Reward against KL'
  figure, axes = plots.blank(title, 'KL to the reference (nats a response)', 'reward')
  everyone = [run for _, runs in placed for run in runs]
  line = frontier(everyone)
  if line is not None:
    plots.draw_frontier(axes, **line)
  _draw_best_of(axes, everyone)
  for (arm, runs), (marker, colour) in zip(placed, _markers(), strict=False):
    points = np.array([[r.number('kl'), r.number('true_reward/policy')] for r in runs])
    axes.plot(*points.T, marker, color=colour, markersize=3, alpha=0.5)
    mean = points.mean(axis=0)
    error = mean_and_standard_error(points).standard_error if len(runs) > 1 else None
    axes.errorbar(
      *mean,
      xerr=None if error is None else error[0],
      yerr=None if error is None else error[1],
      color=colour,
      marker=marker,
      markersize=6,
      linestyle='none',
      capsize=2,
      label=_plain(arm.label),
    )
  plots.legend(axes)
  caption = (
    'The true reward of each policy against its divergence from the reference: means '
    'over seeds with their standard error, each seed small. The line is the best that '
    'any policy can have at that divergence, the band its standard error; the dotted '
    'line the best of n draws of the reference, at the most that it can diverge.'
  )
  return plots.png(figure), title, caption


def frontier(runs: Sequence[Told]) -> dict[str, np.ndarray] | None:
  """The mean of the frontiers of runs, at each beta over those that draw it."""
  found = [run.details['frontier'] for run in runs if 'frontier' in run.details]
  if not found:
    return None
  drawn = np.array([one['drawn'] for one in found], bool)
  shown = drawn.any(axis=0)
  means = {}
  for name in ('kl', 'reward', 'reward_se'):
    values = np.array([one[name] for one in found], float)
    total = np.where(drawn, values, 0.0).sum(axis=0)
    means[name] = total[shown] / drawn.sum(axis=0)[shown]
  order = np.argsort(means['kl'])
  return {name: values[order] for name, values in means.items()}


def _draw_best_of(axes, runs):
  found = _best_of(runs)
  if found is None:
    return
  style = {'color': INK, 'linestyle': ':', 'linewidth': 1.0, 'markersize': 3}
  axes.plot(
    found['kl_at_most'],
    found['reward'],
    marker='x',
    label='best of n',
    **style,
  )


def _best_of(runs) -> dict[str, np.ndarray] | None:
  found = [run.details['best_of'] for run in runs if run.details.get('best_of')]
  if not found:
    return None
  keys = ('n', 'reward', 'reward_se', 'kl_at_most')
  table = np.array([[[row[key] for key in keys] for row in one] for one in found])
  return dict(zip(keys, table.mean(axis=0).T, strict=True))


def best_of(arms: Sequence[Arm]) -> Drawn | None:
  """The reward of the best of n of the reference, and what each arm comes to."""
  found = _best_of([run for arm in arms for run in arm.runs])
  if found is None:
    return None
  title = 'Best of n'
  figure, axes = plots.blank(title, 'n, draws of the reference', 'reward')
  error = found['reward_se']
  axes.errorbar(
    found['n'], found['reward'], yerr=error, color=INK, marker='o', markersize=4,
    capsize=2, label='best of n',
  )  # fmt: skip
  for arm, (style, colour) in zip(arms, _lines(), strict=False):
    numbers = list(arm.numbers('true_reward/policy').values())
    if numbers:
      level = float(np.mean(numbers))
      axes.axhline(
        level, linestyle=style, color=colour, linewidth=1.2, label=_plain(arm.label)
      )
  axes.set_xscale('log', base=2)
  axes.xaxis.set_major_formatter(ScalarFormatter())
  axes.xaxis.set_minor_formatter(NullFormatter())
  axes.set_xticks(found['n'])
  plots.legend(axes)
  caption = (
    'The true reward of the best of n draws of the reference, with its standard error '
    'over prompts, and the mean of each arm, which draws once.'
  )
  return plots.png(figure), title, caption


def _axis(name):
  for pattern, text in _NUMBERED_AXES.items():
    if found := re.fullmatch(pattern, name):
      return found.expand(text)
  return _AXES.get(name, name)


def ladder(arms: Sequence[Arm], name: str) -> Drawn | None:
  """One row an arm, in order: every seed, the mean and its standard error."""
  shown = [(arm.label, list(arm.numbers(name).values())) for arm in arms]
  shown = [(label, values) for label, values in shown if values]
  if len(shown) < 2:
    return None
  axis = _axis(name)
  figure, axes = plots.blank(name, axis, '', height=0.9 + 0.32 * len(shown))
  for row, (_, values) in enumerate(shown):
    axes.plot(
      values, [row] * len(values), 'o', color=COLOURS[0], markersize=3, alpha=0.5
    )
    error = mean_and_standard_error(np.array(values)) if len(values) > 1 else None
    axes.errorbar(
      np.mean(values), row, xerr=None if error is None else error.standard_error,
      color=COLOURS[0], marker='D', markersize=6, capsize=3,
    )  # fmt: skip
  axes.set_yticks(range(len(shown)), [_plain(label) for label, _ in shown])
  axes.set_ylim(len(shown) - 0.5, -0.5)
  caption = f'{name}: every seed (small), the mean and its standard error.'
  return plots.png(figure), name, caption


def figures(
  arms: Sequence[Arm], panels: Sequence[Panel], x: str, metrics: Sequence[str]
) -> dict[str, Drawn]:
  """Every figure that the runs have the numbers for, by file name."""
  single: Mapping[str, Callable[[], Any]] = {
    'plane': lambda: plane(arms),
    'best_of': lambda: best_of(arms),
    **{
      f'ladder_{name.replace("/", "_")}': lambda name=name: ladder(arms, name)
      for name in metrics
    },
  }
  found = {name: draw() for name, draw in single.items()}
  found = {name: drawn for name, drawn in found.items() if drawn is not None}
  for panel in panels:
    found |= curves(arms, panel, x)
  return found


def _markers():
  return itertools.cycle(itertools.product('osD^', COLOURS))


def _lines():
  return itertools.cycle(itertools.product(('--', '-.', ':'), COLOURS))


def _plain(text):
  # matplotlib hides labels with a leading `_` and reads `$` as mathematics.
  return text.lstrip('_').replace('$', r'\$')
