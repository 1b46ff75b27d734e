import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from prefjax.data import prepare as prepare_lib
from prefjax.data import sources
from prefjax.data.prepare import open_prepared, prepare
from prefjax.data.records import Pair, Record, Skipped
from prefjax.errors import InputError

RECORDS = [
  Record('hi', ('yes', 'it is not'), (Pair(0, 1, 1.0), Pair(1, 0, 0.25))),
  Skipped('no_shared_prompt', 'row 2'),
  Record('', ('no',)),
  Record('I', ('a', 'b', 'c'), (), (1.0, 0.0, 1.0), (0.5, 0.25, 0.75)),
]


def make(directory, tokenizer, records=RECORDS, max_prompt=20, max_response=20):
  return prepare(
    iter(records),
    tokenizer,
    directory=directory,
    max_prompt=max_prompt,
    max_response=max_response,
  )


def same(a, b):
  assert [r.tolist() for r in a.responses] == [r.tolist() for r in b.responses]
  for name in ('prompt', 'chosen', 'rejected', 'preference'):
    np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True)
  for name in ('labels', 'win_rates'):
    x, y = getattr(a, name), getattr(b, name)
    assert (x is None) == (y is None)
    assert x is None or (x.tolist() == y.tolist() and x.dtype == np.float32)


def files(directory):
  return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_round_trip_and_index_of_lengths(tmp_path, tokenizer):
  data = make(tmp_path / 'd', tokenizer)
  texts = [record for record in RECORDS if isinstance(record, Record)]
  want = [
    (
      [1, *tokenizer.encode(record.prompt)],
      [[*tokenizer.encode(text), 2] for text in record.responses],
    )
    for record in texts
  ]
  assert len(data) == 3
  for i, (prompt, responses) in enumerate(want):
    assert data[i].prompt.tolist() == prompt
    assert [ids.tolist() for ids in data[i].responses] == responses
    assert data.prompt_length[i] == len(prompt)
    lengths = [len(ids) for ids in responses]
    assert data.response_length[i].tolist() == lengths + [0] * (3 - len(lengths))
  assert data.num_pairs.tolist() == [2, 0, 0]
  assert data[0].chosen.tolist() == [0, 1] and data[0].rejected.tolist() == [
    1,
    0,
  ]
  assert data[0].preference.tolist() == [1.0, 0.25]
  assert data[2].labels.tolist() == [1.0, 0.0, 1.0]
  assert data[2].win_rates.tolist() == [0.5, 0.25, 0.75]
  assert data[0].labels is None


def test_counts(tmp_path, tokenizer):
  data = make(tmp_path / 'd', tokenizer, max_prompt=2, max_response=2)
  assert data.counts == json.loads((tmp_path / 'd' / 'counts.json').read_text())
  tokens = data.counts.pop('prompt_tokens'), data.counts.pop('response_tokens')
  assert tokens == (data.prompt_length.sum(), data.response_length.sum())
  long = [len(tokenizer.encode(t)) > 1 for t in ('yes', 'it is not', 'no')]
  assert data.counts == {
    'prompts': 3,
    'responses': 6,
    'pairs': 2,
    'prompts_truncated': int(len(tokenizer.encode('hi')) > 1),
    'responses_truncated': sum(long),
    'round_trip_changed': 0,
    'skipped_no_shared_prompt': 1,
  }
  assert sum(long) > 0


def test_bulk_read_in_the_order_asked(tmp_path, tokenizer):
  records = [Record('hi', ('a' * (1 + i % 7),)) for i in range(300)]
  data = make(tmp_path / 'd', tokenizer, records)
  indices = np.array([299, 0, 13, 13, -1])
  for example, i in zip(data.read(indices), (299, 0, 13, 13, 299), strict=True):
    same(example, data[i])
    assert tokenizer.decode(example.responses[0].tolist()) == 'a' * (1 + i % 7)
  assert data.read([]) == []
  for outside in (300, -301):
    with pytest.raises(IndexError):
      data[outside]


def test_opened_again_and_sent_to_another_process(tmp_path, tokenizer):
  data = make(tmp_path / 'd', tokenizer)
  # The folder and the bytes are this test's own.
  for again in (
    open_prepared(tmp_path / 'd'),
    pickle.loads(pickle.dumps(data)),
  ):
    assert again.counts == data.counts
    for i in range(3):
      same(again[i], data[i])


def test_same_records_same_bytes(tmp_path, tokenizer):
  make(tmp_path / 'a', tokenizer)
  make(tmp_path / 'b', tokenizer)
  assert files(tmp_path / 'a') == files(tmp_path / 'b')


def test_digest_is_of_the_tokens(tmp_path, tokenizer):
  records = [Record('hi', ('a',))] * 1100  # more than one read
  changed = [*records[:-1], Record('hi', ('b',))]
  digests = [
    make(tmp_path / name, tokenizer, rows).digest
    for name, rows in (('a', records), ('b', records), ('c', changed))
  ]
  assert digests[0] == digests[1] != digests[2]


def test_an_existing_folder_is_reused(tmp_path, tokenizer):
  make(tmp_path / 'd', tokenizer)

  def never():
    raise AssertionError('the records were read again')
    yield

  assert len(make(tmp_path / 'd', tokenizer, never())) == 3
  with pytest.raises(InputError, match='was prepared with'):
    make(tmp_path / 'd', tokenizer, max_prompt=19)


@pytest.mark.parametrize('records', [[], RECORDS[1:2]])
def test_empty_data_set(tmp_path, tokenizer, records):
  with pytest.raises(InputError, match='no record'):
    make(tmp_path / 'd', tokenizer, records)
  assert os.listdir(tmp_path) == []


def test_an_error_in_the_middle_leaves_nothing(tmp_path, tokenizer):
  def rows():
    yield RECORDS[0]
    raise InputError('train.jsonl, line 2: broken')

  with pytest.raises(InputError, match='line 2'):
    make(tmp_path / 'd', tokenizer, rows())
  assert os.listdir(tmp_path) == []


_KILLED = """
import sys, time
from pathlib import Path
from prefjax.data.prepare import prepare
from prefjax.data.records import Record
from prefjax.data.tokenizers import SentencePiece
def rows():
  yield Record('hi', ('yes',))
  print('in the middle', flush=True)
  time.sleep(60)
prepare(rows(), SentencePiece(sys.argv[1]), directory=Path(sys.argv[2]),
        max_prompt=20, max_response=20)
"""


def test_killed_in_the_middle(tmp_path, tokenizer, tokenizer_path):
  directory = tmp_path / 'cache' / 'd'
  with subprocess.Popen(
    [sys.executable, '-c', _KILLED, tokenizer_path, directory],
    stdout=subprocess.PIPE,
  ) as run:
    assert run.stdout.readline() == b'in the middle\n'
    left = os.listdir(directory.parent)
    assert len(left) == 1 and left[0].startswith('d.tmp-')
    # While its owner lives, a temporary folder is nobody else's to remove.
    make(tmp_path / 'cache' / 'e', tokenizer)
    prepare_lib._remove_abandoned(directory)
    assert sorted(os.listdir(directory.parent)) == sorted(['e', *left])
    run.send_signal(signal.SIGKILL)
  assert sorted(os.listdir(directory.parent)) == sorted(['e', *left])
  assert len(make(directory, tokenizer)) == 3
  assert sorted(os.listdir(directory.parent)) == ['d', 'e']


def test_folders_of_other_machines_get_a_day(tmp_path, tokenizer):
  old, new = (tmp_path / f'd.tmp-elsewhere{i}-1' for i in range(2))
  mine = tmp_path / f'd.tmp-{socket.gethostname()}-{os.getpid()}'
  other = tmp_path / 'd2.tmp-elsewhere-1'
  for folder in (old, new, mine, other):
    folder.mkdir()
  for folder in (old, other):
    os.utime(folder, (time.time() - 90_000,) * 2)
  make(tmp_path / 'd', tokenizer)
  assert sorted(os.listdir(tmp_path)) == sorted(['d', other.name, new.name])


def test_another_process_was_first(tmp_path, tokenizer):
  def rows():
    yield RECORDS[0]
    make(tmp_path / 'other', tokenizer)
    (tmp_path / 'other').rename(tmp_path / 'd')

  assert len(make(tmp_path / 'd', tokenizer, rows())) == 3
  assert os.listdir(tmp_path) == ['d']


def test_not_a_prepared_folder(tmp_path, tokenizer):
  with pytest.raises(InputError, match='is not a folder of prepared data'):
    open_prepared(tmp_path / 'none')
  make(tmp_path / 'd', tokenizer)
  (tmp_path / 'd' / 'lengths.npz').unlink()
  with pytest.raises(InputError, match=r'it lacks lengths\.npz'):
    open_prepared(tmp_path / 'd')


def test_hh_real_file_is_counted(tmp_path, real_file, tokenizer):
  path = real_file('hh_rlhf/harmless-base_test.jsonl.gz')
  data = make(tmp_path / 'd', tokenizer, sources.read(f'jsonl:{path}'), max_prompt=99)
  got = [data.counts[k] for k in ('prompts', 'responses', 'pairs')]
  assert got == [2307, 4614, 2307]
  assert data.counts['skipped_no_shared_prompt'] == 5
  assert data.prompt_length.max() == 99
