"""From a resolved config to its texts: records, questions, and their tokenizer."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import prefjax
from prefjax import tasks
from prefjax.data import questions as questions_lib
from prefjax.data import sources, tokenizers
from prefjax.data.questions import Question
from prefjax.data.records import Record, Skipped
from prefjax.data.tokenizers import SentencePiece, Tokenizer
from prefjax.errors import InputError
from prefjax.training.files import fingerprint

Config = Mapping[str, Any]
Records = list[Record | Skipped]

_HOLD_OUT_SEED = 0  # not the run's: all seeds of a sweep hold out the same prompts


class Split(NamedTuple):
  """What is trained on and what is held out."""

  train: Any
  held_out: Any


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
