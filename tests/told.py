"""Folders as finished runs leave them, without a run."""

import json

import numpy as np

from prefjax.evaluation import runs


def leave(folder, *, seed=0, beta=0.1, name='dpo', rollouts=False, done=True):
  """A run whose KL is 1 / beta and a little more with every seed."""
  folder.mkdir(parents=True, exist_ok=True)
  train = {'iterations': 4} if rollouts else {'steps': 4}
  config = {'seed': seed, 'objective': {'name': name, 'beta': beta}, 'train': train}
  (folder / 'config.json').write_text(json.dumps({'config': config}))
  kl, reward = 1 / beta + 0.1 * seed, 0.5 + 0.1 / beta + 0.01 * seed
  rows = []
  for step in range(1, 5):
    rows.append({'step': step, 'loss': 1 / step + seed, 'entropy': 2.0 - beta})
    rows.append({'step': step, 'eval/loss': 0.5 / step + seed, 'eval/accuracy': 0.75})
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(lines)
  summary = {'true_reward/policy': reward, 'true_reward/policy_se': 0.02, 'kl': kl}
  summary |= {'eval/loss': 0.125 + seed, 'frontier check': 'passed'}
  if done:
    (folder / 'DONE').write_text(json.dumps(summary))
  prompts = np.array([-0.1, 0.0, 0.1])
  details = {
    'frontier': {
      'betas': [1.0, 0.5, 0.1],
      'kl': [0.0, 5.0, 20.0],
      'reward': [0.5, 1.5, 2.5],
      'reward_se': [0.01, 0.01, 0.02],
      'drawn': [True, True, seed > 0],
    },
    'prompts': {'reward': (reward + prompts).tolist(), 'kl': (kl + prompts).tolist()},
    'best_of': [
      {'n': n, 'reward': 0.5 + 0.1 * n, 'reward_se': 0.01, 'kl_at_most': 0.2 * n}
      for n in (1, 4)
    ],
  }
  (folder / runs.EVALUATION).write_text(json.dumps(details))
  return folder


def leave_sweep(folder, betas=(0.1, 1.0), seeds=(0, 1, 2), missing=()):
  """A sweep over beta; the runs of `missing` have not ended."""
  points = []
  for beta in betas:
    for seed in seeds:
      name = f'beta_{beta:g},seed={seed}'
      done = name not in missing
      leave(folder / runs.TRIALS / name, seed=seed, beta=beta, done=done)
      points.append({'name': name, 'label': f'beta {beta:g}'})
  (folder / runs.POINTS).write_text(json.dumps(points))
  return folder
