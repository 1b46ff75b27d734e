"""Maximum likelihood on responses: a reference policy, or a baseline.

python -m experiments.sft --config=experiments/configs/sft/sentiment.py
"""

from collections.abc import Callable
import contextlib
from pathlib import Path
from typing import Any

import jax

from experiments.parts import build, corpus, launch, published
from experiments.parts.build import Config
from prefjax.data.tokenizers import Tokenizer
from prefjax.errors import InputError
from prefjax.evaluation.report import write_report
from prefjax.training import determinism, monitor
from prefjax.training.checkpoints import Checkpoints
from prefjax.training.files import fingerprint, locked
from prefjax.training.loop import Loop
from prefjax.training.mesh import place
from prefjax.training.metrics import PhaseClock
from prefjax.training.workdir import PLACES, Run, open_run


def main(config: Config, workdir: Path, cache: Path) -> None:
  """Trains, or goes on, or prints what a finished run ended with."""
  if build.lora(config) is not None:
    raise InputError(
      'experiments.sft starts from random weights, beside which adapters learn little: '
      'set lora.rank=0, or give experiments.dpo the objective sft and a '
      'policy.checkpoint.'
    )
  build.validate(config)
  run = opened(config, workdir)
  if not run.finished:
    clock = PhaseClock()
    train(config, run, cache, clock, print)
    write_report(run.folder, title='Maximum likelihood')
  print_summary(run)


def opened(config: Config, workdir: Path) -> Run:
  """The run's folder; refuses that of another run before anything is computed."""
  devices = jax.devices()
  run = open_run(
    workdir,
    config,
    devices={
      'backend': jax.default_backend(),
      'kinds': sorted({device.device_kind for device in devices}),
      'count': len(devices),
      **({} if determinism.holds() else {'deterministic': False}),
    },
    fingerprints={'data': corpus.source_fingerprint(config)},
  )
  for warning in run.warnings:
    print(f'warning: {warning}')
  if not determinism.holds():
    print(
      'warning: deterministic operations are off: made again, this run ends with '
      'other bits. XLA_FLAGS=--xla_gpu_deterministic_ops=true turns them on.'
    )
  return run


def print_summary(run: Run) -> None:
  """The final numbers of a run, and where to read more."""
  for name, value in run.summary.items():
    print(f'{name:>32}  {value}')
  print(f'report: {run.folder / "report" / "index.html"}')


def train(
  config: Config,
  run: Run,
  cache: Path,
  clock: PhaseClock,
  say: Callable[[str], None],
) -> tuple[Any, Tokenizer]:
  """Trains in the run's folder, or reads what was trained; also the tokenizer."""
  with clock('data'):
    records = corpus.likelihood_records(config)
    tokenizer = corpus.tokenizer(config, cache, records.train)
    key = ['likelihood', corpus.source_fingerprint(config), config['seed']]
    key.append(config['data'])
    data = build.prepared(config, cache, tokenizer, records, key)
    build.say_counts(data, say)
  model = build.model(config)
  mesh = build.mesh(config)
  train, held_out = (
    build.batches(config, part, mesh, tokenizer.pad_id) for part in data
  )
  initial = build.initial_params(config, model, mesh)
  if run.finished:
    return final_params(run.folder, initial), tokenizer
  initial = place(initial, mesh, memory=config['memory']['reference'])
  loop = Loop(
    step=build.step(config, model, mesh),
    batches=train,
    held_out=held_out,
    plan=build.plan(config),
    folder=run.folder,
    clock=clock,
    description=run.folder.name,
    flops=build.flops(config),
    peak=monitor.peak_flops(model.config.dtype),
    say=say,
    wandb_project=config['log']['wandb'] or None,
  )
  params, evaluation = loop.run(initial)
  save_final(run.folder, config['train']['steps'], params)
  run.finish(evaluation)
  return params, tokenizer


def reference_policy(
  config: Config, cache: Path, clock: PhaseClock, say: Callable[[str], None]
) -> tuple[Any, Tokenizer]:
  """The reference: a published checkpoint, a run's, or one trained and cached here."""
  own = likelihood_config(config)
  named = config['reference']['workdir']
  if config['policy']['checkpoint']:
    with clock('reference'):
      params = published.checkpoint(config, build.mesh(config))
    return params, corpus.tokenizer(config, cache, [])
  folder = Path(named) if named else cache / f'reference-{_identity(own)}'
  if named and not (folder / 'DONE').exists():
    raise InputError(f'reference.workdir={named} holds no finished run.')
  with clock('reference'), contextlib.nullcontext() if named else locked(folder):
    run = opened(own, folder)
    if not run.finished:
      say(f'reference: training by maximum likelihood in {folder}')
    return train(own, run, cache, PhaseClock(), say)


def validate(config: Config) -> None:
  """Refuses a config, or one of the run that makes its reference.

  Raises:
    InputError: naming the key.
  """
  build.validate(config)
  name = config['policy']['checkpoint']
  if not name:
    build.validate(likelihood_config(config))
  elif not config['tokenizer']['path']:
    raise InputError(f'policy.checkpoint={name} needs its tokenizer.path.')


def likelihood_config(config: Config) -> dict[str, Any]:
  """The config of the maximum-likelihood run that makes this run's reference."""
  stage = config['reference']
  shared = ('model', 'tokenizer', 'policy', 'records', *PLACES, 'log')
  data = {name: value for name, value in config['data'].items() if name != 'seed'}
  return {
    'seed': corpus.data_seed(config),
    **{name: config[name] for name in shared},
    'lora': {**config['lora'], 'rank': 0},  # its adapters would be on random weights
    'data': {**data, **stage['data']},
    **{name: stage[name] for name in ('objective', 'optimizer', 'train')},
  }


def _identity(config: Config) -> str:
  decisive = {name: block for name, block in config.items() if name not in PLACES}
  return fingerprint([decisive, corpus.source_fingerprint(config)])


def save_final(folder: Path, step: int, params: Any) -> None:
  """The trained parameters alone, for whoever builds on this run."""
  with Checkpoints(folder / 'final', keep=1) as saver:
    if saver.latest() is None:
      saver.save(step, params, metadata={})


def final_params(folder: Path, like: Any) -> Any:
  """The parameters that a finished run in `folder` ended with."""
  with Checkpoints(folder / 'final', keep=1) as saver:
    return saver.restore(like).state


if __name__ == '__main__':
  launch.run(main, 'sft')
