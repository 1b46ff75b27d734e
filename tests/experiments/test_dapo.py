"""What the parts of DAPO do, in seeded runs of six iterations.

The effect of clip-higher is below the noise of so short a run: test_on_policy has it in
exact expectation.
"""

import numpy as np
import pytest
from test_runs import run

from prefjax.training import metrics

CONFIG = '--config=experiments/configs/grpo/dapo_arithmetic.py'
SHORT = (
  '--config.train.iterations=6',
  '--config.train.eval_every=6',
  '--config.evaluation.prompts=8',
  # A reference that has begun to learn will do.
  '--config.reference.train.steps=600',
  '--config.reference.train.eval_every=600',
  '--config.reference.train.save_every=600',
)


def rows(command, folder, cache, part):
  """The iterations of the run of a part."""
  config = f'{CONFIG}:{part}'
  result = run(command, folder / part, cache, *SHORT, config=config, name='grpo')
  assert result.code == 0, result.err
  return [r for r in metrics.read(folder / part / 'metrics.jsonl') if 'loss' in r]


def last(rows, name, count=3):
  return np.mean([row[name] for row in rows[-count:]])


@pytest.mark.slow
def test_no_group_is_without_spread_and_few_responses_are_cut_off(
  command, cache, tmp_path
):
  naive, dapo = (rows(command, tmp_path, cache, part) for part in ('naive', 'dapo'))
  assert any(row['groups/zero_spread'] > 0 for row in naive)
  assert all(row['groups/zero_spread'] == 0 for row in dapo)
  assert all(row['groups/kept'] == 32 for row in dapo)
  first = dapo[0]['sampled/truncated']
  assert last(dapo, 'sampled/truncated') < 0.5 * first
  assert last(dapo, 'sampled/truncated') < last(naive, 'sampled/truncated')
