"""Process reward models as a run makes them: pools, labels, what is refused."""

import json

import numpy as np
import pytest
import tiny

from experiments.parts import pools, process_steps, process_table
from experiments.parts.pools import Author
from experiments.parts.process_models import Member, Scored
from prefjax.data.records import Record
from prefjax.errors import InputError
from prefjax.rollout.sampler import Samples
from prefjax.tasks import arithmetic

CONFIG = '--config=experiments/configs/prm/arithmetic.py:smoke'
REAL = '--config=experiments/configs/prm/ultrainteract.py:smoke'


class Digits(tiny.Letters):
  """A tokenizer of the task's characters."""

  fingerprint = 'digits'

  def encode(self, text):
    return [3 + arithmetic.CHARACTERS.index(letter) for letter in text]

  def decode(self, ids):
    return ''.join(arithmetic.CHARACTERS[i - 3] for i in ids if i > 2)


class Finisher:
  """A sampler that ends a sum rightly at first, then at once, whatever the prompt."""

  def __init__(self, ending):
    self.ending = [*Digits().encode(ending), Digits.eos_id]

  def stream(
    self, params, prompts, length, keys, *, num_responses, max_tokens, controls
  ):
    n = len(prompts)
    tokens = np.zeros((n, num_responses, max_tokens), np.int32)
    tokens[:, 0, : len(self.ending)] = self.ending
    tokens[:, 1:, 0] = Digits.eos_id
    sizes = np.ones((n, num_responses), np.int32)
    sizes[:, 0] = len(self.ending)
    logps, cut = np.zeros(tokens.shape, np.float32), np.zeros(sizes.shape, bool)
    yield np.arange(n), Samples(tokens, sizes, logps, cut)


def test_continuations_of_steps_by_hand():
  author = Author(
    model=type('Model', (), {'config': tiny.config()}),
    tokenizer=Digits(),
    policy=None,
    identity='none',
  )
  config = {
    'seed': 0,
    'data': {'max_prompt': 12, 'max_response': 32},
    'monte_carlo': {'samples': 4, 'temperature': 1.0},
  }
  responses = ('7+8=15;15-3=12', '7+8=15;15-3=13', '7+8-3=12', '7+8=14;14-3=11')
  record = Record(
    prompt='7+8-3=',
    responses=responses,
    labels=(1.0, 0.0, 1.0, 0.0),
    steps=tuple(tuple(arithmetic.steps(text)) for text in responses),
  )
  rows, flops = pools._continue(
    config, arithmetic, author, Finisher('15-3=12'), [record], 0
  )
  right, wrong = [1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]
  assert rows == [[[right], [right], [], [wrong]]]
  # The first two share their step: two prefixes were continued, not three.
  prefixes = np.array([7 + 7, 7 + 7])
  sizes = np.array([[8, 1, 1, 1]] * 2)
  assert flops == pools.forward_flops(tiny.config(), prefixes, sizes)


def test_first_errors_of_records():
  nan = float('nan')
  records = [
    Record('p', ('a', 'b'), step_labels=((1.0, 0.0, nan), (1.0,))),
    Record('q', ('c', 'd'), step_labels=((0.0, 0.0), (nan, nan))),
  ]
  truth = process_steps.judged_steps(records, 2)
  np.testing.assert_array_equal(truth.first_error, [1, -1, 0, -1])
  np.testing.assert_array_equal(truth.known.sum(axis=1), [2, 1, 2, 0])
  np.testing.assert_array_equal(truth.right.sum(axis=1), [1, 1, 0, 0])
  np.testing.assert_array_equal(truth.group, [0, 0, 1, 1])
  assert len(process_steps.judged_steps(records, 1).group) == 2
  assert not process_steps.judged_steps([Record('p', ('a',))], 1).known.any()


def test_the_policy_chooses_by_its_own_log_probs():
  reference = np.array([[[-1.0, -2.0], [-0.5, -2.5], [-3.0, 0.0]]], np.float32)
  present = np.array([[[True, True], [True, True], [True, False]]])
  learnt = np.array([[[-3.0, -1.0], [-4.0, -1.0], [-0.1, 0.0]]], np.float32)
  beta = 0.5  # of a model that would choose otherwise
  steps = {
    'rewards': beta * (learnt - reference),
    'without': beta * learnt,
    'present': present,
  }
  config = {'evaluation': {'form': 'single', 'how': 'min', 'reference': True}}
  member = Member('dpo', config, labels='', balance='none', valued=False)
  scored = Scored(member, {'pool': steps}, {})
  scores = process_table._likelihood(config, scored)
  np.testing.assert_allclose(scores, beta * np.array([[-2.0, -2.5, -3.0]]), rtol=1e-6)


@pytest.mark.parametrize(
  ('flag', 'said'),
  [
    ('--config.evaluation.sizes=(1,3)', ('evaluation.sizes', '16', '3')),
    ('--config.evaluation.how=median', ('evaluation.how', "'median'", 'min')),
    ('--config.evaluation.form=double', ('evaluation.form', 'accumulated')),
    ('--config.prms.dpo.labels=hard', ('prms.dpo.labels', "'hard'")),
    ('--config.prms.mc_soft.labels=firm', ('prms.mc_soft.labels', 'soft')),
    ('--config.prms.kto.balance=even', ('prms.kto.balance', 'dataset')),
    ('--config.prms.dpo.objective.beta=-1.0', ('objective.beta', '(0, inf)')),
    ('--config.processbench.source=json:gone.json', ('gone.json', 'docs/data.md')),
    ('--config.steps.separator=;', ('steps.separator', 'of its own')),
    ('--config.data.source=task:sentiment', ('task:sentiment', 'no steps')),
  ],
)
def test_a_wrong_value_is_named(command, cache, tmp_path, flag, said):
  result = command('prm', CONFIG, f'--workdir={tmp_path}/run', f'--cache={cache}', flag)
  assert result.code == 2
  assert 'Traceback' not in result.err
  for words in said:
    assert words in result.err
  assert not (tmp_path / 'run').exists()


def test_a_model_may_not_have_the_name_of_another_choice():
  config = {'evaluation': {'form': 'single', 'how': 'min'}, 'prms': {'oracle': {}}}
  with pytest.raises(InputError, match=r'prms\.oracle: the tables call another choice'):
    process_table.validate(config)


def test_what_gives_no_rewards_of_steps_is_refused(command, cache, tmp_path):
  folders = (f'--workdir={tmp_path}/run', f'--cache={cache}')
  flags = ('--config.prms.ce_dataset.objective.name=simpo',)
  result = command('prm', CONFIG, *folders, *flags)
  assert result.code == 2
  assert 'prms.ce_dataset' in result.err or 'simpo' in result.err


@pytest.mark.parametrize(
  ('row', 'said'),
  [
    ({'responses': ['a', 'b', 'c', 'd']}, ('has no labels',)),
    (
      {'responses': ['a', 'b'], 'labels': [1, 0]},
      ('pool.candidates=4', 'the first 2'),
    ),
  ],
)
def test_a_pool_that_does_not_fit_is_refused(
  command, cache, tmp_path, data_dir, row, said
):
  path = tmp_path / 'pool.jsonl'
  rows = [{'prompt': f'{i}'} | row for i in range(300)]
  path.write_text('\n'.join(map(json.dumps, rows)))
  flags = (f'--config.data.source=jsonl:{path}', f'--workdir={tmp_path}/run')
  result = command('prm', REAL, *flags, f'--cache={cache}')
  assert result.code == 2
  for words in said:
    assert words in result.err


@pytest.mark.slow
def test_a_run_says_what_each_model_is_worth(command, cache, tmp_path):
  folders = (f'--workdir={tmp_path}/run', f'--cache={cache}')
  result = command('prm', CONFIG, *folders, '--config.mesh.data=1')
  assert result.code == 0, result.err
  assert ': step 0: loss 0.' in result.out
  summary = json.loads((tmp_path / 'run' / 'DONE').read_text())
  models = ('dpo', 'kto', 'ce_dataset', 'outcome', 'mc_soft', 'policy', 'majority')
  pass_at_1 = summary['oracle@1']
  for name in models:
    assert summary[f'{name}@1'] == pytest.approx(pass_at_1)
    assert summary[f'{name}@16'] <= summary['oracle@16']
  tables = json.loads((tmp_path / 'run' / 'tables.json').read_text())
  costs = {row['choice']: row for row in tables['Best of N']}
  assert costs['mc_soft']['labelling, FLOPs'] > 0
  assert costs['dpo']['labelling, FLOPs'] == costs['outcome']['labelling, FLOPs'] == 0
  assert costs['dpo']['scoring, FLOPs'] == 2 * costs['outcome']['scoring, FLOPs']
  steps = tables['Steps of the held-out pool']
  assert {row['model'] for row in steps} >= {'dpo', 'mc_soft'}
  page = (tmp_path / 'run' / 'report' / 'index.html').read_text()
  assert 'best of n' in page.lower()
  again = command('prm', CONFIG, *folders, '--config.mesh.data=1')
  assert again.code == 0
  assert 'oracle@16' in again.out


@pytest.mark.slow
def test_processbench_is_scored_from_file_to_f1(command, cache, tmp_path, data_dir):
  result = command(
    'prm', REAL, f'--workdir={tmp_path}/run', f'--cache={cache}', '--config.mesh.data=1'
  )
  assert result.code == 0, result.err
  # 375 problems, of which some are among the questions with graded solutions.
  assert 'left out for the bench: ' in result.out
  left = int(result.out.split('left out for the bench: ')[1].split()[0])
  assert left > 100
  tables = json.loads((tmp_path / 'run' / 'tables.json').read_text())
  rows = tables['First errors on ProcessBench']
  assert [row['model'] for row in rows] == ['dpo', 'dpo', 'outcome']
  for row in rows:
    assert 0 <= float(row['f1'].split()[0]) <= 1
