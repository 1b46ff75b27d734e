"""Rows to questions: templates take fields, and a row's text stays text."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefjax.data import questions
from prefjax.data.questions import Question
from prefjax.errors import InputError


@pytest.fixture
def read(tmp_path):
  """Reads questions off rows in a file of JSON lines."""

  def read(rows, **templates):
    path = tmp_path / 'rows.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return list(questions.read(f'jsonl:{path}', **templates))

  return read


# By hand ----------------------------------------------------------------------


def test_a_field_takes_the_place_of_its_name(read):
  rows = [{'q': 'What is 1 + 1?', 'a': '2', 'id': 7}, {'q': 'Why?', 'a': ''}]
  found = read(rows, prompt='Q: {q}\nA:', solution=' {a}!')
  assert found == [
    Question('Q: What is 1 + 1?\nA:', rows[0], ' 2!'),
    Question('Q: Why?\nA:', rows[1], ' !'),
  ]


def test_without_a_template_or_a_text_there_is_no_solution(read):
  rows = [{'q': 'x', 'a': '2'}, {'q': 'y', 'a': ''}]
  assert [one.solution for one in read(rows, prompt='{q}')] == [None, None]
  found = read(rows, prompt='{q}', solution='{a}')
  assert [one.solution for one in found] == ['2', None]


def test_integers_are_their_digits(read):
  (found,) = read([{'a': 3, 'b': -40, 'c': 0}], prompt='{a}{b}*{c}=')
  assert found.prompt == '3-40*0='


@pytest.mark.parametrize(
  ('template', 'prompt'),
  [
    ('no field', 'no field'),
    ('{a}{a}', 'xx'),
    (r'\boxed{{{a}}}', r'\boxed{x}'),
    ('{{a}}', '{a}'),
    ('{two words}', 'y'),
    ('{ü}', 'z'),
    ('', ''),
  ],
)
def test_templates_by_hand(read, template, prompt):
  (found,) = read([{'a': 'x', 'two words': 'y', 'ü': 'z'}], prompt=template)
  assert found.prompt == prompt


@pytest.mark.parametrize(
  'text', ['{b}', '{', '}', '{{b}}', '{0}', '{b!r}', '%s', '$b', '\\', '\x00', '日本 é']
)
def test_braces_in_a_row_stay_text(read, text):
  (found,) = read([{'a': text, 'b': 'secret'}], prompt='<{a}>')
  assert found.prompt == f'<{text}>'


def test_a_chat_is_the_text_of_its_last_message(read):
  chat = [
    {'role': 'system', 'content': 'be brief'},
    {'role': 'user', 'content': 'hello {q}'},
  ]
  (found,) = read([{'prompt': chat}], prompt='{prompt} ->')
  assert found.prompt == 'hello {q} ->'
  assert found.record == {'prompt': chat}


def test_questions_come_from_csv_and_parquet_as_well(tmp_path):
  (tmp_path / 'a.csv').write_text('question,answer\n"1,5 + 1?",2\n')
  table = pa.table({'question': ['1,5 + 1?'], 'answer': ['2']})
  pq.write_table(table, tmp_path / 'a.parquet')
  for kind in ('csv', 'parquet'):
    source = f'{kind}:a.{kind}'
    found = questions.read(source, prompt='{question}', data_dir=tmp_path)
    assert list(found) == [
      Question('1,5 + 1?', {'question': '1,5 + 1?', 'answer': '2'})
    ]


def test_rows_are_read_one_at_a_time(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"q": "x"}\n{"q": 1.5}\n')
  found = questions.read(f'jsonl:{path}', prompt='{q}')
  assert next(found).prompt == 'x'
  with pytest.raises(InputError):
    next(found)


# What is refused --------------------------------------------------------------


@pytest.mark.parametrize(
  'template',
  [
    '{a.b}',
    '{a.__class__}',
    '{a[0]}',
    '{a!r}',
    '{a!s}',
    '{a:>9}',
    '{a:{b}}',
    '{}',
    '{0}',
    '{a-b}',
    '{a b.c}',
  ],
)
@pytest.mark.parametrize('which', ['prompt', 'solution'])
def test_a_template_holds_plain_fields_alone(read, template, which):
  templates = {'prompt': '{a}', which: f'x {template}'}
  with pytest.raises(InputError, match='may hold plain fields alone') as error:
    read([{'a': 'x', 'b': 'y', '0': 'z'}], **templates)
  assert repr(f'x {template}') in str(error.value)


@pytest.mark.parametrize('template', ['{a', 'a}', '{a}}', '{{a}', '{a!}'])
def test_a_template_that_is_none_is_refused(read, template):
  with pytest.raises(InputError, match='The template') as error:
    read([{'a': 'x'}], prompt=template)
  assert repr(template) in str(error.value)


@pytest.mark.parametrize('row', [{'a': 'x', 'c': 'y'}, {'a': 'x', 'b': None, 'c': 'y'}])
def test_a_row_without_a_field_is_named_with_what_it_has(read, row):
  with pytest.raises(InputError) as error:
    read([{'a': 'x', 'b': 'y'}, row], prompt='{a}', solution='{c}{b}')
  said = str(error.value)
  assert 'rows.jsonl, line 1: ' in said
  assert "the template '{c}{b}' needs ['c']" in said
  assert "the row has ['a', 'b']" in said
  with pytest.raises(InputError) as error:
    read([{'a': 'x', 'b': 'y'}, row], prompt='{a}{b}')
  said = str(error.value)
  assert 'rows.jsonl, line 2: ' in said
  assert "the template '{a}{b}' needs ['b']" in said
  assert f'the row has {sorted(row)}' in said


@pytest.mark.parametrize(
  ('value', 'kind'),
  [
    (1.5, 'float'),
    (True, 'bool'),
    ({'b': 'c'}, 'dict'),
    ([], 'list'),
    (['b'], 'list'),
    ([{'content': 'b'}, 'c'], 'list'),
    ([{'role': 'user'}], 'NoneType'),
    ([{'content': ['b']}], 'list'),
  ],
)
def test_a_field_that_is_no_text_is_named(read, value, kind):
  said = rf"line 1: the field 'a' must be text, an integer or a chat, got {kind}\."
  with pytest.raises(InputError, match=said):
    read([{'a': value}], prompt='{a}')
