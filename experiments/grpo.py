"""Learning from a policy's own samples: GRPO, DAPO, PPO and every on-policy recipe.

python -m experiments.grpo --config=experiments/configs/grpo/arithmetic.py
"""

from collections.abc import Callable
import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from experiments import sft
from experiments.parts import (
  adapted,
  build,
  corpus,
  judging,
  launch,
  reward_models,
  rollouts,
  samplers,
)
from experiments.parts.adapted import Trained
from experiments.parts.build import Config, Model
from experiments.parts.corpus import Split
from experiments.parts.rollouts import Rollouts
from prefjax.data import buckets
from prefjax.data.tokenizers import Tokenizer
from prefjax.errors import InputError
from prefjax.evaluation.report import write_report
from prefjax.models import heads
from prefjax.rewards.journal import Journal
from prefjax.training import mesh as meshes
from prefjax.training import monitor, processes
from prefjax.training.metrics import PhaseClock
from prefjax.training.minibatches import Cutter
from prefjax.training.online import OnlineLoop
from prefjax.training.process import ProcessModel
from prefjax.training.step import Step
from prefjax.training.workdir import Run


class Setting(NamedTuple):
  """All that stands before the first rollout."""

  model: Model
  tokenizer: Tokenizer
  policy: Any  # parameters
  asked: Split


def main(config: Config, workdir: Path, cache: Path) -> None:
  """Policy, questions, rollouts and updates, evaluation, report."""
  validate(config)
  run = sft.opened(config, workdir)
  if run.finished:
    sft.print_summary(run)
    return
  clock = PhaseClock()
  setting = prepare(config, cache, clock, print)
  trained = what_is_trained(config, setting)
  with contextlib.ExitStack() as stack:
    made = rolled(config, run, setting, trained, stack)
    loop = online_loop(config, run, setting, trained, made, clock)
    params, evaluation = loop.run(trained.params)
  sft.save_final(run.folder, config['train']['iterations'], trained.merged(params))
  with clock('report'):
    title = f'{config["objective"]["name"]} on {config["data"]["source"]}'
    write_report(run.folder, title=title, table=evaluation, rollouts=True)
  run.finish(evaluation)
  sft.print_summary(run)


def validate(config: Config) -> None:
  """Refuses a config before anything is computed, compiled or written.

  Raises:
    InputError: naming the key.
  """
  objective = build.objective(config)
  if 'rewards' not in objective.needs or objective.name == 'critic':
    raise InputError(f'{objective.name} does not learn from rollouts.')
  sft.validate(config)
  samplers.controls(config), rollouts.collector(config), rollouts.correction(config)
  judging.check(config)
  size, at_once = (config['rollout'][k] for k in ('group_size', 'responses_at_once'))
  if at_once < 0 or (at_once and size % at_once):
    raise InputError(
      f'rollout.responses_at_once={at_once} must divide the {size} responses of a '
      'group.'
    )
  prompts, parts = config['rollout']['prompts'], config['train']['minibatches']
  shards = meshes.data_shards(build.mesh(config))
  if prompts % (parts * shards):
    raise InputError(
      f'rollout.prompts={prompts} must be a multiple of train.minibatches={parts} '
      f'times the {shards} devices of mesh.data times mesh.fsdp.'
    )


def prepare(
  config: Config, cache: Path, clock: PhaseClock, say: Callable[[str], None]
) -> Setting:
  """The first policy, from a checkpoint or by maximum likelihood, and the questions."""
  model, mesh = build.model(config), build.mesh(config)
  with clock('data'):
    # Before a policy is trained, so that a prompt that does not fit is told at once.
    published = config['policy']['checkpoint']
    records = () if published else corpus.likelihood_records(config).train
    tokenizer = corpus.tokenizer(config, cache, records)
    asked = rollouts.encoded(config, tokenizer, corpus.questions(config), say)
  policy, tokenizer = sft.reference_policy(config, cache, clock, say)
  policy = meshes.place(policy, mesh, memory=config['memory']['reference'])
  return Setting(model, tokenizer, policy, asked)


def rolled(
  config: Config,
  run: Run,
  setting: Setting,
  trained: Trained,
  stack: contextlib.ExitStack,
) -> Rollouts:
  """The rollouts; their pool of verifiers and their journal end with the stack."""
  scorer = stack.enter_context(judging.scorer(config))
  journal = Journal(run.folder / 'rewards.jsonl', writes=processes.first())
  decided = stack.enter_context(journal)
  models = {
    name: reward_models.model_reward(Path(workdir), setting.tokenizer)
    for name, workdir in config['rewards']['models'].items()
  }
  judges = Split(
    *(
      judging.judge(config, scorer, models, written, setting.tokenizer.decode)
      for written in (decided, None)
    )
  )
  return rollouts.create(
    config,
    trained,
    setting.tokenizer,
    build.mesh(config),
    setting.asked,
    judges,
  )


def what_is_trained(config: Config, setting: Setting) -> Trained:
  """The policy, or its adapters, with a value head where it shares its trunk."""
  trained = adapted.trained(config, setting.model, setting.policy, build.mesh(config))
  if 'values' not in build.objective(config).needs:
    return trained
  valued = heads.with_scalar(trained.params, setting.model.config.width)
  return trained._replace(params=valued)


def online_loop(
  config: Config,
  run: Run,
  setting: Setting,
  trained: Trained,
  made: Rollouts,
  clock: PhaseClock,
) -> OnlineLoop:
  """The loop of a config, with a critic of its own where the objective has one."""
  mesh, model, frozen = build.mesh(config), trained.model, trained.frozen
  objective = build.objective(config)
  valued = model._replace(forward=heads.forward(model.forward))
  shared = 'values' in objective.needs
  separate = config['objective'].get('trunk') == 'separate'
  critic_params = heads.with_scalar(heads.trunk(trained.params), model.config.width)
  return OnlineLoop(
    step=build.step(config, valued if shared else model, mesh, frozen),
    plan=build.plan(config),
    collect=made.collect,
    carry=made.carry(),
    cutter=cutter(config),
    folder=run.folder,
    clock=clock,
    description=objective.name,
    seed=config['seed'],
    temperature=config['rollout']['temperature'],
    reference_memory=config['memory']['reference'],
    critic=critic_step(config, valued, mesh, frozen) if separate else None,
    critic_params=critic_params if separate else None,
    process=process_model(config, trained, mesh),
    correction=rollouts.correction(config),
    filter_truncated=config['rollout']['filter_truncated'],
    evaluate=made.evaluate,
    flops=build.flops(config),
    peak=monitor.peak_flops(model.config.dtype),
    wandb_project=config['log']['wandb'] or None,
  )


def critic_step(config: Config, model: Model, mesh: Any, frozen: Any) -> Step:
  """The step of a critic: the policy's optimiser at a rate of its own."""
  clip = config['objective']['value_clip']
  changed = {
    **config,
    'objective': {'name': 'critic', 'value_clip': clip},
    'optimizer': {**config['optimizer'], **config['critic']},
    'log': {**config['log'], 'entropy': False},
  }
  return build.step(changed, model, mesh, frozen)


def process_model(config: Config, trained: Trained, mesh: Any) -> ProcessModel | None:
  """PRIME's reward model, which starts as the policy does; None where none is read."""
  if 'implicit' not in build.objective(config).needs:
    return None
  options = dict(config['process'])
  changed = {
    **config,
    'objective': {'name': 'cross_entropy', 'beta': options.pop('beta')},
    'optimizer': {**config['optimizer'], **options},
    'log': {**config['log'], 'entropy': False},
  }
  return ProcessModel(
    step=build.step(changed, trained.model, mesh, trained.frozen),
    params=trained.params,
    updates=config['train']['minibatches'],
  )


def cutter(config: Config) -> Cutter:
  """How rollouts are cut into micro-batches."""
  data, size = config['data'], config['rollout']
  return Cutter(
    grid=buckets.grid(
      data['max_prompt'],
      data['max_response'],
      multiple=data['bucket_multiple'],
      growth=data['bucket_growth'],
    ),
    max_tokens=data['max_tokens'],
    at_once=size['responses_at_once'],
    shards=meshes.data_shards(build.mesh(config)),
  )


if __name__ == '__main__':
  launch.run(main, 'grpo')
