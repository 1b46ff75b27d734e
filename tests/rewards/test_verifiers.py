import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from prefjax.rewards import verifiers

NAN = float('nan')
HUGE = 1_000_000

# Whatever a model writes: each must have a reward at once.
ANY_TEXT = [
  '',
  '\x00\ud800',
  '日本語 ４２ ٣ ½ ²',
  '#' * HUGE,
  '1' * HUGE,
  '1,234' * (HUGE // 5),
  '-$' * HUGE,
  '####' * HUGE,
  '{' * HUGE,
  '\\boxed{' * (HUGE // 7),
  '\\boxed{' + '{' * HUGE,
  '\n' * HUGE,
]


@pytest.mark.parametrize('text', ANY_TEXT, ids=range(len(ANY_TEXT)))
@pytest.mark.parametrize(
  'verifier',
  [
    verifiers.exact_answer,
    verifiers.gsm8k,
    verifiers.gsm8k_format,
    verifiers.format_boxed,
    verifiers.digits,
  ],
)
def test_any_text_has_a_reward(verifier, text):
  assert verifier('8,3:9,4', text, {'answer': '#### 42'}) == 0.0
  assert isinstance(verifier(text, text, {'answer': text}), float)


@pytest.mark.parametrize(
  ('response', 'answer', 'expected'),
  [
    ('Paris', 'Paris', 1.0),
    (' Paris\n', '\tParis', 1.0),
    ('paris', 'Paris', 0.0),
    ('It is Paris', 'Paris', 0.0),
    ('4', 4, 1.0),
    ('', '', 1.0),
    ('Paris', None, NAN),
  ],
)
def test_exact_answers(response, answer, expected):
  value = verifiers.exact_answer('', response, {'answer': answer})
  np.testing.assert_equal(value, expected)


GSM8K = [
  ('so 9 * 2 = 18.\n#### 18', '18', 1.0),
  ('#### 18', '19', 0.0),
  ('####18', '18', 1.0),
  ('#### $1,080.00 a day', '1,080', 1.0),
  ('#### 1080', '1,080', 1.0),
  ('#### -5', '-5', 1.0),
  ('#### -$5', '-5', 1.0),
  ('#### $-5', '-5', 1.0),
  ('#### −5', '-5', 1.0),
  ('#### 5', '-5', 0.0),
  ('#### .5', '0.5', 1.0),
  ('#### 18.', '18', 1.0),
  # The first number after the last marker, whatever stands elsewhere.
  ('#### 3\n#### 18 eggs for 2 dollars', '18', 1.0),
  ('#### 18\n#### 3', '18', 0.0),
  ('18 ####', '18', 0.0),
  # Without a marker, the last number of all.
  ('A: 18', '18', 1.0),
  ('18 eggs, or 19', '18', 0.0),
  ('The answer is \\boxed{18}.', '18', 1.0),
  ('it is 20-2', '2', 1.0),
  ('it is (20)-2', '2', 1.0),
  ('it is 20 or -2', '-2', 1.0),
  ('1,2', '2', 1.0),
  ('no number', '0', 0.0),
  ('', '0', 0.0),
]


@pytest.mark.parametrize(('response', 'answer', 'expected'), GSM8K)
def test_gsm8k_by_hand(response, answer, expected):
  record = {'answer': f'Half of 36 is <<36/2=18>>18.\n#### {answer}'}
  assert verifiers.gsm8k('', response, record) == expected


def test_gsm8k_needs_an_answer_with_a_number():
  assert np.isnan(verifiers.gsm8k('', '#### 1', {}))
  assert np.isnan(verifiers.gsm8k('', '#### 1', {'answer': None}))
  assert np.isnan(verifiers.gsm8k('', '#### 1', {'answer': 'none'}))
  assert verifiers.gsm8k('', '#### 1', {'answer': 1}) == 1.0


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize('split', ['train', 'test'])
def test_gold_solutions_of_gsm8k_are_right_and_well_formed(real_file, split):
  records = rows(real_file(f'gsm8k/{split}.jsonl'))
  for verifier in (verifiers.gsm8k, verifiers.gsm8k_format):
    values = [verifier(r['question'], r['answer'], r) for r in records]
    assert values == [1.0] * len(records)


@pytest.mark.parametrize(
  ('model', 'right'),
  [
    ('6b_finetuning', 286),  # 21.68 % of 1,319
    ('6b_verification', 515),  # 39.04 %
    ('175b_finetuning', 458),  # 34.72 %
    ('175b_verification', 742),  # 56.25 %
  ],
)
def test_gsm8k_agrees_with_every_published_grade(real_file, model, right):
  solved = rows(real_file('gsm8k/example_model_solutions.jsonl'))
  records = rows(real_file('gsm8k/test.jsonl'))
  values = []
  for row, record in zip(solved, records, strict=True):
    assert row['question'] == record['question']
    solution = row[model]['solution']
    values.append(verifiers.gsm8k(record['question'], solution, record))
  assert values == [float(row[model]['is_correct']) for row in solved]
  assert sum(values) == right


@pytest.mark.parametrize(
  ('response', 'expected'),
  [
    ('18 it is.\n#### 18', 1.0),
    ('####-$1,080.5 \n', 1.0),
    ('#### 18 eggs', 0.0),
    ('#### 18.', 0.0),
    ('#### 18\n#### 18', 0.0),
    ('##### 18', 0.0),
    ('####', 0.0),
    ('18', 0.0),
  ],
)
def test_gsm8k_format(response, expected):
  assert verifiers.gsm8k_format('', response, {}) == expected


@pytest.mark.parametrize(
  ('response', 'expected'),
  [
    (r'so \boxed{18}.', 1.0),
    (r'\boxed{\frac{1}{2}} it is', 1.0),
    (r'\boxed{1} or \boxed{2}', 0.0),
    (r'\boxed{\boxed{1}}', 0.0),
    (r'\boxed{ }', 0.0),
    (r'\boxed{\frac{1}{2}', 0.0),
    ('18', 0.0),
  ],
)
def test_format_boxed(response, expected):
  assert verifiers.format_boxed('', response, {}) == expected


DIGITS = [
  # 3 - 8 = -5, so 3 - 5 = 7, 2, -3 = 6, 1 modulo 9: 7 characters, an eighth each.
  ('8,3:9,4', '7,2,6,1', 7 / 8),
  ('8,3:9,4', '7,2,5,1', 4 / 8),
  ('8,3:9,4', '7,2', 3 / 8),
  ('8,3:9,4', '7,2,6,1,5', 7 / 8),
  ('8,3:9,4', ' 7,2,6,1', 0.0),
  ('8,3:9,4', '1,7,2,6', 0.0),
  ('8,3:9,4', '', 0.0),
  # The first term may be the modulus itself; 9 is 0 then.
  ('9,4:9,8', '8,3,7,2,6,1,5,0', 15 / 16),
  ('0,0:9,3', '0,0,0', 5 / 6),
  ('9,10:20,2', '11,12,13', 5 / 6),
  ('19,1:20,2', '3,5', 3 / 4),
  # Nothing is asked for: nothing can be earned.
  ('7,8:20,0', '', 0.0),
  ('7,8:20,0', 'E000', 0.0),
  ('7,8:0,3', '1', NAN),
  ('7,8,9', '10', NAN),
]


@pytest.mark.parametrize(('prompt', 'response', 'expected'), DIGITS)
def test_digits_by_hand(prompt, response, expected):
  np.testing.assert_equal(verifiers.digits(prompt, response, {}), expected)


def test_digits_on_the_published_prompts(real_file):
  table = pq.read_table(real_file('digit_completion/test.parquet')).to_pylist()
  prompts = [row['prompt'][0]['content'] for row in table]
  assert len(prompts) == 200
  for prompt in prompts:
    first, second, modulus, count = map(int, prompt.replace(':', ',').split(','))
    terms = [first, second]
    while len(terms) < 2 + count:
      terms.append((2 * terms[-1] - terms[-2]) % modulus)
    answer = ','.join(map(str, terms[2:]))
    value = verifiers.digits(prompt, answer, {})
    assert value == len(answer) / (len(answer) + 1)
