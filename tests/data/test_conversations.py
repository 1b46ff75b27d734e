"""Messages in both layouts, and the records that conversations are."""

import pytest

from prefjax.data import conversations, questions, records
from prefjax.data.conversations import Message
from prefjax.data.records import Pair, Record, Skipped
from prefjax.errors import InputError

BRIEF = {'role': 'system', 'content': 'Be brief.'}
HELLO = {'role': 'user', 'content': 'Hello?'}
TEXT = '\n\nSystem: Be brief.\n\nHuman: Hello?\n\nAssistant:'
TURNS = (Message('system', 'Be brief.'), Message('user', 'Hello?'))


def said(text):
  return {'role': 'assistant', 'content': text}


@pytest.mark.parametrize(
  'value',
  [
    [BRIEF, HELLO],
    [{'from': 'system', 'value': 'Be brief.'}, {'from': 'human', 'value': 'Hello?'}],
    [{'role': None, **{'from': 'system'}, 'value': 'Be brief.'}, HELLO],
  ],
)
def test_both_layouts(value):
  assert conversations.read(value, 'x', 'here') == TURNS
  assert conversations.as_text(TURNS) == TEXT


CASES = {
  'messages': (
    {'messages': [BRIEF, HELLO, said('Yes.')]},
    Record(TEXT, (' Yes.',), messages=TURNS),
  ),
  'conversations': (
    {'conversations': [{'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': 'b'}]},
    Record('\n\nHuman: a\n\nAssistant:', (' b',), messages=(Message('user', 'a'),)),
  ),
  'two whole ones': (
    {
      'chosen': [BRIEF, HELLO, said('Yes.')],
      'rejected': [BRIEF, HELLO, said('No.')],
      'preference': 0.75,
    },
    Record(TEXT, (' Yes.', ' No.'), (Pair(0, 1, 0.75),), messages=TURNS),
  ),
  'a prompt and two answers': (
    {'prompt': [BRIEF, HELLO], 'chosen': [said('Yes.')], 'rejected': [said('No.')]},
    Record(TEXT, (' Yes.', ' No.'), (Pair(0, 1),), messages=TURNS),
  ),
  'a prompt and texts': (
    {'prompt': [BRIEF, HELLO], 'responses': ['a', 'b'], 'labels': [1, 0]},
    Record(TEXT, (' a', ' b'), labels=(1.0, 0.0), messages=TURNS),
  ),
  'no shared prompt': (
    {'chosen': [HELLO, said('a')], 'rejected': [BRIEF, said('b')]},
    Skipped('no_shared_prompt', 'here'),
  ),
  'the user has the last word': (
    {'messages': [HELLO]},
    Skipped('no_last_answer', 'here'),
  ),
  'it has in one of two': (
    {'chosen': [HELLO, said('a')], 'rejected': [HELLO, HELLO]},
    Skipped('no_last_answer', 'here'),
  ),
  'an empty answer': (
    {'messages': [HELLO, said('')]},
    Skipped('empty_response', 'here'),
  ),
}


@pytest.mark.parametrize('case', CASES)
def test_records_of_conversations(case):
  fields, wanted = CASES[case]
  assert records.from_fields(fields, 'here') == wanted


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'messages': 'Hello?'}, 'here: `messages` must be a list of messages'),
    (
      {'messages': [{'role': 'user'}]},
      r'`messages\[0\]` must have `role` and `content`',
    ),
    ({'messages': [HELLO | {'role': 'judge'}]}, r"role of `messages\[0\]` .*'judge'"),
    (
      {'messages': [HELLO | {'content': [1]}]},
      r'`messages\[0\]` must be a text, got list',
    ),
    ({'messages': [HELLO, 3]}, r'`messages\[1\]` must have'),
    ({'messages': [{'role': 'user', 'content': '\ud800'}]}, 'a lone surrogate'),
    ({'messages': [HELLO], 'text': 'x'}, 'exactly one of these'),
    ({'chosen': [HELLO], 'rejected': 'x'}, '`rejected` must be a list of messages'),
  ],
)
def test_what_is_wrong_is_named(fields, message):
  with pytest.raises(InputError, match=message):
    records.from_fields(fields, 'here')


def test_a_question_that_is_a_conversation_keeps_its_turns(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text(
    '{"prompt": [{"role": "system", "content": "Be brief."},'
    ' {"role": "user", "content": "Hello?"}], "reward_model": {"ground_truth": "4"}}\n'
  )
  read = lambda prompt, **options: next(  # noqa: E731
    questions.read(f'jsonl:{path}', prompt=prompt, **options)
  )
  found = read('{prompt}')
  assert (found.prompt, found.messages) == ('Hello?', TURNS)
  assert read('{prompt}\n').messages is None
  found = read('{prompt}', columns='dapo_math')
  assert (found.record['answer'], found.messages) == ('4', TURNS)
