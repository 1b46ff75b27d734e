"""Finished runs of experiments.rm as functions of responses."""

from collections.abc import Callable
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import sft
from prefjax.data.tokenizers import Tokenizer
from prefjax.errors import InputError
from prefjax.models import config as model_configs
from prefjax.models import decoder, heads
from prefjax.types import PreferenceBatch

READS = ('response', 'pair')
"""What a model reads at once: one response, or two with a separator between them."""

_ROWS = 64  # responses that a model scores at once


class Loaded(NamedTuple):
  """A trained model; an ensemble's scores are the means of its members'."""

  reads: str
  limits: dict[str, int]  # max_prompt and max_response, tokens
  score: Callable[[PreferenceBatch], np.ndarray]  # -> [p, k]

  def rewards(
    self,
    prompts: np.ndarray,
    prompt_length: np.ndarray,
    tokens: np.ndarray,
    length: np.ndarray,
  ) -> np.ndarray:
    """The scores [n, k] of groups of single responses."""
    n, k, t = tokens.shape
    found = np.zeros((n, k))
    size = max(_ROWS // k, 1)
    for start in range(0, n, size):
      rows = np.minimum(np.arange(start, start + size), n - 1)
      batch = PreferenceBatch(
        prompts=prompts[rows],
        responses=tokens[rows],
        prompt_length=prompt_length[rows],
        response_length=length[rows],
        mask=np.arange(t) < length[rows][..., None],
        weight=np.ones((size, k), np.float32),
      )
      found[rows] = self.score(batch)
    return found


def check_finished(workdir: Path) -> None:
  """Raises InputError where the folder holds no finished run."""
  if not (workdir / 'DONE').exists():
    raise InputError(f'The reward model {workdir} is no finished run.')


def member_folder(workdir: Path, member: int) -> Path:
  """Where a member of an ensemble is trained; the first in the run's own folder."""
  return workdir / f'member-{member}' if member else workdir


def load(workdir: Path, tokenizer: Tokenizer) -> Loaded:
  """The model of a finished run.

  Raises:
    InputError: where there is none, or it reads other tokens.
  """
  check_finished(workdir)
  stored = json.loads((workdir / 'config.json').read_text())['config']
  shape = model_configs.create(**stored['model'])
  if shape.vocab_size < tokenizer.vocab_size:
    raise InputError(
      f'The reward model of {workdir} has {shape.vocab_size} tokens, the tokenizer '
      f'{tokenizer.vocab_size}.'
    )
  graph, shapes = decoder.create(shape)
  like = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  like = heads.with_scalar(like, shape.width)
  members = [
    sft.final_params(member_folder(workdir, i), like) for i in range(stored['ensemble'])
  ]
  limits = {name: stored['data'][name] for name in ('max_prompt', 'max_response')}
  return Loaded(stored['reads'], limits, scorer(decoder.forward(graph), members))


def scorer(base: Any, members: list[Any]) -> Callable[[PreferenceBatch], np.ndarray]:
  """The mean score of the members, of every response of a batch."""
  forward = heads.forward(base)

  @jax.jit
  def score(params, batch):
    hidden, head = forward(params, batch)
    return heads.scores(hidden, head, batch)

  return lambda batch: np.mean([np.asarray(score(p, batch)) for p in members], axis=0)


def model_reward(workdir: Path, tokenizer: Tokenizer) -> Callable[..., np.ndarray]:
  """The rewards of sampled groups, [n, k], by a model of single responses.

  Raises:
    InputError: where `load` does, or the model reads pairs: it is an oracle.
  """
  loaded = load(workdir, tokenizer)
  if loaded.reads != 'response':
    raise InputError(
      f'The reward model {workdir} compares pairs and has no reward of one response; '
      'it can be an oracle of experiments.sppo.'
    )
  return loaded.rewards
