"""The TPU kernel, its own steps run on CPU, against the dense reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.errors import InputError
from prefjax.models.attention import dense
from prefjax.models.config import create
from prefjax.models.decoder import left_padded, right_padded
from prefjax.models.splash import splash

L, T, N, M, H = 128, 128, 4, 2, 128
SIZES = dict(
  vocab_size=8,
  width=8,
  num_layers=1,
  num_heads=N,
  num_kv_heads=M,
  head_dim=H,
  mlp_width=8,
  max_positions=8,
)


def blocks():
  """A left-padded prompt alone, and a right-padded response that sees it."""
  length, responses = jnp.array([100, 128]), jnp.array([70, 1])
  prompt, own = left_padded(length, L), right_padded(responses, T, length)
  both = type(own)(*(jnp.concatenate(x, axis=1) for x in zip(prompt, own, strict=True)))
  return {'prompt': (prompt, prompt), 'response': (own, both)}


@pytest.mark.slow
@pytest.mark.parametrize('block', ['prompt', 'response'])
@pytest.mark.parametrize('soft_cap', [None, 5.0])
def test_value_and_gradient_are_those_of_the_reference(block, soft_cap):
  places = blocks()[block]
  queries, keys = (place.real.shape[1] for place in places)
  rng = np.random.default_rng(0)
  shapes = (2, queries, N, H), (2, keys, M, H), (2, keys, M, H), (2, queries, N, H)
  *tensors, cotangent = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
  real = places[0].real[:, :, None, None]

  def total(attend, *tensors):
    out = attend(*tensors, *places, window=2**30, scale=H**-0.5, soft_cap=soft_cap)
    return jnp.sum(jnp.where(real, out, 0.0) * cotangent), jnp.where(real, out, 0.0)

  found = []
  for attend in (dense, functools.partial(splash, interpret=True)):
    run = jax.grad(functools.partial(total, attend), argnums=(0, 1, 2), has_aux=True)
    found.append(run(*tensors))
  for wanted, got in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-4)


def test_lengths_that_are_no_multiples_are_refused():
  place = left_padded(jnp.array([3]), 100)
  x = jnp.zeros((1, 100, N, H))
  with pytest.raises(InputError, match=r'multiples of 128, got 100 queries'):
    splash(x, x, x, place, place, window=1, scale=1.0)


def test_models_with_windows_are_refused():
  with pytest.raises(InputError, match='attention=splash has no windows'):
    create(family='mistral', attention='splash', **SIZES)
