"""Hugging Face folders of every kind, and wrong ones; all of them written here."""

import dataclasses
import json

from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from prefjax.errors import InputError
from prefjax.models import config as configs
from prefjax.models import decoder, hub

WIDTH, HEAD_DIM, HIDDEN, LAYERS, VOCAB = 8, 2, 12, 2, 11
DESCRIBED = {
  'architectures': ['LlamaForCausalLM'],
  'hidden_act': 'silu',
  'hidden_size': WIDTH,
  'intermediate_size': HIDDEN,
  'max_position_embeddings': 32,
  'model_type': 'llama',
  'num_attention_heads': 4,
  'num_hidden_layers': LAYERS,
  'num_key_value_heads': 2,
  'rms_norm_eps': 1e-6,
  'rope_theta': 500_000,
  'tie_word_embeddings': False,
  'vocab_size': VOCAB,
}
HEAD, EMBEDDING = 'lm_head.weight', 'model.embed_tokens.weight'
QUERY = 'model.layers.1.self_attn.q_proj.weight'
# Our part of a layer -> the original's, and its [outputs, inputs].
PROJECTIONS = {
  'attention.query': ('self_attn.q_proj', 8, 8),
  'attention.key': ('self_attn.k_proj', 4, 8),
  'attention.value': ('self_attn.v_proj', 4, 8),
  'attention.out': ('self_attn.o_proj', 8, 8),
  'mlp.gate': ('mlp.gate_proj', 12, 8),
  'mlp.up': ('mlp.up_proj', 12, 8),
  'mlp.down': ('mlp.down_proj', 8, 12),
}
NORMS = {
  'attention_norm': 'input_layernorm',
  'mlp_norm': 'post_attention_layernorm',
  'attention.query_norm': 'self_attn.q_norm',
  'attention.key_norm': 'self_attn.k_norm',
}


def state(biases=(), qk_norm=False):
  """Tensors with the original's names and shapes; no two values are equal."""
  rng = np.random.default_rng(0)
  shapes = {EMBEDDING: (VOCAB, WIDTH), HEAD: (VOCAB, WIDTH)}
  shapes['model.norm.weight'] = (WIDTH,)
  for layer in range(LAYERS):
    name = f'model.layers.{layer}'
    for ours, part in NORMS.items():
      if ours in ('attention_norm', 'mlp_norm'):
        shapes[f'{name}.{part}.weight'] = (WIDTH,)
      elif qk_norm:
        shapes[f'{name}.{part}.weight'] = (HEAD_DIM,)
    for ours, (part, outputs, inputs) in PROJECTIONS.items():
      shapes[f'{name}.{part}.weight'] = (outputs, inputs)
      if ours in biases:
        shapes[f'{name}.{part}.bias'] = (outputs,)
  return {
    name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()
  }


def write(folder, tensors, **changes):
  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(DESCRIBED | changes))
  save_file(tensors, folder / 'model.safetensors', {'format': 'pt'})
  return folder


def write_shards(folder, tensors):
  write(folder, {})
  (folder / 'model.safetensors').unlink()
  names = sorted(tensors)
  shards = {f'model-0000{i + 1}-of-00003.safetensors': names[i::3] for i in range(3)}
  where = {name: shard for shard, part in shards.items() for name in part}
  for shard, part in shards.items():
    save_file({name: tensors[name] for name in part}, folder / shard)
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'metadata': {}, 'weight_map': where}))
  return index


def check(params, tensors):
  """Every tensor is where the decoder wants it, and nothing else is."""
  flat = traverse_util.flatten_dict(params, sep='.')
  tensors = dict(tensors)

  def take(path, name, value):
    np.testing.assert_array_equal(value, tensors.pop(name), err_msg=path, strict=True)

  take('embedding', EMBEDDING, flat.pop('embedding'))
  take('norm', 'model.norm.weight', flat.pop('norm.scale'))
  if 'unembedding' in flat:
    take('unembedding', HEAD, flat.pop('unembedding'))
  for path, stacked in flat.items():
    part, leaf = path.removeprefix('layers.').rsplit('.', 1)
    name = NORMS[part] if leaf == 'scale' else PROJECTIONS[part][0]
    kind = 'bias' if leaf == 'bias' else 'weight'
    for layer in range(LAYERS):
      value = stacked[layer].T if leaf == 'kernel' else stacked[layer]
      take(path, f'model.layers.{layer}.{name}.{kind}', value)
  assert not tensors


def test_weights_are_where_the_decoder_wants_them(tmp_path):
  config, params = hub.load(write(tmp_path, state()), attention='dense', num_layers=2)
  check(params, state())
  assert (config.num_kv_heads, config.rope_theta) == (2, 500_000.0)
  assert (config.attention, config.param_dtype) == ('dense', 'float32')
  assert jax.tree.map(np.shape, params) == shapes(config)


def shapes(config):
  return jax.tree.map(np.shape, decoder.create(config)[1])


QKV = ('attention.query', 'attention.key', 'attention.value')


# How the config.json differs, and which tensors that asks for.
@pytest.mark.parametrize(
  'changes, parts',
  [
    ({'attention_bias': True}, dict(biases=(*QKV, 'attention.out'))),
    ({'mlp_bias': True}, dict(biases=('mlp.gate', 'mlp.up', 'mlp.down'))),
    ({'architectures': ['MistralForCausalLM']}, {}),
    ({'architectures': ['Qwen2ForCausalLM']}, dict(biases=QKV)),
    ({'architectures': ['Qwen3ForCausalLM'], 'head_dim': 2}, dict(qk_norm=True)),
  ],
)
def test_tensors_of_other_architectures(tmp_path, changes, parts):
  tensors = state(**parts)
  config, params = hub.load(write(tmp_path, tensors, **changes))
  check(params, tensors)
  hub.save(tmp_path / 'again', config, params)
  again, same = hub.load(tmp_path / 'again')
  assert again == config
  check(same, tensors)


def test_a_head_is_not_always_width_over_heads(tmp_path):
  tensors = state()
  sizes = {'q': (16, 8), 'k': (8, 8), 'v': (8, 8), 'o': (8, 16)}
  for layer in range(LAYERS):
    for c, size in sizes.items():
      name = f'model.layers.{layer}.self_attn.{c}_proj.weight'
      tensors[name] = np.ones(size, np.float32)
  config, params = hub.load(write(tmp_path, tensors, head_dim=4))
  assert config.head_dim == 4
  assert jax.tree.map(np.shape, params) == shapes(config)


@pytest.mark.parametrize('copy', [False, True])
def test_tied_embeddings(tmp_path, copy):
  tensors = state()
  del tensors[HEAD]
  copies = {HEAD: tensors[EMBEDDING]} if copy else {}
  config, params = hub.load(write(tmp_path, tensors | copies, tie_word_embeddings=True))
  assert config.tied_embeddings
  assert 'unembedding' not in params
  check(params, tensors)
  with pytest.raises(InputError, match=r'lm_head\.weight differs'):
    hub.load(write(tmp_path, state(), tie_word_embeddings=True))


def test_shards(tmp_path):
  index = write_shards(tmp_path, state())
  check(hub.load(tmp_path)[1], state())
  name = next(iter(json.loads(index.read_text())['weight_map'].values()))
  shard = tmp_path / name
  tensors = load_file(shard)
  save_file(state(), shard)
  with pytest.raises(InputError, match=r'repeats tensors of another shard: .*\.mlp'):
    hub.load(tmp_path)
  lost = sorted(tensors)[0]
  save_file({k: v for k, v in tensors.items() if k != lost}, shard)
  with pytest.raises(InputError, match=rf'lacks \[{lost!r}\]'):
    hub.load(tmp_path)
  shard.unlink()
  with pytest.raises(InputError, match=rf'shards that are not there: .*{name}'):
    hub.load(tmp_path)
  index.write_text('{}')
  with pytest.raises(InputError, match=r'index\.json has no weight_map'):
    hub.load(tmp_path)


@pytest.mark.parametrize('kind', [np.float64, np.float32, np.float16, 'bfloat16'])
def test_dtypes(tmp_path, kind):
  kind = np.dtype(ml_dtypes.bfloat16 if kind == 'bfloat16' else kind)
  tensors = {name: value.astype(kind) for name, value in state().items()}
  write(tmp_path, tensors)
  for wanted in ('float32', 'bfloat16'):
    config, params = hub.load(tmp_path, param_dtype=wanted)
    assert config.param_dtype == wanted
    wanted = jnp.dtype(wanted)
    check(params, {name: value.astype(wanted) for name, value in tensors.items()})


@pytest.mark.parametrize('kind', ['float32', 'bfloat16'])
def test_saved_and_loaded_again_bit_for_bit(tmp_path, kind):
  config, params = hub.load(write(tmp_path, state()), param_dtype=kind)
  # Arrays on a device, as after training.
  hub.save(tmp_path / 'new' / 'again', config, jax.tree.map(jnp.asarray, params))
  files = sorted((tmp_path / 'new' / 'again').iterdir())
  assert [file.name for file in files] == ['config.json', 'model.safetensors']
  assert files[0].stat().st_mode == files[1].stat().st_mode
  again, same = hub.load(tmp_path / 'new' / 'again', param_dtype=kind)
  assert again == config
  equal = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), params, same)
  assert jax.tree.all(equal)


def test_what_cannot_be_saved(tmp_path):
  config, params = hub.load(write(tmp_path, state()))
  other = dataclasses.replace(config, position='rotary_interleaved')
  with pytest.raises(InputError, match='can say all of'):
    hub.save(tmp_path / 'new', other, params)
  with pytest.raises(InputError, match='not those of their config'):
    hub.save(tmp_path / 'new', config, params | {'more': np.ones(3)})
  assert not (tmp_path / 'new').exists()


def test_a_wrong_config_is_refused_before_any_tensor(tmp_path):
  write(tmp_path, {}, rope_scaling={'type': 'yarn', 'factor': 2.0})
  with pytest.raises(InputError, match=r"config\.json has .*'yarn'"):
    hub.load(tmp_path)


def test_overrides_cannot_contradict_the_checkpoint(tmp_path):
  write(tmp_path, state())
  for name, value in (('family', 'qwen2'), ('width', 16), ('norm', 'layer')):
    with pytest.raises(InputError, match=rf"model\.{name} is '?{value}.* 'param_dt"):
      hub.load(tmp_path, **{name: value})
  with pytest.raises(InputError, match=r"A model has no 'widht'; it has .*'width'"):
    hub.load(tmp_path, widht=8)
  with pytest.raises(InputError, match=r'model\.attention must be one of'):
    hub.load(tmp_path, attention='some')


def test_missing_and_surplus_tensors_are_named(tmp_path):
  tensors = state()
  value = tensors.pop(QUERY)
  with pytest.raises(InputError, match=rf"lacks \['{QUERY}'\], and has besides \[\]"):
    hub.load(write(tmp_path, tensors))
  with pytest.raises(InputError, match=r"lacks \['model.*besides \['other'\]"):
    hub.load(write(tmp_path, tensors | {'other': value}))
  # A layer more than the config.json says.
  with pytest.raises(InputError, match=r'lacks \[\].* besides .*1\.input_l.* 1 more'):
    hub.load(write(tmp_path, state(), num_hidden_layers=1))
  with pytest.raises(InputError, match=r"lacks \['model\.layers\.0\.mlp\.down_proj\.b"):
    hub.load(write(tmp_path, state(), mlp_bias=True))
  # Old checkpoints have tables of rotary angles.
  table = {'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(1, np.float32)}
  check(hub.load(write(tmp_path, state() | table))[1], state())


def test_wrong_shapes_and_dtypes_are_named(tmp_path):
  for value in (np.ones((8, 9), np.float32), np.ones(64, np.float32)):
    wanted = rf'{QUERY} in .* has the shape \({value.shape[0]}.* wants \(8, 8\)'
    with pytest.raises(InputError, match=wanted):
      hub.load(write(tmp_path, state() | {QUERY: value}))
  with pytest.raises(InputError, match=rf'{QUERY} in .* is I8; .*BF16'):
    hub.load(write(tmp_path, state() | {QUERY: np.ones((8, 8), np.int8)}))


def test_a_pickle_is_refused_with_advice(tmp_path):
  write(tmp_path, state())
  (tmp_path / 'model.safetensors').rename(tmp_path / 'pytorch_model.bin')
  with pytest.raises(InputError, match=r"\['pytorch_model\.bin'\].*save_pretrained"):
    hub.load(tmp_path)


@pytest.mark.parametrize('family', ['llama', 'gpt_neox', 'gpt2'])
def test_shards_that_no_device_holds_whole(tmp_path, family):
  """Each device's part of every array, from files that are cut elsewhere."""
  sizes = dict(vocab_size=12, width=8, num_layers=2, num_heads=4, num_kv_heads=4)
  sizes |= dict(head_dim=2, mlp_width=12, max_positions=8)
  config = configs.create(family=family, **sizes)
  params = decoder.initial_params(config, jax.random.key(0))
  hub.save(tmp_path, config, params, shard=1500)
  assert len(list(tmp_path.glob('model-*.safetensors'))) > 2
  mesh = jax.make_mesh((4,), ('x',), devices=jax.devices()[:4])

  def cut(leaf):
    axes = [None] * leaf.ndim
    if leaf.shape[-1] % 4 == 0:
      axes[-1] = 'x'
    return jax.sharding.NamedSharding(mesh, jax.P(*axes))

  again, placed = hub.load(tmp_path, shardings=lambda tree: jax.tree.map(cut, tree))
  assert again == config
  kernel = placed['layers']['attention']['key']['kernel']
  assert kernel.addressable_shards[1].data.shape == (2, 8, 2)
  same = jax.tree.map(np.array_equal, params, placed)
  assert jax.tree.all(same)


def test_a_model_saved_without_its_head(tmp_path):
  tensors = state()
  del tensors[HEAD]
  short = {name.removeprefix('model.'): value for name, value in tensors.items()}
  _, params = hub.load(write(tmp_path, short, tie_word_embeddings=True))
  check(params, tensors)


def test_files_that_are_missing_or_broken(tmp_path):
  with pytest.raises(InputError, match=r'There is no .*config\.json'):
    hub.load(tmp_path)
  write(tmp_path, state())
  path = tmp_path / 'model.safetensors'
  whole = path.read_bytes()
  for content in (b'', b'garbage', whole[:7], whole[:99], whole[:-1], whole + b'x'):
    path.write_bytes(content)
    with pytest.raises(InputError, match=r'model\.safetensors is no whole safetensors'):
      hub.load(tmp_path)
  path.unlink()
  with pytest.raises(InputError, match=r'neither model\.safetensors nor .*index\.json'):
    hub.load(tmp_path)
  for content, message in (('{"a"', 'is not JSON'), ('[]', 'must be a JSON object')):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(InputError, match=rf'config\.json {message}'):
      hub.load(tmp_path)
