"""Where pairs come from: read from data, or drawn from the reference of a task."""

from collections.abc import Iterable, Iterator
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.parts import build, corpus
from experiments.parts.build import Config, Model
from experiments.parts.corpus import Split
from prefjax import tasks
from prefjax.data import sources
from prefjax.data.records import Record, Skipped
from prefjax.data.tokenizers import Tokenizer
from prefjax.errors import InputError
from prefjax.rollout.responses import Writer
from prefjax.rollout.sampler import DecoderSampler
from prefjax.training.files import built, fingerprint
from prefjax.training.metrics import PhaseClock

# What an objective reads of a batch, and the field of a record that it comes from.
_FIELDS = {'pairs': 'pairs', 'label': 'labels', 'win_rate': 'win_rates'}
_PURPOSE = 2  # of the noise; evaluation draws with others
_FLIPS = 3  # the stream that says which labels are turned round


def check(config: Config) -> None:
  """Reads the pairs that a config names, so that bad data is refused at once.

  Raises:
    InputError: naming file and line of what is wrong, or a source that does not
      have what the objective needs.
  """
  source, objective = config['data']['source'], build.objective(config)
  if 'rewards' in objective.needs:
    raise InputError(
      f'{objective.name} learns from its own samples: python -m experiments.grpo.'
    )
  if 'step_label' in objective.needs:
    raise InputError(
      f'{objective.name} learns from labelled steps: python -m experiments.prm.'
    )
  share = config['data'].get('flipped', 0.0)
  if not 0 <= share <= 1:
    raise InputError(f'data.flipped must lie in [0, 1], got {share}.')
  if corpus.embedded_task(source) is not None:
    return
  for part in corpus.read(config):
    records = [record for record in part if isinstance(record, Record)]
    for need, field in _FIELDS.items():
      # Labels and win rates can be counted from pairs, not the other way round.
      if need in objective.needs and not any(
        record.pairs or getattr(record, field) for record in records
      ):
        raise InputError(f'{source} has no {field}, which {objective.name} needs.')


def prepared(
  config: Config,
  cache: Path,
  clock: PhaseClock,
  model: Model,
  tokenizer: Tokenizer,
  reference: Any,
  identity: str,
) -> Split:
  """The pairs of a config as token ids, train and held out."""
  task = corpus.embedded_task(config['data']['source'])
  if task is None:
    with clock('data'):
      key = [corpus.source_fingerprint(config), config['data']['held_out']]
      records = corpus.read(config)
      if 'pairs' in build.objective(config).needs:
        records, key = (
          Split(*(list(paired(part)) for part in records)),
          [*key, 'paired'],
        )
      return _turned(config, cache, tokenizer, records, ['pairs', *key])
  folder = drawn(config, cache, clock, task, model, tokenizer, reference, identity)
  with clock('data'):
    records = Split(
      *(
        list(sources.read(f'jsonl:{(folder / name).absolute()}.jsonl'))
        for name in Split._fields
      )
    )
    return _turned(config, cache, tokenizer, records, folder.name)


def _turned(config, cache, tokenizer, records, key):
  """Prepared records; of the training pairs the share `data.flipped` turned round."""
  share = config['data'].get('flipped', 0.0)
  if share:
    rng = np.random.default_rng([corpus.data_seed(config), _FLIPS])
    train = [_flipped(record, share, rng) for record in records.train]
    records, key = records._replace(train=train), [key, share]
  return build.prepared(config, cache, tokenizer, records, key)


def _flipped(record, share, rng):
  if not isinstance(record, Record):
    return record
  turn = rng.random(len(record.pairs)) < share
  pairs = (
    pair._replace(chosen=pair.rejected, rejected=pair.chosen) if turned else pair
    for pair, turned in zip(record.pairs, turn, strict=True)
  )
  return dataclasses.replace(record, pairs=tuple(pairs))


def paired(records: Iterable[Record | Skipped]) -> Iterator[Record | Skipped]:
  """The records; those without a pair are counted as skipped."""
  for record in records:
    alone = isinstance(record, Record) and not record.pairs
    yield Skipped('no_pair', '') if alone else record


def drawn(
  config: Config,
  cache: Path,
  clock: PhaseClock,
  task: tasks.Task,
  model: Model,
  tokenizer: Tokenizer,
  reference: Any,
  identity: str,
) -> Path:
  """Responses of the reference to a task's prompts, all pairs labelled, as JSONL.

  As in the DPO paper (arXiv:2305.18290), Appendix C.1: several completions a prompt
  and every pair among them, labelled by Bradley-Terry draws from the true reward.
  """
  data, world = config['data'], corpus.data_seed(config)
  names = ('prompts', 'held_out', 'responses', 'label_scale')
  names += ('max_prompt', 'max_response')
  key = [world, {name: data[name] for name in names}, identity]
  key.append(tokenizer.fingerprint)
  writer = Writer(
    sampler=DecoderSampler(
      graph=model.graph, stop_ids=(tokenizer.eos_id,), pad_id=tokenizer.pad_id
    ),
    tokenizer=tokenizer,
    num_responses=data['responses'],
    max_prompt=data['max_prompt'],
    max_tokens=data['max_response'],
    prompts_at_once=64,
  )

  def build_folder(folder: Path) -> None:
    alone = build.on_one_device(reference)
    counts = (('train', data['prompts']), ('test', data['held_out']))
    for name, (split, count) in zip(Split._fields, counts, strict=True):
      prompts = task.prompts(world, count, split)
      seed = jax.random.fold_in(jax.random.key(world), _PURPOSE)
      noise = jax.random.fold_in(seed, split == 'test')
      texts = [row for some in writer.draw(alone, prompts, noise) for row in some.texts]
      labels = _label(config, task, prompts, texts, split)
      _write(folder / f'{name}.jsonl', prompts, texts, labels)

  with clock('rollout'):
    return built(cache / f'pairs-{fingerprint(key)}', build_folder)


def _label(config, task, prompts, texts, split):
  rewards = np.stack(
    [
      task.rewards([prompt] * len(row), row)
      for prompt, row in zip(prompts, texts, strict=True)
    ]
  )
  seed = 2 * corpus.data_seed(config) + (split == 'test')
  return tasks.label(rewards, seed=seed, scale=config['data']['label_scale'])


def _write(path, prompts, texts, labels):
  """Records; an empty response, and what is left without a pair, stays out."""
  with path.open('w') as file:
    for prompt, row, chosen, rejected in zip(prompts, texts, *labels, strict=True):
      kept = [i for i, text in enumerate(row) if text]
      place = {old: new for new, old in enumerate(kept)}
      pairs = [
        [place[int(c)], place[int(r)]]
        for c, r in zip(chosen, rejected, strict=True)
        if int(c) in place and int(r) in place
      ]
      if pairs:
        responses = [row[i] for i in kept]
        record = {'prompt': prompt, 'responses': responses, 'pairs': pairs}
        file.write(json.dumps(record) + '\n')
