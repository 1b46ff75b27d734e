"""Self-play: what is picked, who gets which prompt, what an arm leaves and resumes."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments import sppo
from experiments.parts import picks, self_play
from experiments.parts.corpus import Split
from experiments.parts.rollouts import Asked
from experiments.sft import final_params
from prefjax.data import sources
from prefjax.data.questions import Question
from prefjax.errors import InputError
from prefjax.models import config as model_configs
from prefjax.models import decoder
from prefjax.training.checkpoints import Checkpoints

SMOKE = '--config=experiments/configs/sppo/cycle.py:sppo,smoke'
ROW = {'prompt': 'p', 'responses': ['u', 'v', 'w']}
# v beats u and w, w beats u.
WINS = np.array([[[0.5, 0.2, 0.4], [0.8, 0.5, 0.9], [0.6, 0.1, 0.5]]])


# Picks, by hand ---------------------------------------------------------------


def picked(wins=WINS, use='best_and_worst', soft=False):
  return list(picks.records([ROW] * len(wins), wins, use, soft=soft))


@pytest.mark.parametrize(('soft', 'preference'), [(False, 1.0), (True, 0.8)])
def test_best_and_worst_with_their_own_win_rates(soft, preference):
  (record,) = picked(soft=soft)
  assert record.prompt == 'p'
  assert record.responses == ('v', 'u')
  assert record.win_rates == pytest.approx((2.2 / 3, 1.1 / 3))
  assert record.pairs == ((0, 1, preference),)


def test_all_responses_and_every_pair_that_is_not_even():
  (record,) = picked(use='all', soft=True)
  assert record.responses == ('u', 'v', 'w')
  assert record.win_rates == pytest.approx((1.1 / 3, 2.2 / 3, 1.2 / 3))
  assert record.pairs == ((1, 0, 0.8), (1, 2, 0.9), (2, 0, 0.6))
  even = np.full((1, 3, 3), 0.5)
  (record,) = picked(even, use='all')
  assert record.pairs == ()
  assert record.win_rates == (0.5, 0.5, 0.5)


def test_a_prompt_whose_responses_all_tie_is_left_out():
  assert len(picked(np.concatenate([np.full((1, 3, 3), 0.5), WINS]))) == 1


def test_sppos_targets_at_two_and_five_sure_responses():
  """Eta / 4 of K = 2, and 0.4 eta at most of K = 5 (SPPO, Section 5)."""
  for k, largest in ((2, 0.25), (5, 0.4)):
    order = 0.5 + 0.5 * np.sign(np.subtract.outer(np.arange(k), np.arange(k)))
    rows = [{'prompt': 'p', 'responses': list('abcde'[:k])}]
    (record,) = picks.records(rows, order[None], 'best_and_worst', soft=False)
    assert [rate - 0.5 for rate in record.win_rates] == pytest.approx(
      [largest, -largest]
    )


def config(**changes):
  options = {'iterations': 3, 'prompts': 2}
  base = {'seed': 0, 'self_play': options, 'data': {'source': 'jsonl:x'}}
  return base | changes


def asked(count):
  return [Asked(Question(f'prompt {i}'), [i]) for i in range(count)]


def test_no_prompt_is_used_twice_and_the_seed_deals_them():
  dealt = sppo.dealt(config(), Split(asked(9), asked(2)))
  names = [question.prompt for question in dealt.train]
  assert len(names) == len(set(names)) == 6
  other = sppo.dealt(config(seed=1), Split(asked(9), asked(2)))
  assert [question.prompt for question in other.train] != names
  assert [question.prompt for question in dealt.held_out] == ['prompt 0', 'prompt 1']


def test_too_few_prompts_are_refused():
  with pytest.raises(InputError, match=r'need 6 prompts.* has 5'):
    sppo.dealt(config(), Split(asked(5), asked(2)))


def test_arms_are_the_product_of_what_is_compared():
  given = config(
    oracle={'source': 'task:cycle', 'win_rate': 'matrix'},
    objective={'name': 'sppo', 'eta': 1.0},
    compare={'objectives': {}, 'win_rates': (), 'seeds': ()},
  )
  (alone,) = sppo.arms(given)
  assert alone.config == given
  compare = {
    'objectives': {'a': {'name': 'dpo', 'beta': 0.1}, 'b': {'name': 'ipo', 'tau': 1.0}},
    'win_rates': ('matrix', 'scalar'),
    'seeds': (3, 4),
  }
  every = list(sppo.arms(given | {'compare': compare}))
  assert len(every) == len({arm.folder for arm in every}) == 8
  last = every[-1].config
  assert (last['seed'], last['oracle']['win_rate']) == (4, 'scalar')
  assert last['objective'] == {'name': 'ipo', 'tau': 1.0}
  assert last['oracle']['source'] == 'task:cycle'


# Whole runs -------------------------------------------------------------------

KEPT = ('responses.jsonl', 'wins.jsonl', 'picks.jsonl')


def lasting(folder: Path) -> dict[str, Any]:
  """What must be bit-identical: artefacts, metrics without the clock, parameters."""
  config = json.loads((folder / 'config.json').read_text())['config']
  _, shapes = decoder.create(model_configs.create(**config['model']))
  found = {}
  for path in sorted(folder.rglob('*')):
    name = str(path.relative_to(folder))
    if path.suffix == '.jsonl':
      rows = [json.loads(line) for line in path.read_text().splitlines()]
      found[name] = [
        {k: v for k, v in row.items() if not k.startswith('time/')} for row in rows
      ]
    elif path.name == 'DONE' or path.parent.name == 'alpaca_eval':
      found[name] = path.read_bytes()
    elif path.name.startswith('iteration-'):
      leaves = jax.tree.leaves(final_params(path, shapes))
      found[name] = [np.asarray(leaf).tobytes() for leaf in leaves]
  return found


def run(command, folder, cache, *flags, config=SMOKE):
  one = '--config.mesh.data=1'  # what eight fake devices change is test_mesh's
  return command('sppo', config, f'--workdir={folder}', f'--cache={cache}', one, *flags)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A folder for the run that other tests compare with."""
  return tmp_path_factory.mktemp('finished') / 'run'


@pytest.mark.slow
def test_an_arm_leaves_what_it_did(command, finished, cache, tmp_path):
  result = run(command, finished, cache)
  assert result.code == 0, result.err
  assert 'step 0: loss' in result.out
  for t in (1, 2):
    folder = finished / f'iteration-{t}'
    rows = {name: self_play.read(folder / name) for name in KEPT}
    assert [len(row['responses']) for row in rows['responses.jsonl']] == [5] * 32
    wins = np.array([row['wins'] for row in rows['wins.jsonl']])
    np.testing.assert_allclose(wins + np.swapaxes(wins, 1, 2), 1.0, rtol=1e-12)
    # What was picked is a data set, DPO offline could be trained on it; but data of
    # others may hold no empty response.
    picked = [row for row in rows['picks.jsonl'] if all(row['responses'])]
    self_play.write(tmp_path / 'picks.jsonl', picked)
    records = list(sources.read(f'jsonl:{tmp_path / "picks.jsonl"}'))
    assert len(records) == len(picked) > 10
  prompts = [
    {row['prompt'] for row in self_play.read(finished / f'iteration-{t}' / KEPT[0])}
    for t in (1, 2)
  ]
  assert not prompts[0] & prompts[1]
  summary = json.loads((finished / 'DONE').read_text())
  assert {'win_rate/2_0', 'win_rate/2_1_se', 'gap/2', 'distance/0'} <= summary.keys()
  outputs = json.loads((finished / 'alpaca_eval' / 'iterate-2.json').read_text())
  assert outputs[0].keys() == {'instruction', 'output', 'generator'}
  assert len(outputs) == 16
  assert 'win_rate/2_0' in (finished / 'report' / 'index.html').read_text()


@pytest.mark.slow
def test_an_arm_stopped_in_its_second_iteration_ends_with_the_same_bits(
  command, finished, cache, tmp_path, monkeypatch
):
  save, calls = Checkpoints.save, []

  def stop_in_the_second(self, step, *args, **kwargs):
    done = save(self, step, *args, **kwargs)
    calls.append(step)
    if len(calls) == 4:  # 3, 6 and the final of the first iteration are before
      self.wait()
      raise KeyboardInterrupt
    return done

  monkeypatch.setattr(Checkpoints, 'save', stop_in_the_second)
  with pytest.raises(KeyboardInterrupt):
    run(command, tmp_path / 'run', cache)
  monkeypatch.setattr(Checkpoints, 'save', save)
  assert not (tmp_path / 'run' / 'iteration-2' / 'final').exists()
  result = run(command, tmp_path / 'run', cache)
  assert result.code == 0, result.err
  assert 'going on from step 3' in result.out
  assert lasting(tmp_path / 'run') == lasting(finished)


@pytest.mark.slow
def test_scores_made_elsewhere_are_waited_for(command, cache, tmp_path):
  folder, scores = tmp_path / 'run', tmp_path / 'scores.jsonl'
  flags = (
    f'--config.oracle.source=jsonl:{scores}',
    '--config.evaluation.oracle=task:cycle',
    '--config.self_play.iterations=1',
  )
  first = run(command, folder, cache, *flags)
  assert first.code == 2
  asked_of = folder / 'iteration-1' / 'responses.jsonl'
  assert f'The responses are the lines of {asked_of}' in first.err
  rows = [
    {**row, 'scores': [float(len(set(text))) for text in row['responses']]}
    for row in self_play.read(asked_of)
  ]
  self_play.write(scores, rows)
  second = run(command, folder, cache, *flags)
  assert second.code == 0, second.err


@pytest.mark.slow
@pytest.mark.parametrize('reads', ['response', 'pair'])
def test_a_trained_reward_model_is_an_oracle(command, cache, tmp_path, reads):
  pairs = tmp_path / 'pairs.jsonl'
  rows = [
    {'prompt': f'{a}{b}ab:', 'chosen': f'p{a}{b}ab', 'rejected': f'r{b}{a}hh'}
    for a in 'abcdefgh'
    for b in 'abcdefgh'
  ]
  self_play.write(pairs, rows)
  model = tmp_path / 'model'
  flags = (
    f'--config.data.source=jsonl:{pairs}',
    '--config.data.held_out=16',
    '--config.model.vocab_size=64',
    '--config.evaluation.sources=()',
    f'--config.reference.data.source=jsonl:{pairs}',
    '--config.reference.data.held_out=16',
    '--config.reference.data.prompt={prompt}',
    '--config.reference.data.solution={chosen}',
    f'--config.reads={reads}',
    '--config.ensemble=2',
    '--config.mesh.data=1',
  )
  trained = command(
    'rm',
    '--config=experiments/configs/rm/gsm8k_pairs.py:smoke',
    f'--workdir={model}',
    f'--cache={cache}',
    *flags,
  )
  assert trained.code == 0, trained.err
  assert 'held_out/disagreement' in trained.out
  oracle = f'--config.oracle.source=rm:{model}'
  played = run(command, tmp_path / 'run', cache, oracle)
  assert played.code == 0, played.err
  wins = self_play.read(tmp_path / 'run' / 'iteration-1' / 'wins.jsonl')
  assert len({row['wins'][0][1] for row in wins}) > 1


@pytest.mark.parametrize(
  ('flag', 'said'),
  [
    ('--config.objective.eta=-1', ('objective.eta', '(0, inf)')),
    ('--config.oracle.win_rate=both', ('oracle.win_rate', 'scalar')),
    ('--config.oracle.source=task:sentiment', ('sentiment', 'no preferences', 'cycle')),
    ('--config.oracle.source=rm:gone', ('gone', 'no finished run')),
    ('--config.oracle.source=my.judge', ('my.judge', 'cannot be imported')),
    ('--config.oracle.source=xml:x', ('xml:x', 'jsonl:PATH')),
    ('--config.self_play.responses=1', ('self_play.responses', '2')),
    ('--config.evaluation.prompts=1', ('evaluation.prompts', '2')),
    ('--config.self_play.use=worst', ('self_play.use', 'best_and_worst')),
    ('--config.self_play.iterations=0', ('self_play.iterations', '0')),
    ('--config.self_play.temperature=0.0', ('temperature must be positive',)),
    ('--config.data.prompts=40', ('need 64 prompts', '40')),
  ],
)
def test_a_wrong_value_is_named(command, cache, tmp_path, flag, said):
  result = run(command, tmp_path / 'run', cache, flag)
  assert result.code == 2
  assert result.err.startswith('prefjax: ')
  for words in said:
    assert words in result.err


def test_an_objective_that_learns_otherwise_is_refused(command, cache, tmp_path):
  smoke = '--config=experiments/configs/sppo/cycle.py:grpo,smoke'
  result = run(command, tmp_path / 'run', cache, config=smoke)
  assert result.code == 2
  assert 'grpo needs' in result.err
