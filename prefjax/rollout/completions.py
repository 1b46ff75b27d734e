"""Reading what a completions server answers, which is believed only where it fits."""

import contextlib
import json
import re
from typing import Any

import numpy as np

from prefjax.errors import InputError, TrainingError
from prefjax.rollout.sampler import Samples

_LEAST, _MOST = -1e30, 1e-5  # nats; a log-prob of float32 may round to above 0
_NEVER = -27.6  # nats; once in 1e12


class Wrong(Exception):
  """An answer that cannot be right."""

  kind = TrainingError


class Unfit(Wrong):
  """An answer of a server that is not set up for this, whatever it is asked."""

  kind = InputError


def message(text: bytes) -> str:
  """What a server says went wrong: in OpenAI's form, FastAPI's, or plain."""
  said = text.decode(errors='replace')
  with contextlib.suppress(ValueError, AttributeError, RecursionError):
    found = json.loads(said)
    found = found.get('error') or found
    said = found.get('message') or found.get('detail') or said
  return ' '.join(str(said).split())[:500]


def read(text: bytes, asked: dict[str, Any], vocab_size: int, pad_id: int) -> Samples:
  """The samples of one prompt, [1, n, t].

  Args:
    text: the answer.
    asked: the fields of the request.

  Raises:
    Wrong: what was answered instead of n responses with their ids and log-probs.
  """
  n, t = asked['n'], asked['max_tokens']
  tokens, logps = np.full((1, n, t), pad_id, np.int32), np.zeros((1, n, t), np.float32)
  length, truncated = np.zeros((1, n), np.int32), np.zeros((1, n), bool)
  for i, choice in enumerate(_choices(text, n)):
    try:
      ids, scores = _tokens(choice, asked, vocab_size)
      truncated[0, i] = _truncated(choice, ids, asked['stop_token_ids'])
    except Wrong as error:
      raise type(error)(f'a response {i} that {error}') from error
    length[0, i] = len(ids)
    tokens[0, i, : len(ids)], logps[0, i, : len(ids)] = ids, scores
  samples = Samples(tokens, length, logps, truncated)
  _check_noise(samples, asked)
  return samples


def _choices(text, n):
  try:
    choices = sorted(json.loads(text)['choices'], key=lambda choice: choice['index'])
    found = [choice['index'] for choice in choices]
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise Wrong(f'what is no completion: {message(text)!r}') from error
  if found != list(range(n)):
    raise Wrong(f'{len(found)} responses where {n} were asked for (index {found}).')
  return choices


def _tokens(choice, asked, vocab_size):
  """The ids of a response and their log-probs, nats."""
  # A server that cuts a long prompt, or adds a token to it, answers another question.
  if choice.get('prompt_token_ids') not in (None, asked['prompt']):
    raise Wrong('is to another prompt (prompt_token_ids) than the one that was sent.')
  logprobs = choice.get('logprobs')
  if not isinstance(logprobs, dict):
    raise Unfit('has no log-probs.')
  ids, logps = _ids(choice, logprobs), logprobs.get('token_logprobs')
  if not 1 <= len(ids) <= asked['max_tokens']:
    raise Wrong(f'has {len(ids)} tokens, not 1 to max_tokens={asked["max_tokens"]}.')
  for x in ids:
    if type(x) is not int or not 0 <= x < vocab_size:
      raise Wrong(f'has the token {x!r}, outside the vocabulary of {vocab_size}.')
  if not isinstance(logps, list) or len(logps) != len(ids):
    count = len(logps) if isinstance(logps, list) else 'no'
    raise Wrong(f'has {len(ids)} tokens with {count} log-probs.')
  for x in logps:
    if type(x) not in (int, float) or not _LEAST < x <= _MOST:
      raise Wrong(f'has the log-prob {x!r}, which is not finite and at most 0.')
  return ids, [min(float(x), 0.0) for x in logps]


def _ids(choice, logprobs):
  """Token ids in either form: a list of their own, or names 'token_id:17'."""
  ids, names = choice.get('token_ids'), logprobs.get('tokens')
  if isinstance(ids, list):
    return ids
  names = names if isinstance(names, list) else ['']
  found = [re.fullmatch(r'token_id:([0-9]{1,9})', str(name)) for name in names]
  if not all(found):
    raise Unfit(
      'has no token ids: the server knows neither return_token_ids nor '
      'return_tokens_as_token_ids (vLLM and SGLang do), and text is not read.'
    )
  return [int(match[1]) for match in found]


def _truncated(choice, ids, stop_ids):
  reason, last = choice.get('finish_reason'), ids[-1]
  if reason not in ('stop', 'length'):
    raise Wrong(f"was ended by {reason!r}, neither 'stop' nor 'length'.")
  if set(ids[:-1]) & set(stop_ids):
    raise Wrong('goes on after a stop token.')
  # The string that ended it, in vLLM's words and in SGLang's.
  string = isinstance(choice.get('stop_reason', choice.get('matched_stop')), str)
  if reason == 'stop' and last not in stop_ids and not string:
    raise Unfit(
      f'stopped at the token {last}, which is not in stop_ids={stop_ids}: either the '
      'model has an end of its own that is missing there, or the server leaves the '
      'stop token out.'
    )
  # An older vLLM looks at the limit first, where a stop is the last token allowed.
  return reason == 'length' and last not in stop_ids


def _check_noise(samples, asked):
  """Raises Unfit where all responses are the same and cannot be by chance.

  SGLang's deterministic mode gives the responses of a request one seed: a group
  without a spread, which teaches nothing.
  """
  # Only then is a log-prob that of the drawing policy, whatever the server reports.
  free = asked['temperature'] == 1 == asked['top_p']
  free = free and not asked.get('top_k') and not asked.get('min_p')
  tokens, n = samples.tokens[0], asked['n']
  chance = (n - 1) * samples.logps[0, 0].sum()
  if free and n > 1 and (tokens == tokens[0]).all() and chance < _NEVER:
    raise Unfit(
      f'{n} responses that are all the same (chance e^{chance:.0f}): it draws each '
      "with the same seed, as SGLang's deterministic mode does."
    )
