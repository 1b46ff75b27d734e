import json
import os
import subprocess

import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.training import workdir

CPU = {'backend': 'cpu', 'kinds': ['cpu'], 'count': 1}
CONFIG = {'objective': {'name': 'dpo', 'beta': 0.1}, 'sizes': (1, 2), 'seed': 0}


def open_run(folder, config=CONFIG, devices=CPU, **kwargs):
  return workdir.open_run(folder, config, devices=devices, **kwargs)


def test_new_run_says_what_and_where(tmp_path):
  run = open_run(tmp_path / 'a' / 'b', fingerprints={'data': '12ab'})
  stored = json.loads((run.folder / 'config.json').read_text())
  assert not run.resumed and not run.finished and run.warnings == ()
  assert stored['config'] == {
    'objective': {'name': 'dpo', 'beta': 0.1},
    'sizes': [1, 2],
    'seed': 0,
  }
  assert stored['fingerprints'] == {'data': '12ab'}
  here = stored['environment']
  assert here['devices'] == CPU
  assert here['usable_cores'] == len(os.sched_getaffinity(0))
  assert {'prefjax', 'python', 'jax', 'jaxlib', 'flax', 'optax', 'git'} <= {*here}
  assert [p.name for p in run.folder.iterdir()] == ['config.json']


def test_same_run_opens_again_and_finishes(tmp_path):
  open_run(tmp_path)
  run = open_run(tmp_path)
  assert run.resumed and not run.finished and run.warnings == ()
  run.finish({'eval/accuracy': np.float32(0.75), 'loss': float('nan')})
  again = open_run(tmp_path)
  assert again.finished
  assert again.summary == {'eval/accuracy': 0.75, 'loss': 'nan'}


def test_other_config_is_refused_line_by_line(tmp_path):
  open_run(tmp_path)
  other = {
    'objective': {'name': 'dpo', 'beta': 0.5},
    'sizes': [1, 2],
    'seed': 0,
    'extra': {},
  }
  with pytest.raises(InputError) as error:
    open_run(tmp_path, other)
  message = str(error.value)
  assert '--workdir' in message
  assert message.splitlines()[1:] == [
    '  objective.beta: 0.5 -> 0.1',
    '  extra: {} -> absent',
  ]


@pytest.mark.parametrize(
  'there', [{'a': {'b': 1.0}}, {'a': {'b': True}}, {'a': {}}, {'a.b': 2}, {}]
)
def test_differences_are_seen(there):
  assert workdir.differences({'a': {'b': 1}}, there)
  assert not workdir.differences(there, there)


def test_other_data_under_the_same_config_is_refused(tmp_path):
  open_run(tmp_path, fingerprints={'data': 'old'})
  with pytest.raises(InputError, match=r'fingerprints\.data: "new" -> "old"'):
    open_run(tmp_path, fingerprints={'data': 'new'})


def test_another_environment_warns(tmp_path, monkeypatch):
  open_run(tmp_path)
  run = open_run(tmp_path, devices={**CPU, 'count': 8})
  assert len(run.warnings) == 1
  assert 'devices.count: 8 -> 1' in run.warnings[0]
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(99)))
  (warning,) = open_run(tmp_path).warnings
  assert 'usable_cores: 99 ->' in warning


def test_resume_can_be_forbidden(tmp_path):
  open_run(tmp_path, resume_ok=False)
  with pytest.raises(InputError, match='already holds a run'):
    open_run(tmp_path, resume_ok=False)


def test_a_foreign_folder_is_refused_and_left_as_it_is(tmp_path):
  (tmp_path / 'thesis.tex').write_text('x')
  with pytest.raises(InputError, match=r'thesis\.tex'):
    open_run(tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']
  with pytest.raises(InputError, match='is a file'):
    open_run(tmp_path / 'thesis.tex')


@pytest.mark.parametrize('text', ['{"nodes": 3}', '[]', '{"config"'])
def test_a_foreign_config_is_refused(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(InputError, match="not a run's config"):
    open_run(tmp_path)


def test_a_start_killed_while_it_wrote_its_config_starts_again(tmp_path):
  (tmp_path / 'config.json.tmp').write_text('{"conf')
  run = open_run(tmp_path)
  assert not run.resumed
  assert [p.name for p in tmp_path.iterdir()] == ['config.json']


def test_commit_is_none_outside_a_checkout(monkeypatch, tmp_path):
  monkeypatch.setattr(workdir, '__file__', str(tmp_path / 'workdir.py'))
  assert workdir.environment(CPU)['git'] is None


def test_commit_and_dirty_flag(monkeypatch, tmp_path):
  def git(*args):
    who = ['-c', 'user.name=a', '-c', 'user.email=a@b']
    subprocess.run(['git', *who, *args], cwd=tmp_path, check=True)

  (tmp_path / 'workdir.py').write_text('')
  git('init', '-q')
  git('add', '.')
  git('commit', '-qm', 'x')
  monkeypatch.setattr(workdir, '__file__', str(tmp_path / 'workdir.py'))
  clean = workdir.environment(CPU)['git']
  assert len(clean['commit']) == 40 and clean['dirty'] is False
  (tmp_path / 'workdir.py').write_text('changed')
  assert workdir.environment(CPU)['git'] == {**clean, 'dirty': True}


def test_samples_are_appended(tmp_path):
  path = tmp_path / 'samples.jsonl'
  workdir.append_samples(path, [{'step': 1, 'text': 'a\nb'}])
  workdir.append_samples(path, [{'step': 2, 'reward': float('inf')}])
  assert path.read_text().splitlines() == [
    '{"step": 1, "text": "a\\nb"}',
    '{"step": 2, "reward": "inf"}',
  ]
