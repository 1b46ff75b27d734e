"""Draws the worlds with a known answer: `--config=experiments/configs/tabular/...`.

Each leaves plots, and a table of a paper's statements beside what was measured over
the seeds, in its folder.
"""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.parts import launch
from prefjax.errors import InputError
from prefjax.evaluation.plots import Band, bands
from prefjax.objectives import links
from prefjax.tabular import bandits, dynamics, games
from prefjax.training.workdir import open_run

Config = Mapping[str, Any]


class Row(NamedTuple):
  """A statement, what was measured, and whether that agrees."""

  statement: str
  measured: str
  holds: bool


def main(config: Config, workdir: Path, cache: Path) -> None:
  """Computes, draws and prints one experiment."""
  del cache
  if config['experiment'] not in _EXPERIMENTS:
    raise InputError(
      f'experiment must be one of {sorted(_EXPERIMENTS)}, got {config["experiment"]!r}.'
    )
  devices = {'backend': jax.default_backend(), 'count': jax.device_count()}
  run = open_run(workdir, config, devices=devices)
  if not run.finished:
    plots, rows = _EXPERIMENTS[config['experiment']](config)
    for name, png in plots.items():
      (run.folder / f'{name}.png').write_bytes(png)
    table = [row._asdict() for row in rows]
    (run.folder / 'table.json').write_text(json.dumps(table, indent=2))
    agrees = sum(row.holds for row in rows) / len(rows)
    run.finish({'table': table, 'agrees': agrees})
  for row in run.summary['table']:
    print(f'{"agrees" if row["holds"] else "DIFFERS":>8}  {row["statement"]}')
    print(f'{"":>8}  {row["measured"]}')
  print(f'plots: {", ".join(map(str, sorted(run.folder.glob("*.png"))))}')


def ipo_bandits(config: Config) -> tuple[dict[str, bytes], list[Row]]:
  """DPO against IPO on pairs in a total order (IPO, arXiv:2310.12036, Section 5.4)."""
  kinds = {
    'DPO': lambda tau: links.logistic(beta=tau),
    'IPO': lambda tau: links.squared(tau=tau),
  }
  numbers = ('seeds', 'steps', 'record_every')
  found = {
    name: np.asarray(
      bandits.train(
        bandits.TOTAL_ORDER,
        link,
        config['taus'],
        **{number: config[number] for number in numbers},
      )
    )
    for name, link in kinds.items()
  }
  at = np.arange(found['DPO'].shape[2]) * config['record_every']
  plots = {
    f'{name}': bands(
      f'{name} on a > b, b > c, a > c',
      'steps of Adam',
      'probability of the best action',
      {
        f'tau {tau:g}': _band(at, policies[i, :, :, 0])
        for i, tau in enumerate(config['taus'])
      },
    )
    for name, policies in found.items()
  }
  rows = []
  for i, tau in enumerate(config['taus']):
    best = found['DPO'][i, :, -1, 0]
    rows.append(
      Row(
        f'DPO, tau {tau:g}: nearly deterministic, pi(a) above 0.95',
        f'pi(a) = {_estimate(best)}',
        bool(best.mean() > 0.95),
      )
    )
  finals = found['IPO'][:, :, -1, 0].mean(axis=1)
  for i, tau in enumerate(config['taus']):
    # Least squares of three pairs: theta = (1, 0, -1) / (3 tau).
    theta = np.array([1.0, 0.0, -1.0]) / (3.0 * tau)
    want = float(np.exp(theta[0]) / np.exp(theta).sum())
    rows.append(
      Row(
        f'IPO, tau {tau:g}: at the least squares of its pairs, pi(a) = {want:.3f}',
        f'pi(a) = {_estimate(found["IPO"][i, :, -1, 0])}',
        bool(abs(finals[i] - want) < 0.02),
      )
    )
  return plots, rows


def sppo_game(config: Config) -> tuple[dict[str, bytes], list[Row]]:
  """How far from a von Neumann winner self-play ends (SPPO, arXiv:2405.00675)."""
  cyclic = games.mixture(
    config['cycle'],
    games.rock_paper_scissors(),
    games.bradley_terry(np.array([0.5, 0.0, -0.5])),
  )
  ordered = games.bradley_terry(np.array([1.0, 0.0, -1.0]))
  plots, rows = {}, []
  for name, P in (('cyclic', cyclic), ('transitive', ordered)):
    gaps = _gaps(config, P)
    at = np.arange(config['steps'] + 1)
    lines = {label: _band(at, gap) for label, gap in gaps.items()}
    plots[name] = bands(
      f'Self-play on a {name} game of three',
      'iterations',
      'duality gap',
      lines,
    )
    rows += _statements(config, name, gaps)
  return plots, rows


def _gaps(config, P):
  """The duality gap [seed, iteration] of each method, from random starts."""
  methods = {
    'SPPO, last': (dynamics.sppo, {'eta': config['eta']}),
    'SPPO, log Z = eta / 2': (
      dynamics.sppo,
      {'eta': config['eta'], 'log_normaliser': 'half'},
    ),
    'IPO self-play': (dynamics.ipo_self_play, {'tau': config['tau']}),
    'Nash-MD': (
      dynamics.nash_md,
      {'eta': config['eta'], 'mixture': config['mixture']},
    ),
    'iterative DPO': (dynamics.iterative_dpo, {'beta': 1.0 / config['eta']}),
  }
  gaps = {name: [] for name in ('SPPO, average', *methods)}
  for start in _starts(config):
    for name, (method, numbers) in methods.items():
      iterates = method(P, steps=config['steps'], start=start, **numbers)
      gaps[name].append(_gap(iterates, P))
      if name == 'SPPO, last':
        gaps['SPPO, average'].append(_gap(games.running_average(iterates), P))
  return {name: np.stack(values) for name, values in gaps.items()}


def _starts(config):
  drawn = np.random.default_rng(0).dirichlet(np.full(3, 5.0), config['seeds'])
  return drawn / drawn.sum(axis=1, keepdims=True)


def _gap(log_policies, P):
  return np.asarray(games.duality_gap(np.exp(log_policies), P))


def _statements(config, game, gaps):
  steps, eta = config['steps'], config['eta']
  last, average = gaps['SPPO, last'][:, -1], gaps['SPPO, average'][:, -1]
  least = float(_starts(config).min())
  bound = 2.0 * float(games.average_bound(1.0 / least, eta, steps)) - 1.0
  rows = [
    Row(
      f'{game}: the average of SPPO comes to a gap of {bound:.3f} or less '
      f'(App. B, eta {eta:g}, T {steps})',
      f'gap of the average = {_estimate(average)}',
      bool(average.max() <= bound),
    )
  ]
  if game == 'transitive':
    rows.append(
      Row(
        'transitive: the last iterate puts all on the best response, gap 0',
        f'gap of the last = {_estimate(last)}',
        bool(last.mean() < 0.01),
      )
    )
  else:
    rows.append(
      Row(
        'cyclic: the last iterate does not converge where the average does',
        f'gap of the last = {_estimate(last)}',
        bool(last.mean() > average.mean()),
      )
    )
  return rows


def _band(x, runs):
  """Mean, and the least and the greatest, of runs [seed, x]."""
  return Band(x, runs.mean(axis=0), runs.min(axis=0), runs.max(axis=0))


def _estimate(values):
  error = np.std(values, ddof=1) / np.sqrt(len(values))
  return f'{np.mean(values):.4f} +- {error:.4f} ({len(values)} seeds)'


_EXPERIMENTS = {'ipo_bandits': ipo_bandits, 'sppo_game': sppo_game}

if __name__ == '__main__':
  launch.run(main, 'tabular')
