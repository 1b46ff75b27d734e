import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.models import config as configs
from prefjax.models import decoder
from prefjax.models.decoder import check_positions
from prefjax.types import PreferenceBatch

SIZES = dict(
  vocab_size=13,
  width=12,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
  mlp_width=16,
  max_positions=32,
)
# Everything that depends on positions or masks at once.
GEMMA = dict(
  family='gemma3',
  window=3,
  global_every=2,
  attention_soft_cap=2.0,
  logit_soft_cap=3.0,
)
KINDS = {'gemma': GEMMA, 'gpt2': dict(family='gpt2', attention='dense')}
# Compiling is what these tests spend their time on.
QUICK = {'xla_backend_optimization_level': 0}


def create(**changes):
  return configs.create(**{**SIZES, **changes})


def exact(**changes):
  return create(dtype='float64', param_dtype='float64', **changes)


@functools.cache
def initial(config):
  """Parameters large enough that every part matters."""
  rng = np.random.default_rng(0)
  scale_start = float(config.norm != 'rms_plus_one')

  def draw(path, x):
    start = scale_start if path[-1].key == 'scale' else 0.0
    return jnp.asarray(start + rng.normal(0, 0.2, x.shape), x.dtype)

  return jax.tree.map_with_path(draw, decoder.create(config)[1])


@functools.cache
def forward(config):
  graph, _ = decoder.create(config)
  return jax.jit(decoder.forward(graph), compiler_options=QUICK)


def hidden_states(config, params, batch):
  return forward(config)(params, batch)[0]


@functools.cache
def gradient(config):
  """States and the gradient of a loss on the counted tokens."""
  graph, _ = decoder.create(config)

  def loss(params, batch):
    hidden, head = decoder.forward(graph)(params, batch)
    logits = hidden[..., :-1, :] @ head.weight.T
    cap = head.soft_cap
    logits = logits if cap is None else cap * jnp.tanh(logits / cap)
    logps = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(logps, batch.responses[..., None], axis=-1)
    return jnp.sum(jnp.where(batch.mask, picked[..., 0], 0.0)), hidden

  run = jax.value_and_grad(loss, has_aux=True)
  return jax.jit(run, compiler_options=QUICK)


def outcome(config, params, batch):
  """States at real columns of the first three prompts' first two, and gradients."""
  (loss, hidden), grads = gradient(config)(params, batch)
  hidden = np.asarray(hidden)[:3, :2]
  columns = np.arange(hidden.shape[2]) <= BATCH.response_length[..., None]
  return hidden[columns], loss, grads


def make_batch(prompts, responses, *, size=0, t=0, pad=0):
  """A batch of ragged token lists `prompts[p]` and `responses[p][k]`."""
  size = size or max(map(len, prompts))
  t = t or max(len(r) for rs in responses for r in rs)
  left = [[pad] * (size - len(ids)) + ids for ids in prompts]
  right = [[ids + [pad] * (t - len(ids)) for ids in rs] for rs in responses]
  length = np.array([[len(ids) for ids in rs] for rs in responses], np.int32)
  return PreferenceBatch(
    prompts=np.array(left, np.int32),
    responses=np.array(right, np.int32).reshape(*length.shape, t),
    prompt_length=np.array([len(ids) for ids in prompts], np.int32),
    response_length=length,
    mask=np.arange(t) < length[..., None],
    weight=np.ones(length.shape, np.float32),
  )


def draw(rng, *lengths):
  return [rng.integers(1, 13, n).tolist() for n in lengths]


RNG = np.random.default_rng(1)
PROMPTS = draw(RNG, 6, 2, 4)
RESPONSES = [draw(RNG, 5, 3), draw(RNG, 1, 5), draw(RNG, 4, 0)]
BATCH = make_batch(PROMPTS, RESPONSES)


def real_states(hidden, batch):
  """Columns 0 to response_length of every response, concatenated."""
  columns = np.arange(hidden.shape[2]) <= batch.response_length[..., None]
  return np.asarray(hidden)[columns]


def assert_close(got, wanted, atol):
  assert jax.tree.structure(got) == jax.tree.structure(wanted)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=0, atol=atol),
    got,
    wanted,
  )


@pytest.mark.parametrize('kind', KINDS)
def test_shared_is_plain_in_states_and_gradients(kind, x64):
  config = exact(**KINDS[kind])
  plain = dataclasses.replace(config, layout='plain')
  params = initial(config)
  wanted = outcome(plain, params, BATCH)
  assert len(wanted[0]) == BATCH.response_length.sum() + BATCH.weight.size
  for path, leaf in jax.tree.leaves_with_path(wanted[2]):
    # A key's bias shifts all scores of a query alike.
    shift = [key.key for key in path[-2:]] == ['key', 'bias']
    assert (np.abs(leaf).max() > 1e-3) != shift, path
  assert_close(outcome(config, params, BATCH), wanted, 1e-10)


def test_shared_is_plain_in_float32():
  config = create(attention='dense')
  plain = dataclasses.replace(config, layout='plain')
  params = initial(config)
  got, wanted = (outcome(c, params, BATCH) for c in (config, plain))
  scale = max(np.abs(x).max() for x in jax.tree.leaves(wanted))
  assert_close(got, wanted, 1e-5 * scale)


@pytest.mark.parametrize('kind', KINDS)
def test_padding_and_filling_change_nothing(kind, x64):
  config = exact(**KINDS[kind])
  params = initial(config)
  # More columns on either side, more responses, more prompts; other padding.
  wider = make_batch(
    [*PROMPTS, [7]],
    [*[[*rows, []] for rows in RESPONSES], [[], [], []]],
    size=9,
    t=8,
    pad=7,
  )
  assert_close(outcome(config, params, wider), outcome(config, params, BATCH), 1e-10)


@pytest.mark.parametrize('kind', KINDS)
def test_two_blocks_are_one_ordinary_row(kind, x64):
  config = exact(**KINDS[kind])
  params = initial(config)
  hidden = hidden_states(config, params, BATCH)
  for p, k in np.ndindex(BATCH.response_length.shape):
    prompt, response = PROMPTS[p], RESPONSES[p][k]
    # The whole row as a response to its own first token: one block in effect.
    row = make_batch([prompt[:1]], [[prompt[1:] + response]], t=10)
    wanted = hidden_states(config, params, row)[0, 0, len(prompt) - 1 :]
    wanted = wanted[: len(response) + 1]
    assert_close(hidden[p, k, : len(response) + 1], wanted, 1e-10)


def test_a_response_token_changes_no_earlier_column(x64):
  config = exact()
  params = initial(config)
  before = np.asarray(hidden_states(config, params, BATCH))
  for j in range(5):
    responses = BATCH.responses.copy()
    responses[0, 0, j] = responses[0, 0, j] % 12 + 1
    changed = BATCH.replace(responses=responses)
    after = np.asarray(hidden_states(config, params, changed))
    moved = np.abs(after - before).max(axis=-1) > 1e-9
    wanted = np.zeros_like(moved)
    wanted[0, 0, j + 1 :] = True  # Its own row from its own column on.
    np.testing.assert_array_equal(moved, wanted)


def test_a_prompt_token_reaches_its_own_responses_alone(x64):
  config = exact()
  params = initial(config)
  before = np.asarray(hidden_states(config, params, BATCH))
  prompts = BATCH.prompts.copy()
  prompts[1, -2] = prompts[1, -2] % 12 + 1
  after = hidden_states(config, params, BATCH.replace(prompts=prompts))
  moved = np.abs(np.asarray(after) - before).max(axis=-1) > 1e-9
  columns = np.arange(6) <= BATCH.response_length[..., None]
  np.testing.assert_array_equal(moved[1], columns[1])
  assert not moved[[0, 2]].any()


@pytest.mark.parametrize('remat', ['dots', 'mixed', 'full'])
def test_remat_changes_no_value_and_no_gradient(remat, x64):
  config = exact(**GEMMA)
  params = initial(config)
  other = dataclasses.replace(config, remat=remat)
  assert_close(outcome(other, params, BATCH), outcome(config, params, BATCH), 1e-12)


def test_full_remat_holds_less():
  def held(remat):
    config = create(attention='dense', remat=remat, num_layers=12)
    batch = make_batch([[1] * 64], [[[1] * 64] * 4])
    params = decoder.create(config)[1]
    compiled = gradient(config).lower(params, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert held('full') < 0.5 * held('none')


def test_scan_is_a_loop_over_layers(x64):
  config = exact(**GEMMA)
  graph, _ = decoder.create(config)
  tokens = jnp.asarray(BATCH.prompts[:1])
  place = decoder.left_padded(jnp.array([6]), 6)
  windows = (3, decoder._NO_WINDOW, 3)

  @functools.partial(jax.jit, compiler_options=QUICK)
  def both_ways(params):
    model = nnx.merge(graph, params)

    def mixer(query, key, value, carry, *, window, layer):
      out = model.attend(query, key, value, place, place, window)
      return out, carry + layer, (key, window)

    x = start = model.embed(tokens, place.position)
    scanned = model.run_layers(start, place.position, mixer, jnp.array(0))
    block, stacked = nnx.split(model.layers)
    turns = model._turns(place.position)
    kept, carry = [], 0
    for layer, window in enumerate(windows):
      one = nnx.merge(block, jax.tree.map(lambda x, i=layer: x[i], stacked))
      turn = functools.partial(model._turn, turns=turns, full=layer == 1)
      mix = functools.partial(mixer, window=window, layer=layer)
      x, carry, more = one(x, turn, mix, carry)
      kept.append(more)
    kept = jax.tree.map(lambda *xs: jnp.stack(xs), *kept)
    return scanned, (model.norm(x), jnp.array(carry), kept)

  scanned, looped = both_ways(initial(config))
  assert_close(scanned, looped, 1e-12)
  assert int(scanned[1]) == 0 + 1 + 2
  assert tuple(scanned[2][1].tolist()) == windows


def test_initial_params_are_a_function_of_the_key():
  config = create()
  first = decoder.initial_params(config, jax.random.key(3))
  other_jit = jax.jit(lambda key: decoder.initial_params(config, key))
  same, other = (other_jit(jax.random.key(seed)) for seed in (3, 4))
  jax.tree.map(np.testing.assert_array_equal, first, same)
  kernel = first['layers']['mlp']['up']['kernel']
  assert not np.array_equal(kernel, other['layers']['mlp']['up']['kernel'])
  # Layers differ from each other, and projections from tables.
  assert not np.array_equal(kernel[0], kernel[1])
  assert 0.015 < np.std(kernel) < 0.025
  out = first['layers']['mlp']['down']['kernel']
  assert 0.015 < np.std(out) * 6**0.5 < 0.025
  abstract = decoder.create(config)[1]
  assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(
    lambda x: (x.shape, x.dtype), first
  )


def paths(config):
  found = jax.tree.leaves_with_path(decoder.create(config)[1])
  return {'.'.join(key.key for key in path): leaf.shape for path, leaf in found}


def test_parameter_paths_are_a_contract():
  assert paths(create()) == {
    'embedding': (13, 12),
    'layers.attention.key.kernel': (3, 12, 8),
    'layers.attention.out.kernel': (3, 16, 12),
    'layers.attention.query.kernel': (3, 12, 16),
    'layers.attention.value.kernel': (3, 12, 8),
    'layers.attention_norm.scale': (3, 12),
    'layers.mlp.down.kernel': (3, 16, 12),
    'layers.mlp.gate.kernel': (3, 12, 16),
    'layers.mlp.up.kernel': (3, 12, 16),
    'layers.mlp_norm.scale': (3, 12),
    'norm.scale': (12,),
    'unembedding': (13, 12),
  }
  assert set(paths(create(family='gpt2'))) == {
    'embedding',
    'layers.attention.key.bias',
    'layers.attention.key.kernel',
    'layers.attention.out.bias',
    'layers.attention.out.kernel',
    'layers.attention.query.bias',
    'layers.attention.query.kernel',
    'layers.attention.value.bias',
    'layers.attention.value.kernel',
    'layers.attention_norm.bias',
    'layers.attention_norm.scale',
    'layers.mlp.down.bias',
    'layers.mlp.down.kernel',
    'layers.mlp.up.bias',
    'layers.mlp.up.kernel',
    'layers.mlp_norm.bias',
    'layers.mlp_norm.scale',
    'norm.bias',
    'norm.scale',
    'positions',
  }
  assert set(paths(create(family='gemma3'))) - set(paths(create())) == {
    'layers.attention.key_norm.scale',
    'layers.attention.query_norm.scale',
    'layers.attention_post_norm.scale',
    'layers.mlp_post_norm.scale',
  }


def test_tied_embeddings_are_the_head():
  config = create(tied_embeddings=True)
  params = initial(config)
  assert 'unembedding' not in params
  _, head = forward(config)(params, BATCH)
  np.testing.assert_array_equal(head.weight, params['embedding'])
  untied = create()
  params = initial(untied)
  _, head = forward(untied)(params, BATCH)
  np.testing.assert_array_equal(head.weight, params['unembedding'])


def test_bfloat16_computes_short_and_keeps_float32_parameters():
  config = create(**GEMMA)
  short = dataclasses.replace(config, dtype='bfloat16')
  params = initial(config)
  wanted = hidden_states(config, params, BATCH)
  got = hidden_states(short, params, BATCH)
  assert got.dtype == jnp.bfloat16
  got, wanted = (real_states(x, BATCH) for x in (got, wanted))
  error = np.abs(got.astype(np.float32) - wanted)
  assert 0 < error.max() < 0.05 * np.abs(wanted).max()
  grads = jax.eval_shape(gradient(short), params, BATCH)[1]
  abstract = decoder.create(short)[1]
  dtypes = {x.dtype for x in jax.tree.leaves((abstract, grads))}
  assert dtypes == {jnp.dtype('float32')}


def test_positions_beyond_a_learned_table_are_refused():
  config = create(family='gpt2')
  check_positions(config, 32)
  with pytest.raises(InputError, match=r'33 tokens.*max_positions=32'):
    check_positions(config, 33)
  check_positions(create(), 33)


@pytest.mark.parametrize('layers, reach', [(1, 3), (2, 5)])
def test_a_window_counts_positions_not_columns(layers, reach, x64):
  config = exact(window=3, num_layers=layers, attention='dense')
  params = initial(config)
  prompt, response = [5, 6, 7, 8], [1, 2, 3, 4, 5]
  # Padding stands between the prompt's columns and the response's.
  before = make_batch([prompt, [1] * 7], [[response, [9]], [[9], [9]]], t=7)
  moved = []
  for j in range(4):
    changed = [*prompt[:j], 11, *prompt[j + 1 :]]
    after = make_batch([changed, [1] * 7], [[response, [9]], [[9], [9]]], t=7)
    states = [hidden_states(config, params, b)[0, 0] for b in (before, after)]
    difference = np.abs(states[0] - states[1]).max(axis=-1)[:6] > 1e-9
    moved.append(difference.tolist())
  # Column c stands at position 3 + c; prompt token j reaches `reach` positions.
  wanted = [[j <= 3 + c < j + reach for c in range(6)] for j in range(4)]
  assert moved == wanted


def test_a_global_layer_looks_beyond_the_window(x64):
  def last_depends_on_first(**changes):
    config = exact(window=2, attention='dense', num_layers=2, **changes)
    params = initial(config)
    rows = [make_batch([[a, 2, 3, 4]], [[[5, 6]]]) for a in (1, 9)]
    states = [hidden_states(config, params, row)[0, 0, -1] for row in rows]
    return bool(np.abs(states[0] - states[1]).max() > 1e-9)

  assert not last_depends_on_first()
  assert last_depends_on_first(global_every=2)
  assert not last_depends_on_first(global_every=3)


def test_soft_caps_bound_scores_and_logits(x64):
  plain, capped = (
    exact(attention_soft_cap=cap, logit_soft_cap=cap) for cap in (None, 0.5)
  )
  huge = exact(attention_soft_cap=1e6, logit_soft_cap=1e6)
  params = initial(plain)
  states = [
    real_states(hidden_states(c, params, BATCH), BATCH) for c in (plain, capped, huge)
  ]
  assert np.abs(states[0] - states[1]).max() > 1e-3
  assert_close(states[0], states[2], 1e-8)
  assert forward(capped)(params, BATCH)[1].soft_cap == 0.5
  assert forward(plain)(params, BATCH)[1].soft_cap is None


@pytest.mark.parametrize(
  'changes', [GEMMA, GEMMA | dict(layout='plain'), KINDS['gpt2']]
)
def test_a_row_that_only_fills_is_finite(changes):
  config = create(**changes)
  params = initial(config)
  batch = make_batch([[1], [1, 2, 3]], [[[], []], [[], [2, 4]]], t=3)
  everything = batch.replace(mask=np.ones_like(batch.mask))
  for rows in (batch, everything):
    leaves = jax.tree.leaves(gradient(config)(params, rows))
    assert all(np.isfinite(x).all() for x in leaves)
