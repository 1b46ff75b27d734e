"""Whole runs at smoke size: what they leave, how they resume, what they reuse."""

import json
from pathlib import Path
import signal

import jax
import numpy as np
import pytest

from experiments.sft import final_params
from prefjax.models import config as model_configs
from prefjax.models import decoder
from prefjax.training import metrics
from prefjax.training.checkpoints import Checkpoints

SMOKE = '--config=experiments/configs/dpo/sentiment.py:smoke'
OWN = '''
import jax
from prefjax import objectives as ob

@ob.recipe(needs=('pairs', 'reference_logps'))
def exponential(*, beta: ob.Positive = 0.1):
  """exp(-beta h): boosting's loss on DPO's margin."""
  return ob.pairwise(ob.on_margin(lambda h: jax.numpy.exp(-beta * h)), scale=beta)
'''


def lasting(folder: Path) -> dict:
  """What must be bit-identical: metrics without the clock, samples, parameters."""
  rows = [
    {k: v for k, v in row.items() if not k.startswith('time/')}
    for row in metrics.read(folder / 'metrics.jsonl')
  ]
  samples = folder / 'samples.jsonl'
  return {
    'metrics': rows,
    'samples': samples.read_text() if samples.exists() else None,
    'summary': json.loads((folder / 'DONE').read_text()),
    'parameters': parameters(folder),
  }


def parameters(folder: Path) -> dict[str, bytes]:
  """The final parameters' bytes by path."""
  config = json.loads((folder / 'config.json').read_text())['config']
  _, shapes = decoder.create(model_configs.create(**config['model']))
  leaves = jax.tree_util.tree_leaves_with_path(final_params(folder, shapes))
  return {jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in leaves}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A folder for the run that other tests compare with."""
  return tmp_path_factory.mktemp('finished')


def run(command, folder, cache, *flags, config=SMOKE, name='dpo'):
  one = '--config.mesh.data=1'  # what eight fake devices change is test_mesh's
  return command(name, config, f'--workdir={folder}', f'--cache={cache}', one, *flags)


def test_a_run_explains_itself_and_is_not_run_twice(command, finished, cache):
  folder = finished / 'run'
  first = run(command, folder, cache)
  assert first.code == 0, first.err
  assert 'step 0: loss 0.693147' in first.out
  for name in ('config.json', 'metrics.jsonl', 'samples.jsonl', 'DONE'):
    assert (folder / name).is_file()
  page = (folder / 'report' / 'index.html').read_text()
  assert 'true_reward/gain' in page
  rows = metrics.read(folder / 'metrics.jsonl')
  assert [r['step'] for r in rows if 'loss' in r] == list(range(1, 13))
  assert rows[0]['eval/loss'] == pytest.approx(np.log(2), abs=1e-5)
  before = lasting(folder)
  second = run(command, folder, cache)
  assert second.code == 0
  assert 'true_reward/gain' in second.out
  assert 'scoring' not in second.out
  assert lasting(folder) == before


def test_another_beta_computes_no_reference_log_probs(
  command, finished, cache, tmp_path
):
  result = run(command, tmp_path / 'run', cache, '--config.objective.beta=1.0')
  assert result.code == 0, result.err
  assert 'scoring' not in result.out
  assert 'training by maximum likelihood' not in result.out


def test_a_stopped_run_ends_with_the_same_bits(
  command, finished, cache, tmp_path, monkeypatch
):
  save, calls = Checkpoints.save, []

  def stop_after_the_second(self, step, *args, **kwargs):
    done = save(self, step, *args, **kwargs)
    calls.append(step)
    if len(calls) == 2:
      self.wait()
      raise KeyboardInterrupt
    return done

  monkeypatch.setattr(Checkpoints, 'save', stop_after_the_second)
  with pytest.raises(KeyboardInterrupt):
    run(command, tmp_path / 'run', cache)
  monkeypatch.setattr(Checkpoints, 'save', save)
  # What the dead process wrote after its checkpoint must not stand twice.
  with (tmp_path / 'run' / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 11, "loss": 0.5}\n{"step": 12, "lo')
  result = run(command, tmp_path / 'run', cache)
  assert result.code == 0, result.err
  assert 'going on from step 8' in result.out
  assert lasting(tmp_path / 'run') == lasting(finished / 'run')


def test_sigterm_saves_and_exits(command, finished, cache, tmp_path, monkeypatch):
  from prefjax.training.step import Step

  update, calls = Step.update, []

  def terminated_at_the_third(self, *args):
    calls.append(None)
    if len(calls) == 3:
      signal.raise_signal(signal.SIGTERM)
    return update(self, *args)

  monkeypatch.setattr(Step, 'update', terminated_at_the_third)
  result = run(command, tmp_path / 'run', cache)
  assert result.code == 143
  assert 'step 3 is saved' in result.err
  monkeypatch.setattr(Step, 'update', update)
  assert run(command, tmp_path / 'run', cache).code == 0
  assert lasting(tmp_path / 'run') == lasting(finished / 'run')


def test_a_corrupt_checkpoint_falls_back_and_says_so(
  command, finished, cache, tmp_path, monkeypatch
):
  save, calls = Checkpoints.save, []

  def stop_after_the_second(self, step, *args, **kwargs):
    save(self, step, *args, **kwargs)
    calls.append(step)
    if len(calls) == 2:
      self.wait()
      raise KeyboardInterrupt

  monkeypatch.setattr(Checkpoints, 'save', stop_after_the_second)
  with pytest.raises(KeyboardInterrupt):
    run(command, tmp_path / 'run', cache)
  monkeypatch.setattr(Checkpoints, 'save', save)
  newest = tmp_path / 'run' / 'checkpoints' / '8'
  for path in newest.rglob('*'):
    if path.is_file() and path.stat().st_size > 2000:
      data = bytearray(path.read_bytes())
      data[len(data) // 2] ^= 0xFF
      path.write_bytes(bytes(data))
  result = run(command, tmp_path / 'run', cache)
  assert result.code == 0, result.err
  assert 'going on from step 4' in result.out
  assert '8' in result.out
  assert lasting(tmp_path / 'run') == lasting(finished / 'run')


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(
  command, finished, cache, tmp_path
):
  result = run(
    command, tmp_path / 'run', cache, '--config.optimizer.learning_rate=1e30'
  )
  assert result.code == 1
  assert 'not finite' in result.err
  assert 'step' in result.err
  (batch,) = (tmp_path / 'run').glob('not_finite_*.npz')
  assert 'prompts' in ' '.join(np.load(batch, allow_pickle=False).files)


def test_an_objective_of_ones_own(command, finished, cache, tmp_path, monkeypatch):
  (tmp_path / 'my_objectives.py').write_text(OWN)
  monkeypatch.syspath_prepend(tmp_path)
  result = run(
    command,
    tmp_path / 'run',
    cache,
    '--config.objective.beta=0.2',
    config='--config=experiments/configs/dpo/sentiment.py:'
    'my_objectives.exponential,smoke',
  )
  assert result.code == 0, result.err
  resolved = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert resolved['config']['objective'] == {
    'name': 'my_objectives.exponential',
    'beta': 0.2,
  }
  assert 'step 0: loss 1, wanted 1' in result.out


def test_the_readme_shows_that_objective():
  text = Path('README.md').read_text()
  for line in OWN.strip().splitlines():
    assert line in text
