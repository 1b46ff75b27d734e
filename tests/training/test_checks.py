"""Step-0 checks pass where policy and reference are one, and only there."""

import numpy as np
import pytest
import tiny

from prefjax.errors import TrainingError
from prefjax.training import checks
from prefjax.training.optimizers import Optimizer
from prefjax.training.step import Step, hyper


def step(name='dpo', **changes):
  return Step(
    forward=tiny.forward(),
    objective=tiny.objective(name, **changes),
    optimizer=Optimizer(name='adamw', learning_rate=1e-3, steps=1),
  )


def scored(step, params, batch):
  logps = np.asarray(step.score(params, batch).logps)
  return batch.replace(reference_logps=logps)


def found(step, params, batch):
  numbers = hyper(step.objective, step.optimizer)
  return checks.step_zero(step, params, batch, numbers)


def test_dpo_starts_at_log_two():
  ours, params = step(), tiny.params()
  checked = found(ours, params, scored(ours, params, tiny.batch()))
  assert all(check.holds for check in checked)
  by_name = {check.name: check for check in checked}
  assert by_name['loss'].wanted == pytest.approx(np.log(2), rel=1e-6)
  assert by_name['margin'].value == pytest.approx(0, abs=1e-5)
  assert by_name['margin'].tolerance < 1e-2
  checks.refuse(checked)


@pytest.mark.parametrize('name', ['ipo', 'sum'])
def test_other_objectives_start_at_their_own_loss(name):
  ours, params = step(name), tiny.params()
  checked = found(ours, params, scored(ours, params, tiny.batch()))
  assert all(check.holds for check in checked)


def test_log_probs_of_another_model_are_refused():
  ours, params = step(), tiny.params()
  batch = scored(ours, tiny.params(seed=1), tiny.batch())
  with pytest.raises(TrainingError, match='not the reference'):
    checks.refuse(found(ours, params, batch))


def test_log_probs_of_other_tokens_are_refused():
  ours, params = step(), tiny.params()
  batch = scored(ours, params, tiny.batch())
  moved = batch.replace(reference_logps=np.roll(batch.reference_logps, 1, axis=0))
  with pytest.raises(TrainingError, match='chosen_drift'):
    checks.refuse(found(ours, params, moved))


def test_widening_adds_padding_alone():
  batch = tiny.batch()
  wider = checks.widened(batch)
  assert wider.prompts.shape[1] == batch.prompts.shape[1] + 8
  np.testing.assert_array_equal(wider.prompts[:, 8:], batch.prompts)
  np.testing.assert_array_equal(wider.responses[..., :-8], batch.responses)
  assert not np.any(wider.mask[..., -8:])
