"""Best-of-N, votes and first errors of process reward models: tables and a report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import special

from experiments.parts import process_steps
from experiments.parts.build import Config
from experiments.parts.process_models import Scored
from experiments.parts.process_steps import shown
from prefjax.data.records import Record
from prefjax.errors import InputError
from prefjax.evaluation import plots, selection
from prefjax.evaluation.report import write_report
from prefjax.evaluation.statistics import Estimate, mean_and_standard_error
from prefjax.rewards import process
from prefjax.training.files import write_json

_VOTE = ' vote'  # behind a model's name, where its scores weigh a vote
_HOW = ('min', 'sum', 'mean', 'last')
_BESIDE = ('policy', 'majority', 'oracle')  # choices of no model that was trained
_CURVES = (
  'The share of held-out prompts whose chosen response is right, by the number of '
  'candidates it is chosen from, with one standard error over prompts.'
)


class Pool(NamedTuple):
  """A held-out pool of n candidates for each of p prompts."""

  right: np.ndarray  # [p, n]
  answers: list[list[str]] | None


def validate(config: Config) -> None:
  """Refuses an evaluation that cannot be made, naming the key."""
  options = config['evaluation']
  for key, known in (('form', process.FORMS), ('how', _HOW)):
    if options[key] not in known:
      raise InputError(
        f'evaluation.{key} must be one of {list(known)}, got {options[key]!r}.'
      )
  taken = sorted(set(_BESIDE) & set(config.get('prms', ())))
  if taken:
    raise InputError(f'prms.{taken[0]}: the tables call another choice {taken[0]!r}.')
  count = config['pool']['candidates']
  wrong = [size for size in options['sizes'] if size < 1 or count % size]
  if wrong or not options['sizes']:
    raise InputError(
      f'evaluation.sizes must divide the {count} candidates of a prompt, got '
      f'{list(options["sizes"])}.'
    )


def written(
  config: Config,
  folder: Path,
  judged: Mapping[str, Sequence[Record]],
  models: Sequence[Scored],
) -> dict[str, float]:
  """Writes tables and report; returns the numbers of the curves."""
  pool = pooled(config, judged['pool'])
  curves = all_curves(config, pool, models)
  bench = judged.get('bench', ())
  tables = {
    'Best of N': _best_table(config, curves, models),
    'Steps of the held-out pool': process_steps.of_pool(config, judged['pool'], models),
    'First errors on ProcessBench': process_steps.of_bench(bench, models),
    'Every way to score': _variants(config, pool, models),
  }
  write_json(folder / 'tables.json', tables)
  images = {
    name: (_drawn(title, curves, votes), title, _CURVES)
    for name, title, votes in (
      ('best_of_n', 'Best of N', False),
      ('votes', 'Weighted votes', True),
    )
    if not votes or pool.answers is not None
  }
  write_report(
    folder,
    title=f'Process rewards on {config["data"]["source"]}',
    images=images,
    tables={heading: rows for heading, rows in tables.items() if rows},
    notes=_NOTES,
  )
  return _summary(curves)


_NOTES = (
  'Errors are one standard error: over prompts for choices, by drawing prompts anew '
  'for steps.',
  'FLOPs are counted from lengths, padding left out: 2 a weight and token for a '
  'forward, three times that for an update. `sampling` of what is learnt from is the '
  'same for all; `scoring` is that of one response.',
  'A threshold that tells right steps from wrong ones was chosen on other prompts than '
  'it is used on.',
)


def pooled(config: Config, records: Sequence[Record]) -> Pool:
  """Outcomes and answers of a pool.

  Raises:
    InputError: where prompts have different numbers of candidates.
  """
  count = config['pool']['candidates']
  wrong = [len(r.responses) for r in records if len(r.responses) != count]
  if wrong:
    raise InputError(
      f'Each held-out prompt needs pool.candidates={count} responses; {len(wrong)} '
      f'have others, the first {wrong[0]}.'
    )
  mark = config['evaluation']['answer_after']
  answers = [[x.rpartition(mark)[2].strip() for x in r.responses] for r in records]
  right = np.array([r.labels for r in records]) >= 0.5
  return Pool(right, answers if mark else None)


# Choices ------------------------------------------------------------------------


def all_curves(
  config: Config, pool: Pool, models: Sequence[Scored]
) -> dict[str, dict[int, Estimate]]:
  """The share right by N: of each model, by majority, and of the oracle."""
  choices = {
    scored.member.name: _best(pool, score(scored, **_headline(config, scored)))
    for scored in models
  }
  implicit = next((one for one in models if not one.member.valued), None)
  if implicit is not None:
    choices['policy'] = _best(pool, _likelihood(config, implicit))
  if pool.answers is not None:
    choices['majority'] = lambda n: selection.vote(pool.answers, pool.right, n)
    for scored in models:
      weights = score(scored, **_headline(config, scored))
      choices[scored.member.name + _VOTE] = _vote(pool, scored, weights)
  choices['oracle'] = lambda n: selection.oracle(pool.right, n)
  return {
    name: {n: mean_and_standard_error(choose(n)) for n in config['evaluation']['sizes']}
    for name, choose in choices.items()
  }


def _best(pool, scores):
  return lambda n: selection.best_of(scores, pool.right, n)


def _likelihood(config, scored):
  """Scores of the reference, which learnt nothing of outcomes, by its own log-probs."""
  found = scored.steps['pool']
  logps = {**found, 'without': found['without'] - found['rewards']}  # times beta
  options = {**_headline(config, scored), 'reference': False}
  return score(scored._replace(steps={'pool': logps}), **options)


def _vote(pool, scored, scores):
  """A vote that counts each response by the probability that it is right."""
  weights = scores if scored.member.valued else special.expit(scores)
  return lambda n: selection.vote(pool.answers, pool.right, n, weights)


def _headline(config, scored):
  """How a model's step rewards become a score, where one way is to be shown."""
  if scored.member.labels == 'outcome':
    return {'how': 'last'}  # what an outcome model says of the whole response
  if scored.member.valued:
    return {'how': 'min'}  # Math-Shepherd
  options = config['evaluation']
  return {
    'form': options['form'],
    'how': options['how'],
    'reference': options['reference'],
  }


def score(
  scored: Scored,
  *,
  form: str = 'single',
  how: str,
  reference: bool = True,
  part: str = 'pool',
) -> np.ndarray:
  """Scores [p, n] of a pool's responses."""
  found = scored.steps[part]
  rewards = found['rewards' if reference else 'without']
  arrays = jnp.asarray(rewards), jnp.asarray(found['present'])
  scores = process.response_scores(*arrays, form=form, how=how)
  return np.asarray(scores, np.float64)


def _best_table(config, curves, models):
  costs = {scored.member.name: scored for scored in models}
  rows = []
  for name, curve in curves.items():
    row: dict[str, Any] = {'choice': name}
    for n, estimate in curve.items():
      row[f'N = {n}'] = shown(estimate)
    scored = costs.get(name)
    if scored is not None:
      row['scored by'] = ' '.join(map(str, _headline(config, scored).values()))
      row |= {f'{kind}, FLOPs': value for kind, value in scored.costs.items()}
    rows.append(row)
  return rows


def _variants(config, pool, models):
  """Every aggregation, of either form of rewards, with and without a reference."""
  rows = []
  largest = max(config['evaluation']['sizes'])
  for scored in models:
    implicit = not scored.member.valued
    for reference in (True, False) if implicit else (True,):
      for form in process.FORMS if implicit else ('single',):
        for how in _HOW:
          scores = score(scored, form=form, how=how, reference=reference)
          row = {
            'model': scored.member.name,
            'reference': ('with' if reference else 'without') if implicit else None,
            'rewards': form if implicit else 'values',
            'aggregation': how,
          }
          for n in config['evaluation']['sizes'][1:]:
            best = _best(pool, scores)(n)
            row[f'N = {n}'] = shown(mean_and_standard_error(best))
          if pool.answers is not None:
            vote = _vote(pool, scored, scores)(largest)
            row[f'vote of {largest}'] = shown(mean_and_standard_error(vote))
          rows.append(row)
  return rows


def _drawn(title, curves, votes):
  """The curves of votes or of other choices, beside those of no model."""
  beside = _BESIDE[1:] if votes else _BESIDE  # the policy's log-prob does not vote
  bands = {
    name: _band(curve)
    for name, curve in curves.items()
    if name in beside or name.endswith(_VOTE) == votes
  }
  return plots.bands(title, 'candidates (N)', 'share right', bands, doubling=True)


def _band(curve: Mapping[int, Estimate]) -> plots.Band:
  mean, error = (np.array(x) for x in zip(*curve.values(), strict=True))
  return plots.Band(np.array(list(curve)), mean, mean - error, mean + error)


def _summary(curves):
  found = {}
  for name, curve in curves.items():
    for n, estimate in curve.items():
      found[f'{name}@{n}'] = float(estimate.mean)
      found[f'{name}@{n}_se'] = float(estimate.standard_error)
  return found
