"""From a resolved config to tokenizer, model, data and batches.

Whatever is built lies in the cache under a fingerprint of all that decides it, and is
built once, by whichever run comes first.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx
import jax
import numpy as np

import prefjax
from prefjax import objectives, tasks
from prefjax.data import buckets, prepare, sources, tokenizers
from prefjax.data import questions as questions_lib
from prefjax.data.mismatched import mismatched
from prefjax.data.pipeline import Batches
from prefjax.data.questions import Question
from prefjax.data.records import Record, Skipped
from prefjax.data.tokenizers import SentencePiece, Tokenizer
from prefjax.errors import InputError
from prefjax.models import config as model_configs
from prefjax.models import decoder, sharding
from prefjax.models import lora as lora_lib
from prefjax.models.config import DecoderConfig
from prefjax.models.lora import Lora
from prefjax.training import mesh as meshes
from prefjax.training import monitor
from prefjax.training.loop import MovingReference, Plan
from prefjax.training.online import OnlinePlan
from prefjax.training.optimizers import Optimizer
from prefjax.training.step import Step
from prefjax.training.workdir import fingerprint
from prefjax.types import Forward

Config = Mapping[str, Any]
Records = list[Record | Skipped]

_HOLD_OUT_SEED = 0  # not the run's: all seeds of a sweep hold out the same prompts


class Split(NamedTuple):
  """What is trained on and what is held out."""

  train: Any
  held_out: Any


class Model(NamedTuple):
  """A decoder, ready to run; its parameters are kept apart."""

  config: DecoderConfig
  graph: nnx.GraphDef
  forward: Forward


def embedded_task(source: str) -> tasks.Task | None:
  """The task of `task:NAME`, or None for data that is read."""
  scheme, _, name = source.partition(':')
  return tasks.get(name) if scheme == 'task' else None


def data_seed(config: Config) -> int:
  """The seed of what is trained on: `data.seed`, or the run's own.

  Runs that share it share documents, prompts, responses, labels and the reference, as
  the seeds of a paper's sweep do.
  """
  seed = config['data'].get('seed', -1)
  return config['seed'] if seed < 0 else seed


def validate(config: Config) -> None:
  """Refuses a config before anything is computed, compiled or written.

  Raises:
    InputError: naming the key.
  """
  shape = model_configs.create(**config['model'])
  adapters = lora(config)
  if adapters is not None:
    lora_lib.create(shape, adapters)
  objective(config), optimizer(config), plan(config)
  tokenizer_path(config)
  shards = meshes.data_shards(mesh(config))
  size = config['data']['batch_size']
  if size < 1 or size % shards:
    raise InputError(
      f'data.batch_size={size} prompts must be a positive multiple of the '
      f'{shards} devices of mesh.data times mesh.fsdp.'
    )
  source_fingerprint(config)


def source_fingerprint(config: Config) -> str:
  """What identifies the data that a config names, before any is prepared."""
  source = config['data']['source']
  if embedded_task(source) is not None:
    return fingerprint([source, prefjax.__version__])
  found, columns = sources.fingerprint(source), config['records']['columns']
  return fingerprint([found, columns]) if columns else found


def read(config: Config) -> Split:
  """The records of `data.source`; `data.held_out` of them are held out."""
  data = config['data']
  records = list(sources.read(data['source'], columns=config['records']['columns']))
  usable = [r for r in records if isinstance(r, Record)]
  skipped = [r for r in records if isinstance(r, Skipped)]
  train, rest = held_out(usable, data['held_out'], data['source'])
  return Split(train + skipped, rest)


def held_out(usable: list[Any], count: int, source: str) -> Split:
  """The rows of `count` prompts apart, the same ones for every seed.

  All rows of a prompt stand on one side, so that nothing held out is trained on.
  """
  prompts = list(dict.fromkeys(row.prompt for row in usable))
  if not 0 < count < len(prompts):
    raise InputError(
      f'data.held_out={count} must leave records to train on: '
      f'{source} has {len(prompts)} usable prompts.'
    )
  order = np.random.default_rng(_HOLD_OUT_SEED).permutation(len(prompts))
  chosen = {prompts[i] for i in order[:count]}
  return Split(
    [row for row in usable if row.prompt not in chosen],
    [row for row in usable if row.prompt in chosen],
  )


def likelihood_records(config: Config) -> Split:
  """Texts for maximum likelihood: a task's documents, or the preferred responses."""
  data = config['data']
  task = embedded_task(data['source'])
  if data.get('solution'):
    return Split(*(_solved(part) for part in questions(config)))
  if task is None:
    return Split(*(list(preferred(part)) for part in read(config)))
  counts = (('train', data['documents']), ('test', data['held_out']))
  return Split(
    *(
      [
        Record(prompt=prompt, responses=(response,), pairs=())
        for prompt, response in task.documents(data_seed(config), count, split)
      ]
      for split, count in counts
    )
  )


def questions(config: Config) -> Split:
  """The questions of `data.source`, to learn from and held out."""
  data = config['data']
  task = embedded_task(data['source'])
  if task is not None:
    counts = (('train', data['prompts']), ('test', data['held_out']))
    return Split(
      *(
        [Question(prompt) for prompt in task.prompts(data_seed(config), count, split)]
        for split, count in counts
      )
    )
  options = {name: data[name] for name in ('prompt', 'solution')}
  options['columns'] = config['records']['columns']
  found = list(questions_lib.read(data['source'], **options))
  if data['held_out_source']:
    return Split(found, list(questions_lib.read(data['held_out_source'], **options)))
  return held_out(found, data['held_out'], data['source'])


def _solved(part: list[Question]) -> Records:
  return [
    Record(question.prompt, (question.solution,), messages=question.messages)
    for question in part
    if question.solution
  ]


def preferred(
  records: Iterable[Record | Skipped],
) -> Iterator[Record | Skipped]:
  """The preferred response of every pair, as a record of its own, each once."""
  for record in records:
    if isinstance(record, Skipped) or not record.pairs:
      yield record
      continue
    best = [
      pair.chosen if pair.preference >= 0.5 else pair.rejected for pair in record.pairs
    ]
    for response in dict.fromkeys(best):
      yield Record(
        prompt=record.prompt,
        responses=(record.responses[response],),
        messages=record.messages,
      )


def tokenizer(config: Config, cache: Path, records: Records) -> Tokenizer:
  """The tokenizer of `tokenizer.path`, or one trained on the records' own text.

  Raises:
    InputError: where its ids do not fit into the model's vocabulary.
  """
  path, size = tokenizer_path(config), config['model']['vocab_size']
  if path is not None:
    found = tokenizers.load(path, chat=config['records']['chat'])
  else:
    texts = [
      text
      for record in records
      if isinstance(record, Record)
      for text in (record.prompt, *record.responses)
    ]
    name = fingerprint([source_fingerprint(config), size, texts[:1], len(texts)])
    path = cache / f'tokenizer-{name}.model'
    found = (
      SentencePiece(path)
      if path.exists()
      else tokenizers.train_sentencepiece(texts, vocab_size=size, path=path)
    )
  if found.vocab_size > size:
    raise InputError(
      f'model.vocab_size={size} is too small: the tokenizer has {found.vocab_size} '
      'pieces, so it is not that of this model.'
    )
  return found


def tokenizer_path(config: Config) -> Path | None:
  """The file of `tokenizer.path`, or None where one is to be trained."""
  path = config['tokenizer']['path']
  if config['records']['chat'] and not path:
    raise InputError('records.chat needs the tokenizer.path of one with a template.')
  return sources.find(path) if path else None


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


def placed(params: Any, mesh: jax.sharding.Mesh | None) -> Any:
  """Parameters where a step on this mesh wants them."""
  if mesh is None:
    return jax.device_put(params, jax.local_devices()[0])
  return meshes.place(params, mesh)


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
