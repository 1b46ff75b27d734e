"""A tiny decoder, ragged batches, and what tests of the training stack share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from prefjax import objectives
from prefjax.data.prepare import prepare
from prefjax.models import config as model_config
from prefjax.models import decoder
from prefjax.objectives import NonNegative, Positive, recipe
from prefjax.training.step import hyper
from prefjax.types import Head, PreferenceBatch

SIZES = dict(
  vocab_size=29,
  width=8,
  num_layers=2,
  num_heads=2,
  num_kv_heads=1,
  head_dim=4,
  mlp_width=12,
  max_positions=64,
  attention='dense',
)


# Models -----------------------------------------------------------------------


def config(**changes):
  return model_config.create(family='llama', **(SIZES | changes))


@functools.cache
def _model(changes):
  settings = config(**dict(changes))
  graph, shapes = decoder.create(settings)
  return decoder.forward(graph), shapes


def forward(**changes):
  return _model(tuple(sorted(changes.items())))[0]


def params(seed=0, scale=0.3, **changes):
  """Random parameters, far enough from zero that every gradient is of order 1."""
  _, shapes = _model(tuple(sorted(changes.items())))
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(seed)
  drawn = [
    scale * rng.standard_normal(leaf.shape) + (leaf.ndim == 1) for leaf in leaves
  ]
  arrays = [jnp.asarray(x, leaf.dtype) for x, leaf in zip(drawn, leaves, strict=True)]
  return jax.tree.unflatten(tree, arrays)


def bag_forward(params, batch, *, adapters=True):
  """A model that compiles in no time: a bag of the words so far.

  It runs no layer, but keeps the contract of a forward and reads every real token.
  """
  del adapters
  embedding = params['embedding']
  l, t = batch.prompts.shape[1], batch.responses.shape[2]
  real = jnp.arange(l)[None] >= l - batch.prompt_length[:, None]
  prompt = jnp.where(real[..., None], embedding[batch.prompts], 0.0).sum(axis=1)
  real = jnp.arange(t)[None, None] < batch.response_length[..., None]
  words = jnp.where(real[..., None], embedding[batch.responses], 0.0)
  so_far = jnp.pad(jnp.cumsum(words, 2), ((0, 0), (0, 0), (1, 0), (0, 0)))
  hidden = jnp.tanh((prompt[:, None, None] + so_far) @ params['mix'])
  return hidden, Head(params['unembedding'])


def bag_params(seed=0, vocab=29, width=8, dtype=np.float32):
  rng = np.random.default_rng(seed)
  shapes = dict(
    embedding=(vocab, width), mix=(width, width), unembedding=(vocab, width)
  )
  return {
    name: jnp.asarray(0.3 * rng.standard_normal(shape), dtype)
    for name, shape in shapes.items()
  }


# Objectives -------------------------------------------------------------------


@recipe(needs=('pairs', 'reference_logps'))
def dpo_with_sft(*, beta: Positive, alpha: NonNegative):
  """DPO plus alpha times the likelihood: two terms with two denominators."""
  return objectives.add(objectives.dpo(beta=beta), (alpha, objectives.sft()))


OBJECTIVES = {
  'dpo': dict(name='dpo', beta=0.3),
  'ipo': dict(name='ipo', tau=0.2),
  'sft': dict(name='sft'),
  'sum': dict(name='tiny.dpo_with_sft', beta=0.3, alpha=0.3),
  # These couple the batch.
  'aot': dict(name='aot', beta=0.3),
  'bco': dict(name='bco', beta=0.3),
}


def objective(name, **changes):
  return objectives.create(**(OBJECTIVES[name] | changes))


# Batches ----------------------------------------------------------------------


def batch(seed=0, p=8, k=3, l=6, t=7, vocab=29, dtype=np.float32):
  """A ragged batch whose weights, preferences and missing responses all differ.

  Prompt 0 has no third response, prompt 1 no second pair, and the mask leaves out
  one token in five.
  """
  rng = np.random.default_rng(seed)
  prompt_length = rng.integers(1, l + 1, p).astype(np.int32)
  response_length = rng.integers(1, t + 1, (p, k)).astype(np.int32)
  response_length[0, k - 1] = 0
  exists = np.arange(t) < response_length[..., None]
  mask = exists & (rng.random((p, k, t)) < 0.8)
  weight = np.where(response_length > 0, rng.uniform(0.5, 2.0, (p, k)), 0.0)
  pair_weight = rng.uniform(0.5, 2.0, (p, 2))
  pair_weight[1, 1] = 0.0
  real = np.arange(l) >= l - prompt_length[:, None]
  return PreferenceBatch(
    prompts=np.where(real, rng.integers(3, vocab, (p, l)), 0).astype(np.int32),
    responses=np.where(exists, rng.integers(3, vocab, (p, k, t)), 0).astype(np.int32),
    prompt_length=prompt_length,
    response_length=response_length,
    mask=mask,
    weight=weight.astype(dtype),
    label=np.linspace(0.0, 1.0, p * k, dtype=dtype).reshape(p, k),
    reference_logps=np.where(exists, -rng.uniform(1, 5, (p, k, t)), 0.0).astype(dtype),
    chosen=np.zeros((p, 2), np.int32),
    rejected=np.tile(np.array([1, k - 1], np.int32), (p, 1)),
    preference=rng.uniform(0.5, 1.0, (p, 2)).astype(dtype),
    pair_weight=pair_weight.astype(dtype),
  )


def take(whole, rows, l=None, t=None):
  """These prompts alone, in arrays of `l` and `t` tokens; row -1 is filling.

  Where `l` or `t` is None the arrays are as short as the prompts allow.
  """
  rows = np.asarray(rows)
  part = jax.tree.map(lambda x: x[rows], whole)
  none = rows < 0

  def without(x):
    shape = (-1,) + (1,) * (x.ndim - 1)
    return np.where(none.reshape(shape), np.zeros((), x.dtype), x)

  part = jax.tree.map(without, part)
  part = part.replace(
    prompt_length=np.where(none, 1, part.prompt_length).astype(np.int32)
  )
  l = l or int(part.prompt_length.max())
  t = t or max(int(part.response_length.max()), 1)
  return _to_tokens(part, l, t)


def _to_tokens(part, l, t):
  def right(x):
    x = x[..., :t]
    return np.pad(x, ((0, 0), (0, 0), (0, t - x.shape[-1])))

  def left(x):
    x = x[:, max(x.shape[1] - l, 0) :]
    return np.pad(x, ((0, 0), (l - x.shape[1], 0)))

  return part.replace(
    prompts=left(part.prompts),
    **{
      name: right(getattr(part, name))
      for name in ('responses', 'mask', 'reference_logps')
    },
  )


# Steps ------------------------------------------------------------------------


def updated(step, params, batches, numbers=None):
  """One update from fresh moments: the new state and the metrics, as NumPy."""
  numbers = hyper(step.objective, step.optimizer) if numbers is None else numbers
  state = step.initial_state(params)
  return jax.device_get(step.update(state, batches, numbers))


def gradient(state):
  """The gradient that the first AdamW step from zero moments has seen."""
  return jax.tree.map(lambda mu: mu / (1 - 0.9), moment(state, 'mu'))


def moment(state, name):
  """A moment of the optimiser, a tree like the parameters."""
  found = [
    getattr(part, name)
    for part in jax.tree.leaves(state['optimizer'], is_leaf=lambda x: hasattr(x, name))
    if hasattr(part, name)
  ]
  assert len(found) == 1
  return found[0]


def assert_same(a, b, tolerance):
  """Equal trees: within `tolerance` of the largest entry of each leaf, or of 1."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
  ):
    x, y = np.asarray(x), np.asarray(y)
    scale = min(max(np.abs(x).max(initial=0.0), 1e-3), 1.0)
    np.testing.assert_allclose(
      y, x, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path)
    )


# Data -------------------------------------------------------------------------


class Letters:
  """A tokenizer of small letters: `a` is 3."""

  bos_id, eos_id, pad_id, vocab_size, fingerprint = 1, 2, 0, 29, 'letters'

  def encode(self, text):
    return [ord(letter) - 94 for letter in text]

  def decode(self, ids):
    return ''.join(chr(i + 94) for i in ids if i > 2)


def prepared(directory, records):
  return prepare(
    iter(records),
    Letters(),
    directory=directory,
    max_prompt=40,
    max_response=40,
  )
