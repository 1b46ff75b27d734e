"""Several runs beside each other: how they are gathered, counted, drawn and told."""

import csv
import io

import numpy as np
import pytest
import told

from prefjax.errors import InputError
from prefjax.evaluation import arm_plots, comparison, panels, runs, tables

REWARD = 'true_reward/policy'


@pytest.fixture
def sweep(tmp_path):
  return told.leave_sweep(tmp_path / 'sweep')


# Gathering ------------------------------------------------------------------------


def test_a_sweep_has_the_arms_of_its_points_in_their_order(sweep):
  found = runs.arms([sweep])
  assert [arm.label for arm in found] == ['beta 0.1', 'beta 1']
  assert [run.seed for run in found[0].runs] == [0, 1, 2]
  assert found[1].numbers('kl') == pytest.approx({0: 1.0, 1: 1.1, 2: 1.2})


def test_what_has_not_ended_is_left_out(tmp_path):
  missing = [f'beta_1,seed={seed}' for seed in (0, 1, 2)] + ['beta_0.1,seed=1']
  (arm,) = runs.arms([told.leave_sweep(tmp_path / 'sweep', missing=missing)])
  assert (arm.label, [run.seed for run in arm.runs]) == ('beta 0.1', [0, 2])


def test_runs_are_told_apart_by_what_their_configs_differ_in(tmp_path):
  folders = [
    told.leave(tmp_path / 'a', seed=1),
    told.leave(tmp_path / 'b', beta=0.5, name='ipo'),
    told.leave(tmp_path / 'c', seed=0),
  ]
  found = runs.arms(folders)
  assert [arm.label for arm in found] == ['dpo, beta 0.1', 'ipo, beta 0.5']
  assert [run.folder.name for run in found[0].runs] == ['c', 'a']
  assert [arm.label for arm in runs.arms(folders[:1])] == ['a']


def test_a_label_keeps_the_key_where_its_end_is_not_its_own():
  overrides = {'policy.rate': 0.001, 'critic.rate': 1.0, 'variant': 'ipo', 'seed': 3}
  assert runs.label(overrides) == 'policy.rate 0.001, critic.rate 1, ipo, seed 3'


def test_folders_without_a_run(tmp_path):
  with pytest.raises(InputError, match='gone is not the folder of a run'):
    runs.arms([tmp_path / 'gone'])
  with pytest.raises(InputError, match='has ended'):
    runs.arms([told.leave_sweep(tmp_path / 's', betas=(1.0,), seeds=(0,),
                                missing=['beta_1,seed=0'])])  # fmt: skip


# Counting -------------------------------------------------------------------------


def test_the_rows_by_hand(sweep):
  first, second = tables.rows(runs.arms([sweep]), ['kl'])
  assert (first['arm'], first['n']) == ('beta 0.1', 3)
  assert first['mean'] == pytest.approx(10.1)
  assert first['standard error'] == pytest.approx(0.1 / np.sqrt(3))
  assert 'less beta 0.1' not in first
  assert second['less beta 0.1'] == pytest.approx(-9.0)
  # Every pair differs by the same, so that nothing is left to chance.
  assert second['2.5 %'] == pytest.approx(-9.0) == second['97.5 %']


def test_two_differences_are_no_interval(tmp_path):
  arms = runs.arms([told.leave_sweep(tmp_path / 'sweep', seeds=(0, 1))])
  _, second = tables.rows(arms, ['eval/loss'])
  assert second['less beta 0.1'] == pytest.approx(0.0)
  assert second['2.5 %'] is None and second['97.5 %'] is None


def test_of_one_seed_the_error_is_that_of_its_prompts(tmp_path):
  arms = runs.arms([told.leave(tmp_path / 'a'), told.leave(tmp_path / 'b', beta=1.0)])
  first, second = tables.rows(arms, [REWARD])
  assert (first['n'], first['standard error']) == (1, 0.02)
  assert second['less beta 0.1'] == pytest.approx(-0.9)


def test_arms_without_a_common_seed_have_no_difference(tmp_path):
  folders = [told.leave(tmp_path / 'a'), told.leave(tmp_path / 'b', seed=1, beta=1.0)]
  (_, second) = tables.rows(runs.arms(folders), ['eval/loss'])
  assert 'less beta 0.1' not in second


def test_the_mean_has_as_many_digits_as_its_error(sweep):
  rows = tables.wide(runs.arms([sweep]), ['kl', 'eval/loss'])
  assert rows[0] == {'': 'beta 0.1', 'n': 3, 'kl': '10.100 ± 0.058',
                     'eval/loss': '1.12 ± 0.58'}  # fmt: skip


TABLE = [{'arm': 'a|b_1', 'kl': '1.0 ± 0.1'}, {'arm': 'c', 'n': 2}]


def test_markdown_and_latex_by_hand():
  assert tables.markdown(TABLE) == (
    '| arm | kl | n |\n| --- | --- | --- |\n| a\\|b_1 | 1.0 ± 0.1 |  |\n| c |  | 2 |\n'
  )
  assert tables.latex(TABLE).splitlines()[:5] == [
    r'\begin{tabular}{lrr}',
    r'\toprule',
    r'arm & kl & n \\',
    r'\midrule',
    r'a|b\_1 & 1.0 $\pm$ 0.1 &  \\',
  ]


def test_csv_keeps_every_digit():
  rows = csv.DictReader(io.StringIO(tables.comma_separated([{'a': 0.1 + 0.2}])))
  assert [float(row['a']) for row in rows] == [0.1 + 0.2]


# Drawing --------------------------------------------------------------------------


def test_a_frontier_is_the_mean_over_the_runs_that_draw_it(sweep):
  line = arm_plots.frontier([run for arm in runs.arms([sweep]) for run in arm.runs])
  np.testing.assert_allclose(line['kl'], [0.0, 5.0, 20.0])
  one = arm_plots.frontier(runs.arms([sweep])[0].runs[:1])
  np.testing.assert_allclose(one['kl'], [0.0, 5.0])


def test_an_axis_says_what_it_measures_and_in_what():
  assert arm_plots._axis('kl') == 'KL to the reference (nats a response)'
  assert (
    arm_plots._axis('win_rate/2_0') == 'win rate of iterate 2 over iterate 0 (share)'
  )
  assert arm_plots._axis('prm@16') == 'best of 16 by prm (share right)'
  assert arm_plots._axis('my/own') == 'my/own'


def test_the_figures_are_those_that_there_are_numbers_for(sweep):
  found = arm_plots.figures(runs.arms([sweep]), panels.OF_UPDATES, 'step', ['kl'])
  assert set(found) == {'plane', 'best_of', 'ladder_kl', 'loss', 'accuracy', 'entropy'}
  assert all(png.startswith(b'\x89PNG') for png, _, _ in found.values())
  assert 'Held-out' in found['loss'][2] and 'Training' in found['entropy'][2]


def test_the_page_tells_of_every_arm_and_is_the_same_twice(sweep, tmp_path):
  arms = runs.arms([sweep])
  beside = {'the paper': 'KL < 12'}
  pages = [
    comparison.write_comparison(tmp_path / name, arms, title='A <b>', beside=beside)
    for name in ('one', 'two')
  ]
  names = {path.name for path in pages[0].parent.iterdir()}
  assert {'index.html', 'table.md', 'table.tex', 'table.csv', 'plane.png'} <= names
  for name in names:
    assert (pages[0].parent / name).read_bytes() == (
      pages[1].parent / name
    ).read_bytes()
  text = pages[0].read_text()
  for shown in ('beta 0.1', 'beta 1', '10.100 ± 0.058', 'KL &lt; 12', 'A &lt;b&gt;'):
    assert shown in text
  assert 'frontier check' not in text


def test_headlines_have_what_is_asked_for(sweep):
  arms = runs.arms([sweep])
  usual = [REWARD, 'kl', 'eval/loss']
  assert comparison.headlines(arms) == usual
  assert comparison.headlines(arms, 'kl') == usual
  assert comparison.headlines(arms, 'eval/gone') == usual
  assert comparison.headlines(arms, 'true_reward/policy_se')[0].endswith('_se')
