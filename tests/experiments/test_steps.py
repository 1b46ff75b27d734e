"""Rollouts whose steps are rewarded: what is learnt from, and that it can stop."""

import json

import numpy as np
import pytest
from test_runs import lasting, run

from prefjax.training.online import OnlineLoop
from prefjax.training.step import Step

CONFIG = '--config=experiments/configs/grpo/arithmetic.py'
BUSY = (
  '--config.train.epochs=2',
  '--config.train.minibatches=2',
  '--config.train.save_every=1',
  '--config.data.max_tokens=256',
)


@pytest.mark.slow
def test_process_supervision_is_killed_and_ends_with_the_same_bits(
  command, cache, tmp_path, monkeypatch
):
  seen, credited = [], OnlineLoop._credited

  def spying(self, batch):
    seen.append(credited(self, batch))
    return seen[-1]

  def started(name):
    config = f'{CONFIG}:process,smoke'
    return run(command, tmp_path / name, cache, *BUSY, config=config, name='grpo')

  with monkeypatch.context() as patch:
    patch.setattr(OnlineLoop, '_credited', spying)
    assert started('whole').code == 0
  check_steps(seen)
  update, calls = Step.update, []

  def dying(self, *args):
    calls.append(None)
    if len(calls) == 7:  # the third of the second rollout's four updates
      raise KeyboardInterrupt
    return update(self, *args)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(Step, 'update', dying)
    started('killed')
  assert started('killed').code == 0
  assert lasting(tmp_path / 'killed') == lasting(tmp_path / 'whole')
  rows = (tmp_path / 'killed' / 'rewards.jsonl').read_text().splitlines()
  assert all('steps' in json.loads(row) for row in rows)


def check_steps(batches):
  """Rewards and steps are there, and one advantage a step: those that follow it."""
  assert len(batches) == 4
  for batch in batches:
    assert (batch.step[batch.mask] >= 0).all()
    assert (batch.step[~batch.mask] == -1).all()
    inside = batch.mask[..., 1:] & (batch.step[..., 1:] == batch.step[..., :-1])
    gaps = np.diff(batch.advantages, axis=-1)
    np.testing.assert_allclose(gaps[inside], 0.0, atol=1e-6)
  assert any(batch.step.max() > 0 for batch in batches)
