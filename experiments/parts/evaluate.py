"""How a finished policy is judged and reported."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.parts import build, corpus
from prefjax.errors import TrainingError
from prefjax.evaluation.best_of import divergence_bound
from prefjax.evaluation.report import write_report
from prefjax.evaluation.runs import EVALUATION
from prefjax.evaluation.statistics import Estimate
from prefjax.evaluation.true_reward import Comparison, Judge
from prefjax.rollout.responses import Writer
from prefjax.rollout.sampler import DecoderSampler
from prefjax.training import processes
from prefjax.training.files import write_json
from prefjax.training.mesh import place
from prefjax.training.metrics import PhaseClock
from prefjax.training.workdir import Run, append_samples

_CHECK = 'frontier check'
_SEED = 1_000_003  # evaluation's noise has its own seed beside the run's


def finish(
  config: Mapping[str, Any],
  run: Run,
  setting: Any,
  params: Any,
  evaluation: Mapping[str, float],
  clock: PhaseClock,
) -> None:
  """Evaluates, writes samples and the report, and marks the run as finished."""
  task = corpus.embedded_task(config['data']['source'])
  summary: dict[str, Any] = dict(evaluation)
  comparison = None
  if task is not None:
    with clock('evaluate'):
      reference = place(setting.reference, setting.step.mesh)
      comparison = judge(config, task, setting).compare(
        build.on_one_device(params), build.on_one_device(reference)
      )
    summary |= summarise(comparison)
    write_json(run.folder / EVALUATION, details(comparison))
    path = run.folder / 'samples.jsonl'
    processes.shared(lambda: path.unlink(missing_ok=True))
    rows = ({'step': config['train']['steps'], **s} for s in comparison.samples)
    append_samples(path, rows)
  with clock('report'):
    report(run.folder, config, summary, comparison)
  run.finish(summary)


def judge(config: Mapping[str, Any], task: Any, setting: Any) -> Judge:
  """The judge of a task's policies, on prompts that no run trains on."""
  options, data = config['evaluation'], config['data']
  tokenizer = setting.tokenizer
  writer = Writer(
    sampler=DecoderSampler(
      graph=setting.model.graph,
      stop_ids=(tokenizer.eos_id,),
      pad_id=tokenizer.pad_id,
    ),
    tokenizer=tokenizer,
    num_responses=options['samples'],
    max_prompt=data['max_prompt'],
    max_tokens=data['max_response'],
    prompts_at_once=options['prompts_at_once'],
  )
  return Judge(
    task=task,
    forward=setting.model.forward,
    writer=writer,
    prompts=task.prompts(corpus.data_seed(config) + _SEED, options['prompts'], 'test'),
    seed=config['seed'] + _SEED,
  )


def summarise(comparison: Comparison) -> dict[str, Any]:
  """The numbers of a comparison, each with its standard error."""
  verdict = comparison.verdict
  passed = verdict.drawn and not verdict.above
  return {
    'true_reward/policy': float(comparison.policy.mean),
    'true_reward/policy_se': float(comparison.policy.standard_error),
    'true_reward/reference': float(comparison.reference.mean),
    'true_reward/reference_se': float(comparison.reference.standard_error),
    'true_reward/gain': comparison.gain.mean,
    'true_reward/gain_se': comparison.gain.standard_error,
    'true_reward/gain_z': comparison.gain.z,
    'kl': float(comparison.kl.mean),
    'kl_se': float(comparison.kl.standard_error),
    'frontier/excess': verdict.excess,
    'frontier/excess_se': verdict.standard_error,
    'frontier/kl_drawn_to': float(
      comparison.frontier.kl[comparison.frontier.drawn].max()
    ),
    _CHECK: 'passed' if passed else 'FAILED',
  }


def details(comparison: Comparison) -> dict[str, Any]:
  """What a report over several runs reads beside their summaries."""
  line = comparison.frontier
  names = ('betas', 'kl', 'reward', 'reward_se', 'drawn')
  return {
    'frontier': {name: getattr(line, name) for name in names},
    'prompts': comparison.by_prompt,
    'best_of': [
      {
        'n': n,
        'reward': float(found.mean),
        'reward_se': float(found.standard_error),
        'kl_at_most': divergence_bound(n),
      }
      for n, found in comparison.best_of.items()
    ],
  }


def refuse(run: Run) -> None:
  """Raises TrainingError where the check against the exact frontier failed."""
  if run.summary.get(_CHECK) == 'FAILED':
    raise TrainingError(
      f'The policy of {run.folder} lies above the exact frontier, which nothing '
      f'can, or beyond the part of it that the samples can draw; see its report.'
    )


def report(
  folder: Path,
  config: Mapping[str, Any],
  summary: Mapping[str, Any],
  comparison: Comparison | None,
) -> None:
  """Writes report/ of a preference run."""
  name = config['objective']['name']
  extra: dict[str, Any] = {}
  if comparison is not None:
    drawn = comparison.frontier.drawn
    order = np.argsort(comparison.frontier.kl[drawn])
    extra['frontier'] = {
      key: getattr(comparison.frontier, key)[drawn][order]
      for key in ('kl', 'reward', 'reward_se')
    }
    nowhere = Estimate(np.zeros(()), np.zeros(()))
    extra['points'] = {
      'reference': (nowhere, comparison.reference),
      name: (comparison.kl, comparison.policy),
    }
  write_report(
    folder,
    title=f'{name} on {config["data"]["source"]}',
    table=summary,
    **extra,
  )
