"""Rewards on disk: written before they are used, and decided once."""

import json
import os

import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.rewards import journal
from prefjax.rewards.journal import Journal

TOKENS = np.array([[3, 4, 5], [6, 7, 0]])
LENGTH = np.array([3, 2])
KEY = journal.key(5, 0, TOKENS, LENGTH)
ROW = {'values': {'right': [1.0, None], 'form': [0.1, -2.5e-8]}}


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'rewards.jsonl'


def written(path, *rows):
  with Journal(path) as decided:
    for row in rows:
      decided.put(row)
  return path


# Keys -------------------------------------------------------------------------


def test_a_key_is_of_the_real_tokens_alone():
  padded = np.array([[3, 4, 5, 0, 0], [6, 7, 9, 9, 9]], np.int32)
  assert journal.key(np.int64(5), np.int32(0), padded, LENGTH.astype('i4')) == KEY
  assert KEY[:2] == (5, 0)
  assert [type(x) for x in KEY] == [int, int, str]


@pytest.mark.parametrize(
  ('tokens', 'length'),
  [
    ([[3, 4, 9], [6, 7, 0]], [3, 2]),  # a token
    ([[3, 4, 5], [6, 7, 0]], [2, 2]),  # a length
    ([[3, 4, 5], [6, 7, 0]], [3, 3]),
    ([[6, 7, 0], [3, 4, 5]], [2, 3]),  # the order
    ([[3, 4, 0], [5, 6, 7]], [2, 3]),  # the cut between the two
    ([[3, 4, 5]], [3]),
    ([[3, 4, 5], [6, 7, 0], [0, 0, 0]], [3, 2, 0]),
  ],
)
def test_other_responses_have_another_key(tokens, length):
  assert journal.key(5, 0, np.array(tokens), np.array(length)) != KEY


def test_the_same_responses_elsewhere_have_another_key():
  keys = {journal.key(p, a, TOKENS, LENGTH) for p in range(4) for a in range(3)}
  assert len(keys) == 12


# Writing and reading ----------------------------------------------------------


def test_what_was_put_is_got_and_read_back(path):
  other = journal.key(5, 0, TOKENS + 1, LENGTH)
  with Journal(path) as decided:
    assert decided.get(KEY) is None
    decided.put({KEY: ROW})
    assert decided.get(KEY) == ROW
    assert decided.get(other) is None
  with Journal(path) as decided:
    assert decided.get(KEY) == ROW
    assert decided.get(other) is None
    decided.put({other: {'values': {}}})
  with Journal(path) as decided:
    assert decided.get(KEY) == ROW
    assert decided.get(other) == {'values': {}}
  assert len(path.read_text().splitlines()) == 2


def test_two_tries_of_one_position_are_two_groups(path):
  first, second = (journal.key(5, attempt, TOKENS, LENGTH) for attempt in (0, 1))
  rows = {first: {'values': {'a': [0.0]}}, second: {'values': {'a': [1.0]}}}
  with Journal(written(path, rows)) as decided:
    assert [decided.get(key) for key in (first, second)] == list(rows.values())


def test_floats_come_back_as_they_were(path):
  values = np.random.default_rng(0).standard_normal(200).tolist()
  values += np.float32(0.1).astype(float), 5e-324, 1.7976931348623157e308
  with Journal(written(path, {KEY: {'values': {'a': values}}})) as decided:
    assert decided.get(KEY)['values']['a'] == values


def test_what_was_put_is_on_the_disk_when_put_returns(path, monkeypatch):
  synced, real = [], os.fsync

  def fsync(number):
    synced.append(path.read_text())
    real(number)

  monkeypatch.setattr(os, 'fsync', fsync)
  with Journal(path) as decided:
    decided.put({KEY: ROW})
    (content,) = synced
  row = json.loads(content)
  assert content.endswith('\n')
  assert (row['position'], row['attempt'], row['digest']) == KEY
  assert row['values'] == ROW['values']


# What a kill leaves -----------------------------------------------------------


def test_a_torn_last_line_is_not_there(path):
  written(path, {KEY: ROW})
  whole = path.read_bytes()
  other = journal.key(6, 0, TOKENS, LENGTH)
  line = written(path, {other: ROW}).read_bytes()[len(whole) :]
  for size in range(len(line)):
    path.write_bytes(whole + line[:size])
    with Journal(path) as decided:
      assert decided.get(KEY) == ROW
      assert decided.get(other) is None
      assert path.read_bytes() == whole
  # What is written next begins a line of its own.
  path.write_bytes(whole + line[:-1])
  with Journal(written(path, {other: {'values': {}}})) as decided:
    assert decided.get(KEY) == ROW
    assert decided.get(other) == {'values': {}}


def test_a_first_line_that_is_torn_leaves_an_empty_journal(path):
  path.write_text('{"position": 5, "att')
  with Journal(written(path, {KEY: ROW})) as decided:
    assert decided.get(KEY) == ROW


def test_an_empty_file_is_an_empty_journal(path):
  path.touch()
  with Journal(path) as decided:
    assert decided.get(KEY) is None


@pytest.mark.parametrize(
  'line',
  [
    b'{"position": 5, "attempt": 0, "dig',
    b'{"position": 5, "attempt": 0, "values": {}}',
    b'{}',
    b'[1, 2]',
    b'5',
    b'null',
    b'',
    b'\xff\xfe',
  ],
)
def test_a_line_that_holds_no_rewards_is_named(path, line):
  with written(path, {KEY: ROW}).open('ab') as file:
    file.write(line + b'\n')
  written_after = path.read_bytes()
  with pytest.raises(InputError, match=r'rewards\.jsonl, line 2, holds no rewards'):
    Journal(path)
  assert path.read_bytes() == written_after
