"""What is published of a sweep: its numbers, its claim, and on which page."""

import json
from pathlib import Path

import pytest
import told

from experiments.parts import reproduction
from prefjax.errors import InputError

ABLATION = Path('experiments/configs/dpo/ablations/displacement.py')


@pytest.fixture
def sweep(tmp_path, monkeypatch):
  """The folder of a sweep of an ablation that shows a metric beside the usual ones."""
  monkeypatch.setattr(reproduction, 'RESULTS', tmp_path / 'results')
  folder = told.leave_sweep(tmp_path / 'sweep', seeds=(0, 1))
  for done in folder.glob('*/*/DONE'):
    drift = {'eval/chosen_drift': -0.5, 'eval/rejected_drift': -2.0}
    done.write_text(json.dumps(json.loads(done.read_text()) | drift))
  asked = {'path': str(ABLATION), 'variant': ''}
  (folder / 'config.json').write_text(json.dumps({'config': asked}))
  return folder


def test_the_metric_comes_first_and_what_stands_beside_it_last(sweep):
  found = json.loads(reproduction.publish(sweep).read_text())
  assert found['seeds'] == [0, 1]
  first, *_, last = (name for name in found['table'][0] if name not in ('', 'n'))
  assert (first, last) == ('eval/chosen_drift', 'eval/rejected_drift')
  assert found['table'][1][last] == '-2.000'
  assert {row['metric'] for row in found['differences']} == {first}


def test_the_page_says_what_ours_came_to(sweep):
  reproduction.publish(sweep)
  one, page = reproduction.told(ABLATION), reproduction.page()
  assert one.ours.startswith('DPO lowers both')
  assert page.count(one.ours) == page.count(one.scale) == 1
  assert page.count('not yet run') == len(reproduction.ablations()) - 1


def test_only_the_sweep_of_an_ablation_is_published(sweep):
  (sweep / 'config.json').write_text(json.dumps({'config': {'path': 'mine.py'}}))
  with pytest.raises(InputError, match='is not the sweep of an ablation'):
    reproduction.publish(sweep)
