"""What a program sends, read from its text: by hand, and of programs just compiled."""

import jax
import jax.numpy as jnp
import pytest

from prefjax.training import hlo
from prefjax.training import mesh as meshes

# Three layers that gather 4 x 8 floats over 4 devices, and at the end a sum over all 8.
TEXT = """
%layer (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %w = f32[4,8]{1,0} all-gather(%shard), channel_id=1, replica_groups=[2,4]<=[8]
}

%add (a: f32[], b: f32[]) -> f32[] {
  %s = f32[] add(%a, %b)
}

ENTRY %main (x: f32[2,8]) -> f32[2,8] {
  %loop = (s32[], f32[4,8]) while(%t), condition=%c, body=%layer, TRIPS
  %r = bf16[16]{0:T(8)} all-reduce(%g), replica_groups={{0,1,2,3,4,5,6,7}}
  %q = (f32[2,8], f32[8,8]) all-gather-start(%h), replica_groups=[2,4]<=[8]
  %d = f32[8,8] all-gather-done(%q)
  %m = f32[2] reduce-scatter(%k), replica_groups=[4,2]<=[8], to_apply=%add
}
""".replace('TRIPS', 'backend_config={"known_trip_count":{"n":"3"}}')

# As libtpu writes it: groups by axes, a loop's length in its condition, and a transfer
# in both of the parts of the work that it goes on beside.
TPU = """
%start (p: f32[1,8]) -> f32[4,8] {
  %w.1 = f32[4,8] all-gather(%p), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}
}

%done (p: f32[1,8]) -> f32[4,8] {
  %w.2 = f32[4,8] all-gather(%p), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}
}

%layer (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %f.1 = f32[4,8] fusion(%a), kind=kCustom, calls=%start
  %f.2 = f32[4,8] fusion(%b), kind=kCustom, calls=%done
}

%cond (p: (s32[], f32[4,8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(5)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

ENTRY %main (x: f32[2,8]) -> f32[2,8] {
  %loop = (s32[], f32[4,8]) while(%t), condition=%cond, body=%layer
}
"""


def test_by_hand():
  found = {row.kind: row for row in hlo.collectives(TEXT)}
  gather, reduce, scatter = (
    found[kind] for kind in ('all-gather', 'all-reduce', 'reduce-scatter')
  )
  # 3 x 128 bytes and once 256, three quarters of each from the others.
  assert (gather.times, gather.received) == (4, 0.75 * (3 * 128 + 256))
  assert (reduce.times, reduce.received) == (1, 2 * 32 * 7 / 8)
  assert (scatter.times, scatter.received) == (1, 8 * 1)
  assert next(row.kind for row in hlo.collectives(TEXT)) == 'all-gather'


def test_by_hand_as_libtpu_writes_it():
  (row,) = hlo.collectives(TPU)
  assert row == hlo.Collective('all-gather', 5, 5 * 0.75 * 128)


@pytest.mark.parametrize('layers', [2, 5])
def test_a_loop_counts_as_often_as_it_runs(layers):
  mesh = meshes.create({'data': 8})

  def step(x, w):
    return jax.lax.psum(x @ w, 'data'), None

  def run(x, ws):
    return jax.lax.scan(step, x, ws)[0]

  mapped = jax.shard_map(
    run, mesh=mesh, in_specs=(jax.P(), jax.P()), out_specs=jax.P(), check_vma=False
  )
  shapes = jnp.ones((4, 8)), jnp.ones((layers, 8, 8))
  text = jax.jit(mapped).lower(*shapes).compile().as_text()
  (row,) = hlo.collectives(text)
  assert row == hlo.Collective('all-reduce', layers, layers * 2 * 4 * 8 * 4 * 7 / 8)


def test_a_program_of_one_device_sends_nothing():
  assert hlo.collectives(jax.jit(jnp.sin).lower(1.0).compile().as_text()) == []
