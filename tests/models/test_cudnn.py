"""cuDNN's attention: its arguments anywhere, its lowering for a GPU, itself on one."""

import functools

import jax
from jax._src.cudnn import fused_attention_stablehlo
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from prefjax.errors import InputError
from prefjax.models import decoder
from prefjax.models.attention import dense
from prefjax.models.config import create
from prefjax.models.cudnn import cudnn
from prefjax.models.decoder import right_padded
from prefjax.rollout.sampler import DecoderSampler, collect
from prefjax.training import mesh as meshes

B, T, N, M, H = 8, 25, 4, 2, 16  # an odd length, which cuDNN alone does not take
LENGTH = np.array([25, 1, 0, 13, 7, 20, 2, 24])  # the third row only fills
MODEL = dict(attention='cudnn', layout='plain', dtype='bfloat16', head_dim=8)

elsewhere = functools.partial(cudnn, implementation='xla')


def inputs(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  shapes = (B, T, N, H), (B, T, M, H), (B, T, M, H), (B, T, N, H)
  tensors = tuple(jnp.asarray(rng.normal(size=s), dtype) for s in shapes)
  return tensors, right_padded(jnp.asarray(LENGTH), T, jnp.zeros(B, jnp.int32))


def outcome(attend, tensors, place):
  """Values where tokens are real, and gradients of queries, keys and values."""
  real = place.real[:, :, None, None]

  def total(*qkv):
    out = attend(*qkv, place, place, window=2**30, scale=0.3)
    out = jnp.where(real, out, 0).astype(jnp.float32)
    return jnp.sum(out * tensors[3]), out

  run = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
  return jax.device_get(run(*tensors[:3]))


def test_value_and_gradient_are_those_of_the_reference():
  tensors, place = inputs()
  found, wanted = (outcome(attend, tensors, place) for attend in (elsewhere, dense))
  tiny.assert_same(found, wanted, 1e-5)


def test_a_mesh_changes_nothing():
  tensors, place = inputs()
  wanted = outcome(elsewhere, tensors, place)
  with jax.set_mesh(meshes.create({'data': 2, 'fsdp': 2, 'tensor': 2})):
    found = outcome(elsewhere, tensors, place)
  tiny.assert_same(found, wanted, 1e-5)


def test_padding_gets_zero_and_no_gradient():
  tensors, place = inputs()
  out = elsewhere(*tensors[:3], place, place, window=2**30, scale=0.3)
  assert not np.any(np.asarray(out)[~np.asarray(place.real)])
  (_, d_key, d_value), _ = outcome(elsewhere, tensors, place)
  assert not d_key[2].any()
  assert not d_value[2].any()


def test_a_step_is_lowered_to_the_kernel_and_its_gradient(monkeypatch):
  # No library of cuDNN is here, and none is needed to write the program down.
  monkeypatch.setattr(fused_attention_stablehlo, 'check_cudnn_version', lambda: 91000)
  forward, params = tiny.forward(**MODEL), tiny.params(**MODEL)

  def total(params, batch):
    return forward(params, batch)[0].sum()

  lowered = (
    jax.jit(jax.grad(total))
    .trace(params, tiny.batch())
    .lower(lowering_platforms=('cuda',))
  )
  text = lowered.as_text()
  assert '__cudnn$fmhaSoftmax(' in text
  assert '__cudnn$fmhaSoftmaxBackward(' in text
  assert 'PADDING_CAUSAL' in text


def test_what_is_sampled_needs_no_gpu():
  drawn = []
  for attention in ('cudnn', 'blocked'):
    model = tiny.config(**(MODEL | dict(attention=attention)))
    graph, _ = decoder.create(model)
    args = (np.array([[0, 3, 5], [7, 2, 4]], np.int32), np.array([2, 3], np.int32))
    stream = DecoderSampler(graph=graph, stop_ids=()).stream(
      tiny.params(**MODEL),
      *args,
      jax.random.split(jax.random.key(0), 2),
      num_responses=2,
      max_tokens=4,
    )
    drawn.append(collect(stream).tokens)
  np.testing.assert_array_equal(*drawn)


@pytest.mark.skipif(jax.default_backend() != 'gpu', reason='needs a GPU')
def test_on_a_gpu_value_and_gradient_are_those_of_the_reference():
  tensors, place = inputs(jnp.bfloat16)
  wide = tuple(x.astype(jnp.float32) for x in tensors)
  found, wanted = outcome(cudnn, tensors, place), outcome(dense, wide, place)
  for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
    np.testing.assert_allclose(a.astype(np.float32), b, rtol=0, atol=0.05)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    (dict(layout='shared'), r'set model\.layout=plain'),
    (dict(dtype='float32'), r"model\.dtype=bfloat16.*'float32'"),
    (dict(attention_soft_cap=5.0), r'attention_soft_cap=5\.0'),
    (dict(window=4), r'attention=cudnn has no windows'),
    (dict(head_dim=12), r'multiple of 8, .* got 12'),
    (dict(head_dim=264), r'at most 256 .* got 264'),
  ],
)
def test_models_that_it_does_not_run_are_refused(changes, said):
  sizes = dict(vocab_size=8, width=8, num_layers=1, num_heads=2, num_kv_heads=2)
  sizes |= dict(mlp_width=8, max_positions=8) | MODEL
  with pytest.raises(InputError, match=said):
    create(**(sizes | changes))
