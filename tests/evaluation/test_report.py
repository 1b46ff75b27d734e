import base64
import html.parser
import json
import re
import struct
import subprocess
import sys

import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.evaluation import page, panels, plots, report
from prefjax.evaluation.statistics import Estimate

NAMES = (
  *('loss', 'margin', 'accuracy', 'chosen_reward', 'rejected_reward'),
  *('chosen_drift', 'rejected_drift', 'kl_to_reference', 'entropy'),
  *('gradient_coefficient', 'grad_norm', 'learning_rate'),
)
CONFIG = {'config': {'beta': 0.125, 'path': '</pre><script>x'}}
POINTS = {
  'reference': (Estimate(0.0, 0.0), Estimate(0.5, 0.01)),
  '_dpo $x': (Estimate(np.float64(4.0), 0.25), Estimate(0.75, 0.02)),
}
FRONTIER = {
  'kl': np.array([0.0, 2.0, 4.0, 6.0]),
  'reward': np.array([0.5, 0.75, 0.875, np.nan]),
  'reward_se': np.full(4, 0.01),
}


class Page(html.parser.HTMLParser):
  """Tags in order, the text of cells, and whether tags close as they open."""

  VOID = frozenset(('meta', 'link', 'img'))

  def __init__(self, path):
    super().__init__()
    self.tags, self.open, self.cells, self.images = [], [], [], []
    self.feed(path.read_text())
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag == 'img':
      self.images.append(dict(attrs))
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] in ('td', 'th'):
      self.cells.append(data)


def a_run(folder):
  rows = []
  for step in range(1, 6):
    rows.append(dict.fromkeys(NAMES, 1 / step) | {'step': step})
  held_out = {f'eval/{name}': 0.375 for name in NAMES[:3]}
  rows.append({'step': 5, **held_out, 'time/tokens_per_s': 1234.5})
  write(folder, rows)
  (folder / 'config.json').write_text(json.dumps(CONFIG))
  return folder


def write(folder, rows):
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(text)


def full(folder):
  return report.write_report(
    folder,
    title='DPO <b> & more',
    points=POINTS,
    frontier=FRONTIER,
    table=[{'policy': '<i>', 'win rate': 0.71234}, {'policy': 'b', 'KL': 2}],
    notes=['one <u> seed'],
  )


@pytest.fixture
def folder(tmp_path):
  return a_run(tmp_path)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  """A report that tests read only: drawing takes a second."""
  return full(a_run(tmp_path_factory.mktemp('run')))


def test_the_page_holds_everything_and_needs_nothing_else(path):
  assert path.parts[-2:] == ('report', 'index.html')
  read, text = Page(path), path.read_text()
  assert 'script' not in read.tags
  assert not re.search(r'(src|href|url)\W*https?:|@import', text)
  assert 'width=device-width' in text
  names = {p.stem for p in path.parent.glob('*.png')}
  assert names == {panel.name for panel in panels.OF_UPDATES} | {'plane'}
  assert len(read.images) == len(names)
  embedded = {base64.b64decode(i['src'].split(',')[1]) for i in read.images}
  assert embedded == {p.read_bytes() for p in path.parent.glob('*.png')}
  captions = [panel.caption for panel in panels.OF_UPDATES]
  assert all(page.html.escape(c) in text for c in captions)
  assert '&quot;beta&quot;: 0.125' in text


def test_everything_is_escaped(path):
  read, text = Page(path), path.read_text()
  assert not {'b', 'i', 'u', 'script'} & {*read.tags}
  for shown in ('DPO &lt;b&gt; &amp; more', '&lt;/pre&gt;&lt;script&gt;x'):
    assert shown in text
  assert '<i>' in read.cells and 'one &lt;u&gt; seed' in text


def test_the_tables_by_hand(path):
  cells = Page(path).cells
  start = cells.index('loss')
  # first and last of training, 1 and 1/5, then of the held-out set
  assert cells[start : start + 5] == ['loss', '1', '0.2', '0.375', '0.375']
  assert '0.7123' in cells and '2' in cells


def test_a_mapping_is_a_table_of_results(folder):
  path = report.write_report(folder, title='x', table={'kl': 0.25, 'check': 'passed'})
  cells = Page(path).cells
  start = cells.index('result')
  assert cells[start : start + 6] == [
    *('result', 'value', 'kl', '0.25', 'check', 'passed')
  ]


def test_two_writes_give_the_same_bytes_and_clear_the_first(folder):
  def content():
    return {p.name: p.read_bytes() for p in full(folder).parent.iterdir()}

  first = content()
  (folder / 'report' / 'stale.png').write_text('')
  (folder / 'report.tmp').mkdir()  # what a kill leaves
  (folder / 'report.tmp' / 'half.png').write_text('')
  (folder / 'report.old').mkdir()
  assert content() == first
  assert {p.name for p in folder.iterdir()} == {
    *('metrics.jsonl', 'config.json', 'report')
  }


def test_wall_clock_stands_under_time_alone(path):
  before, after = path.read_text().split('<h2>Time</h2>')
  assert 'tokens_per_s' in after and '1234' in after
  assert 'tokens_per_s' not in before


def test_pngs_carry_no_text_chunks(path):
  for png in path.parent.glob('*.png'):
    data, kinds = png.read_bytes()[8:], []
    while data:
      (size,) = struct.unpack('>I', data[:4])
      kinds.append(data[4:8])
      data = data[12 + size :]
    assert not {b'tEXt', b'iTXt', b'tIME'} & {*kinds}


def test_what_was_not_logged_is_not_drawn(tmp_path):
  rows = [{'step': 1, 'loss': 'nan', 'nll': 1.0}, {'step': 2, 'loss': 'inf'}]
  write(tmp_path, rows)
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 3, "lo')
  path = report.write_report(tmp_path, title='x')
  assert [p.name for p in path.parent.glob('*.png')] == ['loss.png']
  cells = Page(path).cells
  assert cells[cells.index('loss') :][:3] == ['loss', 'nan', 'inf']


def test_the_plane_shows_what_it_is_given():
  both = plots.reward_kl_plane(POINTS, FRONTIER)
  assert both[:4] == b'\x89PNG'
  one = dict(list(POINTS.items())[:1])
  pictures = {
    both,
    plots.reward_kl_plane(POINTS, None),
    plots.reward_kl_plane(one, FRONTIER),
    plots.reward_kl_plane(
      POINTS, {k: v for k, v in FRONTIER.items() if k != 'reward_se'}
    ),
  }
  assert len(pictures) == 4


def test_the_moving_mean_is_centred():
  steps = np.arange(1, 401)
  centres, smooth = plots.moving_mean(plots.Series(steps, steps * 2.0), 5)
  np.testing.assert_allclose(smooth, centres * 2.0)
  assert (centres[0], centres[-1], len(centres)) == (3, 398, 396)


def test_no_backend_is_chosen():
  code = 'import prefjax.evaluation.report, sys; print(*sys.modules)'
  done = subprocess.run([sys.executable, '-c', code], capture_output=True)
  assert b'matplotlib.figure' in done.stdout
  assert b'matplotlib.pyplot' not in done.stdout


def test_a_folder_without_metrics(tmp_path):
  with pytest.raises(InputError, match=r'metrics\.jsonl'):
    report.write_report(tmp_path, title='x')


def test_pictures_and_tables_make_a_report_without_metrics(tmp_path):
  x = np.array([1.0, 4.0, 16.0])
  lines = {f'line {i}': plots.Band(x, x + i, x, x + 2 * i) for i in range(8)}
  images = {
    kind: (plots.bands('a', 'b', 'c', lines, doubling=kind == 'log'), kind, 'caption')
    for kind in ('plain', 'log')
  }
  path = report.write_report(
    tmp_path,
    title='x',
    tables={'First': [{'a': 1}], 'Second': [{'b': 'two'}], 'None': []},
    images=images,
  )
  assert images['plain'][0] != images['log'][0]
  for name, (png, _, _) in images.items():
    assert (path.parent / f'{name}.png').read_bytes() == png
  text = path.read_text()
  assert '<h2>First</h2>' in text and '<h2>Second</h2>' in text
  assert '<h2>None</h2>' not in text
  assert Page(path).cells == ['a', '1', 'b', 'two']


def test_a_failure_leaves_the_old_report(folder, monkeypatch):
  before = full(folder).read_bytes()

  def fails(*_):
    raise RuntimeError

  monkeypatch.setattr(page, 'render', fails)
  with pytest.raises(RuntimeError):
    full(folder)
  assert (folder / 'report' / 'index.html').read_bytes() == before
