import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from prefjax import logprobs
from prefjax.errors import InputError
from prefjax.models import config as configs
from prefjax.models import decoder
from prefjax.rollout import decoding, draws
from prefjax.rollout.draws import Controls
from prefjax.rollout.sampler import DecoderSampler, collect
from prefjax.training import mesh as meshes
from prefjax.types import PreferenceBatch

VOCAB, PAD, MOST = 13, 0, 7
SIZES = dict(
  vocab_size=VOCAB,
  width=12,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
  mlp_width=16,
  max_positions=32,
  attention='dense',
)
KINDS = {
  'gemma': dict(
    family='gemma3',
    window=3,
    global_every=2,
    attention_soft_cap=2.0,
    logit_soft_cap=3.0,
  ),
  'gpt2': dict(family='gpt2', tied_embeddings=False),
  'llama': dict(family='llama', attention_scale=1.0),
}
STOPS = (3, 7)
SIZES_OF_A_CALL = ('num_responses', 'max_tokens')
PROMPTS = ([5, 6, 1, 2, 9], [4], [8, 8, 2], [11, 3])


@functools.cache
def model(kind):
  config = configs.create(**SIZES, **KINDS[kind])
  graph, shapes = decoder.create(config)
  rng = np.random.default_rng(0)

  def draw(path, x):
    ones = config.norm != 'rms_plus_one' and path[-1].key == 'scale'
    return jnp.asarray(ones + rng.normal(0, 0.3, x.shape), x.dtype)

  return graph, jax.tree.map_with_path(draw, shapes)


@functools.cache
def make(kind, stop_ids=STOPS):
  return DecoderSampler(graph=model(kind)[0], stop_ids=stop_ids, pad_id=PAD)


def left_padded(prompts, size=5):
  rows = [[PAD] * (size - len(ids)) + ids for ids in prompts]
  return jnp.asarray(rows), jnp.asarray([len(ids) for ids in prompts])


def keys(*seeds):
  return jnp.stack([jax.random.key(seed) for seed in seeds])


def draw(kind, stop_ids=STOPS, rows=(0, 1, 2, 3), size=5, seed=0, **options):
  """Samples to the prompts `rows`; each prompt has a key of its own."""
  prompts, length = left_padded([PROMPTS[row] for row in rows], size)
  own = keys(*(100 * seed + row for row in rows))
  sizes = {name: options.pop(name) for name in SIZES_OF_A_CALL if name in options}
  sizes = dict(num_responses=3, max_tokens=MOST) | sizes
  sampler = make(kind, stop_ids)
  params, controls = model(kind)[1], Controls(**options)
  return collect(
    sampler.stream(params, prompts, length, own, controls=controls, **sizes)
  )


@functools.cache
def trainer(kind):
  graph, _ = model(kind)
  return jax.jit(decoder.forward(graph))


def teacher_forced(kind, samples, temperature):
  """Log-probs of the samples as the trainer has them, and its argmax."""
  prompts, length = left_padded(PROMPTS)
  mask = np.arange(MOST) < samples.length[..., None]
  batch = PreferenceBatch(
    prompts=prompts,
    responses=jnp.asarray(samples.tokens),
    prompt_length=length,
    response_length=jnp.asarray(samples.length),
    mask=jnp.asarray(mask),
    weight=jnp.ones(samples.length.shape),
  )
  hidden, head = trainer(kind)(model(kind)[1], batch)
  logps = logprobs.from_hidden(
    hidden[:, :, :-1],
    head,
    batch.responses,
    batch.mask,
    temperature=temperature,
  ).logps
  best = jnp.argmax(hidden[:, :, :-1] @ head.weight.T, axis=-1)
  return np.asarray(logps), np.asarray(best), mask


@pytest.mark.parametrize('kind', KINDS)
def test_greedy_is_the_argmax_of_the_trainer(kind):
  samples = draw(kind, greedy=True)
  logps, best, mask = teacher_forced(kind, samples, 1.0)
  assert mask.sum() > 30
  assert len(np.unique(samples.tokens[mask])) > 3
  np.testing.assert_array_equal(samples.tokens[mask], best[mask])
  np.testing.assert_allclose(samples.logps, logps, rtol=0, atol=1e-5)
  assert (samples.tokens == samples.tokens[:, :1]).all()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_recorded_logps_are_the_trainers(kind, temperature):
  samples = draw(kind, temperature=temperature)
  logps, _, mask = teacher_forced(kind, samples, temperature)
  assert mask.sum() > 30
  np.testing.assert_allclose(samples.logps, logps, rtol=0, atol=1e-5)
  other, _, _ = teacher_forced(kind, samples, 1.7 - temperature)
  assert np.abs(samples.logps - other).max() > 0.1


def test_keys_decide():
  first, same = draw('llama'), draw('llama')
  for x, y in zip(first, same, strict=True):
    np.testing.assert_array_equal(x, y)
  other = draw('llama', seed=1)
  assert (first.tokens != other.tokens).any(axis=(1, 2)).all()
  # The responses of one prompt differ from each other.
  assert (first.tokens[:, 0] != first.tokens[:, 1]).any(axis=-1).all()


def check_ends(samples, stop_ids, most):
  """A response ends with its first stop token or at the limit; then padding."""
  for tokens, length, logps, truncated in zip(
    *(x.reshape(-1, *x.shape[2:]) for x in samples), strict=True
  ):
    stops = np.flatnonzero(np.isin(tokens, stop_ids))
    assert truncated == (len(stops) == 0)
    assert length == (most if truncated else stops[0] + 1)
    assert (tokens[length:] == PAD).all()
    assert (logps[length:] == 0).all()
    assert (logps[:length] < 0).all()


def test_a_finished_row_stays_finished():
  ends = set()
  for seed in range(3):
    samples = draw('llama', seed=seed)
    check_ends(samples, STOPS, MOST)
    ends |= set(samples.tokens.ravel().tolist())
    assert 0 < samples.truncated.sum() < samples.truncated.size
  assert set(STOPS) <= ends
  # A row's tokens are the same up to its stop, whatever stops it.
  endless = draw('llama', stop_ids=(), seed=seed)
  assert endless.truncated.all()
  assert (endless.length == MOST).all()
  real = np.arange(MOST) < samples.length[..., None]
  np.testing.assert_array_equal(samples.tokens[real], endless.tokens[real])
  # A stop on the last token allowed is an end like any other.
  short = draw('llama', stop_ids=tuple(range(VOCAB)), seed=seed, max_tokens=1)
  np.testing.assert_array_equal(short.tokens, endless.tokens[..., :1])
  check_ends(short, range(VOCAB), 1)


def test_other_prompts_and_responses_change_nothing():
  whole = draw('gemma')
  part = draw('gemma', rows=(3, 1), num_responses=5)
  np.testing.assert_array_equal(part.tokens[:, :3], whole.tokens[[3, 1]])
  np.testing.assert_allclose(part.logps[:, :3], whole.logps[[3, 1]], atol=1e-5)


def test_left_padding_changes_nothing():
  narrow, wide = draw('gemma'), draw('gemma', size=9)
  np.testing.assert_array_equal(narrow.tokens, wide.tokens)
  np.testing.assert_allclose(narrow.logps, wide.logps, atol=1e-5)


def test_controls_and_stop_ids_are_traced(monkeypatch):
  greedy, unending = draw('llama', greedy=True), draw('llama', stop_ids=())
  jax.clear_caches()  # samplers of one kind share their programs
  traces, real = [], decoding.decode

  def counting(*args):
    traces.append(None)
    return real(*args)

  monkeypatch.setattr(decoding, 'decode', counting)
  sampler = DecoderSampler(graph=model('llama')[0], stop_ids=STOPS, pad_id=PAD)
  args = (model('llama')[1], *left_padded(PROMPTS), keys(0, 1, 2, 3))

  def tokens(stop_ids=None, **controls):
    options = dict(num_responses=3, max_tokens=MOST, controls=Controls(**controls))
    return collect(sampler.stream(*args, stop_ids=stop_ids, **options)).tokens

  cold, warm, hot = (tokens(temperature=t) for t in (1e-3, 1.0, 2.0))
  np.testing.assert_array_equal(cold, greedy.tokens)
  assert (warm != hot).any()
  # Every prompt has a set of its own, and the last one never stops.
  sets = np.asarray([[3, 7], [7, 3], [11, -1], [-1, -1]], np.int32)
  own = tokens(stop_ids=sets)
  assert len(traces) == 1
  np.testing.assert_array_equal(own[:2], warm[:2])
  np.testing.assert_array_equal(own[3], unending.tokens[3])
  few = [tokens(top_k=k, top_p=p) for k, p in ((1, 1.0), (2, 1.0), (0, 0.3))]
  assert len(traces) == 2
  np.testing.assert_array_equal(few[0], cold)
  assert (few[1] != few[2]).any()


# Slots ------------------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('slots', 'block'), [(1, 3), (2, 2), (3, 1)])
def test_slots_given_away_change_nothing(x64, kind, slots, block):
  """More prompts than slots, in float64: the same responses whatever the split."""
  graph, params = model(kind)
  params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
  config = configs.create(
    **SIZES, **KINDS[kind], dtype='float64', param_dtype='float64'
  )
  graph, _ = decoder.create(config)
  prompts, length = left_padded([PROMPTS[i % 4] for i in range(7)])
  args = (params, prompts, length, keys(*range(7)))
  options = dict(num_responses=2, max_tokens=MOST)
  whole = collect(DecoderSampler(graph=graph, stop_ids=STOPS).stream(*args, **options))
  few = DecoderSampler(graph=graph, stop_ids=STOPS, slots=slots, block=block)
  parts = list(few.stream(*args, **options))
  assert len(parts) > 1
  found = collect(iter(parts))
  for name in ('tokens', 'length', 'truncated'):
    np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
  np.testing.assert_allclose(found.logps, whole.logps, rtol=0, atol=1e-12)
  # A response longer than the ring's rest goes round it.
  assert whole.truncated.any()
  assert not whole.truncated.all()


def test_slots_compile_a_bounded_number_of_programs(monkeypatch):
  traces, real = [], decoding.admit

  def counting(*args):
    traces.append(None)
    return real(*args)

  monkeypatch.setattr(decoding, 'admit', counting)
  sampler = DecoderSampler(graph=model('llama')[0], stop_ids=STOPS, slots=4, block=2)
  for count in (9, 14, 20):
    prompts, length = left_padded([PROMPTS[i % 4] for i in range(count)])
    args = (model('llama')[1], prompts, length, keys(*range(count)))
    found = collect(sampler.stream(*args, num_responses=2, max_tokens=MOST))
    assert len(found.tokens) == count
  assert len(traces) == 2  # the first fill and the refill


def test_a_prompt_longer_than_its_bucket_is_an_error_that_says_so():
  prompts, length = left_padded(PROMPTS)
  with pytest.raises(InputError, match='1 to 5 tokens, the length of their bucket'):
    make('llama').stream(
      model('llama')[1],
      prompts,
      length + 1,
      keys(0, 1, 2, 3),
      num_responses=1,
      max_tokens=2,
    )


def test_slots_over_eight_devices_draw_the_same():
  mesh = meshes.create({'data': 8})
  prompts, length = left_padded([PROMPTS[i % 4] for i in range(11)])
  args = (prompts, length, keys(*range(11)))
  options = dict(num_responses=2, max_tokens=MOST)
  graph, params = model('llama')
  alone = collect(
    DecoderSampler(graph=graph, stop_ids=STOPS).stream(params, *args, **options)
  )
  sampler = DecoderSampler(graph=graph, stop_ids=STOPS, slots=8, block=3, mesh=mesh)
  placed = jax.device_put(params, meshes.replicated(mesh))
  found = collect(sampler.stream(placed, *args, **options))
  np.testing.assert_array_equal(found.tokens, alone.tokens)
  np.testing.assert_allclose(found.logps, alone.logps, rtol=0, atol=1e-5)


def test_a_stop_string_ends_a_response_at_the_token_that_completes_it():
  free = draw('llama', stop_ids=())
  ids = free.tokens[0, 1].tolist()
  wanted = ids[2:4]

  def holds(tokens):
    return any(tokens[i : i + 2] == wanted for i in range(len(tokens)))

  sampler = DecoderSampler(
    graph=model('llama')[0], stop_ids=(), pad_id=PAD, block=3, stop=holds
  )
  prompts, length = left_padded(PROMPTS)
  args = (model('llama')[1], prompts, length, keys(0, 1, 2, 3))
  found = collect(sampler.stream(*args, num_responses=3, max_tokens=MOST))
  assert found.length[0, 1] == 4
  for row, length, cut, whole in zip(
    *(x.reshape(12, -1) for x in (found.tokens, found.length, found.truncated)),
    free.tokens.reshape(12, -1),
    strict=True,
  ):
    n = int(length[0])
    np.testing.assert_array_equal(row[:n], whole[:n])
    assert (row[n:] == PAD).all()
    assert bool(cut[0]) == (n == MOST and not holds(whole.tolist()))
    assert not holds(row[: n - 1].tolist())


# Draws ------------------------------------------------------------------------


def truncated(logits, **controls):
  numbers = Controls(**controls).numbers()
  return np.asarray(draws.truncated(jnp.asarray(logits), numbers))


def test_truncation_by_hand():
  p = np.array([0.5, 0.2, 0.15, 0.1, 0.05])
  order = [3, 0, 4, 1, 2]  # the vocabulary is not sorted
  logits = np.log(p)[order].astype(np.float32)

  def kept(**controls):
    found = truncated(logits, **controls)
    np.testing.assert_array_equal(found[np.isfinite(found)], logits[np.isfinite(found)])
    return sorted(p[order][np.isfinite(found)].tolist(), reverse=True)

  assert kept() == [0.5, 0.2, 0.15, 0.1, 0.05]
  assert kept(top_k=2) == [0.5, 0.2]
  assert kept(top_p=0.5) == [0.5]
  assert kept(top_p=0.51) == [0.5, 0.2]
  assert kept(min_p=0.25) == [0.5, 0.2, 0.15]
  # top-p counts the mass of what top-k left: 0.5 of 0.7 is more than 0.7.
  assert kept(top_k=2, top_p=0.7) == [0.5]
  assert kept(top_k=9) == kept()


@pytest.mark.parametrize(
  'controls', [dict(top_k=3), dict(top_p=0.6, temperature=0.7), dict(min_p=0.3)]
)
def test_logps_under_truncation_are_renormalised(controls):
  samples = draw('llama', **controls)
  full, _, mask = teacher_forced('llama', samples, controls.get('temperature', 1.0))
  assert (samples.logps[mask] >= full[mask] - 1e-5).all()
  assert (samples.logps - full)[mask].max() > 0.1
  # First tokens: the probabilities of the kept tokens sum to 1.
  many = draw('llama', **controls, num_responses=400, max_tokens=1)
  for row in range(4):
    _, first = np.unique(many.tokens[row, :, 0], return_index=True)
    np.testing.assert_allclose(np.exp(many.logps[row, first, 0]).sum(), 1, atol=1e-4)


def test_controls_out_of_range_are_refused():
  for name, value in dict(temperature=0.0, top_k=-1, top_p=0.0, min_p=1.5).items():
    with pytest.raises(InputError, match=name):
      Controls(**{name: value})


def test_a_bfloat16_cache_is_near_the_float32_one():
  prompts, length = left_padded(PROMPTS)
  args = (model('llama')[1], prompts, length, keys(0, 1, 2, 3))
  sampler = DecoderSampler(graph=model('llama')[0], stop_ids=(), cache_dtype='bfloat16')
  options = dict(num_responses=3, max_tokens=2, controls=Controls(greedy=True))
  found = collect(sampler.stream(*args, **options))
  exact = draw('llama', stop_ids=(), max_tokens=2, greedy=True)
  gap = np.abs(found.logps - exact.logps)
  assert 0 < gap.max() < 0.1


inverse_cdf = jax.jit(draws.inverse_cdf)


@pytest.mark.parametrize('vocab', [13, 256, 257, 600])
def test_draws_follow_the_softmax(vocab):
  rng = np.random.default_rng(vocab)
  logits = rng.normal(0, 1.5, vocab)
  logits[rng.random(vocab) < 0.3] = -np.inf
  draws = 100_000
  uniform = rng.random(draws, np.float32)
  rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (1000, vocab))
  found = [inverse_cdf(rows, u) for u in jnp.asarray(uniform).reshape(-1, 1000)]
  counts = np.bincount(np.concatenate(found), minlength=vocab)
  assert len(counts) == vocab
  weights = np.exp(logits)
  wanted = draws * weights / weights.sum()
  assert not counts[wanted == 0].any()
  some = wanted > 5
  # What is rare is one class.
  observed = np.append(counts[some], counts[~some].sum() + 5)
  expected = np.append(wanted[some], wanted[~some].sum() + 5)
  result = scipy.stats.chisquare(observed, expected)
  assert result.pvalue > 1e-3


@pytest.mark.parametrize('vocab', [5, 256, 600])
def test_the_ends_of_the_uniform_draw_what_can_be_drawn(vocab):
  logits = np.zeros(vocab, np.float32)
  logits[[0, 1, -1]] = -np.inf
  logits[256:512] = -np.inf
  ends = jnp.asarray([0.0, 1e-30, 1 - 2.0**-24, 1.0], jnp.float32)
  rows = jnp.broadcast_to(logits, (4, vocab))
  last = np.flatnonzero(logits == 0)[-1]
  assert inverse_cdf(rows, ends).tolist() == [2, 2, last, last]


def test_rounding_never_draws_what_cannot_be_drawn():
  # The uniforms that fall on the boundaries between tokens, and next to them.
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 2, (200, 600)).astype(np.float32)
  logits[:, ::3] = -np.inf
  logits[:, 250:262] = -np.inf
  weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
  total = np.cumsum(weights, axis=-1)
  total /= total[:, -1:]
  for column in rng.integers(0, 600, 100):
    for way in (-1.0, 0.0, 1.0):
      edge = total[:, column]
      edge = edge if way == 0 else np.nextafter(edge, np.float32(way * 9))
      drawn = np.asarray(inverse_cdf(logits, edge))
      assert np.isfinite(np.take_along_axis(logits, drawn[:, None], 1)).all()
  index, _ = draws.passes(jnp.asarray([0.0, 0.5, 0.5]), jnp.asarray(-1e-9))
  assert int(index) == 1


def test_a_row_draws_from_its_own_distribution():
  """Frequencies of first tokens over many keys, against the trainer's softmax."""
  prompts, length = left_padded(PROMPTS)
  own = jax.vmap(jax.random.key)(jnp.arange(4))
  options = dict(num_responses=4000, max_tokens=1)
  found = collect(
    make('llama').stream(model('llama')[1], prompts, length, own, **options)
  )
  for row in range(4):
    counts = np.bincount(np.asarray(found.tokens)[row, :, 0], minlength=VOCAB)
    logps = np.full(VOCAB, -np.inf)
    logps[np.asarray(found.tokens)[row, :, 0]] = found.logps[row, :, 0]
    wanted = 4000 * np.exp(logps)
    some = wanted > 5
    np.testing.assert_allclose(wanted.sum(), 4000, rtol=0.01)
    score = np.square(counts - wanted)[some] / wanted[some]
    assert score.sum() < scipy.stats.chi2.ppf(0.999, some.sum())
