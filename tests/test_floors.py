"""The house: a file of prefjax imports from lower floors or its own folder."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FLOORS = {
  **dict.fromkeys(['types', 'errors'], 0),
  **dict.fromkeys(['objectives', 'tabular', 'models', 'logprobs', 'data', 'tasks'], 1),
  **dict.fromkeys(['rollout', 'rewards', 'training'], 2),
  'evaluation': 3,
}
FORBIDDEN = ('experiments', 'absl.flags', 'ml_collections')
FILES = sorted((ROOT / 'prefjax').rglob('*.py'))


def imported(path, source):
  """The dotted names that a file imports, each as far as it is written."""
  package = pathlib.PurePath(path).parent.parts
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      above = package[: len(package) + 1 - node.level] if node.level else ()
      module = '.'.join((*above, *filter(None, [node.module])))
      yield from (f'{module}.{alias.name}' for alias in node.names)


def room(dotted):
  """The folder, or the file, under prefjax that a dotted name lies in."""
  return dotted.split('.')[1] if '.' in dotted else ''


def violations(path, source):
  """What a file of prefjax, named from the root, imports against the rule."""
  home = room('.'.join(pathlib.PurePath(path).with_suffix('').parts))
  for name in imported(path, source):
    if any(f'{name}.'.startswith(f'{bad}.') for bad in FORBIDDEN):
      yield name
    elif name.split('.')[0] == 'prefjax':
      target = room(name)
      if target in ('', '__version__'):
        continue  # the package itself, which imports nothing
      same = target == home or FLOORS[home] == 0 == FLOORS.get(target)
      if not same and FLOORS.get(target, 9) >= FLOORS[home]:
        yield name


def named(path):
  return str(path.relative_to(ROOT))


def test_every_file_has_a_floor():
  rooms = {path.relative_to(ROOT).with_suffix('').parts[1] for path in FILES}
  assert rooms - {'__init__'} <= FLOORS.keys()


@pytest.mark.parametrize('path', FILES, ids=named)
def test_imports_only_from_below_or_beside(path):
  if named(path) == 'prefjax/__init__.py':
    assert not list(imported(path, path.read_text()))  # importing it is free
  else:
    assert not list(violations(named(path), path.read_text()))


def test_no_drawer_for_everything():
  named_so = {'utils.py', 'util.py', 'common.py', 'helpers.py', 'misc.py'}
  files = [*FILES, *(ROOT / 'experiments').rglob('*.py')]
  assert not [named(path) for path in files if path.name in named_so]


@pytest.mark.parametrize(
  ('path', 'source', 'allowed'),
  [
    ('training/step.py', 'from prefjax.training import mesh', True),
    ('training/step.py', 'from .mesh import place', True),
    ('training/step.py', 'from prefjax import types, objectives', True),
    ('types.py', 'from prefjax.errors import InputError', True),
    ('data/records.py', 'import dataclasses, jax', True),
    ('data/records.py', 'from prefjax.training import mesh', False),
    ('data/records.py', 'from prefjax import training', False),
    ('data/records.py', 'from ..training import mesh', False),
    ('data/records.py', 'from prefjax.tasks import base', False),
    ('data/records.py', 'import prefjax.tasks.base', False),
    ('data/records.py', 'def f():\n  import prefjax.rollout', False),
    ('training/step.py', 'from prefjax.evaluation import win_rate', False),
    ('training/step.py', 'from prefjax import unheard_of', False),
    ('training/step.py', 'import prefjax', True),
    ('training/step.py', 'from prefjax import __version__', True),
    ('training/step.py', 'from experiments import dpo', False),
    ('training/step.py', 'from absl import flags', False),
    ('training/step.py', 'from absl import logging', True),
    ('training/step.py', 'from ml_collections import ConfigDict', False),
    ('logprobs.py', 'from prefjax.models import heads', False),
  ],
)
def test_the_rule_by_example(path, source, allowed):
  assert allowed is not any(violations(f'prefjax/{path}', source))
