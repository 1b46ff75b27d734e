"""Process reward models from outcomes, and how well they choose and find errors.

python -m experiments.prm --config=experiments/configs/prm/arithmetic.py
"""

import dataclasses
from pathlib import Path

from experiments import sft
from experiments.parts import build, corpus, launch, pools, process_table
from experiments.parts.build import Config
from experiments.parts.corpus import Split
from experiments.parts.pools import Author, Pool
from experiments.parts.process_models import Member, Workshop, members
from prefjax.data import solutions
from prefjax.data.records import Record
from prefjax.errors import InputError
from prefjax.models import decoder
from prefjax.rewards import outcomes
from prefjax.training import processes
from prefjax.training import reference as references
from prefjax.training.metrics import PhaseClock
from prefjax.training.workdir import Run


def main(config: Config, workdir: Path, cache: Path) -> None:
  """Policy, pools, every model with its scores, tables and report."""
  validate(config)
  run = sft.opened(config, workdir)
  if not run.finished:
    clock = PhaseClock()
    workshop = opened(config, run, cache, clock)
    found = [workshop.scored(member) for member in members(config)]
    with clock('evaluate'):
      summary = process_table.written(config, run.folder, workshop.judged, found)
    run.finish(summary)
  sft.print_summary(run)


def validate(config: Config) -> None:
  """Refuses a config before anything is computed, compiled or written.

  Raises:
    InputError: naming the key.
  """
  if not processes.alone():
    raise InputError('experiments.prm runs in one process.')
  if build.lora(config) is not None:
    raise InputError('lora.rank must be 0: experiments.prm trains whole models.')
  if config['memory']['reference'] != 'device':
    raise InputError(
      'memory.reference must be device: experiments.prm samples and scores with its '
      'policy between the models.'
    )
  for member in members(config):
    _check(config, member)
    sft.validate(member.config)
  process_table.validate(config)
  bench(config)
  pools.segment(config)
  if corpus.embedded_task(config['data']['source']) is None:
    process_table.pooled(config, pools.read(config).held_out.records)


def _check(config: Config, member: Member) -> None:
  objective = build.objective(member.config)
  implicit = {'reference_logps'} <= objective.needs and 'rewards' not in objective.needs
  if not (member.valued or implicit):
    raise InputError(
      f'prms.{member.name}: {objective.name} gives no rewards of steps, neither as '
      'log-ratios to a reference nor as values.'
    )
  for key, got, known in (
    ('labels', member.labels, outcomes.STEP_LABELS if member.valued else ('',)),
    ('balance', member.balance, outcomes.BALANCES),
  ):
    if got not in known:
      raise InputError(
        f'prms.{member.name}.{key} must be one of {list(known)}, got {got!r}.'
      )
  task = corpus.embedded_task(config['data']['source'])
  if member.labels in ('hard', 'soft'):
    if task is None:
      raise InputError(
        f'prms.{member.name}.labels={member.labels} need a verifier of continuations, '
        'which data that is read does not have.'
      )
    data = config['data']
    # A continuation may be as long as a response, whatever stands before it.
    longest = data['max_prompt'] + 2 * data['max_response']
    decoder.check_positions(build.model(config).config, longest)


def opened(config: Config, run: Run, cache: Path, clock: PhaseClock) -> Workshop:
  """The policy, the pools, and the workshop of the models."""
  author = _author(config, cache, clock)
  task = corpus.embedded_task(config['data']['source'])
  with clock('rollout'):
    found = (
      pools.read(config) if task is None else pools.drawn(config, cache, task, author)
    )
  judged = {'pool': found.held_out.records} | bench(config)
  # What is judged on the bench has not learnt from its problems, nor from step labels.
  asked = {record.prompt for record in judged.get('bench', ())}
  learnt = [
    dataclasses.replace(record, step_labels=None)
    for record in found.train.records
    if record.prompt not in asked
  ]
  for name, part in zip(Split._fields, found, strict=True):
    print(f'pool {name}: {_told(part)}')
  if asked:
    print(f'left out for the bench: {len(found.train.records) - len(learnt)} prompts')
  return Workshop(
    config=config,
    folder=run.folder,
    cache=cache,
    clock=clock,
    author=author,
    learnt=learnt,
    judged=judged,
    sampling=found.train.flops,
  )


def _author(config: Config, cache: Path, clock: PhaseClock) -> Author:
  """The policy, from a checkpoint or by maximum likelihood: the models' reference."""
  policy, tokenizer = sft.reference_policy(config, cache, clock, print)
  policy = build.on_one_device(policy)
  return Author(
    model=build.model(config),
    tokenizer=tokenizer,
    policy=policy,
    identity=references.params_fingerprint(policy),
  )


def bench(config: Config) -> dict[str, list[Record]]:
  """The solutions of ProcessBench as records, where the config names a file."""
  options = config['processbench']
  if not options['source']:
    return {}
  names = ('prompt', 'separator', 'lead')
  found = [
    solution.record(**{name: options[name] for name in names})
    for solution in solutions.read(options['source'], 'processbench')
  ]
  return {'bench': found}


def _told(pool: Pool) -> str:
  labels = [label for record in pool.records for label in record.labels]
  share = sum(labels) / max(len(labels), 1)
  return f'{len(pool.records)} prompts, {len(labels)} responses, {share:.3f} right'


if __name__ == '__main__':
  launch.run(main, 'prm')
