"""Self-play: SPPO as the paper iterates it, iterative DPO and IPO, compared.

python -m experiments.sppo --config=experiments/configs/sppo/cycle.py

A run is one arm, or, where `compare` lists several, one for each objective, kind of win
rate and seed in a folder of its own, with the same prompts, samples and updates.
"""

from collections.abc import Iterator
import itertools
from pathlib import Path

import numpy as np

from experiments import grpo, sft
from experiments.parts import (
  build,
  comparison,
  corpus,
  head_to_head,
  launch,
  oracles,
  picks,
  self_play,
)
from experiments.parts.build import Config
from experiments.parts.comparison import Arm
from experiments.parts.corpus import Split
from experiments.parts.self_play import SelfPlay, Tools
from prefjax import tasks
from prefjax.errors import InputError
from prefjax.rewards import wins
from prefjax.rollout.sampler import DecoderSampler
from prefjax.training.metrics import PhaseClock


def main(config: Config, workdir: Path, cache: Path) -> None:
  """Base policies, arms, win rates between iterates, report."""
  validate(config)
  run = sft.opened(config, workdir)
  if run.finished:
    sft.print_summary(run)
    return
  clock = PhaseClock()
  every = list(arms(config))
  bases: dict[int, grpo.Setting] = {}
  tools, found = None, []
  for arm in every:
    if arm.seed not in bases:
      bases[arm.seed] = grpo.prepare(arm.config, cache, clock, print)
    base = bases[arm.seed]
    tools = tools or shared(config, base)
    folder = run.folder if len(every) == 1 else run.folder / arm.folder
    found.append((arm, played(arm, folder, base, tools, clock)))
  with clock('report'):
    summary = comparison.report(config, run, found)
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
  least = {
    'self_play': dict(iterations=1, prompts=1, responses=2, prompts_at_once=1),
    'evaluation': dict(prompts=2, samples=1),
  }
  for block, keys in least.items():
    for key, fewest in keys.items():
      if config[block][key] < fewest:
        raise InputError(
          f'{block}.{key} must be at least {fewest}, got {config[block][key]}.'
        )
  if options['use'] not in picks.USES:
    raise InputError(
      f'self_play.use must be one of {list(picks.USES)}, got {options["use"]!r}.'
    )
  self_play.controls(config)
  for source in (config['oracle']['source'], config['evaluation']['oracle']):
    if source:
      oracles.check(source)
  # Before a policy is trained, so that too few prompts are told at once.
  needed(config, len(corpus.questions(config).train))


def _validate_arm(config):
  objective = build.objective(config)
  strange = {'rewards', 'scores', 'step_label'} & objective.needs
  if strange:
    raise InputError(
      f'{objective.name} needs {sorted(strange)}; self-play gives pairs, labels and '
      'win rates.'
    )
  wins.as_used(np.full((1, 1, 1), 0.5), config['oracle']['win_rate'])
  sft.validate(config)
  if build.lora(config) is not None:
    raise InputError('experiments.sppo trains all parameters: set lora.rank=0.')


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


def shared(config: Config, base: grpo.Setting) -> Tools:
  """What serves every arm: model, sampler and, as they come, compiled steps."""
  mesh, tokenizer = build.mesh(config), base.tokenizer
  sampler = DecoderSampler(
    graph=base.model.graph,
    stop_ids=(tokenizer.eos_id,),
    pad_id=tokenizer.pad_id,
    mesh=mesh,
  )
  return Tools(base.model, mesh, sampler)


def played(
  arm: Arm, folder: Path, base: grpo.Setting, tools: Tools, clock: PhaseClock
) -> dict[str, float]:
  """Runs an arm, or goes on with it, and says what it came to."""
  config, tokenizer = arm.config, base.tokenizer
  play = SelfPlay(
    config=config,
    folder=folder,
    tools=tools,
    base=base.policy,
    tokenizer=tokenizer,
    asked=dealt(config, base.asked),
    oracle=oracles.create(config['oracle']['source'], tokenizer),
    clock=clock,
    say=print,
  )
  params = play.run()
  sft.save_final(folder, config['train']['steps'], params)
  judge = config['evaluation']['oracle'] or config['oracle']['source']
  task = corpus.embedded_task(config['data']['source'])
  contest = task if isinstance(task, tasks.Contest) else None
  found = head_to_head.compare(play, oracles.create(judge, tokenizer), contest)
  head_to_head.export(play, folder.name)
  head_to_head.metrics(play, found)
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


if __name__ == '__main__':
  launch.run(main, 'sppo')
