"""From a resolved config to the judge of sampled responses."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from experiments.parts import build
from experiments.parts.build import Config
from prefjax.errors import InputError
from prefjax.rewards.journal import Journal
from prefjax.rewards.judge import Judge
from prefjax.rewards.pool import Scorer
from prefjax.training import processes


def scorer(config: Config) -> Scorer:
  """The pool of verifiers; a context manager."""
  rewards = config['rewards']
  return Scorer(
    rewards['verifiers'], seconds=rewards['seconds'], workers=rewards['workers']
  )


def check(config: Config) -> None:
  """Refuses rewards that do not fit together, before any process is started.

  Raises:
    InputError: also where the objective reads steps, and no reward is of steps.
  """
  rewards = config['rewards']
  with Scorer(rewards['verifiers'], seconds=rewards['seconds'], workers=0) as idle:
    found = judge(config, idle, rewards['models'], None)
  if 'step' in build.objective(config).needs and not found.stepwise:
    raise InputError(
      'objective.supervision=process reads the rewards of single steps, and none of '
      f'rewards.verifiers={rewards["verifiers"]} gives them: add one that does, such '
      'as steps:arithmetic, with its weight.'
    )


def judge(
  config: Config,
  scorer: Scorer,
  models: Mapping[str, Any],
  decided: Journal | None,
  decode: Callable[[Sequence[int]], str] | None = None,
) -> Judge:
  """The rewards of `config.rewards`, written to `decided` before they are used."""
  rewards = config['rewards']
  cache = rewards['overlong_cache']
  weights = dict(rewards['weights'])
  if cache:
    weights['overlong'] = rewards['overlong_weight']
  return Judge(
    scorer=scorer,
    weights=weights,
    gate=rewards['gate'],
    threshold=rewards['threshold'],
    overlong=(config['data']['max_response'], cache) if cache else None,
    token_cost=rewards['token_cost'],
    models=models,
    decode=decode,
    decided=decided,
    part=(jax.process_index(), jax.process_count()),
    share=processes.gathered,
  )
