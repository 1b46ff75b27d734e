from concurrent.futures import ThreadPoolExecutor
import json
import math
from multiprocessing import spawn
import os
from pathlib import Path
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.rewards import worker
from prefjax.rewards.pool import Scorer

NAN = math.nan
HERE = str(Path(__file__).parent)


def score(scorer, responses, record=None):
  n = len(responses)
  return scorer.submit(['a prompt'] * n, responses, [record or {}] * n).result()


def failed(raised=0, timed_out=0):
  return {'raised': raised, 'timed_out': timed_out}


@pytest.mark.parametrize('workers', [0, 2])
def test_scores_are_those_of_each_sample_in_order(workers):
  n = 300
  answers = [f'#### {i % 7}' for i in range(n)]
  records = [{'answer': '#### 3'}] * (n - 1) + [{}]
  named = {'right': 'gsm8k', 'form': 'gsm8k_format', 'same': 'exact_answer'}
  with Scorer(named, seconds=5.0, workers=workers) as scorer:
    scores = scorer.submit([''] * n, answers, records).result()
  right = np.arange(n) % 7 == 3.0
  right = np.where(np.arange(n) == n - 1, NAN, right)
  assert list(scores.values) == list(named)
  np.testing.assert_array_equal(scores.values['right'], right)
  np.testing.assert_array_equal(scores.values['same'], right)
  np.testing.assert_array_equal(scores.values['form'], np.ones(n))
  assert scores.failures == dict.fromkeys(named, failed())
  assert scores.errors == {}


@pytest.mark.parametrize('workers', [0, 1])
def test_nothing_to_score(workers):
  with Scorer({'a': 'gsm8k'}, seconds=1.0, workers=workers) as scorer:
    scores = score(scorer, [])
  assert scores.values['a'].shape == (0,)
  assert scores.values['a'].dtype == np.float64
  with Scorer({}, seconds=1.0, workers=workers) as scorer:
    assert score(scorer, ['x']).values == {}


HARMLESS = {
  'fine': 4.0,
  'integer': 3.0,
  'true': 1.0,
  'numpy': 0.25,
  'numpy bool': 1.0,
  'none': NAN,
  'nan': NAN,
  'ünïcödé \ud800': 9.0,
  'x' * 1_000_000: 1e6,
}
RAISING = ('raise', 'leave', 'unprintable', 'deep', 'text', 'infinity', 'array', 'huge')


@pytest.mark.parametrize('workers', [0, 1])
def test_a_failing_sample_is_nan_and_counted(hostile, workers):
  responses = [*HARMLESS, *RAISING, 'fine']
  with Scorer({'h': hostile}, seconds=5.0, workers=workers) as scorer:
    scores = score(scorer, responses)
  expected = [*HARMLESS.values(), *[NAN] * len(RAISING), 4.0]
  np.testing.assert_array_equal(scores.values['h'], expected)
  assert scores.failures == {'h': failed(raised=len(RAISING))}
  assert scores.errors == {'h': f"sample {len(HARMLESS)}: KeyError: 'answer'"}


def test_a_sample_that_hangs_costs_itself_only(hostile):
  # In Python code, in a system call, and in C code that holds the interpreter.
  responses = ['fine'] * 30
  responses[3], responses[11], responses[29] = 'hang', 'sleep', 'spin'
  with Scorer({'h': hostile, 'g': 'gsm8k_format'}, seconds=0.3, workers=2) as scorer:
    started = time.monotonic()
    scores = score(scorer, responses)
    # Each is killed twice, in its task and alone; one that holds the interpreter
    # does not get the 3 s that pebble waits for an answer to its signal.
    assert time.monotonic() - started < 5.0
  hung = np.isin(responses, ['hang', 'sleep', 'spin'])
  np.testing.assert_array_equal(scores.values['h'], np.where(hung, NAN, 4.0))
  np.testing.assert_array_equal(scores.values['g'], np.zeros(30))
  assert scores.failures == {'h': failed(timed_out=3), 'g': failed()}
  assert scores.errors == {'h': 'sample 3: took longer than 0.3 s'}


def test_a_sample_that_ends_its_process_costs_itself_only(hostile):
  responses = ['fine', 'die', 'fine', 'crash', 'fine', 'interrupt'] * 3
  with Scorer({'h': hostile}, seconds=1.0, workers=2) as scorer:
    scores = score(scorer, responses)
  fine = np.array(responses) == 'fine'
  np.testing.assert_array_equal(scores.values['h'], np.where(fine, 4.0, NAN))
  assert scores.failures == {'h': failed(raised=9)}
  assert scores.errors == {'h': 'sample 1: ended its process, exit code 3'}


def test_an_end_without_an_error_is_noticed_at_the_time_limit(hostile):
  with Scorer({'h': hostile}, seconds=0.3, workers=1) as scorer:
    scores = score(scorer, ['fine', 'die quietly', 'fine'])
  np.testing.assert_array_equal(scores.values['h'], [4.0, NAN, 4.0])
  assert scores.failures == {'h': failed(timed_out=1)}


def test_the_limit_is_of_a_sample_and_not_of_many(hostile):
  # Four tasks of 0.4 s each.
  with Scorer({'h': hostile}, seconds=0.25, workers=1) as scorer:
    scores = score(scorer, ['slow'] * 16, {'seconds': 0.1})
  np.testing.assert_array_equal(scores.values['h'], [4.0] * 16)
  assert scores.failures == {'h': failed()}


def test_a_task_hands_back_what_does_not_fit_its_limit(hostile):
  sample = '', 'slow', {'seconds': 0.1}
  for samples, seconds, done in [(4, 0.3, 2), (4, 0.1, 1), (4, math.inf, 4)]:
    outcomes = worker.score(hostile, json.dumps([sample] * samples), seconds)
    assert outcomes == [worker.Outcome(4.0)] * done


def test_a_death_that_was_not_the_samples_costs_nothing(hostile, tmp_path):
  record = {'marker': str(tmp_path / 'died')}
  with Scorer({'h': hostile}, seconds=5.0, workers=1) as scorer:
    scores = score(scorer, ['die once'], record)
  np.testing.assert_array_equal(scores.values['h'], [8.0])
  assert Path(record['marker']).exists()


def test_several_batches_are_scored_at_once(hostile):
  with Scorer({'h': hostile}, seconds=5.0, workers=1) as scorer:
    first = scorer.submit([''] * 2, ['a', 'bb'], [{}] * 2)
    second = scorer.submit([''], ['ccc'], [{}])
    np.testing.assert_array_equal(second.result().values['h'], [3.0])
    np.testing.assert_array_equal(first.result().values['h'], [1.0, 2.0])
    np.testing.assert_array_equal(first.result().values['h'], [1.0, 2.0])


def test_workers_killed_from_outside_are_replaced(hostile):
  with Scorer({'h': hostile}, seconds=5.0, workers=1) as scorer:
    (pid,) = score(scorer, ['pid']).values['h']
    os.kill(int(pid), signal.SIGTERM)
    # At once, before the death is noticed, and after it was.
    np.testing.assert_array_equal(score(scorer, ['fine'] * 9).values['h'], [4.0] * 9)
    (pid,) = score(scorer, ['pid']).values['h']
    os.kill(int(pid), signal.SIGKILL)
    time.sleep(0.3)
    np.testing.assert_array_equal(score(scorer, ['fine'] * 9).values['h'], [4.0] * 9)


def test_closing_does_not_wait_for_what_hangs(hostile):
  with Scorer({'h': hostile}, seconds=60.0, workers=1) as scorer:
    (pid,) = score(scorer, ['pid']).values['h']
    pending = scorer.submit([''] * 5000, ['hang'] * 5000, [{}] * 5000)
    started = time.monotonic()
  assert time.monotonic() - started < 5.0
  assert not alive(int(pid))
  with pytest.raises(RuntimeError, match='closed'):
    pending.result()
  with pytest.raises(RuntimeError, match='closed'):
    scorer.submit([''], [''], [{}])


def alive(pid):
  try:
    status = Path(f'/proc/{pid}/stat').read_text()
  except FileNotFoundError:
    return False
  return status.rpartition(')')[2].split()[0] != 'Z'  # a zombie


def run(*arguments, path=HERE):
  return subprocess.run(
    [sys.executable, *arguments],
    env={**os.environ, 'PYTHONPATH': path},
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


def test_a_killed_run_leaves_no_workers_behind():
  code = (
    'import os, signal\n'
    'from prefjax.rewards.pool import Scorer\n'
    'scorer = Scorer({"h": "hostile.obey"}, seconds=5.0, workers=1)\n'
    'print(scorer.submit([""], ["pid"], [{}]).result().values["h"][0], flush=True)\n'
    'os.kill(os.getpid(), signal.SIGKILL)\n'
  )
  ran = run('-c', code)
  assert ran.returncode == -signal.SIGKILL
  deadline = time.monotonic() + 5
  while alive(int(float(ran.stdout))) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not alive(int(float(ran.stdout)))


def test_a_worker_that_hangs_ends_without_its_parent():
  code = (
    'import json\n'
    'from prefjax.rewards import worker\n'
    'worker._ALARM_AFTER = 0\n'
    'samples = json.dumps([("", "spin", {})])\n'
    'worker.score_guarded("hostile.obey", samples, 0.1)\n'
  )
  assert run('-c', code).returncode == -signal.SIGALRM


def test_the_main_program_runs_once(tmp_path):
  # It has no `if __name__ == '__main__'`, and its workers do not import it.
  program = tmp_path / 'program.py'
  program.write_text(
    'from prefjax.rewards.pool import Scorer\n'
    'print("begin", __name__)\n'
    'with Scorer({"h": "hostile.obey"}, seconds=5.0, workers=2) as scorer:\n'
    '  scores = scorer.submit([""] * 9, ["modules"] * 9, [{}] * 9).result()\n'
    'print(scores.values["h"].max(), scores.failures["h"])\n'
  )
  expected = "begin __main__\n0.0 {'raised': 0, 'timed_out': 0}\n"
  for how in ([str(program)], ['-m', 'program']):
    ran = run(*how, path=f'{HERE}:{tmp_path}')
    assert (ran.stdout, ran.stderr) == (expected, '')


def test_other_processes_still_import_the_main_program(monkeypatch):
  main = types.ModuleType('__main__')
  main.__file__ = '/program.py'
  monkeypatch.setitem(sys.modules, '__main__', main)

  def told():
    return spawn.get_preparation_data('a process').get('init_main_from_path')

  with worker._without_main(), ThreadPoolExecutor() as other:
    assert told() is None
    assert other.submit(told).result() == '/program.py'
  assert told() == '/program.py'


@pytest.mark.parametrize(
  ('changes', 'match'),
  [
    ({'verifiers': {'a': 'gsm8'}}, "did you mean 'gsm8k'"),
    ({'verifiers': {'a': '__main__.f'}}, 'module of its own'),
    ({'seconds': 0.0}, 'seconds must be positive'),
    ({'seconds': math.inf}, 'seconds must be positive'),
    ({'workers': -1}, 'workers must not be negative'),
  ],
)
def test_what_cannot_score_is_refused(changes, match):
  given = {'verifiers': {'a': 'gsm8k'}, 'seconds': 1.0, 'workers': 1, **changes}
  with pytest.raises(InputError, match=match):
    Scorer(given['verifiers'], seconds=given['seconds'], workers=given['workers'])


@pytest.mark.parametrize('workers', [0, 1])
def test_a_batch_that_cannot_be_scored_is_refused(workers):
  with Scorer({'a': 'gsm8k'}, seconds=1.0, workers=workers) as scorer:
    with pytest.raises(InputError, match='1 prompts, 2 responses and 1 records'):
      scorer.submit([''], ['', ''], [{}])
    with pytest.raises(InputError, match='is not plain JSON'):
      scorer.submit([''], [''], [{'f': lambda: 0}])
    assert score(scorer, ['#### 1'], {'answer': '1'}).values['a'] == [1.0]
