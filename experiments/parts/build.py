"""From a resolved config to model, objective, prepared data and batches.

Whatever is built lies in the cache under a fingerprint of all that decides it, and is
built once, by whichever run comes first.
"""

from collections.abc import Callable
import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx
import jax

from experiments.parts import corpus
from experiments.parts.corpus import Config, Split
from prefjax import objectives
from prefjax.data import buckets, prepare
from prefjax.data.mismatched import mismatched
from prefjax.data.pipeline import Batches
from prefjax.data.tokenizers import Tokenizer
from prefjax.errors import InputError
from prefjax.models import config as model_configs
from prefjax.models import decoder, sharding
from prefjax.models import lora as lora_lib
from prefjax.models.config import DecoderConfig
from prefjax.models.lora import Lora
from prefjax.models.sharding import MEMORIES
from prefjax.training import mesh as meshes
from prefjax.training import monitor
from prefjax.training.files import fingerprint
from prefjax.training.loop import MovingReference, Plan
from prefjax.training.online import OnlinePlan
from prefjax.training.optimizers import Optimizer
from prefjax.training.step import Step
from prefjax.types import Forward


class Model(NamedTuple):
  """A decoder, ready to run; its parameters are kept apart."""

  config: DecoderConfig
  graph: nnx.GraphDef
  forward: Forward


def validate(config: Config) -> None:
  """Refuses a config before anything is computed, compiled or written.

  Raises:
    InputError: naming the key.
  """
  shape = model_configs.create(**config['model'])
  wanted, here = model_configs.KERNELS.get(shape.attention), jax.default_backend()
  if wanted not in {None, here}:
    raise InputError(
      f'model.attention={shape.attention} runs on a {wanted}, and this is a {here}: '
      'set model.attention=blocked.'
    )
  adapters = lora(config)
  if adapters is not None:
    lora_lib.create(shape, adapters)
  objective(config), optimizer(config), plan(config), memory(config)
  corpus.tokenizer_path(config)
  shards = meshes.data_shards(mesh(config))
  size = config['data']['batch_size']
  if size < 1 or size % shards:
    raise InputError(
      f'data.batch_size={size} prompts must be a positive multiple of the '
      f'{shards} devices of mesh.data times mesh.fsdp.'
    )
  corpus.source_fingerprint(config)


def prepared(
  config: Config,
  cache: Path,
  tokenizer: Tokenizer,
  records: Split,
  key: Any,
) -> Split:
  """The records as token ids on disk; `key` names what the records were made of."""
  data = config['data']
  limits = {name: data[name] for name in ('max_prompt', 'max_response')}
  name = fingerprint([key, tokenizer.fingerprint, limits])
  parts = (
    prepare.prepare(part, tokenizer, directory=cache / f'data-{name}' / split, **limits)
    for split, part in zip(Split._fields, records, strict=True)
  )
  if 'mismatched' in objective(config).needs:
    parts = map(mismatched, parts)
  return Split(*parts)


def model(config: Config) -> Model:
  """The decoder of `config.model`; allocates nothing."""
  shape = model_configs.create(**config['model'])
  data = config['data']
  decoder.check_positions(shape, data['max_prompt'] + data['max_response'])
  return _model(shape)


@functools.lru_cache(maxsize=8)
def _model(shape: DecoderConfig) -> Model:
  # One object a shape: runs of one process share what is compiled of it.
  graph, _ = decoder.create(shape)
  return Model(shape, graph, decoder.forward(graph))


def lora(config: Config) -> Lora | None:
  """The adapters of `config.lora`, or None where all parameters are trained."""
  options = dict(config['lora'])
  if not options['rank']:
    return None
  return Lora(**{**options, 'targets': tuple(options['targets'])})


def mesh(config: Config, devices: Any = None) -> jax.sharding.Mesh | None:
  """The mesh of `config.mesh`, or None for one device.

  Raises:
    InputError: where it does not use every device, or does not divide the model.
  """
  devices = jax.devices() if devices is None else devices
  axes = dict(config['mesh'])
  rest = [axis for axis, size in axes.items() if size == 0]
  if len(rest) > 1:
    raise InputError(f'mesh.{" and mesh.".join(rest)} are 0: only one takes the rest.')
  given = math.prod(size for size in axes.values() if size)
  axes |= {axis: max(len(devices) // max(given, 1), 1) for axis in rest}
  if set(axes.values()) == {1} and jax.process_count() == 1:
    return None
  found = meshes.create(axes, devices=devices)
  sharding.check(model_configs.create(**config['model']), found)
  return found


def initial_params(config: Config, model: Model, mesh: jax.sharding.Mesh | None) -> Any:
  """Fresh parameters of the run's seed, made where a step on this mesh wants them."""

  def create(key):
    return decoder.initial_params(model.config, key)

  key = jax.random.key(config['seed'])
  if mesh is None:
    return create(key)
  where = sharding.shardings(jax.eval_shape(create, key), mesh)
  return jax.jit(create, out_shardings=where)(key)


def on_one_device(params: Any) -> Any:
  """Parameters for sampling and judging, which run on one device."""
  if jax.process_count() > 1:
    params = jax.tree.map(meshes.on_host, params)
  return jax.device_put(params, jax.local_devices()[0])


def optimizer(config: Config) -> Optimizer:
  """The optimiser of `config.optimizer`; decays end with the run."""
  return Optimizer(**config['optimizer'], steps=updates(config))


def updates(config: Config) -> int:
  """The updates of a run: its steps, or those of all its rollouts."""
  train = config['train']
  if 'iterations' in train:
    return train['iterations'] * train['epochs'] * train['minibatches']
  return train['steps']


def plan(config: Config) -> Plan | OnlinePlan:
  """How long to train, of `config.train`."""
  train = config['train']
  return OnlinePlan(**train) if 'iterations' in train else Plan(**train)


def memory(config: Config) -> dict[str, str]:
  """What `config.memory` keeps where.

  Raises:
    InputError: where it names no memory, one that these devices do not have, or the
      base of adapters, which every update needs, is to wait in the host's.
  """
  found = dict(config['memory'])
  here = {space.kind for space in jax.local_devices()[0].addressable_memories()}
  for key, name in found.items():
    if name not in MEMORIES:
      raise InputError(f'memory.{key} must be one of {list(MEMORIES)}, got {name!r}.')
    if MEMORIES[name] not in {None, *here}:
      raise InputError(
        f'memory.{key}={name} needs {MEMORIES[name]}, and a device here has '
        f'{sorted(here)}.'
      )
  if found['reference'] != 'device' and lora(config) is not None:
    raise InputError(
      f'memory.reference={found["reference"]} with lora.rank: the reference is the '
      'base of the adapters, which every update needs on the device.'
    )
  return found


def moving(config: Config) -> MovingReference | None:
  """How the reference moves, of `config.reference`; None where it stays.

  Raises:
    InputError: where adapters were to be mixed, whose product is no mixture.
  """
  options = config['reference']
  if not options['move_every']:
    return None
  if lora(config) is not None and options['move_mix'] != 1:
    raise InputError(
      f'reference.move_mix={options["move_mix"]} mixes parameters, and the product of '
      'two mixed adapters is not the mixture: with lora.rank it must be 1.'
    )
  return MovingReference(every=options['move_every'], mix=options['move_mix'])


def objective(config: Config) -> objectives.Objective:
  """The validated objective of `config.objective`."""
  return objectives.create(**config['objective'])


def step(
  config: Config, model: Model, mesh: jax.sharding.Mesh | None, frozen: Any = None
) -> Step:
  """The jitted functions of a config's objective on its model."""
  return Step(
    forward=model.forward,
    objective=objective(config),
    optimizer=optimizer(config),
    mesh=mesh,
    want=('entropy',) if config['log']['entropy'] else (),
    frozen=frozen,
    moments=memory(config)['optimizer'],
  )


def flops(config: Config) -> Callable[[Any], float]:
  """The floating-point operations of an update on a batch."""
  shape = model_configs.create(**config['model'])
  # What is frozen takes no gradient, but passes one on.
  passes = 3 if lora(config) is None else 2
  return lambda batch: monitor.training_flops(shape, batch, passes=passes)


def batches(
  config: Config,
  data: prepare.Prepared,
  mesh: jax.sharding.Mesh | None,
  pad_id: int,
) -> Batches:
  """Batches of prepared data as `config.data` cuts them."""
  options = config['data']
  grid = buckets.grid(
    int(data.prompt_length.max()),
    int(data.response_length.max()),
    multiple=options['bucket_multiple'],
    growth=options['bucket_growth'],
  )
  return Batches(
    data=data,
    batch_size=options['batch_size'],
    seed=config['seed'],
    grid=grid,
    max_tokens=options['max_tokens'],
    shards=meshes.data_shards(mesh),
    pad_id=pad_id,
    here=meshes.rows_here(mesh),
  )


def say_counts(data: Split, say: Callable[[str], None]) -> None:
  """Prints what was read, cut and left out; nothing is dropped in silence."""
  for name, part in zip(Split._fields, data, strict=True):
    say(f'data {name}: {json.dumps(part.counts)}')
