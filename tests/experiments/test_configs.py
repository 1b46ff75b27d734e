"""Every config: its smoke runs, and its full shape can be built."""

import importlib.util
from pathlib import Path

import jax
import ml_collections as mlc
import pytest

from experiments import build, sft
from prefjax import objectives
from prefjax.models import decoder

FOLDER = Path('experiments/configs')
# Everything learns from pairs: labels and win rates are counted from them.
LEARNT = sorted(
  name
  for name, r in objectives.RECIPES.items()
  if not {'scores', 'rewards', 'step_label'} & r.needs
)
ROLLED = sorted(
  name
  for name, r in objectives.RECIPES.items()
  if 'rewards' in r.needs and name != 'critic'
)
SMOKES = [
  ('sft', 'sft/sentiment.py:smoke', False),
  ('check', 'dpo/sentiment.py:smoke', False),
  ('check', 'dpo/hh.py:smoke', True),
  *(('dpo', f'dpo/sentiment.py:{name},smoke', False) for name in LEARNT),
  *(
    ('dpo', f'dpo/hh.py:{name},smoke', True) for name in ('dpo', 'kto', 'simpo', 'sppo')
  ),
  ('dpo', 'dpo/tldr.py:smoke', True),
  ('rm', 'rm/sentiment.py:smoke', False),
  *(('grpo', f'grpo/arithmetic.py:{name},smoke', False) for name in ROLLED),
  ('grpo', 'grpo/sentiment.py:smoke', False),
  ('grpo', 'grpo/digits.py:smoke', True),
  ('grpo', 'grpo/gsm8k.py:smoke', True),
  ('grpo', 'grpo/game24.py:smoke', True),
  ('grpo', 'grpo/dapo_aime.py:smoke', False),
  ('tabular', 'tabular/ipo_bandits.py:smoke', False),
  ('tabular', 'tabular/sppo_game.py:smoke', False),
]


def files():
  return sorted(
    path
    for path in FOLDER.glob('*/*.py')
    if path.name not in ('__init__.py', 'blocks.py')
  )


def load(path) -> mlc.ConfigDict:
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def test_every_config_has_a_smoke():
  named = {config.partition(':')[0] for _, config, _ in SMOKES}
  assert named == {str(path.relative_to(FOLDER)) for path in files()}


@pytest.mark.parametrize(
  'path', [path for path in files() if path.parent.name != 'tabular'], ids=str
)
def test_a_full_config_has_a_shape_and_valid_numbers(path):
  config = load(path).to_dict()
  model = build.model(config)
  shapes = decoder.create(model.config)[1]
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert count > 1e5
  parts = [config, sft.likelihood_config(config)] if 'reference' in config else [config]
  for part in parts:
    build.objective(part), build.optimizer(part), build.plan(part)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'config', 'real'), SMOKES, ids=str)
def test_smoke(command, cache, tmp_path, request, name, config, real):
  if real:
    request.getfixturevalue('data_dir')
  result = command(
    name,
    f'--config={FOLDER}/{config}',
    f'--workdir={tmp_path}/run',
    f'--cache={cache}',
  )
  assert result.code == 0, result.err
