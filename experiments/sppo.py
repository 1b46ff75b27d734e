"""Self-play: SPPO as the paper iterates it, iterative DPO and IPO, compared.

python -m experiments.sppo --config=experiments/configs/sppo/cycle.py

A run is one arm, or, where `compare` lists several, one for each objective, kind of win
rate and seed in a folder of its own, with the same prompts, samples and updates.
"""

from collections.abc import Iterator, Mapping, Sequence
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import build, grpo, head_to_head, launch, oracles, self_play, sft
from experiments.build import Config, Split
from experiments.self_play import SelfPlay, Tools
from prefjax import tasks
from prefjax.errors import InputError
from prefjax.evaluation.plots import Band, bands
from prefjax.evaluation.report import write_report
from prefjax.rewards import wins
from prefjax.rollout.sampler import DecoderSampler
from prefjax.training.metrics import PhaseClock
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


def main(config: Config, workdir: Path, cache: Path) -> None:
  """Base policies, arms, win rates between iterates, report."""
  validate(config)
  run = sft.opened(config, workdir)
  if run.finished:
    sft.print_summary(run)
    return
  clock = PhaseClock()
  every = list(arms(config))
  tools: dict[str, Tools] = {}
  found = [
    (arm, played(config, arm, run.folder, cache, tools, clock, alone=len(every) == 1))
    for arm in every
  ]
  with clock('report'):
    summary = reported(config, run, found)
  run.finish(summary)
  sft.print_summary(run)


def validate(config: Config) -> None:
  """Refuses a config before anything is computed, compiled or written.

  Raises:
    InputError: naming the key.
  """
  for arm in arms(config):
    _validate_arm(arm.config)
  options = config['self_play']
  for key in ('iterations', 'prompts', 'prompts_at_once'):
    if options[key] < 1:
      raise InputError(f'self_play.{key} must be at least 1, got {options[key]}.')
  if options['responses'] < 2:
    raise InputError(
      f'self_play.responses must be at least 2, to compare, got {options["responses"]}.'
    )
  if options['use'] not in self_play.USES:
    raise InputError(
      f'self_play.use must be one of {list(self_play.USES)}, got {options["use"]!r}.'
    )
  self_play.controls(config)
  for source in (config['oracle']['source'], config['evaluation']['oracle']):
    if source:
      oracles.check(source)
  # Before a policy is trained, so that too few prompts are told at once.
  needed(config, len(build.questions(config).train))


def _validate_arm(config):
  objective = build.objective(config)
  strange = {'rewards', 'scores', 'step'} & objective.needs
  if strange:
    raise InputError(
      f'{objective.name} needs {sorted(strange)}; self-play gives pairs, labels and '
      'win rates.'
    )
  wins.as_used(np.full((1, 1, 1), 0.5), config['oracle']['win_rate'])
  build.validate(config)
  if not config['policy']['checkpoint']:
    build.validate(sft.likelihood_config(config))


def arms(config: Config) -> Iterator[Arm]:
  """The runs that `compare` asks for; without it, the one of the config itself."""
  compare = config['compare']
  own = {config['objective']['name']: config['objective']}
  for seed, win_rate, (label, objective) in itertools.product(
    compare['seeds'] or (config['seed'],),
    compare['win_rates'] or (config['oracle']['win_rate'],),
    (compare['objectives'] or own).items(),
  ):
    oracle = {**config['oracle'], 'win_rate': win_rate}
    changed = {'seed': seed, 'oracle': oracle, 'objective': objective}
    yield Arm(label, win_rate, seed, {**config, **changed})


def played(
  config: Config,
  arm: Arm,
  folder: Path,
  cache: Path,
  tools: dict[str, Tools],
  clock: PhaseClock,
  *,
  alone: bool,
) -> dict[str, float]:
  """Runs an arm, or reads what it came to."""
  setting = grpo.prepare(arm.config, cache, clock, print)
  tokenizer = setting.tokenizer
  if not tools:
    mesh = build.mesh(config)
    sampler = DecoderSampler(
      graph=setting.model.graph,
      stop_ids=(tokenizer.eos_id,),
      pad_id=tokenizer.pad_id,
      mesh=mesh,
    )
    tools['shared'] = Tools(setting.model, mesh, sampler)
  play = SelfPlay(
    config=arm.config,
    folder=folder if alone else folder / arm.folder,
    tools=tools['shared'],
    base=setting.policy,
    tokenizer=tokenizer,
    asked=dealt(arm.config, setting.asked),
    oracle=oracles.create(arm.config['oracle']['source'], tokenizer),
    clock=clock,
    say=print,
  )
  params = play.run()
  if alone:
    sft.save_final(folder, config['train']['steps'], params)
  judge = config['evaluation']['oracle'] or config['oracle']['source']
  contest = build.embedded_task(config['data']['source'])
  contest = contest if isinstance(contest, tasks.Contest) else None
  found = head_to_head.compare(play, oracles.create(judge, tokenizer), contest)
  head_to_head.export(play, arm.config, folder.name if alone else arm.folder)
  head_to_head.metrics(play.folder, play, found)
  return found


def dealt(config: Config, asked: Split) -> Split:
  """The questions in the order of the run's seed; iterations take theirs in turn."""
  count = needed(config, len(asked.train))
  order = np.random.default_rng(config['seed']).permutation(len(asked.train))
  return Split(
    [asked.train[i].question for i in order[:count]],
    [one.question for one in asked.held_out],
  )


def needed(config: Config, found: int) -> int:
  """The prompts of all iterations together, of `found` that there are.

  Raises:
    InputError: where there are too few for every iteration to have its own.
  """
  options = config['self_play']
  count = options['iterations'] * options['prompts']
  if count > found:
    raise InputError(
      f'self_play.iterations={options["iterations"]} with {options["prompts"]} prompts '
      f'each need {count} prompts, as none is used twice; {config["data"]["source"]} '
      f'has {found}.'
    )
  return count


# What came out ------------------------------------------------------------------


def reported(
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


if __name__ == '__main__':
  launch.run(main, 'sppo')
