"""Bad input ends in one paragraph that names the offender, before anything is run."""

import json

import pytest

from prefjax.data import tokenizers

SENTIMENT = '--config=experiments/configs/dpo/sentiment.py:smoke'
SFT = '--config=experiments/configs/sft/sentiment.py:smoke'
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
    ('--config.data.source=xml:x', ('xml', 'jsonl')),
    ('--config.reference.move_every=-1', ('reference.move_every', '-1')),
    ('--config.data.source=jsonl:gone.jsonl', ('gone.jsonl', 'docs/data.md')),
    ('--config.data.batch_size=12', ('data.batch_size=12', '8')),
    ('--config.mesh.data=3', ('mesh', '3', '8')),
    ('--config.reference.workdir=gone', ('reference.workdir=gone',)),
    ('--config.policy.checkpoint=x', ('policy.checkpoint=x', 'tokenizer.path')),
    ('--config.records.chat=True', ('records.chat', 'tokenizer.path')),
    ('--config.lora.rank=-1', ('lora.rank', '-1')),
    ('--config.model.attention=splash', ('attention=splash', 'tpu', 'cpu')),
    ('--config.memory.optimizer=disk', ('memory.optimizer', 'host', 'disk')),
  ],
)
def test_a_wrong_value_is_named(command, tmp_path, flag, said):
  result = command(
    'dpo', SENTIMENT, f'--workdir={tmp_path}/run', f'--cache={tmp_path}', flag
  )
  refused(result, *said)


@pytest.mark.parametrize(
  ('flag', 'said'),
  [
    ('--config.objective.clip_low=1.5', ('objective.clip_low', '[0, 1]')),
    ('--config.objective.kl=k9', ('objective.kl', 'k3_as_k2')),
    ('--config.rollout.prompts=12', ('rollout.prompts=12', '8 devices')),
    ('--config.rollout.temperature=0.0', ('temperature must be positive',)),
    ('--config.rollout.refill=again', ('rollout.refill', 'resample')),
    ('--config.rollout.correction=much', ('rollout.correction', 'sequence')),
    ('--config.rollout.responses_at_once=3', ('responses_at_once=3', '4')),
    ('--config.rollout.server=http://127.0.0.1:1', ('rollout.correction',)),
    ('--config.rewards.gate=style', ('rewards.gate', 'style')),
    ('--config.data.max_prompt=4', ('data.max_prompt=4', 'drop_long_prompts')),
    ('--config.train.epochs=0', ('train.epochs', '0')),
    ('--config.objective.supervision=process', ('single steps', 'steps:arithmetic')),
  ],
)
def test_a_wrong_value_of_a_rollout_is_named(command, cache, tmp_path, flag, said):
  config = '--config=experiments/configs/grpo/arithmetic.py:smoke'
  folders = (f'--workdir={tmp_path}/run', f'--cache={cache}')
  result = command('grpo', config, *folders, flag)
  refused(result, *said)


@pytest.mark.parametrize(
  ('flag', 'said'),
  [
    ('--config.lora.zero=c', ('lora.zero', "'c'")),
    ("--config.lora.targets=('layers.x',)", ('layers.x', 'layers.attention.key')),
    ('--config.reference.move_mix=0.5', ('two mixed adapters', 'lora.rank')),
    ('--config.memory.reference=host', ('memory.reference=host', 'base of the')),
  ],
)
def test_wrong_adapters_are_named(command, tmp_path, flag, said):
  folders = (f'--workdir={tmp_path}/run', f'--cache={tmp_path}')
  on = ('--config.lora.rank=4', '--config.reference.move_every=1')
  refused(command('dpo', SENTIMENT, *folders, *on, flag), *said)
  refused(command('sft', SFT, *folders, '--config.lora.rank=4'), 'experiments.sft')


def test_a_tokenizer_of_another_model_is_refused(command, tmp_path):
  path = tmp_path / 'other.model'
  size = tokenizers.train_sentencepiece(
    ['abc', 'cab'], vocab_size=12, path=path
  ).vocab_size
  folders = (f'--workdir={tmp_path}/run', f'--cache={tmp_path}')
  flags = (f'--config.tokenizer.path={path}', f'--config.model.vocab_size={size - 1}')
  said = (
    f'model.vocab_size={size - 1}',
    f'has {size} pieces',
    'not that of this model',
  )
  refused(command('dpo', SENTIMENT, *folders, *flags), *said)


def test_each_experiment_refuses_what_learns_otherwise(command, tmp_path):
  config = '--config=experiments/configs/dpo/sentiment.py:grpo,smoke'
  result = command('dpo', config, f'--workdir={tmp_path}/a', f'--cache={tmp_path}')
  refused(result, 'grpo learns from its own samples', 'experiments.grpo')
  config = '--config=experiments/configs/grpo/arithmetic.py:dpo,smoke'
  result = command('grpo', config, f'--workdir={tmp_path}/b', f'--cache={tmp_path}')
  refused(result, 'dpo does not learn from rollouts')
  config = '--config=experiments/configs/rm/sentiment.py:smoke'
  flags = ('--config.objective.name=dpo', f'--cache={tmp_path}')
  result = command('rm', config, f'--workdir={tmp_path}/c', *flags)
  refused(result, 'is not a hyperparameter of dpo')


@pytest.mark.parametrize(
  ('config', 'said'),
  [
    ('experiments/configs/dpo/gone.py', ('gone.py',)),
    ('experiments/configs/dpo/sentiment.py:dppo', ("mean 'ppo'", 'hinge')),
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
