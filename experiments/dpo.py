"""Offline preference optimisation: DPO and every objective on pairs.

python -m experiments.dpo --config=experiments/configs/dpo/sentiment.py
"""

from collections.abc import Callable
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib

from experiments import build, evaluate, launch, preferences, sft
from experiments.build import Config, Model, Split
from prefjax.data.tokenizers import SentencePiece
from prefjax.errors import InputError
from prefjax.training import checks, monitor
from prefjax.training import reference as references
from prefjax.training.loop import Loop
from prefjax.training.mesh import place_batch
from prefjax.training.metrics import PhaseClock
from prefjax.training.step import Step, hyper
from prefjax.training.workdir import fingerprint

Say = Callable[[str], None]


class Setting(NamedTuple):
  """All that stands before the first update."""

  model: Model
  tokenizer: SentencePiece
  reference: Any  # parameters
  step: Step
  batches: Split


def main(config: Config, workdir: Path, cache: Path) -> None:
  """Reference, preferences, stored log-probs, training, evaluation, report."""
  for part in (config, likelihood_config(config)):
    build.validate(part)
  preferences.check(config)
  run = sft.opened(config, workdir)
  if run.finished:
    sft.print_summary(run)
    return
  clock = PhaseClock()
  setting = prepare(config, cache, clock, print)
  check_step_zero(setting, print)
  loop = Loop(
    step=setting.step,
    batches=setting.batches.train,
    held_out=setting.batches.held_out,
    plan=build.plan(config),
    folder=run.folder,
    clock=clock,
    description=config['objective']['name'],
    flops=lambda batch: monitor.training_flops(setting.model.config, batch),
    peak=monitor.peak_flops(setting.model.config.dtype),
    wandb_project=config['log']['wandb'] or None,
  )
  params, evaluation = loop.run(setting.reference)
  sft.save_final(run.folder, config['train']['steps'], params)
  evaluate.finish(config, run, setting, params, evaluation, clock)
  sft.print_summary(run)
  evaluate.refuse(run)


def prepare(config: Config, cache: Path, clock: PhaseClock, say: Say) -> Setting:
  """The reference, trained if the config names none, and the pairs scored by it."""
  reference, tokenizer = reference_policy(config, cache, clock, say)
  model, mesh = build.model(config), build.mesh(config)
  reference = build.placed(reference, mesh)
  identity = references.params_fingerprint(reference)
  alone = build.on_one_device(reference)
  data = preferences.prepared(config, cache, clock, model, tokenizer, alone, identity)
  build.say_counts(data, say)
  step = build.step(config, model, mesh)
  batches = [build.batches(config, part, mesh, tokenizer.pad_id) for part in data]
  if 'reference_logps' in step.objective.needs:
    batches = [
      _scored(config, cache, clock, say, step, reference, identity, part)
      for part in batches
    ]
  return Setting(model, tokenizer, reference, step, Split(*batches))


def reference_policy(
  config: Config, cache: Path, clock: PhaseClock, say: Say
) -> tuple[Any, SentencePiece]:
  """The reference of the run `reference.workdir`, or one trained and cached here."""
  own = likelihood_config(config)
  named = config['reference']['workdir']
  folder = Path(named) if named else cache / f'reference-{_identity(own)}'
  if named and not (folder / 'DONE').exists():
    raise InputError(f'reference.workdir={named} holds no finished run.')
  with clock('reference'):
    run = sft.opened(own, folder)
    if not run.finished:
      say(f'reference: training by maximum likelihood in {folder}')
    return sft.train(own, run, cache, PhaseClock(), say)


def likelihood_config(config: Config) -> dict[str, Any]:
  """The config of the maximum-likelihood run that makes this run's reference."""
  stage = config['reference']
  shared = ('seed', 'model', 'tokenizer', 'mesh', 'log')
  return {
    **{name: config[name] for name in shared},
    'data': {**config['data'], **stage['data']},
    **{name: stage[name] for name in ('objective', 'optimizer', 'train')},
  }


def _identity(config: Config) -> str:
  return fingerprint([config, build.source_fingerprint(config)])


def _scored(config, cache, clock, say, step, reference, identity, batches):
  """Batches with stored reference log-probs; no objective's number is in the key."""
  key = fingerprint(
    [
      identity,
      batches.data.digest,
      config['model'],
      batches.grid,
      [jax.default_backend(), jax.__version__, jaxlib.__version__],
      [batches.batch_size, batches.max_tokens, batches.shards],
    ]
  )
  directory = cache / f'logps-{key}'
  if not directory.exists():
    say(f'reference: scoring {len(batches.data)} prompts')
  with clock('reference'):
    stored = references.stored_logps(step, reference, batches, directory)
  return dataclasses.replace(batches, reference=stored)


def check_step_zero(setting: Setting, say: Say) -> None:
  """Prints what must hold before the first update, and stops if it does not."""
  batch = setting.batches.train.at(0)[0]
  if setting.step.mesh is not None:
    batch = place_batch(batch, setting.step.mesh)
  numbers = hyper(setting.step.objective, setting.step.optimizer)
  found = checks.step_zero(setting.step, setting.reference, batch, numbers)
  for check in found:
    say(f'step 0: {check}')
  checks.refuse(found)


if __name__ == '__main__':
  launch.run(main, 'dpo')
