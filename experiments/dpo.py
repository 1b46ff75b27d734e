"""Offline preference optimisation: DPO and every objective on pairs.

python -m experiments.dpo --config=experiments/configs/dpo/sentiment.py
"""

from collections.abc import Callable
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib

from experiments import sft
from experiments.parts import adapted, build, evaluate, launch, preferences
from experiments.parts.adapted import Trained
from experiments.parts.build import Config, Model
from experiments.parts.corpus import Split
from prefjax.data.pipeline import Batches
from prefjax.data.tokenizers import Tokenizer
from prefjax.training import checks, monitor
from prefjax.training import reference as references
from prefjax.training.files import fingerprint
from prefjax.training.loop import Loop
from prefjax.training.mesh import place, place_batch
from prefjax.training.metrics import PhaseClock
from prefjax.training.step import Step, hyper

Say = Callable[[str], None]


class Setting(NamedTuple):
  """All that stands before the first update."""

  model: Model
  tokenizer: Tokenizer
  reference: Any  # parameters
  trained: Trained
  step: Step
  batches: Split


def main(config: Config, workdir: Path, cache: Path) -> None:
  """Reference, preferences, stored log-probs, training, evaluation, report."""
  sft.validate(config)
  preferences.check(config)
  build.moving(config)
  run = sft.opened(config, workdir)
  if run.finished:
    sft.print_summary(run)
    return
  clock = PhaseClock()
  setting = prepare(config, cache, clock, print)
  check_step_zero(setting, print)
  setting = set_aside(config, setting)
  loop = Loop(
    step=setting.step,
    batches=setting.batches.train,
    held_out=setting.batches.held_out,
    moving=build.moving(config),
    reference_memory=config['memory']['reference'],
    plan=build.plan(config),
    folder=run.folder,
    clock=clock,
    description=config['objective']['name'],
    flops=build.flops(config),
    peak=monitor.peak_flops(setting.model.config.dtype),
    wandb_project=config['log']['wandb'] or None,
  )
  params, evaluation = loop.run(setting.trained.params)
  params = setting.trained.merged(params)
  sft.save_final(run.folder, config['train']['steps'], params)
  evaluate.finish(config, run, setting, params, evaluation, clock)
  sft.print_summary(run)
  evaluate.refuse(run)


def prepare(config: Config, cache: Path, clock: PhaseClock, say: Say) -> Setting:
  """The reference, trained if the config names none, and the pairs scored by it."""
  reference, tokenizer = sft.reference_policy(config, cache, clock, say)
  model, mesh = build.model(config), build.mesh(config)
  reference = place(reference, mesh)
  identity = references.params_fingerprint(reference)
  data = preferences.prepared(
    config, cache, clock, model, tokenizer, reference, identity
  )
  build.say_counts(data, say)
  trained = adapted.trained(config, model, reference, mesh)
  step = build.step(config, trained.model, mesh, trained.frozen)
  batches = [build.batches(config, part, mesh, tokenizer.pad_id) for part in data]
  if 'reference_logps' in step.objective.needs and build.moving(config) is None:
    # By the base alone, so that runs with and without adapters share them.
    scorer = step if trained.lora is None else build.step(config, model, mesh)
    batches = [
      scored(config, cache, clock, say, scorer, reference, identity, part)
      for part in batches
    ]
  return Setting(model, tokenizer, reference, trained, step, Split(*batches))


def scored(
  config: Config,
  cache: Path,
  clock: PhaseClock,
  say: Say,
  step: Step,
  reference: Any,
  identity: str,
  batches: Batches,
) -> Batches:
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
  needs = setting.step.objective.needs
  if 'reference_logps' in needs and batch.reference_logps is None:
    logps = setting.step.score(setting.trained.params, batch).logps
    batch = batch.replace(reference_logps=logps)
  numbers = hyper(setting.step.objective, setting.step.optimizer)
  found = checks.step_zero(setting.step, setting.trained.params, batch, numbers)
  for check in found:
    say(f'step 0: {check}')
  checks.refuse(found)


def set_aside(config: Config, setting: Setting) -> Setting:
  """The setting with its reference where it waits while the policy is trained."""
  if setting.trained.lora is not None:
    return setting  # the base of adapters, which every update reads
  memory, mesh = config['memory']['reference'], setting.step.mesh
  reference = place(setting.reference, mesh, memory=memory)
  trained = setting.trained._replace(params=reference)
  return setting._replace(reference=reference, trained=trained)


if __name__ == '__main__':
  launch.run(main, 'dpo')
