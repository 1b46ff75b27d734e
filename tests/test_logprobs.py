"""The chunked op against the plain one, and what its compiled form may hold."""

import functools
import math
import re

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

from prefjax import logprobs, objectives
from prefjax.errors import InputError
from prefjax.types import Head, Outputs, PreferenceBatch

P, K, T, D, V = 2, 2, 3, 4, 7
WANT = logprobs.QUANTITIES
CHUNKS = (1, 5, 512)
MASKS = {
  'some': np.arange(P * K * T).reshape(P, K, T) % 3 != 1,
  'all': np.ones((P, K, T), bool),
  'none': np.zeros((P, K, T), bool),
}


def draw(p=P, k=K, t=T, d=D, v=V, *, bias=True, soft_cap=None, dtype=float):
  """The states and heads of a policy and a reference, and tokens."""
  rng = np.random.default_rng(0)

  def array(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  def head():
    return Head(array(v, d), array(v) if bias else None, soft_cap)

  policy, other = ((array(p, k, t, d), head()) for _ in range(2))
  return policy, other, jnp.asarray(rng.integers(0, v, (p, k, t)), jnp.int32)


def logits(hidden, head):
  z = jnp.einsum('pktd,vd->pktv', hidden, head.weight)
  z = z if head.bias is None else z + head.bias[None, None, None]
  cap = head.soft_cap
  return z if cap is None else cap * jnp.tanh(z / cap)


def total(outputs):
  """One number in which every quantity of every token has its own factor."""
  parts = jax.tree.leaves(outputs)
  factors = np.cos(np.arange(parts[0].size)).reshape(parts[0].shape)
  return sum((i + 1) * jnp.sum(factors * x) for i, x in enumerate(parts))


def chunked(policy, other, tokens, mask, **options):
  return logprobs.from_hidden(
    *policy, tokens, mask, want=WANT, reference=other, **options
  )


def plain(policy, other, tokens, mask, **options):
  return logprobs.from_logits(
    logits(*policy), tokens, mask, reference_logits=logits(*other), **options
  )


@functools.partial(jax.jit, static_argnums=0, static_argnames=('chunk', 'mesh'))
def outputs_and_gradients(op, policy, other, *args, **options):
  def value(policy, other):
    outputs = op(policy, other, *args, **options)
    return total(outputs), outputs

  gradients, outputs = jax.grad(value, argnums=(0, 1), has_aux=True)(policy, other)
  return outputs, gradients


def assert_close(got, want, tolerance):
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance)


# The maths --------------------------------------------------------------------


@pytest.mark.parametrize('soft_cap', [None, 1.5])
@pytest.mark.parametrize('temperature', [1.0, 0.7])
@pytest.mark.parametrize('bias', [False, True])
def test_from_logits_is_the_reference(x64, bias, temperature, soft_cap):
  policy, other, tokens = draw(bias=bias)
  z, z_q = (np.asarray(logits(*model)) for model in (policy, other))

  def cap(x):
    return x if soft_cap is None else soft_cap * np.tanh(x / soft_cap)

  got = logprobs.from_logits(
    jnp.asarray(cap(z)),
    tokens,
    jnp.asarray(MASKS['some']),
    temperature=temperature,
    reference_logits=jnp.asarray(cap(z_q)),
  )
  options = {'temperature': temperature, 'soft_cap': soft_cap}
  want = {
    'logps': ref.token_logps(z, tokens, **options),
    'entropy': ref.entropy(z, **options),
    'collision': ref.collision(z, **options),
    'kl': ref.kl(z, z_q, **options),
  }
  for name, value in want.items():
    value = np.where(MASKS['some'], value, 0.0)
    np.testing.assert_allclose(getattr(got, name), value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('chunk', CHUNKS)
@pytest.mark.parametrize(
  ('bias', 'soft_cap', 'temperature'), [(False, None, 1.0), (True, 1.5, 0.7)]
)
def test_chunks_equal_the_plain_op(x64, bias, soft_cap, temperature, chunk, mask):
  case = (*draw(bias=bias, soft_cap=soft_cap), jnp.asarray(MASKS[mask]))
  options = {'temperature': temperature}
  want = outputs_and_gradients(plain, *case, **options)
  got = outputs_and_gradients(chunked, *case, **options, chunk=chunk)
  assert_close(got, want, 1e-10)
  assert not any(np.any(g) for g in jax.tree.leaves(got[1][1]))  # the reference


@pytest.mark.parametrize('want', WANT)
def test_one_quantity_alone(x64, want):
  policy, other, tokens = draw()
  mask = jnp.asarray(MASKS['some'])

  def value(op, hidden):
    return jnp.sum(getattr(op((hidden, policy[1])), want) ** 2)

  def alone(model):
    found = logprobs.from_hidden(
      *model, tokens, mask, want=(want,), reference=other, chunk=5
    )
    assert len(jax.tree.leaves(found)) == 1
    return found

  got = jax.jit(jax.grad(lambda h: value(alone, h)))(policy[0])
  plainly = jax.jit(
    jax.grad(lambda h: value(lambda m: plain(m, other, tokens, mask), h))
  )(policy[0])
  np.testing.assert_allclose(got, plainly, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
  ('dtype', 'tolerance'), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.05)]
)
def test_narrow_states_give_float32_near_the_truth(dtype, tolerance):
  case = draw(dtype=dtype)
  mask = jnp.asarray(MASKS['some'])
  got, gradients = outputs_and_gradients(chunked, *case, mask, chunk=5)
  assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype('float32')}
  assert {x.dtype for x in jax.tree.leaves(gradients)} == {jnp.dtype(dtype)}
  with jax.enable_x64(True):
    policy, other = jax.tree.map(lambda x: x.astype(float), case[:2])
    want = outputs_and_gradients(plain, policy, other, case[2], mask)
  narrow = jax.tree.map(lambda x: np.asarray(x, float), (got, gradients))
  assert_close(narrow, jax.tree.map(np.asarray, want), tolerance)


@pytest.mark.parametrize(
  ('want', 'word'), [(('logp',), 'logp'), (('kl',), 'reference')]
)
def test_what_it_cannot_give_is_refused(want, word):
  policy, _, tokens = draw(dtype=jnp.float32)
  with pytest.raises(InputError, match=word):
    logprobs.from_hidden(*policy, tokens, jnp.asarray(MASKS['all']), want=want)


# What is masked out -----------------------------------------------------------


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('chunk', CHUNKS)
def test_rubbish_at_a_masked_position_reaches_nothing(x64, chunk, bad):
  (hidden, head), (hidden_q, head_q), tokens = draw()
  mask = jnp.asarray(MASKS['some'])
  want = outputs_and_gradients(
    chunked, (hidden, head), (hidden_q, head_q), tokens, mask, chunk=chunk
  )
  hidden, hidden_q = (jnp.where(mask[..., None], x, bad) for x in (hidden, hidden_q))
  got = outputs_and_gradients(
    chunked, (hidden, head), (hidden_q, head_q), tokens, mask, chunk=chunk
  )
  assert_close(got, want, 1e-14)


@pytest.mark.parametrize('mask', MASKS)
def test_the_filling_of_a_chunk_does_not_overflow(mask):
  # An empty row has the logits bias / temperature = 200: its exp() is infinite.
  (hidden, head), other, tokens = draw(dtype=jnp.float32)
  policy = hidden, head.replace(bias=jnp.full(V, 200.0))
  _, gradients = outputs_and_gradients(
    chunked, policy, other, tokens, jnp.asarray(MASKS[mask]), chunk=5
  )
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_only_chunks_with_a_counted_token_are_run(monkeypatch):
  turns = []
  original = logprobs._logits

  def counting(*args):
    jax.debug.callback(lambda: turns.append(1))
    return original(*args)

  monkeypatch.setattr(logprobs, '_logits', counting)
  run = jax.jit(functools.partial(outputs_and_gradients.__wrapped__, chunked, chunk=5))
  place = np.arange(P * K * T).reshape(P, K, T)[:, ::-1]
  for counted in (0, 1, 5, 6, 12):
    turns.clear()
    run(*draw(dtype=jnp.float32), jnp.asarray(place < counted))
    jax.effects_barrier()
    assert len(turns) == 2 * math.ceil(counted / 5)  # forward and backward


# Memory and meshes ------------------------------------------------------------

TELL_TALE, WIDE, CHUNK = 1009, 32, 8


def mesh_of_8():
  return jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))


def compiled_hlo(mesh):
  """Optimised HLO of value and gradient, all quantities, 16 tokens a device."""
  policy, other, tokens = draw(8, 2, 8, WIDE, TELL_TALE, dtype=jnp.float32)
  mask = jnp.ones(tokens.shape, bool)
  if mesh is not None:
    rows, whole = (jax.NamedSharding(mesh, jax.P(*a)) for a in (('data',), ()))
    tokens, mask = jax.device_put((tokens, mask), rows)
    policy, other = (
      (jax.device_put(h, rows), jax.device_put(head, whole))
      for h, head in (policy, other)
    )

  def value(policy, other, tokens, mask):
    return total(chunked(policy, other, tokens, mask, chunk=CHUNK, mesh=mesh))

  step = jax.jit(jax.value_and_grad(value))
  return step.lower(policy, other, tokens, mask).compile().as_text()


def computations(hlo):
  """{name: its lines}, of a module's text."""
  found, name = {}, None
  for line in hlo.splitlines():
    header = re.match(r'(?:ENTRY )?%?([\w.\-]+) \(.*\{$', line)
    if header:
      name = header[1]
      found[name] = []
    elif line.startswith('}'):
      name = None
    elif name:
      found[name].append(line)
  return found


def inside_loops(found):
  """The lines of every computation that a while loop reaches."""
  calls = re.compile(r'(?:body|condition|calls|to_apply)=%?([\w.\-]+)')
  loops = re.compile(r'(?:body|condition)=%?([\w.\-]+)')
  waiting = [n for lines in found.values() for x in lines for n in loops.findall(x)]
  seen = set()
  while waiting:
    name = waiting.pop()
    if name not in seen:
      seen.add(name)
      waiting += [n for line in found[name] for n in calls.findall(line)]
  return [line for name in seen for line in found[name]]


COLLECTIVE = re.compile(
  r'= .*\b(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)'
  r'(-start)?\('
)


@pytest.fixture(scope='module', params=[False, True], ids=['one', 'mesh'])
def hlo(request):
  return request.param, compiled_hlo(mesh_of_8() if request.param else None)


def test_no_buffer_has_more_than_a_chunk_of_vocabulary_rows(hlo):
  shapes = {
    tuple(map(int, dims.split(','))) for dims in re.findall(r'\w+\[([\d,]+)\]', hlo[1])
  }
  told = {s for s in shapes if TELL_TALE in s}
  told -= {(TELL_TALE, WIDE), (WIDE, TELL_TALE)}  # the unembedding
  assert max(math.prod(s) for s in told) == CHUNK * TELL_TALE


def test_no_collective_in_a_loop_and_one_for_the_head(hlo):
  on_mesh, text = hlo
  found = computations(text)
  loops = inside_loops(found)
  assert any(' dot(' in line or 'custom-call' in line for line in loops)
  assert not [line for line in loops if COLLECTIVE.search(line)]
  everywhere = [
    line for lines in found.values() for line in lines if COLLECTIVE.search(line)
  ]
  unembedding = [x for x in everywhere if f'[{TELL_TALE},{WIDE}]' in x]
  assert len(unembedding) == on_mesh
  assert on_mesh == bool(everywhere)


@pytest.mark.parametrize('chunk', [1, 5])
def test_a_mesh_of_8_equals_one_device(x64, chunk):
  policy, other, tokens = draw(p=8, soft_cap=2.0)
  mask = jnp.asarray(np.random.default_rng(1).random(tokens.shape) < 0.6)
  mask = mask.at[3].set(False)  # one device has nothing to do
  mesh = mesh_of_8()
  rows = jax.NamedSharding(mesh, jax.P('data'))
  models = ((jax.device_put(h, rows), head) for h, head in (policy, other))
  sharded = outputs_and_gradients(
    chunked,
    *models,
    *jax.device_put((tokens, mask), rows),
    chunk=chunk,
    mesh=mesh,
    temperature=0.7,
  )
  want = outputs_and_gradients(plain, policy, other, tokens, mask, temperature=0.7)
  assert_close(sharded, want, 1e-10)


# A model of one's own ---------------------------------------------------------


class Bigram(nn.Module):
  """A state a token, of that token and the prompt's mean; tied embeddings."""

  @nn.compact
  def __call__(self, prompts, responses):
    embed = nn.Embed(V, D, name='embed')
    before = jnp.concatenate(
      [
        jnp.broadcast_to(prompts[:, None, -1:], (*responses.shape[:2], 1)),
        responses,
      ],
      axis=-1,
    )
    context = embed(prompts).mean(axis=1)[:, None, None]
    return nn.Dense(D)(jnp.tanh(embed(before) + context))


def test_a_linen_model_plugs_in(x64):
  rng = np.random.default_rng(0)
  batch = PreferenceBatch(
    prompts=rng.integers(0, V, (P, 3)),
    responses=rng.integers(0, V, (P, K, T)),
    prompt_length=np.full(P, 3),
    response_length=np.full((P, K), T),
    mask=MASKS['some'],
    weight=np.ones((P, K)),
    reference_logps=-rng.exponential(size=(P, K, T)),
    chosen=np.zeros((P, 1), int),
    rejected=np.ones((P, 1), int),
    preference=np.ones((P, 1)),
    pair_weight=np.ones((P, 1)),
  )
  batch = jax.tree.map(jnp.asarray, batch)
  model = Bigram()
  init = jax.jit(model.init)
  params = init(jax.random.key(0), batch.prompts, batch.responses)
  params = jax.tree.map(lambda x: x.astype(float), params)
  dpo = objectives.create('dpo', beta=0.5).build()

  def forward(params, batch, *, adapters=True):
    hidden = model.apply(params, batch.prompts, batch.responses)
    return hidden, Head(params['params']['embed']['embedding'])

  def through_hidden(params):
    hidden, head = forward(params, batch)
    outputs = logprobs.from_hidden(
      hidden[:, :, :-1], head, batch.responses, batch.mask, chunk=5
    )
    return dpo(outputs, batch)[0].value()

  def through_logits(params):
    hidden, head = forward(params, batch)
    outputs = logprobs.from_logits(
      logits(hidden, head)[:, :, :-1], batch.responses, batch.mask
    )
    return dpo(Outputs(logps=outputs.logps), batch)[0].value()

  got, want = (
    jax.jit(jax.value_and_grad(f))(params) for f in (through_hidden, through_logits)
  )
  assert_close(got, want, 1e-10)
