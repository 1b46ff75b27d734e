"""What a compiled train step holds: read from the compiler's own text."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from prefjax import logprobs
from prefjax.training import mesh as mesh_lib
from prefjax.training.optimizers import Optimizer
from prefjax.training.step import Step, hyper

VOCAB, CHUNK, WIDTH = 1018, 16, 8  # 2 x 509, a prime: no product of other sizes
ADAMW = Optimizer(name='adamw', learning_rate=1e-3, steps=10)
COLLECTIVES = (
  'all-reduce',
  'all-gather',
  'all-to-all',
  'reduce-scatter',
  'collective-permute',
)
MODEL = dict(vocab_size=VOCAB, width=WIDTH, num_heads=4, num_kv_heads=2)
CUT = {'data': 2, 'fsdp': 2, 'tensor': 2}


def whole_batch():
  # 8 x 2 x 24 tokens: 24 chunks on one device, 3 on each of 8.
  return tiny.batch(k=2, l=5, t=24, vocab=VOCAB)


def mesh(shards):
  if shards == 1:
    return None
  return mesh_lib.create(CUT if shards == 'cut' else {'data': shards})


@functools.cache
def compiled(shards, accumulated=False):
  step = Step(
    tiny.forward(**MODEL),
    tiny.objective('sum'),
    ADAMW,
    mesh=mesh(shards),
    want=('entropy',),
    chunk=CHUNK,
  )
  state = step.initial_state(tiny.params(**MODEL))
  batch, numbers = whole_batch(), hyper(step.objective, ADAMW)
  if shards != 1:
    batch = mesh_lib.place_batch(batch, step.mesh)
  if not accumulated:
    return step._fused.lower(None, state, batch, numbers).compile(), state
  weight = step._weigh(batch, numbers)
  arguments = (None, state['params'], batch, weight, numbers)
  carry = step._start(*arguments)
  return step._accumulate.lower(carry, *arguments).compile(), carry


# Reading HLO --------------------------------------------------------------------


def vocabulary_buffers(text, vocab=VOCAB):
  """The shapes with a vocabulary axis: their other sizes multiplied -> shapes."""
  found = {}
  for dimensions in re.findall(r'\b[a-z]+\d+\[([\d,]+)\]', text):
    sizes = [int(size) for size in dimensions.split(',')]
    if vocab in sizes:
      rows = math.prod(sizes) // vocab
      found.setdefault(rows, set()).add(tuple(sizes))
  return found


def computations(text):
  """Each computation's lines, by its name."""
  found, name = {}, None
  for line in text.splitlines():
    start = re.match(r'(?:ENTRY )?%?([\w.\-]+) \(.*\{$', line)
    if start:
      name = start[1]
      found[name] = []
    elif name and line.startswith('  '):
      found[name].append(line)
  return found


def loops(text):
  """The lines of each loop's body, with those of all that it calls."""
  parts = computations(text)

  def with_called(name, seen):
    if name in seen or name not in parts:
      return []
    seen.add(name)
    lines = list(parts[name])
    for line in parts[name]:
      for called in re.findall(r'(?:calls|to_apply|body|condition)=%?([\w.\-]+)', line):
        lines += with_called(called, seen)
    return lines

  bodies = re.findall(r'body=%?([\w.\-]+)', text)
  return {name: with_called(name, set()) for name in bodies}


def collectives(lines):
  pattern = '|'.join(COLLECTIVES)
  return [
    line.strip() for line in lines if re.search(rf' ({pattern})(-start)?\(', line)
  ]


# Tokens x vocabulary --------------------------------------------------------------


@pytest.mark.parametrize(('shards', 'accumulated'), [(1, False), (1, True), (8, False)])
def test_no_buffer_holds_more_than_a_chunk_of_the_vocabulary(shards, accumulated):
  executable, _ = compiled(shards, accumulated)
  found = vocabulary_buffers(executable.as_text())
  # Parameters, gradients and moments have WIDTH, which is less than CHUNK.
  assert max(found) == CHUNK, found
  assert found[CHUNK] <= {(CHUNK, VOCAB), (VOCAB, CHUNK)}
  assert any((VOCAB, WIDTH) in shapes for shapes in found.values())


def test_the_plain_way_is_found_out():
  # The same reading of a step that forms all logits.
  forward = tiny.forward(**MODEL)

  def loss(params, batch):
    hidden, head = forward(params, batch)
    logits = hidden[:, :, :-1] @ head.weight.T
    outputs = logprobs.from_logits(logits, batch.responses, batch.mask)
    return jnp.sum(outputs.logps)

  lowered = jax.jit(loss).lower(tiny.params(**MODEL), whole_batch())
  text = lowered.compile().as_text()
  assert max(vocabulary_buffers(text)) >= 8 * 2 * 24


# Collectives ----------------------------------------------------------------------


def loops_over_chunks(text, vocab=VOCAB):
  """The innermost loops that hold a chunk's logits, forward and backward."""
  found = {
    name: lines
    for name, lines in loops(text).items()
    if any(f'[{CHUNK},{vocab}]' in line for line in lines)
  }
  assert len(found) >= 2
  return found


def sizes_sent(line):
  """Elements of each array that a collective gives."""
  for sizes in re.findall(r'\b[a-z]+\d+\[([\d,]*)\]', line.split('(%')[0]):
    yield math.prod(int(n) for n in sizes.split(',') if n)


def test_a_vocabulary_that_is_cut_is_never_put_together():
  executable, _ = compiled('cut')
  text = executable.as_text()
  local = VOCAB // CUT['tensor']
  # Not in logits, and not in tables either: fsdp gathers a device's own part.
  assert not vocabulary_buffers(text)
  found = vocabulary_buffers(text, local)
  assert found[CHUNK] <= {(CHUNK, local), (local, CHUNK)}
  assert max(found) == CHUNK
  # What is sent for a chunk: numbers a token, and the gradient of its states.
  for lines in loops_over_chunks(text, local).values():
    for line in collectives(lines):
      assert 'all-reduce' in line, line
      assert all(size <= CHUNK * WIDTH for size in sizes_sent(line)), line


def test_no_collective_runs_in_the_loop_over_chunks():
  executable, _ = compiled(8)
  text = executable.as_text()
  inside = loops_over_chunks(text)
  for name, lines in inside.items():
    assert not collectives(lines), (name, collectives(lines))
  # The reading sees collectives where they are: the gradient is reduced.
  everywhere = collectives(text.splitlines())
  assert any('all-reduce' in line for line in everywhere)
  # No token's state and no logit is sent: what travels has no more than a table.
  for line in everywhere:
    assert all(size <= VOCAB * WIDTH for size in sizes_sent(line)), line


def test_the_reading_of_loops_finds_a_collective():
  data = mesh(8)

  def body(x):
    return jax.lax.fori_loop(0, 3, lambda i, x: jax.lax.psum(x, 'data') / 8.0 + x, x)

  mapped = jax.shard_map(
    body,
    mesh=data,
    in_specs=jax.P('data'),
    out_specs=jax.P('data'),
    check_vma=False,
  )
  text = jax.jit(mapped).lower(np.ones(16, np.float32)).compile().as_text()
  assert any(collectives(lines) for lines in loops(text).values())


# Donation -------------------------------------------------------------------------


def size_of(tree):
  """Bytes of a tree on one device."""
  return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize('shards', [1, 8, 'cut'])
def test_the_new_state_takes_the_buffers_of_the_old(shards):
  executable, state = compiled(shards)
  aliased = executable.memory_analysis().alias_size_in_bytes
  assert aliased >= size_of((state['params'], state['optimizer']))


def test_the_sums_take_the_buffers_of_the_sums_before():
  executable, carry = compiled(1, accumulated=True)
  aliased = executable.memory_analysis().alias_size_in_bytes
  assert aliased >= size_of(carry)
