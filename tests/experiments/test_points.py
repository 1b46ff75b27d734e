"""What a sweep's config can ask for, and what is refused before anything runs."""

import shlex
from types import SimpleNamespace

import numpy as np
import pytest
from test_configs import FOLDER

from experiments import points
from experiments.configs.dpo import sentiment
from prefjax.errors import InputError


def module(*given, get_config=sentiment.get_config):
  return SimpleNamespace(get_config=get_config, sweep=lambda: iter(given))


def test_a_grid_by_hand():
  found = list(points.grid({'a': (1, 2), 'b': ('x',)}, seeds=(0, 7)))
  assert found == [
    {'a': 1, 'b': 'x', 'seed': 0},
    {'a': 1, 'b': 'x', 'seed': 7},
    {'a': 2, 'b': 'x', 'seed': 0},
    {'a': 2, 'b': 'x', 'seed': 7},
  ]


def test_random_points_lie_in_their_space_and_come_again():
  space = {'r': ('log', 1e-3, 1e3), 'u': ('uniform', -1, 1), 'i': ('int', 1, 3),
           'c': ('choice', 'a', 'b')}  # fmt: skip
  found = list(points.drawn(space, 500))
  assert found == list(points.drawn(space, 500))
  rates = np.array([point['r'] for point in found])
  assert rates.min() > 1e-3 and rates.max() < 1e3
  assert 0.4 < np.mean(rates < 1) < 0.6  # half of the decades, not of the range
  assert {point['i'] for point in found} == {1, 2, 3}
  assert {point['c'] for point in found} == {'a', 'b'}
  with pytest.raises(InputError, match="not 'normal'"):
    list(points.drawn({'x': ('normal', 0, 1)}, 1))


def test_a_point_is_a_whole_config_with_a_name_and_an_arm():
  given = {'variant': 'ipo', 'objective.tau': 0.5, 'seed': 3}
  (one,) = points.points(module(given), 'smoke', {'train.steps': 5})
  assert (one.name, one.label) == ('ipo,tau_0.5,seed=3', 'ipo, tau 0.5')
  config = one.config
  assert (config.objective.name, config.objective.tau, config.seed) == ('ipo', 0.5, 3)
  assert (config.train.steps, config.model.width) == (5, 32)


def test_the_ranges_of_points_are_those_of_their_numbers():
  given = [
    {'objective.beta': 1.0, 'seed': 0},
    {'objective.beta': 0.5, 'seed': 2, 'log.entropy': False},
  ]
  found = points.points(module(*given))
  ranges = {'objective.beta': ('uniform', 0.5, 1.0), 'seed': ('int', 0, 2)}
  assert points.ranges(found) == ranges
  assert points.numbers(found[1]) == {'objective.beta': 0.5, 'seed': 2}


def test_its_command_says_the_same():
  given = {'objective.beta': 0.5, 'seed': 3, 'label': 'half'}
  (one,) = points.points(module(given), 'smoke', {'train.steps': 5})
  line = points.command('dpo', 'c.py', one, {'train.steps': 5}, ['--workdir=a b'])
  assert shlex.split(line) == [
    *('python', '-m', 'experiments.dpo', '--config=c.py:smoke'),
    *('--config.train.steps=5', '--config.objective.beta=0.5', '--config.seed=3'),
    '--workdir=a b',
  ]


@pytest.mark.parametrize(
  ('given', 'said'),
  [
    ({'objective.betta': 0.1}, ("'objective.betta'", "did you mean 'objective.beta'")),
    ({'objective.beta': 'much'}, ('objective.beta', 'much')),
    ({'train.steps': 0.5}, ('train.steps=0.5',)),
    ({'variant': 'ipo', 'objective.beta': 0.1}, ("'objective.beta'",)),
  ],
)
def test_a_wrong_point_is_named(given, said):
  with pytest.raises(InputError) as error:
    points.points(module(given))
  for words in said:
    assert words in str(error.value)


def test_a_point_that_stands_there_twice_is_refused():
  with pytest.raises(InputError, match=r'beta_1,seed=0.* 2 times'):
    points.points(module(*[{'objective.beta': 1.0, 'seed': 0}] * 2))


def test_a_sweep_may_depend_on_its_commands_variant():
  module = points.load(str(FOLDER / 'grpo/ablations/group_size.py'))

  def largest(variant):
    found = points.points(module, variant)
    return max(point.config.rollout.group_size for point in found)

  assert (largest('smoke'), largest(''), largest('paper')) == (4, 16, 64)
