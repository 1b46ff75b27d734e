"""The plots of a report, as bytes of PNG that depend on the numbers alone."""

from collections.abc import Mapping
import io
import itertools
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
import numpy as np

from prefjax.evaluation.panels import Panel
from prefjax.evaluation.statistics import Estimate

# Okabe and Ito: told apart under every common colour blindness, and in print.
BLUE, ORANGE, GREEN, PURPLE = '#0072B2', '#D55E00', '#009E73', '#CC79A7'
SKY, YELLOW = '#56B4E9', '#E69F00'
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY)
INK, _GRID = '#333333', '#dddddd'
_MOST_INSIDE = 5  # lines of a legend
_SMOOTH_FROM = 200  # points; more of them are drawn with a moving mean
_WINDOWS = 50  # of the moving mean, in the length of a run


class Series(NamedTuple):
  """One metric over steps."""

  steps: np.ndarray
  values: np.ndarray


def over_steps(
  panel: Panel, series: Mapping[str, Series], x: str = 'step (updates)'
) -> bytes | None:
  """The panel as a PNG; None where the run logged none of its metrics.

  Training is a line, thin under a moving mean where there are many points; what
  is held out (`eval/`) is a line with markers.
  """
  figure, axes = blank(panel.title, x, panel.axis)
  drawn = False
  for (name, label), colour in zip(panel.lines.items(), COLOURS, strict=False):
    suffix = '' if len(panel.lines) == 1 else f', {label}'
    if name in series:
      _draw_train(axes, series[name], f'train{suffix}', colour)
      drawn = True
    if f'eval/{name}' in series:
      held_out = GREEN if len(panel.lines) == 1 else colour
      _draw_held_out(axes, series[f'eval/{name}'], f'held out{suffix}', held_out)
      drawn = True
  if not drawn:
    return None
  if panel.level is not None:
    axes.axhline(panel.level, color=INK, linewidth=0.8, linestyle=(0, (4, 4)))
  axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
  legend(axes)
  return png(figure)


class Band(NamedTuple):
  """A line through the means of several runs, and how far they spread."""

  x: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


def bands(
  title: str, x: str, y: str, lines: Mapping[str, Band], *, doubling: bool = False
) -> bytes:
  """Lines with their spread, as a PNG; colours come again, dashed, after six.

  With `doubling`, x has a logarithmic scale of base 2, with ticks where the lines are.
  """
  figure, axes = blank(title, x, y)
  styles = itertools.product(('-', '--', ':'), COLOURS)
  for (label, band), (style, colour) in zip(lines.items(), styles, strict=False):
    axes.plot(band.x, band.mean, style, color=colour, linewidth=1.4, label=label)
    axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.2, linewidth=0)
  if doubling:
    ticks = sorted({float(at) for band in lines.values() for at in band.x})
    axes.set_xscale('log', base=2)
    axes.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
  else:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
  legend(axes)
  return png(figure)


def _draw_train(axes, series, label, colour):
  steps, values = series
  if len(values) < _SMOOTH_FROM:
    alone = 'o' if len(values) == 1 else None
    axes.plot(steps, values, color=colour, linewidth=1.4, marker=alone, label=label)
    return
  axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
  # An odd window, so that it has a step in its middle.
  window = len(values) // _WINDOWS // 2 * 2 + 1
  label = f'{label} (mean of {window})'
  smooth = moving_mean(series, window)
  axes.plot(*smooth, color=colour, linewidth=1.6, label=label)


def moving_mean(series: Series, window: int) -> Series:
  """The mean of `window` values around each step that has so many around it."""
  half = window // 2
  kernel = np.full(window, 1 / window)
  mean = np.convolve(series.values, kernel, mode='valid')
  return Series(series.steps[half : half + len(mean)], mean)


def _draw_held_out(axes, series, label, colour):
  style = {'linewidth': 1.2, 'linestyle': '--', 'marker': 'o', 'markersize': 4}
  axes.plot(*series, color=colour, markerfacecolor='white', label=label, **style)


def reward_kl_plane(
  points: Mapping[str, tuple[Estimate, Estimate]],
  frontier: Mapping[str, np.ndarray] | None,
) -> bytes:
  """Policies by name as (KL, reward), and the frontier, as a PNG.

  The frontier is `kl`, `reward` and, where known, `reward_se`; nothing is drawn
  where an entry is not a number.
  """
  figure, axes = blank(
    'Reward against KL', 'KL to the reference (nats a response)', 'reward'
  )
  if frontier is not None:
    draw_frontier(axes, **frontier)
  styles = itertools.cycle(itertools.product('osD', (BLUE, ORANGE, GREEN, PURPLE)))
  for (name, (kl, reward)), (marker, colour) in zip(
    points.items(), styles, strict=False
  ):
    axes.errorbar(
      kl.mean,
      reward.mean,
      xerr=kl.standard_error or None,
      yerr=reward.standard_error or None,
      color=colour,
      marker=marker,
      markersize=6,
      linestyle='none',
      capsize=3,
      # matplotlib hides labels with a leading `_` and reads `$` as mathematics.
      label=name.lstrip('_').replace('$', r'\$'),
    )
  legend(axes)
  return png(figure)


def draw_frontier(axes, kl, reward, reward_se=None):
  """The best reward at each KL as a line, with its standard error as a band."""
  axes.plot(kl, reward, color=INK, linewidth=1.4, label='frontier')
  if reward_se is not None:
    low, high = reward - reward_se, reward + reward_se
    axes.fill_between(kl, low, high, color=INK, alpha=0.15, linewidth=0)


def blank(title, x, y, height=3.4):
  """An empty plot of this module's style: the figure and its axes."""
  # A Figure of its own, not pyplot: no backend is chosen for the whole process.
  figure = Figure(figsize=(5.6, height), dpi=160, layout='constrained')
  axes = figure.add_subplot()
  axes.set_title(title, loc='left', fontsize=11, color=INK)
  axes.set_xlabel(x, fontsize=9, color=INK)
  axes.set_ylabel(y, fontsize=9, color=INK)
  axes.tick_params(labelsize=8, colors=INK, length=3, width=0.6)
  axes.grid(color=_GRID, linewidth=0.6)
  axes.set_axisbelow(True)
  for side, spine in axes.spines.items():
    spine.set_visible(side in ('left', 'bottom'))
    spine.set_linewidth(0.6)
    spine.set_color(INK)
  return figure, axes


def legend(axes):
  """The legend: where the lines leave it room, a long one beside them."""
  several = len(axes.get_legend_handles_labels()[1]) > _MOST_INSIDE
  beside = dict(loc='upper left', bbox_to_anchor=(1.0, 1.0)) if several else {}
  axes.legend(fontsize=8, frameon=False, labelcolor=INK, **beside)


def png(figure):
  """The figure as bytes that depend on it alone."""
  buffer = io.BytesIO()
  # matplotlib's name and version would differ where the numbers do not.
  figure.savefig(buffer, format='png', metadata={'Software': None})
  return buffer.getvalue()
