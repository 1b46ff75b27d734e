"""Bad input ends in one paragraph that names the offender, before anything is run."""

import json

import pytest

SENTIMENT = '--config=experiments/configs/dpo/sentiment.py:smoke'
HH = '--config=experiments/configs/dpo/hh.py:smoke'


def refused(result, *said):
  assert result.code == 2
  assert 'Traceback' not in result.err
  assert result.err.startswith('prefjax: ')
  for words in said:
    assert words in result.err


@pytest.mark.parametrize(
  ('flag', 'said'),
  [
    ('--config.objective.betta=0.1', ('betta', 'Did you mean', 'beta')),
    ('--config.objective.beta=-1', ('objective.beta', '(0, inf)', '-1')),
    ('--config.objective.beta=much', ('objective.beta', 'much')),
    ('--config.optimizer.name=sgd', ('optimizer.name', 'rmsprop')),
    ('--config.train.steps=0', ('train.steps', '0')),
    ('--config.model.family=lama', ('model.family', 'llama')),
    ('--config.model.vocab_size=8', ('vocab', '8', 'smallest')),
    ('--config.data.source=task:poetry', ('poetry', 'sentiment')),
    ('--config.data.source=csv:x', ('csv', 'jsonl')),
    ('--config.data.source=jsonl:gone.jsonl', ('gone.jsonl', 'docs/data.md')),
    ('--config.data.batch_size=12', ('data.batch_size=12', '8')),
    ('--config.mesh.data=3', ('mesh', '3', '8')),
    ('--config.reference.workdir=gone', ('reference.workdir=gone',)),
  ],
)
def test_a_wrong_value_is_named(command, tmp_path, flag, said):
  result = command(
    'dpo', SENTIMENT, f'--workdir={tmp_path}/run', f'--cache={tmp_path}', flag
  )
  refused(result, *said)


@pytest.mark.parametrize(
  ('config', 'said'),
  [
    ('experiments/configs/dpo/gone.py', ('gone.py',)),
    ('experiments/configs/dpo/sentiment.py:dppo', ("mean 'dpo'", 'hinge')),
    ('experiments/configs/dpo/sentiment.py:no.such.recipe', ('no.such',)),
  ],
)
def test_a_wrong_config_is_named(command, tmp_path, config, said):
  result = command('dpo', f'--config={config}', f'--cache={tmp_path}')
  refused(result, *said)


@pytest.mark.parametrize(
  ('line', 'said'),
  [
    ('{"prompt": "a", "chosen": "b", ', ('line 3',)),
    ('{"prompt": "a", "chosen": "b"}', ('line 3', 'rejected')),
    ('{"prompt": "a", "chosen": "", "rejected": "c"}', ('line 3', 'chosen')),
  ],
)
def test_bad_data_is_named_by_file_and_line(command, tmp_path, line, said):
  good = json.dumps({'prompt': 'a', 'chosen': 'b', 'rejected': 'c'})
  path = tmp_path / 'pairs.jsonl'
  path.write_text('\n'.join([good, good, line, good]) + '\n')
  result = command(
    'dpo',
    HH,
    f'--config.data.source=jsonl:{path}',
    f'--workdir={tmp_path}/run',
    f'--cache={tmp_path}/cache',
  )
  refused(result, 'pairs.jsonl', *said)
  assert not (tmp_path / 'run').exists()


def test_the_folder_of_another_run_is_refused_with_the_difference(command, tmp_path):
  common = (SENTIMENT, f'--workdir={tmp_path}/run', f'--cache={tmp_path}/cache')
  stopped = command('dpo', *common, '--config.reference.workdir=gone')
  refused(stopped, 'gone')
  result = command('dpo', *common, '--config.objective.beta=0.7')
  refused(result, 'objective.beta', '0.7', 'workdir')


def test_a_folder_that_is_no_run_is_refused(command, tmp_path):
  (tmp_path / 'thesis.tex').write_text('do not touch')
  result = command(
    'dpo', SENTIMENT, f'--workdir={tmp_path}', f'--cache={tmp_path}/cache'
  )
  refused(result, 'thesis.tex')
