"""A reward model from pairs: scores of single responses, or a model that compares two.

python -m experiments.rm --config=experiments/configs/rm/sentiment.py

`reads` says which. Both learn from the same pairs by the Bradley-Terry likelihood, of a
difference of scores or of g(a, b) - g(b, a); a pair's preference may be soft.
"""

from collections.abc import Callable
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import sft
from experiments.parts import adapted, build, launch, preferences, reward_models
from experiments.parts.adapted import Trained
from experiments.parts.build import Config
from experiments.parts.corpus import Split
from prefjax.data import sources
from prefjax.data.ordered import ordered
from prefjax.data.pipeline import Batches
from prefjax.data.prepare import Prepared
from prefjax.data.tokenizers import Tokenizer
from prefjax.errors import InputError
from prefjax.evaluation import reward_quality
from prefjax.evaluation.report import write_report
from prefjax.models import heads
from prefjax.training import monitor
from prefjax.training import reference as references
from prefjax.training.loop import Loop
from prefjax.training.mesh import on_host, place, place_batch
from prefjax.training.metrics import PhaseClock
from prefjax.training.step import Step
from prefjax.training.workdir import Run

Say = Callable[[str], None]


class Setting(NamedTuple):
  """All that stands before the first update."""

  tokenizer: Tokenizer
  trained: Trained
  batches: Split


def main(config: Config, workdir: Path, cache: Path) -> None:
  """Trunk of the reference, pairs, training, and how well it is calibrated."""
  validate(config)
  run = sft.opened(config, workdir)
  if run.finished:
    sft.print_summary(run)
    return
  clock = PhaseClock()
  setting = prepare(config, cache, clock, print)
  trained = setting.trained
  step = build.step(config, trained.model, build.mesh(config), trained.frozen)
  found = [
    train(config, run, setting, step, clock, i) for i in range(config['ensemble'])
  ]
  members, evaluations = zip(*found, strict=True)
  with clock('evaluate'):
    summary = {**evaluations[0], **evaluate(config, cache, setting, step, members)}
  with clock('report'):
    title = f'Reward model on {config["data"]["source"]}'
    write_report(run.folder, title=title, table=summary)
  run.finish(summary)
  sft.print_summary(run)


def validate(config: Config) -> None:
  """Refuses a config before anything is computed, compiled or written.

  Raises:
    InputError: naming the key.
  """
  sft.validate(config)
  if config['reads'] not in reward_models.READS:
    raise InputError(
      f'reads must be one of {list(reward_models.READS)}, got {config["reads"]!r}.'
    )
  if config['ensemble'] < 1:
    raise InputError(f'ensemble must be at least 1, got {config["ensemble"]}.')
  preferences.check(config)
  for source in config['evaluation']['sources']:
    sources.fingerprint(source)
  if 'scores' not in build.objective(config).needs:
    raise InputError(f'{config["objective"]["name"]} trains no reward model.')


def prepare(config: Config, cache: Path, clock: PhaseClock, say: Say) -> Setting:
  """The model with a scalar head on the reference's trunk, and the pairs."""
  reference, tokenizer = sft.reference_policy(config, cache, clock, say)
  base, mesh = build.model(config), build.mesh(config)
  reference = place(reference, mesh)
  identity = references.params_fingerprint(reference)
  data = preferences.prepared(
    config, cache, clock, base, tokenizer, reference, identity
  )
  build.say_counts(data, say)
  batches = Split(*(_batches(config, part, tokenizer) for part in data))
  trained = adapted.trained(config, base, reference, mesh)
  params = heads.with_scalar(trained.params, base.config.width)
  params = place(params, mesh, memory=config['memory']['reference'])
  model = trained.model._replace(forward=heads.forward(trained.model.forward))
  trained = trained._replace(model=model, params=params)
  return Setting(tokenizer, trained, batches)


def _batches(config: Config, data: Prepared, tokenizer: Tokenizer) -> Batches:
  if config['reads'] == 'pair':
    data = ordered(data, tokenizer.eos_id)
  return build.batches(config, data, build.mesh(config), tokenizer.pad_id)


def train(
  config: Config, run: Run, setting: Setting, step: Step, clock: PhaseClock, member: int
) -> tuple[Any, dict[str, float]]:
  """A member's parameters and its last evaluation; members differ by their order."""
  folder = reward_models.member_folder(run.folder, member)
  folder.mkdir(exist_ok=True)
  order = dataclasses.replace(setting.batches.train, seed=config['seed'] + member)
  loop = Loop(
    step=step,
    batches=order,
    held_out=setting.batches.held_out,
    plan=build.plan(config),
    folder=folder,
    clock=clock,
    description=f'{config["objective"]["name"]} {member + 1}/{config["ensemble"]}',
    flops=build.flops(config),
    peak=monitor.peak_flops(setting.trained.model.config.dtype),
    wandb_project=config['log']['wandb'] or None,
  )
  params, evaluation = loop.run(setting.trained.params)
  final = setting.trained.merged(params)
  sft.save_final(folder, config['train']['steps'], final)
  return params, evaluation


def evaluate(
  config: Config, cache: Path, setting: Setting, step: Step, members: Any
) -> dict[str, float]:
  """How good the ensemble is on held-out pairs, and on those of further sources."""
  found = judged(config, setting, step, members, setting.batches.held_out, 'held_out')
  for source in config['evaluation']['sources']:
    name = Path(source.partition(':')[2]).stem
    records = list(preferences.paired(sources.read(source)))
    data = build.prepared(
      config,
      cache,
      setting.tokenizer,
      Split(records, records[:1]),
      ['evaluation', sources.fingerprint(source)],
    )
    batches = _batches(config, data.train, setting.tokenizer)
    found |= judged(config, setting, step, members, batches, name)
  return found


def judged(
  config: Config,
  setting: Setting,
  step: Step,
  members: Any,
  batches: Batches,
  name: str,
) -> dict[str, float]:
  """The numbers of `prefjax.evaluation.reward_quality`, under `name`."""
  eos_id = setting.tokenizer.eos_id if config['reads'] == 'pair' else None
  parts = []
  for rows, batch in batches.once():
    placed = batch if step.mesh is None else place_batch(batch, step.mesh)
    scores = [on_host(step.score(params, placed).scores) for params in members]
    parts.append(reward_quality.compared(batch, rows, np.stack(scores), eos_id))
  pairs = reward_quality.joined(parts)
  return {f'{name}/{k}': v for k, v in reward_quality.summary(pairs).items()}


if __name__ == '__main__':
  launch.run(main, 'rm')
