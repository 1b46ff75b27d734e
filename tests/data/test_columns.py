"""Rows of public data sets, in the shapes that they are published in, as records."""

import pytest

from prefjax.data import columns, records
from prefjax.data.conversations import Message
from prefjax.data.records import Pair, Record, Skipped
from prefjax.errors import InputError

ASKED = Message('user', 'What is 2 + 2?')
TEXT = '\n\nHuman: What is 2 + 2?\n\nAssistant:'
TURN = {'role': 'user', 'content': 'What is 2 + 2?'}


def said(text):
  return {'role': 'assistant', 'content': text}


INFO = dict(id='t3', post='I slept.', title='Late', subreddit='tifu', site=None)
# By map: a row, and the record that it is.
ROWS = {
  'hh_rlhf': (
    {
      'chosen': f'{TEXT} 4.\n\nHuman: Sure?\n\nAssistant: Yes.',
      'rejected': f'{TEXT} 4.\n\nHuman: Sure?\n\nAssistant: No.',
    },
    Record(
      f'{TEXT} 4.\n\nHuman: Sure?\n\nAssistant:',
      (' Yes.', ' No.'),
      (Pair(0, 1),),
      messages=(ASKED, Message('assistant', '4.'), Message('user', 'Sure?')),
    ),
  ),
  'ultrafeedback': (
    {
      'prompt': 'What is 2 + 2?',
      'prompt_id': 'a',
      'chosen': [TURN, said('4')],
      'rejected': [TURN, said('5')],
      'messages': [TURN, said('4')],
      'score_chosen': 8.0,
      'score_rejected': 2.0,
    },
    Record(TEXT, (' 4', ' 5'), (Pair(0, 1),), messages=(ASKED,)),
  ),
  'tldr': (
    {
      'info': INFO,
      'choice': 1,
      'worker': 'w',
      'batch': 'b',
      'split': 'train',
      'summaries': [{'text': ' He did.', 'policy': 'sup'}, {'text': 'Slept late.'}],
    },
    Record(
      'SUBREDDIT: r/tifu\n\nTITLE: Late\n\nPOST: I slept.\n\nTL;DR:',
      (' Slept late.', ' He did.'),
      (Pair(0, 1),),
    ),
  ),
  'ultrainteract': (
    {
      'task': 'Math',
      'trajectory': [{'from': 'user', 'value': 'What is 2 + 2?'}],
      'chosen': '4',
      'rejected': '5',
      'id': '1',
      'parent_id': '0',
    },
    Record(TEXT, (' 4', ' 5'), (Pair(0, 1),), messages=(ASKED,)),
  ),
  'ultrainteract, supervised': (
    {'task': 'Math', 'instruction': 'What is 2 + 2?', 'response': '4'},
    Record(TEXT, (' 4',), messages=(ASKED,)),
  ),
  'gsm8k': (
    {'question': 'What is 2 + 2?', 'answer': '2 + 2 = 4\n#### 4'},
    Record(TEXT, (' 2 + 2 = 4\n#### 4',), messages=(ASKED,)),
  ),
}


@pytest.mark.parametrize('case', ROWS)
def test_rows_are_records(case):
  row, wanted = ROWS[case]
  found = columns.mapped(case.partition(',')[0], row, 'here')
  assert records.from_fields(found, 'here') == wanted


def test_questions_of_competition_maths():
  row = {
    'data_source': 'math_dapo',
    'prompt': [TURN],
    'ability': 'MATH',
    'reward_model': {'ground_truth': '34', 'style': 'rule'},
    'extra_info': {'index': 'x'},
  }
  found = columns.mapped('dapo_math', row, 'here')
  assert found == {'prompt': [TURN], 'answer': '34'}


def test_an_article_is_no_post():
  row = ROWS['tldr'][0] | {'info': INFO | {'post': None, 'article': 'News.'}}
  assert columns.mapped('tldr', row, 'here') == Skipped('no_post', 'here')


def test_every_map_is_tested():
  assert {case.partition(',')[0] for case in ROWS} | {'dapo_math'} == set(
    columns.COLUMNS
  )


@pytest.mark.parametrize('name', columns.COLUMNS)
def test_a_row_of_another_data_set_is_named(name):
  with pytest.raises(
    InputError, match=rf"here: .*records\.columns='{name}'.*\['a', 'b'\]"
  ):
    columns.mapped(name, {'a': 1, 'b': 2}, 'here')


def test_an_unknown_map_is_named():
  with pytest.raises(InputError, match=r"'hh' is no map .*'hh_rlhf'"):
    columns.check('hh')
  columns.check('')
  assert columns.mapped('', {'a': 1}, 'here') == {'a': 1}
