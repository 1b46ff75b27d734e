import re

import numpy as np
import pytest

from prefjax import tasks
from prefjax.errors import InputError
from prefjax.tasks import arithmetic, base

RIGHT = '7+8=15;15-3=12;12+5=17'

# (response to 7+8-3+5=, its reward, the labels of its steps).
BY_HAND = [
  (RIGHT, 1.0, [True, True, True]),
  # Several operations at once are right if their result is.
  ('7+8-3=12;12+5=17', 1.0, [True, True]),
  ('7+8-3+5=17', 1.0, [True]),
  # A slip carried on faithfully: all is wrong from there on.
  ('7+8=16;16-3=13;13+5=18', 0.0, [False, False, False]),
  ('7+8=15;15-3=11;11+5=16', 0.0, [True, False, False]),
  ('7+8-3=13;13+5=18', 0.0, [False, False]),
  # The last step alone, or two slips that cancel: right by luck.
  ('7+8=15;15-3=12;12+5=16', 0.0, [True, True, False]),
  ('7+8=16;16-3=12;12+5=17', 1.0, [False, False, False]),
  # A miscopied number, another order, an operation again, a step too many.
  ('7+8=15;15-2=13;13+5=18', 0.0, [True, False, False]),
  ('8-3=5;7+5+5=17', 1.0, [False, False]),
  ('8+7=15;15-3=12;12+5=17', 1.0, [False, False, False]),
  ('7+8=15;7+8=15;15-3+5=17', 1.0, [True, False, False]),
  (RIGHT + ';17=17', 1.0, [True, True, True, False]),
  # Stopped early: nothing written is wrong, but there is no answer.
  ('7+8=15', 0.0, [True]),
  ('7+8=15;15-3=12;', 0.0, [True, True]),
  (RIGHT + ';', 0.0, [True, True, True]),
  ('', 0.0, []),
  # The answer alone is one, and no step.
  ('17', 1.0, [False]),
  # An integer is written in one way.
  ('7+8=15;15-3=12;12+5=017', 0.0, [True, True, False]),
  ('7+8=15;15-3=12;12+5=+17', 0.0, [True, True, False]),
  ('7+8=15;15-3=12;12+5=17 ', 0.0, [True, True, False]),
  ('7+8=15;15-3=12;12+5=17\n', 0.0, [True, True, False]),
  ('7+8=15;15-3=12;12+5=17.0', 0.0, [True, True, False]),
  ('7+8=15;15-3=12;12+5=١٧', 0.0, [True, True, False]),
  ('7 + 8=15', 0.0, [False]),
  ('7+8=15=15', 0.0, [False]),
  (';;=17', 1.0, [False, False, False]),
  ('⁇ <s> 日本語 \n\t 42', 0.0, [False]),
]


@pytest.mark.parametrize(('response', 'reward', 'labels'), BY_HAND)
def test_rewards_and_labels_equal_those_worked_out_by_hand(response, reward, labels):
  prompt = '7+8-3+5='
  assert arithmetic.reward(prompt, response) == reward
  assert arithmetic.step_labels(prompt, response) == labels
  first = labels.index(False) if False in labels else -1
  assert arithmetic.first_error(prompt, response) == first
  assert ''.join(arithmetic.steps(response)) == response


def test_the_first_error_is_an_index_or_minus_one():
  assert arithmetic.first_error('7+8-3=', '7+8=16;16-3=13') == 0
  assert arithmetic.first_error('7+8-3=', '7+8=15;15-3=13') == 1
  assert arithmetic.first_error('7+8-3=', '7+8=15;15-3=12') == -1
  assert arithmetic.first_error('7+8-3=', '') == -1


def test_a_step_earns_its_label_where_it_ends():
  found = arithmetic.step_rewards('7+8-3=', '7+8=15;15-3=13')
  assert found == [(7, 1.0), (14, 0.0)]
  assert arithmetic.step_rewards('7+8-3=', '') == []


def test_steps_keep_what_ends_them():
  assert arithmetic.steps(RIGHT) == ['7+8=15;', '15-3=12;', '12+5=17']
  assert arithmetic.steps('7+8=15;') == ['7+8=15;']


@pytest.mark.parametrize(
  ('prompt', 'response'),
  [
    ('3-9+8=', '3-9=-6;-6+8=2'),
    ('-3+2=', '-3+2=-1'),
    ('5-5+0=', '5-5=0;0+0=0'),
    ('0-0=', '0-0=0'),
    ('12+345-6=', '12+345=357;357-6=351'),
    # A result may have more digits than a number of a prompt.
    ('999999999+1-1=', '999999999+1=1000000000;1000000000-1=999999999'),
  ],
)
def test_numbers_may_be_negative_zero_or_large(prompt, response):
  assert arithmetic.reward(prompt, response) == 1.0
  assert arithmetic.first_error(prompt, response) == -1


@pytest.mark.parametrize(
  'prompt',
  ['', '=', '7=', '7+8', '7+8==', ' 7+8=', '7+8=\n', '7 +8=', '7++8=', '7+-8=', '+7+8=',
   '07+8=', '7+08=', '-0+8=', '7+8+=', '7*8=', '7-8/2=', '2**3=', '(7+8)=', '7.5+1=',
   '1e3+1=', '1_0+5=', '0x7+8=', '٧+8=', '7−8=', '7+8=15=', 'x+8=', '1234567890+1=',
   "__import__('os')=", '9' * 5000 + '+1='],
)  # fmt: skip
def test_no_answer_is_right_where_the_prompt_is_no_sum(prompt):
  for response in ('15', '7+8=15', '0', '', prompt, '9' * 5000):
    assert arithmetic.reward(prompt, response) == 0.0
    assert not any(arithmetic.step_labels(prompt, response))


def test_no_text_is_too_strange_to_be_read():
  rng = np.random.default_rng(0)
  alphabet = [*arithmetic.CHARACTERS, ' ', 'x', '٣', '\n']
  for _ in range(2000):
    prompt, response = (
      ''.join(rng.choice(alphabet, rng.integers(12)).tolist()) for _ in range(2)
    )
    assert arithmetic.reward(prompt, response) in (0.0, 1.0)
    labels = arithmetic.step_labels(prompt, response)
    assert len(labels) == len(arithmetic.steps(response))
    assert ''.join(arithmetic.steps(response)) == response
  assert arithmetic.reward('7+8=', '9' * 100_000) == 0.0


def test_rewards_are_those_of_each_pair():
  rewards = arithmetic.rewards(['7+8=', '7-8=', '7='], ['7+8=15', '1', '7'])
  np.testing.assert_array_equal(rewards, [1.0, 0.0, 0.0])
  assert rewards.dtype == np.float64
  assert arithmetic.rewards([], []).shape == (0,)
  with pytest.raises(InputError, match='1 prompts and 2 responses'):
    arithmetic.rewards(['7+8='], ['15', '15'])


@pytest.fixture(scope='module')
def documents():
  return {
    'train': arithmetic.documents(0, 2000),
    'test': arithmetic.documents(0, 400, 'test'),
  }


def test_documents_are_written_as_they_should_be(documents):
  sizes, characters = set(), set()
  for prompt, response in documents['train'] + documents['test']:
    assert re.fullmatch('[1-9]([-+][1-9]){1,4}=', prompt)
    assert re.fullmatch(r'\d+([-+]\d){1,2}=\d+(;\d+([-+]\d){1,2}=\d+)*', response)
    assert all(0 <= int(n) <= 20 for n in re.findall('[0-9]+', prompt + response))
    assert len(prompt) <= 10
    assert len(response) <= 30
    sizes.add(len(prompt) // 2)
    characters.update(prompt + response)
  assert sizes == {2, 3, 4, 5}
  assert ''.join(sorted(characters)) == ''.join(sorted(arithmetic.CHARACTERS))


def test_a_document_is_right_but_for_one_slip_that_is_carried_on(documents):
  for prompt, response in documents['train'] + documents['test']:
    # Python's own arithmetic, on text that the test above has seen to be harmless.
    sides = [step.strip(';').split('=') for step in arithmetic.steps(response)]
    done = [len(re.findall('[-+]', left)) for left, _ in sides]
    operations = re.findall('[-+][0-9]', prompt)
    wrong, at, before = [], 0, prompt[0]
    for (left, result), count in zip(sides, done, strict=True):
      # The next operations of the prompt, from the result that was written last.
      assert left == before + ''.join(operations[at : at + count])
      wrong.append(eval(left) != int(result))
      at, before = at + count, result
    assert at == len(operations)
    assert sum(wrong) <= 1
    first = wrong.index(True) if any(wrong) else -1
    assert arithmetic.first_error(prompt, response) == first
    labels = arithmetic.step_labels(prompt, response)
    assert labels == [first < 0 or i < first for i in range(len(sides))]
    assert arithmetic.reward(prompt, response) == (not any(wrong))
    assert (int(before) == eval(prompt[:-1])) == (not any(wrong))


def test_slips_and_haste_have_their_shares(documents):
  for split in base.SPLITS:
    rewards = arithmetic.rewards(*zip(*documents[split], strict=True))
    assert abs(rewards.mean() - 0.7) < 4 * np.sqrt(0.21 / rewards.size)
  steps = [s for _, r in documents['train'] for s in arithmetic.steps(r)]
  # Fewer than a quarter, since a last operation is done alone.
  assert 0.1 < np.mean([len(re.findall('[-+]', s)) == 2 for s in steps]) < 0.25
  errors = [arithmetic.first_error(*pair) for pair in documents['train']]
  assert set(errors) == {-1, 0, 1, 2, 3}


def test_document_i_depends_on_seed_split_and_i_alone(documents):
  assert arithmetic.documents(0, 40) == documents['train'][:40]
  assert arithmetic.documents(0, 40, 'test') == documents['test'][:40]
  long = {pair for pair in documents['train'] if len(pair[0]) > 8}
  assert len(set(arithmetic.documents(1, 400)) & long) < 10


def test_the_first_documents_are_pinned(documents):
  # A change of numbers, draws or split changes every result on this task.
  assert documents['train'][0] == ('6-3+1+1+1=', '6-3=3;3+1=4;4+1=6;6+1=7')
  assert documents['train'][1] == ('2+2+4-1+3=', '2+2=4;4+4=8;8-1+3=10')


def test_no_prompt_is_in_both_splits(documents):
  # Two seeds, for it must hold whatever the seed.
  more = arithmetic.documents(1, 400, 'test')
  train = {prompt for prompt, _ in documents['train']}
  test = {prompt for prompt, _ in documents['test'] + more}
  assert len(train) > 1200
  assert len(test) > 400
  assert not train & test


def test_prompts_are_distinct_and_those_of_the_documents(documents):
  prompts = arithmetic.prompts(0, 1000)
  assert len(set(prompts)) == 1000
  assert prompts == list(dict.fromkeys(p for p, _ in documents['train']))[:1000]
  assert arithmetic.prompts(0, 0) == []
  assert len(set(arithmetic.prompts(0, 1000, 'test'))) == 1000


def test_more_prompts_than_there_are_is_an_error(monkeypatch):
  monkeypatch.setattr(arithmetic, '_document', lambda *_: ('7+8=', '15'))
  with pytest.raises(InputError, match='Found 1 distinct prompts, not 2'):
    arithmetic.prompts(0, 2)


def test_wrong_arguments_name_what_is_right():
  with pytest.raises(InputError, match=r"'train', 'test'.*'valid'"):
    arithmetic.documents(0, 1, 'valid')
  with pytest.raises(InputError, match='seed'):
    arithmetic.prompts(-1, 1)
  with pytest.raises(InputError, match='count'):
    arithmetic.documents(0, -1)


def test_the_module_is_a_task():
  assert isinstance(arithmetic, tasks.Task)
