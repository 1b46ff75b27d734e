"""Every config: its smoke runs, and its full shape can be built."""

import json
from pathlib import Path
import shlex

import jax
import ml_collections as mlc
import pytest

from experiments import points, sft
from experiments.parts import build, process_models, reproduction
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
# What a loss computes is told by its own tests; what it reads, a run must bring.
ONE_OF_EACH = {objectives.RECIPES[name].needs: name for name in reversed(LEARNT)}
SMOKES = [
  ('sft', 'sft/sentiment.py:smoke', False),
  ('check', 'dpo/sentiment.py:smoke', False),
  ('check', 'dpo/hh.py:smoke', True),
  *(('dpo', f'dpo/sentiment.py:{name},smoke', False) for name in ONE_OF_EACH.values()),
  *(
    ('dpo', f'dpo/hh.py:{name},smoke', True) for name in ('dpo', 'kto', 'simpo', 'sppo')
  ),
  ('dpo', 'dpo/tldr.py:smoke', True),
  ('dpo', 'dpo/llama3.py:smoke', True),
  ('rm', 'rm/sentiment.py:smoke', False),
  ('rm', 'rm/gsm8k_pairs.py:smoke', True),
  ('rm', 'rm/gsm8k_pairs.py:rank19,smoke', True),
  ('sppo', 'sppo/cycle.py:smoke', False),
  ('sppo', 'sppo/cycle.py:kto,smoke', False),
  ('sppo', 'sppo/ultrafeedback.py:smoke', False),
  *(('grpo', f'grpo/arithmetic.py:{name},smoke', False) for name in ROLLED),
  ('grpo', 'grpo/arithmetic.py:process,smoke', False),
  ('grpo', 'grpo/arithmetic.py:ppo,steps,smoke', False),
  ('grpo', 'grpo/dapo_arithmetic.py:smoke', False),
  ('grpo', 'grpo/prime_arithmetic.py:smoke', False),
  ('grpo', 'grpo/sentiment.py:smoke', False),
  ('grpo', 'grpo/digits.py:smoke', True),
  ('grpo', 'grpo/gsm8k.py:smoke', True),
  ('grpo', 'grpo/game24.py:smoke', True),
  ('grpo', 'grpo/dapo_aime.py:smoke', False),
  ('grpo', 'grpo/llama3.py:smoke', False),
  ('prm', 'prm/ultrainteract.py:smoke', True),
  ('tabular', 'tabular/ipo_bandits.py:smoke', False),
  ('tabular', 'tabular/sppo_game.py:smoke', False),
]


def files():
  return sorted(
    path
    for path in (*FOLDER.glob('*/*.py'), *FOLDER.glob('*/ablations/*.py'))
    if path.name not in ('__init__.py', 'blocks.py')
  )


def load(path) -> mlc.ConfigDict:
  return points.load(str(path)).get_config()


def learnt(config):
  """A config for each thing that a run learns."""
  own = [config] if 'objective' in config else []
  return own + [member.config for member in process_models.members(config)]


def test_every_config_has_a_smoke():
  named = {config.partition(':')[0] for _, config, _ in SMOKES}
  swept = {str(path.relative_to(FOLDER)) for path in reproduction.ablations()}
  named |= {'prm/arithmetic.py'}  # test_prm's
  assert named == {str(path.relative_to(FOLDER)) for path in files()} - swept


@pytest.mark.parametrize(
  'path', [path for path in files() if path.parent.name != 'tabular'], ids=str
)
def test_a_full_config_has_a_shape_and_valid_numbers(path):
  config = load(path).to_dict()
  model = build.model(config)
  shapes = decoder.create(model.config)[1]
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert count > 5e4
  trained = learnt(config)
  trained += [sft.likelihood_config(config)] if 'reference' in config else []
  assert trained
  for one in trained:
    build.objective(one), build.optimizer(one), build.plan(one)


@pytest.mark.parametrize(
  ('path', 'name'),
  [('dpo/sentiment.py', name) for name in LEARNT]
  + [('grpo/arithmetic.py', name) for name in ROLLED],
)
def test_every_recipe_is_a_variant(path, name):
  config = points.load(str(FOLDER / path)).get_config(f'{name},smoke').to_dict()
  objective = build.objective(config)
  assert objective.name == name
  assert callable(objective.build())


@pytest.mark.parametrize('variant', ['', 'smoke', 'paper'])
@pytest.mark.parametrize('path', reproduction.ablations(), ids=str)
def test_every_point_of_an_ablation_is_a_valid_config(path, variant):
  module = points.load(str(path))
  found = points.points(module, variant)
  assert len({point.label for point in found}) > 1
  for point in found:
    config = point.config.to_dict()
    assert learnt(config)
    for one in learnt(config):
      build.objective(one), build.optimizer(one), build.plan(one)
    assert config['data']['seed'] == 0  # one reference for all
  assert module.METRIC


@pytest.mark.parametrize('path', reproduction.ablations(), ids=str)
def test_an_ablation_tells_what_was_run(path):
  told = reproduction.told(path)
  assert told.command.endswith(f'--config={path}')
  assert f'--experiment={path.parent.parent.name} ' in told.command
  ran = reproduction.results_file(path).exists()
  assert ran != (told.ours == f'{reproduction.NOT_YET}.')


def test_the_page_of_reproductions_is_what_the_results_say():
  assert reproduction.PAGE.read_text() == reproduction.page()


@pytest.mark.slow
@pytest.mark.parametrize('path', reproduction.ablations(), ids=str)
def test_the_smoke_of_an_ablation(command, cache, tmp_path, path):
  """Its last point; that all of a sweep run is test_sweep's."""
  name = path.parent.parent.name
  *_, last = points.points(points.load(str(path)), 'smoke')
  folders = (f'--workdir={tmp_path}/run', f'--cache={cache}')
  line = points.command(name, str(path), last, {}, folders)
  result = command(name, *shlex.split(line)[3:])
  assert result.code == 0, result.err
  metric = points.load(str(path)).METRIC
  assert metric in json.loads((tmp_path / 'run' / 'DONE').read_text())


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
