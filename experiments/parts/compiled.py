"""A config's step and rollout, compiled for devices that need not be here."""

import dataclasses
from functools import partial
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parts import adapted, build, samplers
from experiments.parts.build import Config, Model
from prefjax.data.buckets import Cell
from prefjax.data.pipeline import assemble
from prefjax.errors import InputError
from prefjax.models import decoder, heads, sharding
from prefjax.models import lora as lora_lib
from prefjax.rollout import decoding
from prefjax.training import hlo
from prefjax.training import mesh as meshes
from prefjax.training.mesh import laid
from prefjax.training.online import OnlinePlan
from prefjax.training.step import Step, hyper
from prefjax.types import RolloutBatch

_OVERFLOW = re.compile(r'required for HLO temporaries \(([\d.]+)([KMG])\)|HbmOom')
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30}


class Program(NamedTuple):
  """What the compiler says of one program, in bytes a device.

  `peak` is None where the program does not fit, `sent` where it cannot be printed.
  """

  arguments: int
  working: int
  peak: int | None
  sent: list[hlo.Collective] | None


class Shapes(NamedTuple):
  """What is compiled: a micro-batch, and how many of them an update takes."""

  step: Step
  model: Model
  state: Any  # shapes of the training state, where they lie
  frozen: Any  # of what is not trained, or None
  cell: Cell  # of all data shards together
  micro_batches: int
  batch: Any


def shapes(config: Config, mesh: jax.sharding.Mesh | None) -> Shapes:
  """The longest micro-batch of a config and the state that it updates."""
  model = adapted.with_adapters(config, build.model(config))
  if build.objective(config).needs & {'values', 'scores'}:
    model = model._replace(forward=heads.forward(model.forward))
  step = build.step(config, model, mesh)
  cell, count = _cell(config, meshes.data_shards(mesh))
  batch = laid(_batch(config, step, cell), mesh, meshes.batch_shardings)
  state, frozen = _state(config, model, step)
  return Shapes(step, model, state, frozen, cell, count, batch)


def _state(config, model, step):
  lora = build.lora(config)

  def create(key):
    base = decoder.initial_params(model.config, key)
    trained = base if lora is None else lora_lib.initial_params(model.config, lora, key)
    if step.objective.needs & {'values', 'scores'}:
      trained = heads.with_scalar(trained, model.config.width)
    return trained, None if lora is None else base

  trained, frozen = laid(jax.eval_shape(create, jax.random.key(0)), step.mesh)
  return step.state_shapes(trained), frozen


def _responses(config: Config) -> int:
  """Responses of a prompt in one micro-batch."""
  size = config.get('rollout')
  if size is not None:
    return size['responses_at_once'] or size['group_size']
  needs = build.objective(config).needs
  pairs = needs & {'pairs', 'label', 'win_rate'}
  return (config['data'].get('responses', 2) if pairs else 1) + ('mismatched' in needs)


def prompt_tokens(config: Config) -> int:
  """Tokens of a full prompt with its responses in one micro-batch."""
  data = config['data']
  return data['max_prompt'] + _responses(config) * data['max_response']


def _cell(config: Config, shards: int) -> tuple[Cell, int]:
  """The longest micro-batch, and how many an update has if all are as long."""
  data, size = config['data'], config.get('rollout')
  k, one = _responses(config), prompt_tokens(config)
  prompts = data['batch_size']
  if size is not None:
    prompts = size['prompts'] // config['train']['minibatches']
  if prompts % shards or one > data['max_tokens']:
    raise InputError(
      f'{prompts} prompts of an update must divide by the {shards} data shards, and '
      f'one with its {k} responses, {one} tokens, fit data.max_tokens='
      f'{data["max_tokens"]}.'
    )
  rows = 1
  while 2 * rows * shards <= prompts and 2 * rows * one <= data['max_tokens']:
    rows *= 2
  cell = Cell(rows * shards, k, data['max_prompt'], data['max_response'])
  groups = 1 if size is None else size['group_size'] // k
  return cell, groups * -(-prompts // cell.p)


def _batch(config, step, cell) -> Any:
  """A micro-batch in which the objective finds all that it reads."""
  online = isinstance(build.plan(config), OnlinePlan)
  needs, k = step.objective.needs, cell.k
  pairs = k * (k - 1) // 2 if 'pairs' in needs and not online else 0
  batch = assemble([None] * cell.p, cell, pairs=pairs)
  tokens = np.zeros(batch.mask.shape, np.float32)
  if 'reference_logps' in needs:
    batch = batch.replace(reference_logps=tokens)
  if not online:
    return batch
  rolled = RolloutBatch(
    **{field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    | dict(old_logps=tokens, rewards=tokens, truncated=batch.weight > 0)
  )
  if 'values' in needs:
    values = np.zeros((*tokens.shape[:2], cell.t + 1), np.float32)
    rolled = rolled.replace(values=values)
  objective = step.objective.build()
  credited = jax.eval_shape(objective.credit, rolled)
  return credited.replace(group_tokens=np.zeros(cell.p, np.float32))


def update(found: Shapes) -> dict[str, Program]:
  """The programs of an update: one, or accumulation and application."""
  step, state, batch = found.step, found.state, found.batch
  frozen = found.frozen
  numbers = laid(hyper(step.objective, step.optimizer), None)
  if found.micro_batches == 1:
    return {'update': _program(step._fused, frozen, state, batch, numbers)}
  params = state['params']
  weight = step._weigh.shapes(batch, numbers)
  carry = step._start.shapes(frozen, params, batch, weight, numbers)
  given = (carry, frozen, params, batch, weight, numbers)
  return {
    'accumulate': _program(step._accumulate, *given),
    'apply': _program(step._apply, state, carry, numbers),
  }


def rollout(config: Config, found: Shapes) -> dict[str, Program]:
  """The programs of a rollout: all its prompts, and a block of tokens."""
  mesh, size, data = found.step.mesh, config['rollout'], config['data']
  drawer = samplers.decoder_sampler(config, found.model, mesh, (0,), 0)
  controls = samplers.controls(config)
  params = heads.trunk(lora_lib.joined(found.frozen, found.state['params']))
  numbers = laid(controls.numbers(), None)
  new = jax.eval_shape(
    partial(_admission, size['slots'] or size['prompts'], data['max_prompt'])
  )
  new = laid(new, mesh, meshes.batch_shardings)
  fixed = dict(options=drawer.options(controls))
  sizes = dict(s=len(new.slots), k=size['group_size'], t=data['max_response'], **fixed)
  with sharding.under(mesh):
    rows = jax.eval_shape(
      partial(drawer._programs.start, **sizes), params, new, numbers
    )
    rows = laid(rows, mesh, _rows_lie)
    steps = jax.ShapeDtypeStruct((), jnp.int32)
    return {
      'prompts': _program(drawer._programs.start, params, new, numbers, **sizes),
      'decode': _program(
        drawer._programs.decode, params, rows, steps, numbers, **fixed
      ),
    }


def _admission(slots: int, length: int) -> decoding.Admission:
  return decoding.Admission(
    slots=jnp.zeros(slots, jnp.int32),
    prompts=jnp.zeros((slots, length), jnp.int32),
    prompt_length=jnp.ones(slots, jnp.int32),
    keys=jax.random.split(jax.random.key(0), slots),
    stops=jnp.zeros((slots, 1), jnp.int32),
  )


def _rows_lie(rows, mesh):
  def where(names):
    return jax.sharding.NamedSharding(mesh, sharding.spec(*names))

  axes = decoding.axes(rows)
  return type(rows)(
    *(
      jax.tree.map(lambda _, names=names: where(names), x)
      for x, names in zip(rows, axes, strict=True)
    )
  )


def _program(function: Any, *args: Any, **static: Any) -> Program:
  try:
    compiled = function.lower(*args, **static).compile()
  except jax.errors.JaxRuntimeError as error:
    found = _OVERFLOW.search(str(error))
    if found is None:
      raise
    needed = float(found[1]) * _UNITS[found[2]] if found[1] else 0
    return Program(0, int(needed), None, None)
  memory = compiled.memory_analysis()
  try:
    sent = hlo.collectives(compiled.as_text())
  except jax.errors.JaxRuntimeError:
    sent = None  # as for v5p, whose printer fails on its own program
  peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
  peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
  return Program(memory.argument_size_in_bytes, memory.temp_size_in_bytes, peak, sent)


def bytes_here(tree: Any, memory: str = 'device') -> int:
  """Bytes a device of a tree of shapes with their shardings, in one of the memories."""

  def size(leaf):
    where = getattr(leaf, 'sharding', None)
    waits = getattr(where, 'memory_kind', None) == sharding.MEMORIES['host']
    if waits != (memory == 'host'):
      return 0
    shape = leaf.shape if where is None else where.shard_shape(leaf.shape)
    return int(np.prod(shape)) * leaf.dtype.itemsize

  return sum(map(size, jax.tree.leaves(tree)))
