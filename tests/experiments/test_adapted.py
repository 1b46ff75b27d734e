"""Runs that train adapters: by config, to the same bits when stopped, and exported."""

import json

import jax
import numpy as np
import originals
import pytest
from test_runs import lasting

from experiments import export, sft
from experiments.parts import published
from prefjax.errors import InputError
from prefjax.models import decoder, hub
from prefjax.training.checkpoints import Checkpoints

LORA = ('--config.lora.rank=4', '--config.lora.alpha=8', '--config.mesh.data=1')
CONFIGS = {
  'dpo': 'experiments/configs/dpo/sentiment.py:smoke',
  'grpo': 'experiments/configs/grpo/arithmetic.py:smoke',
  'rm': 'experiments/configs/rm/sentiment.py:smoke',
}
# PPO's value head is trained whole, beside the adapters.
MORE = {
  'ppo': ('grpo', 'experiments/configs/grpo/arithmetic.py:ppo,smoke'),
  'a reference that moves': ('dpo', CONFIGS['dpo']),
}


def run(command, folder, cache, name, config, *flags):
  return command(
    name, f'--config={config}', f'--workdir={folder}', f'--cache={cache}', *LORA, *flags
  )


def stopped(monkeypatch):
  """Every run now ends as if killed after its second save."""
  save, calls = Checkpoints.save, []

  def stop_after_the_second(self, step, *args, **kwargs):
    save(self, step, *args, **kwargs)
    calls.append(step)
    if len(calls) == 2:
      self.wait()
      raise KeyboardInterrupt

  monkeypatch.setattr(Checkpoints, 'save', stop_after_the_second)
  return lambda: monkeypatch.setattr(Checkpoints, 'save', save)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['dpo', 'grpo'])
def test_a_run_with_adapters_stops_and_ends_with_the_same_bits(
  command, cache, tmp_path, monkeypatch, name
):
  whole = run(command, tmp_path / 'whole', cache, name, CONFIGS[name])
  assert whole.code == 0, whole.err
  assert (name == 'dpo') == ('step 0: loss 0.693147, wanted 0.693147' in whole.out)
  saved = [p for p in (tmp_path / 'whole/checkpoints').rglob('*') if p.is_file()]
  final = [p for p in (tmp_path / 'whole/final').rglob('*') if p.is_file()]
  # Two checkpoints of adapters and their moments are smaller than one model.
  sizes = [sum(p.stat().st_size for p in files) for files in (saved, final)]
  again = stopped(monkeypatch)
  with pytest.raises(KeyboardInterrupt):
    run(command, tmp_path / 'run', cache, name, CONFIGS[name])
  again()
  result = run(command, tmp_path / 'run', cache, name, CONFIGS[name])
  assert result.code == 0, result.err
  assert 'going on from' in result.out
  assert lasting(tmp_path / 'run') == lasting(tmp_path / 'whole')
  print(name, sizes)


@pytest.mark.slow
def test_other_runs_with_adapters(command, cache, tmp_path):
  for i, (name, config) in enumerate([('rm', CONFIGS['rm']), *MORE.values()]):
    flags = ('--config.reference.move_every=2',) if name == 'dpo' else ()
    result = run(command, tmp_path / str(i), cache, name, config, *flags)
    assert result.code == 0, result.err


@pytest.mark.slow
def test_a_run_from_a_published_checkpoint_and_its_export(command, tmp_path):
  """What a run exports is what the next one starts from, tokenizer and all."""
  cache = tmp_path / 'cache'  # with one tokenizer
  first = tmp_path / 'first'
  config = CONFIGS['dpo']
  assert run(command, first, cache, 'dpo', config).code == 0
  (tokenizer,) = cache.glob('tokenizer-*.model')
  export.export(first, tmp_path / 'model')
  stored = json.loads((first / 'config.json').read_text())['config']
  shape, params = hub.load(tmp_path / 'model', **stored['model'])
  wanted = sft.final_params(first, decoder.create(shape)[1])
  same = jax.tree.map(lambda a, b: np.array_equal(a, b), params, wanted)
  assert jax.tree.all(same)
  flags = (
    f'--config.policy.checkpoint={tmp_path}/model',
    f'--config.tokenizer.path={tokenizer}',
  )
  second = run(command, tmp_path / 'second', cache, 'dpo', config, *flags)
  assert second.code == 0, second.err
  assert 'step 0: loss 0.693147, wanted 0.693147' in second.out
  export.export(tmp_path / 'second', tmp_path / 'again')
  assert (tmp_path / 'again' / 'tokenizer.model').is_file()
  assert hub.read_config(tmp_path / 'again') == hub.read_config(tmp_path / 'model')


def test_a_checkpoint_must_be_the_model_of_the_config():
  sizes = dict(vocab_size=19, width=8, num_layers=2, num_heads=4, num_kv_heads=2)
  sizes |= dict(head_dim=4, mlp_width=12, max_positions=32, family='llama')
  config = {'policy': {'checkpoint': str(originals.GOLDEN / 'llama3')}}
  # Its base of rotary angles is not the family's default.
  with pytest.raises(InputError, match=r"'rope_theta': 500\.0.*'rope_theta': 10000\.0"):
    published.checkpoint(config | {'model': sizes}, None)
  with pytest.raises(InputError, match=r'model\.num_heads is 2.* has 4'):
    published.checkpoint(config | {'model': sizes | dict(num_heads=2)}, None)
  model = sizes | dict(rope_theta=500.0, attention='dense')
  params = published.checkpoint(config | {'model': model}, None)
  assert params['embedding'].shape == (19, 8)
