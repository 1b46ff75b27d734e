"""The source `hf:`, on folders in the layouts that the datasets library reads."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefjax.data import sources
from prefjax.data.records import Pair, Record
from prefjax.errors import InputError

datasets = pytest.importorskip('datasets')

ROWS = [
  {'prompt': f'{i} + {i} =', 'chosen': str(2 * i), 'rejected': '7', 'extra': None}
  for i in range(4)
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
  monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
  datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path):
  """A folder as the hub has it: Parquet by split, and a second config in the card."""
  folder = tmp_path / 'org' / 'pairs'
  (folder / 'data').mkdir(parents=True)
  (folder / 'hard').mkdir()
  table = pa.Table.from_pylist(ROWS)
  pq.write_table(table[:3], folder / 'data' / 'train-00000-of-00001.parquet')
  pq.write_table(table[3:], folder / 'data' / 'test-00000-of-00001.parquet')
  (folder / 'hard' / 'train.jsonl').write_text(json.dumps(ROWS[3] | {'extra': 'x'}))
  (folder / 'README.md').write_text(
    '---\nconfigs:\n- config_name: default\n  data_files:\n'
    '  - split: train\n    path: data/train-*\n  - split: test\n    path: data/test-*\n'
    '- config_name: hard\n  data_files:\n  - split: train\n    path: hard/train.jsonl\n'
    '---\n'
  )
  return tmp_path


def read(name, folder):
  return list(sources.read(f'hf:{name}', data_dir=folder))


def record(i):
  return Record(f'{i} + {i} =', (str(2 * i), '7'), (Pair(0, 1),))


def test_splits_slices_and_configs_of_a_folder(folder):
  assert read('org/pairs:train', folder) == [record(i) for i in range(3)]
  assert read('org/pairs:test', folder) == [record(3)]
  assert read('org/pairs:train[1:2]', folder) == [record(1)]
  assert read('org/pairs/hard:train', folder) == [record(3)]
  assert read(f'{folder}/org/pairs:test', None) == [record(3)]
  where, row = next(sources.rows('hf:org/pairs:train', data_dir=folder))
  assert (where, row['prompt']) == ('hf:org/pairs:train, row 1', '0 + 0 =')


def test_the_fingerprint_is_of_what_is_read(folder):
  names = (
    'org/pairs:train',
    'org/pairs:test',
    'org/pairs:train[:2]',
    'org/pairs/hard:train',
  )
  found = [sources.fingerprint(f'hf:{name}', data_dir=folder) for name in names]
  assert len(set(found)) == 4
  assert found[0] == sources.fingerprint('hf:org/pairs:train', data_dir=folder)
  table = pa.Table.from_pylist(ROWS[::-1])
  pq.write_table(table[:3], folder / 'org/pairs/data/train-00000-of-00001.parquet')
  assert found[0] != sources.fingerprint('hf:org/pairs:train', data_dir=folder)


def test_a_map_of_columns(folder):
  path = folder / 'org' / 'gsm8k'
  path.mkdir()
  (path / 'train.jsonl').write_text('{"question": "2 + 2?", "answer": "#### 4"}\n')
  (found,) = sources.read('hf:org/gsm8k:train', columns='gsm8k', data_dir=folder)
  assert found.responses == (' #### 4',)


@pytest.mark.parametrize(
  'name, message',
  [
    ('org/pairs', 'must be `hf:ORG/NAME'),
    ('pairs:train', 'must be `hf:ORG/NAME'),
    ('a/b/c/d:train', 'must be `hf:ORG/NAME'),
    ('org/pairs:', 'must be `hf:ORG/NAME'),
    ('org/pairs:dev', 'hf:org/pairs:dev` cannot be read .*dev'),
    ('org/pairs/easy:train', 'cannot be read .*easy'),
    ('no/such:train', 'hf:no/such:train` cannot be read'),
  ],
)
def test_what_is_wrong_is_named(folder, name, message):
  with pytest.raises(InputError, match=message):
    read(name, folder)
