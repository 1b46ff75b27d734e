"""From a resolved config to the sampler of its responses."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from experiments.parts.build import Config, Model
from prefjax.data.tokenizers import Tokenizer
from prefjax.errors import InputError
from prefjax.rollout.draws import Controls
from prefjax.rollout.sampler import DecoderSampler, Sampler
from prefjax.rollout.server import ServerSampler
from prefjax.training import processes

_CONTROLS = ('temperature', 'top_k', 'top_p', 'min_p')


def controls(config: Config) -> Controls:
  """How responses are drawn in training."""
  return Controls(**{name: config['rollout'][name] for name in _CONTROLS})


def create(config: Config, model: Model, tokenizer: Tokenizer, mesh: Any) -> Sampler:
  """The sampler of `config.rollout`: the training forward itself, or a server."""
  options = config['rollout']
  stop_ids = (tokenizer.eos_id, *options['stop_ids'])
  if options['server']:
    if not processes.alone():
      raise InputError(
        'rollout.server serves one process: with several, each would be sent other '
        'responses. Sample in the processes, or give --num_processes=1.'
      )
    return ServerSampler(
      url=options['server'],
      model=options['server_model'],
      vocab_size=tokenizer.vocab_size,
      stop_ids=stop_ids,
      pad_id=tokenizer.pad_id,
    )
  strings = options['stop_strings']

  def stop(ids: Sequence[int]) -> bool:
    text = tokenizer.decode(ids)
    return any(string in text for string in strings)

  found = decoder_sampler(config, model, mesh, stop_ids, tokenizer.pad_id)
  return dataclasses.replace(found, stop=stop if strings else None)


def decoder_sampler(
  config: Config, model: Model, mesh: Any, stop_ids: Sequence[int], pad_id: int
) -> DecoderSampler:
  """The sampler that runs in this process, without stop strings."""
  options = config['rollout']
  return DecoderSampler(
    graph=model.graph,
    stop_ids=stop_ids,
    pad_id=pad_id,
    slots=options['slots'],
    block=options['block'],
    cache_dtype=options['cache_dtype'] or None,
    mesh=mesh,
    gather=options['gather'],
  )
