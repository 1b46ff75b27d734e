"""From `oracle.source` to a preference oracle.

`task:NAME` is the judge of an embedded task, `rm:FOLDER` a finished experiments.rm run,
`jsonl:PATH` what was judged elsewhere, and anything else the import path of a function
(prompt, its K responses, record) -> K x K chances.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.parts import reward_models
from prefjax import tasks
from prefjax.data.encoding import Example, encode
from prefjax.data.records import Record
from prefjax.data.tokenizers import Tokenizer
from prefjax.errors import InputError
from prefjax.rewards import oracles, pairwise
from prefjax.rewards.oracles import Oracle
from prefjax.rollout.responses import left_padded


def check(source: str) -> None:
  """Refuses a source that names no oracle, before anything is computed.

  Raises:
    InputError: saying what it lacks.
  """
  scheme, colon, name = source.partition(':')
  if scheme == 'task':
    _contest(name)
  elif scheme == 'rm':
    reward_models.check_finished(Path(name))
  elif not colon:
    oracles.imported(source)
  elif scheme != 'jsonl':
    raise InputError(
      f'The oracle {source!r} is of no known kind; an oracle is `task:NAME`, '
      '`rm:FOLDER`, `jsonl:PATH`, or the import path of a function.'
    )


def create(source: str, tokenizer: Tokenizer) -> Oracle:
  """The oracle of a source; a model reads text by way of `tokenizer`, its own.

  Raises:
    InputError: as `check` does, or a model of another vocabulary.
  """
  check(source)
  scheme, colon, name = source.partition(':')
  if not colon:
    return oracles.imported(source)
  if scheme == 'task':
    contest = _contest(name)
    return oracles.by_prompt(
      lambda prompt, texts, _: contest.preferences(prompt, texts)
    )
  if scheme == 'rm':
    return _by_model(reward_models.load(Path(name), tokenizer), tokenizer)
  return oracles.stored(Path(name))


def _contest(name: str) -> tasks.Contest:
  found = tasks.get(name)
  if not isinstance(found, tasks.Contest):
    raise InputError(
      f'The task {name!r} has a reward and no preferences; a judge is one of '
      f'{[k for k, task in tasks.TASKS.items() if isinstance(task, tasks.Contest)]}.'
    )
  return found


def _by_model(model: reward_models.Loaded, tokenizer: Tokenizer) -> Oracle:
  """The oracle of a trained model of single responses, or of pairs."""

  def arrays(prompts, responses):
    examples = [
      encode(Record(prompt, tuple(texts)), tokenizer, counts=Counter(), **model.limits)
      for prompt, texts in zip(prompts, responses, strict=True)
    ]
    return as_arrays(examples, tokenizer.pad_id, **model.limits)

  def scores(prompts, responses, records):
    del records
    return model.rewards(*arrays(prompts, responses))

  def pairs(prompts, responses, records):
    del records
    found = pairwise.margins(
      model.score, *arrays(prompts, responses), eos_id=tokenizer.eos_id
    )
    return oracles.chances(found)

  return pairs if model.reads == 'pair' else oracles.from_scores(scores)


def as_arrays(
  examples: Sequence[Example], pad_id: int, *, max_prompt: int, max_response: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Prompts [n, l], their lengths [n], responses [n, k, t] and theirs [n, k]."""
  prompts, prompt_length = left_padded(
    [example.prompt.tolist() for example in examples], max_prompt, pad_id
  )
  shape = len(examples), len(examples[0].responses)
  tokens = np.full((*shape, max_response), pad_id, np.int32)
  length = np.zeros(shape, np.int32)
  for i, example in enumerate(examples):
    for k, ids in enumerate(example.responses):
      tokens[i, k, : len(ids)], length[i, k] = ids, len(ids)
  return prompts, prompt_length, tokens, length
