"""What is logged of sampled responses, in training and held out."""

from collections.abc import Sequence

import numpy as np

from experiments.parts.build import Config
from prefjax.evaluation import accuracy
from prefjax.rollout import groups as groups_lib
from prefjax.rollout.groups import Groups
from prefjax.rollout.responses import Rolled


def held_out(found: Rolled, options: Config) -> dict[str, float]:
  """The numbers of an evaluation, each with its standard error over prompts."""
  groups, mark = found.groups, options['answer_after']
  answers = None
  if mark:
    answers = [[x.rpartition(mark)[2].strip() for x in row] for row in found.texts]
  estimates = accuracy.summary(groups.right, answers, options['pass_at'])
  each = {'reward': groups.rewards.sum(axis=-1, dtype=np.float64)}
  each |= {f'reward/{name}': value for name, value in found.values.items()}
  for name, value in each.items():
    means = np.nan_to_num(value).mean(axis=1)
    estimates[name] = accuracy.mean_and_standard_error(means)
  values = {'response_length': float(groups.length.mean())}
  values['truncated'] = float(groups.truncated.mean())
  for name, estimate in estimates.items():
    values[name] = float(estimate.mean)
    values[f'{name}_se'] = float(estimate.standard_error)
  return values


def sampled(
  rolled: Sequence[Rolled], batch: Groups, iteration: int
) -> dict[str, float]:
  """Metrics of what was sampled in an iteration (before any was left out)."""
  values = {'groups/age': 0.0, 'groups/zero_spread': 0.0}
  if len(batch):
    values['groups/age'] = float(np.mean(iteration - batch.born))
    values['groups/zero_spread'] = float(1.0 - _spread(batch).mean())
  if not rolled:
    return values
  groups = groups_lib.join([part.groups for part in rolled])
  reward = groups.rewards.sum(axis=-1)
  scored = np.where(groups.scored, 1.0, 0.0)
  total = max(scored.sum(), 1.0)
  values |= {
    'reward': float((reward * scored).sum() / total),
    'reward_spread': float(reward.std(axis=1).mean()),
    'accuracy': float(groups.right.sum() / total),
    'sampled/unscored': float((~groups.scored).sum()),
    'sampled/mixed': float(groups_lib.mixed(groups).mean()),
    'sampled/truncated': float(groups.truncated.mean()),
    'sampled/length': float(groups.length.mean()),
  }
  for name in rolled[0].values:
    each = np.concatenate([part.values[name] for part in rolled])
    each = each[~np.isnan(each)]
    values[f'reward/{name}'] = float(each.mean()) if len(each) else 0.0
  return values


def _spread(groups: Groups) -> np.ndarray:
  """[n] whether the scored responses of a group differ in reward."""
  reward = groups.rewards.sum(axis=-1)
  most = np.where(groups.scored, reward, -np.inf).max(axis=1)
  return most > np.where(groups.scored, reward, np.inf).min(axis=1)
