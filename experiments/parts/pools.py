"""Pools of responses whose outcomes are known, and what continuations say of steps.

Read from data, or sampled by the policy for a task; in parts, each whole or not there,
so that a run that was killed goes on with the next.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.parts import corpus
from experiments.parts.build import Config, Model
from experiments.parts.corpus import Split
from prefjax.data import encoding
from prefjax.data.records import Record
from prefjax.data.tokenizers import Tokenizer
from prefjax.errors import InputError
from prefjax.rewards.steps import Segment, segmenter
from prefjax.rollout.draws import Controls
from prefjax.rollout.responses import Writer, left_padded
from prefjax.rollout.sampler import DecoderSampler, Samples, collect
from prefjax.tasks import Task
from prefjax.training.files import built, fingerprint
from prefjax.training.monitor import forward_flops

# Purposes of noise, so that no two draws of a run share any.
_ROLLOUTS, _CONTINUATIONS = 5, 6
_RIGHT = 1.0  # the outcome of a response that is right
_PART, _FLOPS = 'part.jsonl', 'flops.json'


class Pool(NamedTuple):
  """Records with outcomes (`labels`) and steps, and what it cost to sample them."""

  records: list[Record]
  flops: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Author:
  """Who writes: the policy, and how it is sampled. `identity` names its parameters."""

  model: Model
  tokenizer: Tokenizer
  policy: Any
  identity: str


def segment(config: Config) -> Segment:
  """How responses are cut into steps: by the task itself, or as `steps` says.

  Raises:
    InputError: a task without steps, or one with steps of its own and a separator.
  """
  how, source = config['steps']['separator'], config['data']['source']
  task = corpus.embedded_task(source)
  if task is None:
    return segmenter(how)
  if not hasattr(task, 'step_labels'):
    raise InputError(f'data.source={source}: this task has no steps to be rewarded.')
  if how:
    raise InputError(f'steps.separator={how!r}: {source} has steps of its own.')
  return task.steps


def read(config: Config) -> Split:
  """The pools of a source: records with several responses and their labels.

  Raises:
    InputError: where no record has labels, or steps cannot be cut.
  """
  cut = segment(config)
  found = []
  for part in corpus.read(config):
    records = [with_steps(r, cut) for r in part if isinstance(r, Record) and r.labels]
    if not records:
      raise InputError(
        f'{config["data"]["source"]} has no labels, which say of each response whether '
        'it is right.'
      )
    found.append(Pool(records))
  return Split(*found)


def with_steps(record: Record, cut: Segment) -> Record:
  """The record with its responses cut into steps; those that it has stay."""
  if record.steps is not None:
    return record
  steps = tuple(tuple(cut(text)) or ('',) for text in record.responses)
  return dataclasses.replace(record, steps=steps)


# Sampling -----------------------------------------------------------------------


def drawn(config: Config, cache: Path, task: Task, author: Author) -> Split:
  """The policy's responses to a task's prompts, with outcomes and exact step labels."""
  data, pool = config['data'], config['pool']
  names = ('source', 'prompts', 'held_out', 'max_prompt', 'max_response')
  asked = {name: data[name] for name in names}
  key = [corpus.data_seed(config), asked, pool, author.identity]
  folder = cache / f'pool-{fingerprint([*key, author.tokenizer.fingerprint])}'
  sizes = (
    ('train', data['prompts'], pool['responses']),
    ('test', data['held_out'], pool['candidates']),
  )
  return Split(*(_drawn(config, folder, task, author, *size) for size in sizes))


def _drawn(config, folder, task, author, split, count, k):
  data, pool = config['data'], config['pool']
  writer = Writer(
    sampler=_sampler(author),
    tokenizer=author.tokenizer,
    num_responses=k,
    max_prompt=data['max_prompt'],
    max_tokens=data['max_response'],
    prompts_at_once=max(pool['at_once'] // k, 1),
    controls=Controls(temperature=pool['temperature']),
  )
  prompts = task.prompts(corpus.data_seed(config), count, split)
  noise = _key(config, _ROLLOUTS, split == 'test')

  def write(path: Path, start: int) -> None:
    some = prompts[start : start + writer.prompts_at_once]
    (found,) = writer.draw(author.policy, some, jax.random.fold_in(noise, start))
    rows = [_judged(task, *pair) for pair in zip(some, found.texts, strict=True)]
    sizes = found.prompt_length, found.samples.length
    _write(path, rows, forward_flops(author.model.config, *sizes))

  starts = range(0, count, writer.prompts_at_once)
  rows, flops = _parts(folder / split, starts, write)
  return Pool([_record(row) for row in rows], flops)


def _judged(task, prompt, texts):
  return {
    'prompt': prompt,
    'responses': texts,
    'labels': (task.rewards([prompt] * len(texts), texts) >= _RIGHT).tolist(),
    'steps': [task.steps(text) or [''] for text in texts],
    'step_labels': [task.step_labels(prompt, text) or [False] for text in texts],
  }


def _record(row):
  """A row of ours as a record; sampled, a response may be empty."""
  return Record(
    prompt=row['prompt'],
    responses=tuple(row['responses']),
    labels=tuple(map(float, row['labels'])),
    steps=tuple(map(tuple, row['steps'])),
    step_labels=tuple(tuple(map(float, labels)) for labels in row['step_labels']),
  )


def _sampler(author: Author, slots: int = 0) -> DecoderSampler:
  tokenizer = author.tokenizer
  return DecoderSampler(
    graph=author.model.graph,
    stop_ids=(tokenizer.eos_id,),
    pad_id=tokenizer.pad_id,
    slots=slots,
    block=8 if slots else 0,
  )


def _key(config, purpose, index):
  key = jax.random.fold_in(jax.random.key(corpus.data_seed(config)), purpose)
  return jax.random.fold_in(key, index)


def _parts(folder: Path, starts: Iterable[int], write: Callable[[Path, int], None]):
  """The rows of all parts and the FLOPs that they took; what is there is not redone."""
  rows, flops = [], 0.0
  for start in starts:
    part = built(folder / f'{start:07d}', lambda path, start=start: write(path, start))
    rows += [json.loads(line) for line in (part / _PART).read_text().splitlines()]
    flops += json.loads((part / _FLOPS).read_text())
  return rows, flops


def _write(folder, rows, flops):
  lines = [json.dumps(row) + '\n' for row in rows]
  (folder / _PART).write_text(''.join(lines))
  (folder / _FLOPS).write_text(json.dumps(flops))


# Monte-Carlo labels -------------------------------------------------------------


class Continued(NamedTuple):
  """Outcomes [N] of the continuations of each step but a response's last."""

  outcomes: list[list[list[list[float]]]]  # [record][response][step][N]
  flops: float


def continued(
  config: Config, cache: Path, task: Task, author: Author, records: Sequence[Record]
) -> Continued:
  """N continuations of every step by the policy itself, and their outcomes.

  Math-Shepherd (arXiv:2312.08935), Section 3.2. Steps that responses of a prompt share
  are continued once. A response's last step has no continuation but the end.
  """
  data, options = config['data'], config['monte_carlo']
  limits = {name: data[name] for name in ('max_prompt', 'max_response')}
  key = [corpus.data_seed(config), limits, options, config['pool'], author.identity]
  key += [author.tokenizer.fingerprint, [record.prompt for record in records]]
  folder = cache / f'continued-{fingerprint(key)}'
  sampler = _sampler(author, slots=max(options['at_once'] // options['samples'], 1))
  size = options['prompts_at_once']

  def write(path: Path, start: int) -> None:
    some = records[start : start + size]
    rows, flops = _continue(config, task, author, sampler, some, start)
    _write(path, rows, flops)

  rows, flops = _parts(folder, range(0, len(records), size), write)
  return Continued(rows, flops)


def _continue(config, task, author, sampler, records, start):
  """The outcomes of some records' steps, and what they cost."""
  prefixes, places = {}, []  # (record, prefix ids) -> its number; where it is needed
  for i, record in enumerate(records):
    places.append([])
    for ids in _prefixes(config, author.tokenizer, record):
      found = [prefixes.setdefault((i, tuple(one)), len(prefixes)) for one in ids]
      places[-1].append(found)
  outcomes = np.zeros((0, 0))
  flops = 0.0
  if prefixes:
    lengths, samples = _sample(config, author, sampler, records, list(prefixes), start)
    flops = forward_flops(author.model.config, lengths, samples.length)
    outcomes = _outcomes(task, author.tokenizer, records, list(prefixes), samples)
  rows = [[[outcomes[n].tolist() for n in some] for some in row] for row in places]
  return rows, flops


def _prefixes(config, tokenizer, record):
  """For each response the ids up to the end of every step but the last."""
  data = config['data']
  limits = {name: data[name] for name in ('max_prompt', 'max_response')}
  example = encoding.encode(record, tokenizer, counts=encoding.Counter(), **limits)
  for ids, sizes in zip(example.responses, example.steps, strict=True):
    ends = np.cumsum(sizes)[:-1]
    yield [ids[:end].tolist() for end in ends]


def _sample(config, author, sampler, records, prefixes, start):
  """The prompts' lengths with their prefixes, and N samples behind each."""
  data, options = config['data'], config['monte_carlo']
  prompts = [
    encoding.encode_prompt(r.prompt, author.tokenizer, max_prompt=data['max_prompt'])
    for r in records
  ]
  table, lengths = left_padded(
    [[*prompts[i], *ids] for i, ids in prefixes],
    data['max_prompt'] + data['max_response'],
    author.tokenizer.pad_id,
  )
  noise = _key(config, _CONTINUATIONS, start)
  keys = jax.vmap(lambda n: jax.random.fold_in(noise, n))(np.arange(len(prefixes)))
  stream = sampler.stream(
    author.policy,
    table,
    lengths,
    keys,
    num_responses=options['samples'],
    max_tokens=data['max_response'],
    controls=Controls(temperature=options['temperature']),
  )
  return lengths, collect(stream)


def _outcomes(task, tokenizer, records, prefixes, samples: Samples):
  found = np.zeros(samples.length.shape)
  for n, (i, prefix) in enumerate(prefixes):
    texts = [
      tokenizer.decode([*prefix, *ids[:size].tolist()])
      for ids, size in zip(samples.tokens[n], samples.length[n], strict=True)
    ]
    found[n] = task.rewards([records[i].prompt] * len(texts), texts) >= _RIGHT
  return found
