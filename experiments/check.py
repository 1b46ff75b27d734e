"""What can be checked before money is spent: data, tokens, needs, memory, step 0.

  python -m experiments.check --config=experiments/configs/dpo/hh.py:tiny

Fresh parameters stand for the reference, so nothing is trained and nothing is kept but
the prepared data.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.parts import adapted, build, corpus, launch
from experiments.parts.build import Config
from experiments.parts.corpus import Split
from prefjax.data.pipeline import Batches
from prefjax.data.records import Pair, Record
from prefjax.models import decoder
from prefjax.training import checks
from prefjax.training.mesh import place, place_batch
from prefjax.training.step import Step, hyper
from prefjax.types import PreferenceBatch

_MIB = 2**20


def main(config: Config, workdir: Path, cache: Path) -> None:
  """Prints each check; a wrong one ends the run with exit code 1."""
  del workdir
  model, mesh = build.model(config), build.mesh(config)
  objective = build.objective(config)
  records = corpus.likelihood_records(config)
  tokenizer = corpus.tokenizer(config, cache, records.train)
  if 'pairs' in objective.needs:
    records = _pairs(config, records)
  key = ['check', corpus.source_fingerprint(config), config['data']]
  data = build.prepared(config, cache, tokenizer, records, key)
  build.say_counts(data, print)
  needs = sorted(objective.needs) or ['nothing beside log-probs']
  print(f'objective: {objective.name} needs {", ".join(needs)}')
  batches = build.batches(config, data.train, mesh, tokenizer.pad_id)
  print(f'tokens: {_round_trip(batches, tokenizer)}')
  batch = batches.at(0)[0]
  if mesh is not None:
    batch = place_batch(batch, mesh)
  base = decoder.initial_params(model.config, jax.random.key(config['seed']))
  trained = adapted.trained(config, model, place(base, mesh), mesh)
  step, params = build.step(config, trained.model, mesh, trained.frozen), trained.params
  if 'reference_logps' in step.objective.needs:
    logps = np.asarray(step.score(params, batch).logps)
    batch = batch.replace(reference_logps=logps)
  numbers = hyper(step.objective, step.optimizer)
  print(f'memory: {_memory(step, params, batch, numbers)}')
  found = checks.step_zero(step, params, batch, numbers)
  for check in found:
    print(f'step 0: {check}')
  checks.refuse(found)
  print('all checks hold')


def _pairs(config: Config, records: Split) -> Split:
  """Pairs of the data; for a task two of its documents, since no policy wrote any."""
  if corpus.embedded_task(config['data']['source']) is None:
    return corpus.read(config)
  return Split(*(list(_paired(part)) for part in records))


def _paired(records: list[Any]) -> Any:
  for one, other in zip(records[::2], records[1::2], strict=False):
    responses = (*one.responses, *other.responses)
    yield Record(prompt=one.prompt, responses=responses, pairs=(Pair(0, 1),))


def _round_trip(batches: Batches, tokenizer: Any) -> str:
  example = batches.data[0]
  text = tokenizer.decode(example.prompt.tolist())
  whole = tokenizer.decode([*example.prompt.tolist(), *example.responses[0].tolist()])
  joined = text + tokenizer.decode(example.responses[0].tolist())
  counts = {
    'BOS a prompt': int(np.sum(example.prompt == tokenizer.bos_id)),
    'EOS a response': int(np.sum(example.responses[0] == tokenizer.eos_id)),
    'text kept when joined': whole.split() == joined.split(),
  }
  return json.dumps(counts)


def _memory(step: Step, params: Any, batch: PreferenceBatch, numbers: Any) -> str:
  """What the compiled step of the longest micro-batch holds, by the compiler."""
  state = step.state_shapes(params)
  found = step.memory(state, batch, numbers)
  sizes = {
    'state and batch': found.argument_size_in_bytes,
    'working': found.temp_size_in_bytes,
    'updated in place': found.alias_size_in_bytes,
  }
  shape = (*batch.responses.shape[:2], batch.prompts.shape[1])
  cell = f'{shape} + {batch.responses.shape[2]} tokens'
  listed = ', '.join(f'{k} {v / _MIB:.1f} MiB' for k, v in sizes.items())
  return f'{listed} a device, for [p, k, l] = {cell}'


if __name__ == '__main__':
  launch.run(main, 'check')
