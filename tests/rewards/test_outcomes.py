"""Pairs, balance and step labels from outcomes, by hand."""

import math

import pytest

from prefjax.data.records import Pair, Record
from prefjax.errors import InputError
from prefjax.rewards import outcomes


def record(prompt, *labels, steps=1):
  responses = tuple(f'{prompt}{i}' + 'x' * (steps - 1) for i in range(len(labels)))
  return Record(
    prompt=prompt,
    responses=responses,
    labels=tuple(map(float, labels)),
    steps=tuple((text[:2], *text[2:]) for text in responses),
  )


def test_every_right_one_meets_every_wrong_one():
  found = outcomes.paired([record('a', 1, 0, 1, 0), record('b', 1, 1), record('c', 0)])
  assert [r.prompt for r in found] == ['a']
  assert found[0].pairs == (Pair(0, 1), Pair(0, 3), Pair(2, 1), Pair(2, 3))


def kinds(records):
  return [(r.prompt, sum(r.labels), len(r.labels) - sum(r.labels)) for r in records]


RECORDS = [record('a', 1, 0, 0, 0), record('b', 1, 1, 0), record('c', 0, 0)]


def test_balance_of_every_prompt():
  assert kinds(outcomes.balanced(RECORDS, 'instruction', 0)) == [
    ('a', 1, 1),
    ('b', 1, 1),
  ]


def test_balance_of_all_together():
  found = kinds(outcomes.balanced(RECORDS, 'dataset', 0))
  assert sum(right for _, right, _ in found) == 3
  assert sum(wrong for _, _, wrong in found) == 3
  assert outcomes.balanced(RECORDS, 'none', 0) == RECORDS


def test_what_stays_is_drawn_by_the_seed_and_keeps_its_steps():
  drawn = {outcomes.balanced(RECORDS, 'instruction', s)[0].responses for s in range(9)}
  assert len(drawn) > 1
  for found in outcomes.balanced(RECORDS, 'dataset', 1):
    for text, steps in zip(found.responses, found.steps, strict=True):
      assert ''.join(steps) == text
    assert len(found.labels) == len(found.responses)


def test_labels_of_steps_by_hand():
  records = [record('a', 1, 0, steps=3), record('b', 0)]
  found = [[[[0.0, 1.0, 0.0, 0.0], [1.0] * 4], [[0.0, 1.0, 1.0, 0.0], [0.0] * 4]], [[]]]
  hard = outcomes.labelled(records, 'hard', found)
  assert hard[0].step_labels == ((1.0, 1.0, 1.0), (1.0, 0.0, 0.0))
  soft = outcomes.labelled(records, 'soft', found)
  assert soft[0].step_labels == ((0.25, 1.0, 1.0), (0.5, 0.0, 0.0))
  assert hard[1].step_labels == soft[1].step_labels == ((0.0,),)
  alone = outcomes.labelled(records, 'outcome')
  assert [labels[-1] for labels in alone[0].step_labels] == [1.0, 0.0]
  assert all(math.isnan(x) for x in alone[0].step_labels[0][:-1])


@pytest.mark.parametrize(
  ('call', 'said'),
  [
    (lambda: outcomes.labelled(RECORDS, 'firm'), "labels 'firm'; known are"),
    (lambda: outcomes.labelled(RECORDS, 'hard'), 'estimated from continuations'),
    (lambda: outcomes.balanced(RECORDS, 'even', 0), "balance 'even'; known are"),
    (
      lambda: outcomes.labelled([record('a', 1, steps=3)], 'soft', [[[[1.0]]]]),
      '3 steps needs continuations of 2, got 1',
    ),
  ],
)
def test_refused(call, said):
  with pytest.raises(InputError, match=said):
    call()
