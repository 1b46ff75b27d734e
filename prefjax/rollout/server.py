"""Sampling from an OpenAI-compatible completions server: vLLM, SGLang and their kin.

Only token ids go out and only token ids are read: text is never tokenised again, which
would give other tokens than those that were drawn.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
import contextlib
import dataclasses
import hashlib
import http.client
import json
import re
import socket
import threading
import time
from typing import Any
import urllib.parse

import jax
from jaxtyping import Array, Int, Key
import numpy as np

from prefjax.errors import InputError, TrainingError
from prefjax.rollout import completions
from prefjax.rollout.draws import Controls
from prefjax.rollout.sampler import FREE, Samples

_CONNECT = 10.0  # seconds until a server that does not answer counts as down
_LONGEST = 60.0  # seconds between two tries
_URL = re.compile(
  r'https?://([^\s/@?#:\[\]]+|\[[\da-fA-F:]+\])(?::(\d{1,5}))?(/[^\s?#]*)?'
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ServerSampler:
  """Samples of a server that speaks `/v1/completions`; one request a prompt.

  The server has weights of its own: `params` are not sent. Its log-probs are another
  program's too, so the trainer scores the samples again and corrects the mismatch
  (`RolloutBatch.correction`), as the loop does.

  Start vLLM with `--logprobs-mode processed_logprobs`: its default are log-probs from
  before temperature and truncation. And with `--generation-config vllm`: its default
  are the model's own top-k and penalties where a request names none, and what is off
  is not named (or name it in `extra`). Seeds repeat a stream as far as the server lets
  them: vLLM draws response j with the prompt's plus j, and SGLang passes over them
  outside its deterministic mode, where all responses of a prompt would be the same.

  A response holds the stop token that ended it, and its log-prob, as vLLM and SGLang
  return them although their text leaves it out. A server that drops it is refused, and
  so is one that stops at a token outside `stop_ids`: name all of the model's own
  end-of-sequence tokens there. A stop string in `extra` may end a response anywhere.

  Attributes:
    url: of the server, as in http://127.0.0.1:8000.
    model: the name it serves.
    vocab_size: token ids are below it.
    stop_ids: tokens that end a response.
    pad_id: what stands beyond a response's end.
    concurrency: requests in flight.
    timeout: seconds of one request; one that takes longer is not asked again, as the
      same seed takes as long.
    retries: further tries, with the same seed, where there is no connection, too much
      to do (429), or an error of the server's own (5xx).
    backoff: seconds before the second try, doubled each time.
    max_bytes: of an answer.
    headers: of each request, as in {'Authorization': 'Bearer ...'}.
    extra: further fields of each request; the sampler's own go before.
    update: takes the params at the start of each stream, when the first group is asked
      for. How they get to the server is the deployment's business: a checkpoint and an
      endpoint that loads it, say.
  """

  url: str
  model: str
  vocab_size: int
  stop_ids: Sequence[int]
  pad_id: int = 0
  concurrency: int = 16
  timeout: float = 600.0
  retries: int = 5
  backoff: float = 1.0
  max_bytes: int = 1 << 28
  headers: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  update: Callable[[Any], None] | None = None

  def __post_init__(self):
    url = _URL.fullmatch(self.url)
    url = url and int(url[2] or 80) < 1 << 16
    ids = f'below vocab_size={self.vocab_size}'
    rules = {
      'url': (url, 'http(s)://host:port, credentials in headers'),
      'stop_ids': (all(0 <= x < self.vocab_size for x in self.stop_ids), ids),
      'concurrency': (self.concurrency > 0, 'positive'),
      'timeout': (self.timeout > 0, 'positive'),
      'retries': (self.retries >= 0, 'not negative'),
      'backoff': (self.backoff >= 0, 'not negative'),
    }
    for name, (fits, rule) in rules.items():
      if not fits:
        raise InputError(f'{name} must be {rule}, got {getattr(self, name)!r}.')
    for name, value in self.headers.items():
      if not re.fullmatch(r'[ -~]+', value):  # http.client would print the secret
        raise InputError(f'headers[{name!r}] must be one line of printable ASCII.')

  @property
  def endpoint(self) -> str:
    """Where requests go."""
    return self.url.rstrip('/').removesuffix('/v1') + '/v1/completions'

  def stream(
    self,
    params: Any,
    prompts: Int[Any, 'p l'],
    prompt_length: Int[Any, ' p'],
    keys: Key[Array, ' p'],
    *,
    num_responses: int,
    max_tokens: int,
    controls: Controls = FREE,
  ) -> Iterator[tuple[np.ndarray, Samples]]:
    """Hands over a prompt's index with its samples as soon as they are there.

    An iterator that raises or is closed cuts off what is still in flight.

    Raises:
      InputError: for a prompt that is longer than its array, a request that the
        server refuses (4xx), or a server that cannot serve this.
      TrainingError: for a server that fails, or an answer that cannot be right.
    """
    prompts, length = np.asarray(prompts), np.asarray(prompt_length)
    if length.max() > prompts.shape[1] or length.min() < 1:
      raise InputError(
        f'Prompts must have 1 to {prompts.shape[1]} tokens, the length of their '
        f'bucket, got {length.min()} to {length.max()}.'
      )
    asked = self._asked(num_responses, max_tokens, controls)
    requests = [
      {**asked, 'prompt': row[len(row) - n :].tolist(), 'seed': seed}
      for row, n, seed in zip(prompts, length, seeds(keys), strict=True)
    ]
    return self._groups(params, requests, num_responses)

  def _asked(self, k, t, controls):
    """What all requests have in common."""
    drawn = {'temperature': controls.temperature, 'top_p': controls.top_p}
    drawn |= {'top_k': controls.top_k} if controls.top_k > 0 else {}
    drawn |= {'min_p': controls.min_p} if controls.min_p > 0 else {}
    return {
      **self.extra,
      **({'temperature': 0.0, 'top_p': 1.0} if controls.greedy else drawn),
      'model': self.model,
      'n': 1 if controls.greedy else k,  # vLLM refuses more than 1 greedy response
      'max_tokens': t,
      'logprobs': 0,  # of the token that was drawn, and of no other
      'stop_token_ids': list(self.stop_ids),
      # Two ways to ask for ids; servers pass over the one that they do not know.
      'return_token_ids': True,
      'return_tokens_as_token_ids': True,
    }

  def _groups(self, params, requests, k):
    if self.update is not None:
      self.update(params)
    line = _Line(self)

    def one(index):
      asked = requests[index]
      try:
        text = line.ask(index, json.dumps(asked, default=lambda x: x.item()).encode())
        return index, completions.read(text, asked, self.vocab_size, self.pad_id)
      except completions.Wrong as error:
        said = f'Prompt {index}: {self.endpoint} answered with {error}'
        raise error.kind(said) from error

    pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix='sampler')
    try:
      for done in as_completed([pool.submit(one, i) for i in range(len(requests))]):
        index, samples = done.result()
        copies = k // requests[index]['n']
        yield np.asarray([index]), Samples(*(np.repeat(x, copies, 1) for x in samples))
    finally:
      line.cut()
      pool.shutdown(cancel_futures=True)


def seeds(keys: Key[Array, ' p']) -> list[int]:
  """A 31-bit number of each key, whatever keys stand beside it."""
  data = np.asarray(jax.random.key_data(keys)).astype('>u4')
  digests = (hashlib.sha256(key.tobytes()).digest() for key in data)
  return [int.from_bytes(digest[:4], 'big') >> 1 for digest in digests]


class _Line:
  """Requests in flight, each under a time limit; all of them can be cut off."""

  def __init__(self, sampler):
    self.sampler = sampler
    self.over = threading.Event()
    self.lock = threading.Lock()
    self.sockets = set()

  def cut(self):
    with self.lock:
      self.over.set()
      for sock in self.sockets:
        with contextlib.suppress(OSError):
          sock.shutdown(socket.SHUT_RDWR)

  def ask(self, index, body):
    """The answer to a request, asked again where that may help."""
    sampler, where = self.sampler, f'Prompt {index}: {self.sampler.endpoint}'
    for attempt in range(sampler.retries + 1):
      delay = min(sampler.backoff * 2 ** min(attempt, 16), _LONGEST)
      try:
        status, after, data = self._post(body)
      except TimeoutError as error:
        raise TrainingError(
          f'{where} took longer than timeout={sampler.timeout} s.'
        ) from error
      except (OSError, http.client.HTTPException) as error:
        said = f'{type(error).__name__}: {error}'
      else:
        if status == 200:
          return data
        said = f'HTTP {status}: {completions.message(data)}'
        if status != 429 and status < 500:
          raise InputError(f'{where} refused the request, {said}')
        delay = max(delay, min(after, _LONGEST))
      if attempt < sampler.retries and self.over.wait(delay):
        break
    raise TrainingError(f'{where} failed {attempt + 1} times, the last with {said}')

  def _post(self, body):
    """Status, seconds to wait, and text of an answer."""
    sampler = self.sampler
    parts = urllib.parse.urlsplit(sampler.endpoint)
    kind = {'http': http.client.HTTPConnection, 'https': http.client.HTTPSConnection}
    connection = kind[parts.scheme](
      parts.hostname, parts.port, timeout=min(_CONNECT, sampler.timeout)
    )
    headers = {'Content-Type': 'application/json', 'Connection': 'close'}
    with contextlib.closing(connection):
      try:
        connection.connect()
      except TimeoutError as error:
        raise ConnectionError('no connection') from error
      with self._held(connection.sock) as sock:
        deadline = time.monotonic() + sampler.timeout
        sock.settimeout(sampler.timeout)
        connection.request('POST', parts.path, body, {**headers, **sampler.headers})
        with contextlib.closing(connection.getresponse()) as response:
          after = response.getheader('Retry-After', '')
          text = _read(response, sock, deadline, sampler.max_bytes)
          after = int(after) if re.fullmatch(r'[0-9]{1,6}', after) else 0
          return response.status, after, text

  @contextlib.contextmanager
  def _held(self, sock):
    with self.lock:
      if self.over.is_set():
        raise ConnectionAbortedError('cut off')
      self.sockets.add(sock)
    try:
      yield sock
    finally:
      with self.lock:
        self.sockets.discard(sock)


def _read(response, sock, deadline, most):
  """Reads an answer by the deadline; a socket's own limit is that of one packet."""
  parts, size, length = [], 0, response.length
  while length is None or size < length:
    if size > most or (length or 0) > most:
      raise completions.Wrong(f'more than max_bytes={most}.')
    if (left := deadline - time.monotonic()) <= 0:
      raise TimeoutError
    sock.settimeout(left)
    if not (part := response.read1(1 << 16)):
      break
    parts.append(part)
    size += len(part)
  if size < (length or 0):
    raise http.client.IncompleteRead(b'', length - size)
  return b''.join(parts)
