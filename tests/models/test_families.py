"""Each family against its published definition, in float64.

`reference` is the forward of Hugging Face transformers written out in NumPy
from its modelling files, on state dicts with its names and layouts. What the
originals themselves say is in test_golden.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.models import config as configs
from prefjax.models import decoder
from prefjax.types import PreferenceBatch

VOCAB, TOKENS, WINDOW = 29, 17, 5
SIZES = dict(
  vocab_size=VOCAB,
  width=24,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
  mlp_width=36,
  max_positions=32,
)
WIDE_HEADS = dict(head_dim=8)  # A head is not width / num_heads.
GEMMA = dict(**WIDE_HEADS, attention_scale=10**-0.5, window=WINDOW)
NEOX = dict(width=32, num_heads=2, num_kv_heads=2, head_dim=16)
OWN_SIZES = {
  'llama': {},
  'mistral': dict(**WIDE_HEADS, window=WINDOW),
  'qwen2': {},
  'qwen3': WIDE_HEADS,
  'gemma2': dict(**GEMMA, num_layers=4, attention_soft_cap=2.0, logit_soft_cap=3.0),
  'gemma3': dict(**GEMMA, num_layers=7),
  'gpt_neox': NEOX,
  'gpt2': dict(num_kv_heads=4),
}
FAMILIES = sorted(OWN_SIZES)


def sizes(family):
  return {**SIZES, **OWN_SIZES[family]}


def norm(family, x, weight, bias=None):
  if bias is not None:
    x = x - x.mean(-1, keepdims=True)
  eps = 1e-5 if family in ('llama', 'mistral', 'gpt_neox', 'gpt2') else 1e-6
  x = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
  if bias is not None:
    return x * weight + bias
  return x * (1 + weight if 'gemma' in family else weight)


def rotate_half(x, size, theta):
  """Rotary angles on x [n, t, h] as the originals have them."""
  inverse = 1.0 / theta ** (np.arange(0, size, 2) / size)
  angle = np.arange(x.shape[1])[:, None] * inverse
  angle = np.concatenate([angle, angle], -1)
  turned, rest = x[..., :size], x[..., size:]
  half = np.concatenate([-turned[..., size // 2 :], turned[..., : size // 2]], -1)
  turned = turned * np.cos(angle) + half * np.sin(angle)
  return np.concatenate([turned, rest], -1)


def attend(q, k, v, scale, window, cap):
  """Causal attention of q [n, t, h] on k, v [m, t, h], row by row."""
  k, v = (np.repeat(x, len(q) // len(x), 0) for x in (k, v))
  out = np.zeros_like(q)
  for row in range(q.shape[1]):
    first = 0 if window is None else max(0, row - window + 1)
    keys, values = k[:, first : row + 1], v[:, first : row + 1]
    scores = np.einsum('nh,nsh->ns', q[:, row], keys) * scale
    scores = scores if cap is None else cap * np.tanh(scores / cap)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out[:, row] = np.einsum('ns,nsh->nh', weights, values)
  return out.swapaxes(0, 1).reshape(q.shape[1], -1)


def gelu_tanh(x):
  return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def gelu(x):
  return 0.5 * x * (1 + np.vectorize(math.erf)(x / 2**0.5))


def silu(x):
  return x / (1 + np.exp(-x))


def heads(x, h):
  return x.reshape(len(x), -1, h).swapaxes(0, 1)


def llama_like(family, state, tokens):
  """LlamaModel and what Mistral, Qwen and Gemma change in it."""
  size = sizes(family)
  gemma, h = 'gemma' in family, size['head_dim']
  act = gelu_tanh if gemma else silu
  x = state['model.embed_tokens.weight'][tokens]
  x = x * size['width'] ** 0.5 if gemma else x
  for layer in range(size['num_layers']):

    def get(name, layer=layer):
      return state[f'model.layers.{layer}.{name}.weight']

    def project(name, y, layer=layer):
      bias = f'model.layers.{layer}.{name}.bias'
      return y @ get(name, layer).T + state.get(bias, 0.0)

    full = {'mistral': False, 'gemma2': layer % 2 == 1, 'gemma3': layer == 5}
    full = full.get(family, True)
    theta = 10_000.0 if family in ('llama', 'mistral', 'gemma2') else 1e6
    if family == 'gemma3' and not full:
      theta = 10_000.0
    y = norm(family, x, get('input_layernorm'))
    q, k, v = (heads(project(f'self_attn.{c}_proj', y), h) for c in 'qkv')
    if family in ('qwen3', 'gemma3'):
      q = norm(family, q, get('self_attn.q_norm'))
      k = norm(family, k, get('self_attn.k_norm'))
    q, k = rotate_half(q, h, theta), rotate_half(k, h, theta)
    scale = 10**-0.5 if gemma else h**-0.5
    cap = 2.0 if family == 'gemma2' else None
    y = attend(q, k, v, scale, None if full else WINDOW, cap)
    y = project('self_attn.o_proj', y)
    if gemma:
      x = x + norm(family, y, get('post_attention_layernorm'))
      y = norm(family, x, get('pre_feedforward_layernorm'))
    else:
      x = x + y
      y = norm(family, x, get('post_attention_layernorm'))
    y = act(project('mlp.gate_proj', y)) * project('mlp.up_proj', y)
    y = project('mlp.down_proj', y)
    x = x + (norm(family, y, get('post_feedforward_layernorm')) if gemma else y)
  x = norm(family, x, state['model.norm.weight'])
  logits = x @ state['lm_head.weight'].T
  return 3.0 * np.tanh(logits / 3.0) if family == 'gemma2' else logits


def gpt_neox(state, tokens):
  h = NEOX['head_dim']
  x = state['gpt_neox.embed_in.weight'][tokens]
  for layer in range(SIZES['num_layers']):

    def get(name, layer=layer):
      name = f'gpt_neox.layers.{layer}.{name}'
      return state[name + '.weight'], state[name + '.bias']

    def project(name, y, get=get):
      weight, bias = get(name)
      return y @ weight.T + bias

    y = norm('gpt_neox', x, *get('input_layernorm'))
    fused = heads(project('attention.query_key_value', y), 3 * h)
    q, k, v = (fused[..., i * h : (i + 1) * h] for i in range(3))
    q, k = (rotate_half(y, h // 4, 10_000.0) for y in (q, k))
    mixed = project('attention.dense', attend(q, k, v, h**-0.5, None, None))
    y = norm('gpt_neox', x, *get('post_attention_layernorm'))
    y = gelu(project('mlp.dense_h_to_4h', y))
    x = x + mixed + project('mlp.dense_4h_to_h', y)
  last = [state[f'gpt_neox.final_layer_norm.{s}'] for s in ('weight', 'bias')]
  return norm('gpt_neox', x, *last) @ state['embed_out.weight'].T


def gpt2(state, tokens):
  h, width = SIZES['head_dim'], SIZES['width']
  x = state['transformer.wte.weight'][tokens]
  x = x + state['transformer.wpe.weight'][: len(tokens)]
  for layer in range(SIZES['num_layers']):

    def get(name, layer=layer):
      name = f'transformer.h.{layer}.{name}'
      return state[name + '.weight'], state[name + '.bias']

    def project(name, y, get=get):
      weight, bias = get(name)
      return y @ weight + bias  # Conv1D is stored [in, out].

    fused = project('attn.c_attn', norm('gpt2', x, *get('ln_1')))
    q, k, v = (heads(fused[:, i * width : (i + 1) * width], h) for i in range(3))
    x = x + project('attn.c_proj', attend(q, k, v, h**-0.5, None, None))
    y = gelu_tanh(project('mlp.c_fc', norm('gpt2', x, *get('ln_2'))))
    x = x + project('mlp.c_proj', y)
  last = [state[f'transformer.ln_f.{s}'] for s in ('weight', 'bias')]
  return norm('gpt2', x, *last) @ state['transformer.wte.weight'].T


def reference(family, state, tokens):
  """Logits [t, v] of the family's original, float64."""
  state = {name: np.asarray(x, np.float64) for name, x in state.items()}
  if family in ('gpt_neox', 'gpt2'):
    return {'gpt_neox': gpt_neox, 'gpt2': gpt2}[family](state, tokens)
  state.setdefault('lm_head.weight', state['model.embed_tokens.weight'])
  return llama_like(family, state, tokens)


# Where a layer's parts are in the original: (our path, its name).
LLAMA_PARTS = {
  'attention_norm': 'input_layernorm',
  'attention.query': 'self_attn.q_proj',
  'attention.key': 'self_attn.k_proj',
  'attention.value': 'self_attn.v_proj',
  'attention.out': 'self_attn.o_proj',
  'mlp_norm': 'post_attention_layernorm',
  'mlp.gate': 'mlp.gate_proj',
  'mlp.up': 'mlp.up_proj',
  'mlp.down': 'mlp.down_proj',
}
QK_NORMS = {
  'attention.query_norm': 'self_attn.q_norm',
  'attention.key_norm': 'self_attn.k_norm',
}
GEMMA_PARTS = LLAMA_PARTS | {
  'attention_post_norm': 'post_attention_layernorm',
  'mlp_norm': 'pre_feedforward_layernorm',
  'mlp_post_norm': 'post_feedforward_layernorm',
}
PARTS = dict.fromkeys(('llama', 'mistral', 'qwen2'), LLAMA_PARTS) | {
  'qwen3': LLAMA_PARTS | QK_NORMS,
  'gemma2': GEMMA_PARTS,
  'gemma3': GEMMA_PARTS | QK_NORMS,
  'gpt_neox': {
    'attention_norm': 'input_layernorm',
    'attention.query/key/value': 'attention.query_key_value',
    'attention.out': 'attention.dense',
    'mlp_norm': 'post_attention_layernorm',
    'mlp.up': 'mlp.dense_h_to_4h',
    'mlp.down': 'mlp.dense_4h_to_h',
  },
  'gpt2': {
    'attention_norm': 'ln_1',
    'attention.query/key/value': 'attn.c_attn',
    'attention.out': 'attn.c_proj',
    'mlp_norm': 'ln_2',
    'mlp.up': 'mlp.c_fc',
    'mlp.down': 'mlp.c_proj',
  },
}
LLAMA_TOP = ('model.embed_tokens', 'model.layers', 'model.norm', 'lm_head')
TOP = {
  'gpt_neox': (
    'gpt_neox.embed_in',
    'gpt_neox.layers',
    'gpt_neox.final_layer_norm',
    'embed_out',
  ),
  'gpt2': ('transformer.wte', 'transformer.h', 'transformer.ln_f', None),
}


def convert(family, config, state, dtype):
  """The original's state dict as our parameters; everything must be used."""
  state, params = dict(state), {}
  embedding, layers, last, head = TOP.get(family, LLAMA_TOP)

  def put(path, value):
    *folders, leaf = path.split('.')
    node = functools.reduce(lambda n, f: n.setdefault(f, {}), folders, params)
    node[leaf] = jnp.asarray(value, dtype)

  put('embedding', state.pop(f'{embedding}.weight'))
  if config.position == 'learned':
    put('positions', state.pop('transformer.wpe.weight'))
  if not config.tied_embeddings:
    put('unembedding', state.pop(f'{head}.weight'))
  for kind, ours in (('weight', 'scale'), ('bias', 'bias')):
    if f'{last}.{kind}' in state:
      put(f'norm.{ours}', state.pop(f'{last}.{kind}'))
  for part, name in PARTS[family].items():
    for kind in ('weight', 'bias'):
      names = [f'{layers}.{i}.{name}.{kind}' for i in range(config.num_layers)]
      if names[0] in state:
        value = np.stack([state.pop(name) for name in names])
        put_layer(put, family, config, part, kind, value)
  assert not state, sorted(state)
  return params


def put_layer(put, family, config, part, kind, value):
  if part.endswith('norm'):
    put(f'layers.{part}.{"scale" if kind == "weight" else "bias"}', value)
    return
  if kind == 'weight' and family != 'gpt2':
    value = value.swapaxes(1, 2)  # Linear is stored [out, in].
  leaf = 'kernel' if kind == 'weight' else 'bias'
  folder, _, names = part.rpartition('.')
  names = names.split('/')
  if len(names) == 3 and family == 'gpt_neox':
    # Fused by head: [heads, 3, head_dim].
    split = (config.num_heads, 3, config.head_dim)
    value = value.reshape(*value.shape[:-1], *split).swapaxes(-3, -2)
    value = value.reshape(*value.shape[:-3], -1)
  for name, x in zip(names, np.split(value, len(names), -1), strict=True):
    put(f'layers.{folder}.{name}.{leaf}', x)


def our_logits(family, state, tokens, dtype):
  own = OWN_SIZES[family]
  config = configs.create(
    family=family, **{**SIZES, **own}, dtype=dtype, param_dtype=dtype
  )
  params = convert(family, config, state, dtype)
  graph, _ = decoder.create(config)
  batch = PreferenceBatch(
    prompts=jnp.asarray(tokens[None, :1]),
    responses=jnp.asarray(tokens[None, None, 1:]),
    prompt_length=jnp.ones((1,), jnp.int32),
    response_length=jnp.full((1, 1), len(tokens) - 1, jnp.int32),
    mask=None,
    weight=None,
  )
  quick = {'xla_backend_optimization_level': 0}
  run = jax.jit(decoder.forward(graph), compiler_options=quick)
  hidden, head = run(params, batch)
  logits = hidden[0, 0] @ head.weight.T
  cap = head.soft_cap
  return np.asarray(logits if cap is None else cap * jnp.tanh(logits / cap))


def random_state(family, rng):
  """A state dict with the original's names and layouts."""
  size, state = sizes(family), {}
  width, hidden = size['width'], size['mlp_width']
  queries = size['num_heads'] * size['head_dim']
  keys = size['num_kv_heads'] * size['head_dim']
  embedding, layers, last, head = TOP.get(family, LLAMA_TOP)
  outputs = {'query': queries, 'key': keys, 'value': keys}
  outputs |= {'query/key/value': queries + 2 * keys, 'out': width}
  outputs |= {'gate': hidden, 'up': hidden, 'down': width}
  inputs = dict.fromkeys(outputs, width) | {'out': queries, 'down': hidden}
  biased = family in ('gpt_neox', 'gpt2')

  def draw(*shape):
    return rng.normal(0.0, 0.3, shape)

  def put_norm(name, width):
    center = 0.0 if 'gemma' in family else 1.0
    state[f'{name}.weight'] = center + draw(width)
    if biased:
      state[f'{name}.bias'] = draw(width)

  state[f'{embedding}.weight'] = draw(VOCAB, width)
  if family == 'gpt2':
    state['transformer.wpe.weight'] = draw(size['max_positions'], width)
  elif 'gemma' not in family:
    state[f'{head}.weight'] = draw(VOCAB, width)
  put_norm(last, width)
  for layer in range(size['num_layers']):
    for part, name in PARTS[family].items():
      name, part = f'{layers}.{layer}.{name}', part.rpartition('.')[2]
      if part.endswith('norm'):
        own = part in ('query_norm', 'key_norm')
        put_norm(name, size['head_dim'] if own else width)
        continue
      shape = (outputs[part], inputs[part])
      state[f'{name}.weight'] = draw(*shape[:: -1 if family == 'gpt2' else 1])
      if biased or (family == 'qwen2' and part in ('query', 'key', 'value')):
        state[f'{name}.bias'] = draw(shape[0])
  return state


@pytest.mark.parametrize('family', FAMILIES)
def test_numpy_forward_of_the_published_definition(family, x64):
  rng = np.random.default_rng(FAMILIES.index(family))
  state = random_state(family, rng)
  tokens = rng.integers(0, VOCAB, TOKENS)
  wanted = reference(family, state, tokens)
  got = our_logits(family, state, tokens, 'float64')
  assert np.std(wanted) > 0.1
  np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-9)


def test_every_family_is_compared():
  assert sorted(configs.FAMILIES) == FAMILIES
