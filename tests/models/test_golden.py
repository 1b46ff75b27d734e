"""Every family's published checkpoint as its original wrote it and scored it.

`golden/` holds what `python tests/originals.py` leaves; where torch and transformers
are installed, new models go both ways between them and us.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import originals
import pytest
from safetensors.numpy import load_file

from prefjax.models import decoder, hub
from prefjax.types import PreferenceBatch


def score(folder, **running):
  """Our log-probs [p, k, t] of the originals' batch, in one padded forward."""
  config, params = hub.load(folder, **running)
  graph, _ = decoder.create(config)
  prompts, responses = originals.batch()
  batch = PreferenceBatch(
    prompts=jnp.asarray(prompts),
    responses=jnp.asarray(responses),
    prompt_length=jnp.asarray(originals.PROMPT_LENGTH),
    response_length=jnp.asarray(originals.RESPONSE_LENGTH),
    mask=None,
    weight=None,
  )
  hidden, head = jax.jit(decoder.forward(graph))(params, batch)
  logits = np.asarray(hidden[:, :, :-1], np.float64) @ np.asarray(head.weight).T
  if head.soft_cap:
    logits = head.soft_cap * np.tanh(logits / head.soft_cap)
  logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  found = np.take_along_axis(logps, responses[..., None], -1)[..., 0]
  real = np.arange(responses.shape[-1]) < originals.RESPONSE_LENGTH[..., None]
  return config, params, np.where(real, found, 0.0)


@pytest.mark.parametrize('case', originals.CASES)
def test_golden_log_probs_and_bits(case, tmp_path):
  folder = originals.GOLDEN / case
  wanted = np.load(folder / originals.LOGPS)
  config, params, found = score(folder, attention='dense')
  assert wanted.std() > 0.5
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
  hub.save(tmp_path, config, params)
  old, new = (load_file(x / 'model.safetensors') for x in (folder, tmp_path))
  assert sorted(new) == sorted(old)
  for name, value in old.items():
    np.testing.assert_array_equal(new[name], value, err_msg=name, strict=True)
  assert hub.read_config(tmp_path, attention='dense')[1] == config


@pytest.mark.parametrize('case', ['llama3.1', 'gemma3'])
def test_prompts_repeated_for_every_response_say_the_same(case):
  folder = originals.GOLDEN / case
  wanted = np.load(folder / originals.LOGPS)
  *_, found = score(folder, layout='plain')
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_the_golden_folders_are_of_every_architecture_and_small():
  from prefjax.models.architectures import ARCHITECTURES

  folders = [originals.GOLDEN / case for case in originals.CASES]
  named = {
    json.loads((folder / 'config.json').read_text())['architectures'][0]
    for folder in folders
  }
  assert named == set(ARCHITECTURES)
  sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in folders]
  assert max(sizes) < 20_000


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('case', originals.CASES)
def test_live_parity_with_the_original(case, tmp_path):
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  model = originals.build(case, seed=1)
  model.save_pretrained(tmp_path / 'theirs')
  wanted = originals.score(model)
  for layout in ('shared', 'plain'):
    config, params, found = score(tmp_path / 'theirs', layout=layout)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
  hub.save(tmp_path / 'ours', config, params, shard=2000)
  again, report = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'ours', attn_implementation='eager', output_loading_info=True
  )
  assert not any(report[key] for key in ('missing_keys', 'unexpected_keys'))
  assert again.config.model_type == model.config.model_type
  np.testing.assert_array_equal(originals.score(again.eval()), wanted)
