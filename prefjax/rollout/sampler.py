"""Sampling with the training forward: prefill once a prompt, then decode.

A row's noise depends on its own key and on how many tokens it has, on nothing else, so
what is drawn for a prompt does not depend on the batch it stands in.
"""

import bisect
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key
import numpy as np

from prefjax.errors import InputError
from prefjax.models import sharding
from prefjax.models.sharding import on_host
from prefjax.rollout import decoding
from prefjax.rollout.decoding import Admission, Options
from prefjax.rollout.draws import Controls

FREE = Controls()  # the policy as it is


class Samples(NamedTuple):
  """Sampled responses; a response ends with its stop token or is truncated."""

  tokens: Int[Array, 'p k t']  # pad_id beyond the length
  length: Int[Array, 'p k']  # tokens, the stop token included
  logps: Float[Array, 'p k t']  # of the behaviour policy, nats; 0 beyond
  truncated: Bool[Array, 'p k']  # ended by the length limit


@runtime_checkable
class Sampler(Protocol):
  """What draws responses; a server can stand behind it."""

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
    """Hands over prompts' indices with their samples as soon as they are complete."""
    ...


def collect(parts: Iterator[tuple[np.ndarray, Samples]]) -> Samples:
  """The samples of a whole `stream`, in the order of the prompts."""
  indices, samples = zip(*parts, strict=True)
  order = np.argsort(np.concatenate(indices))
  return Samples(*(np.concatenate(x)[order] for x in zip(*samples, strict=True)))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DecoderSampler:
  """Samples of a decoder. Compiles once a shape; all controls but greedy are traced.

  Attributes:
    graph: the decoder.
    stop_ids: tokens that end a response; traced, so that another set compiles nothing.
    pad_id: what stands beyond a response's end; never read as a sign of anything.
    slots: prompts decoded at once, whatever is asked for; one whose responses have
      all ended gives its slot to one that waits. 0 is as many as are asked for.
    block: tokens between two looks from the host, where slots are given away and stop
      strings are looked for. 0 is `max_tokens`.
    stop: whether a text (of token ids) holds a string that ends it, or None.
    cache_dtype: of keys and values; None is the model's.
    mesh: slots are dealt over its data axes, heads lie over `tensor`; None for one
      device. With several processes all make the same calls and get the same samples.
    gather: put parameters together over `fsdp` once a call, and not for every token;
      takes the memory of a model in its computing type over `tensor`.
  """

  graph: nnx.GraphDef
  stop_ids: Sequence[int]
  pad_id: int = 0
  slots: int = 0
  block: int = 0
  stop: Callable[[Sequence[int]], bool] | None = None
  cache_dtype: str | None = None
  mesh: jax.sharding.Mesh | None = None
  gather: bool = True

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
    stop_ids: Int[Any, 'p n'] | None = None,
  ) -> Iterator[tuple[np.ndarray, Samples]]:
    """Hands over prompts' indices with their samples as soon as they are complete.

    Args:
      prompts: token ids, left-padded.
      keys: a key of each prompt; its responses' keys are folded from it.
      num_responses: k, of each prompt.
      max_tokens: t, after which a response is truncated.
      stop_ids: a set of each prompt, -1 for none, in place of the sampler's own.

    Raises:
      InputError: for a prompt that is longer than its array, or slots that do not
        divide by the devices.
    """
    length = np.asarray(prompt_length)
    if length.max() > prompts.shape[1] or length.min() < 1:
      raise InputError(
        f'Prompts must have 1 to {prompts.shape[1]} tokens, the length of their '
        f'bucket, got {length.min()} to {length.max()}.'
      )
    if stop_ids is None:
      own = np.asarray(self.stop_ids, np.int32).reshape(1, -1)
      stop_ids = np.repeat(own, len(prompts), axis=0)
    waiting = Admission(np.arange(len(prompts)), prompts, length, keys, stop_ids)
    run = _Run(self, params, waiting, num_responses, max_tokens, controls)
    return run.groups()

  @property
  def _programs(self) -> '_Programs':
    cut = self.mesh is not None and self.mesh.shape['fsdp'] > 1
    return _programs(self.graph, self.gather and cut)

  def options(self, controls: Controls) -> Options:
    """What is compiled for these controls."""
    return Options(controls.greedy, controls.truncates, self.pad_id, self.cache_dtype)


class _Programs(NamedTuple):
  """The jitted functions of a decoder."""

  start: Callable
  admit: Callable
  decode: Callable


@functools.lru_cache(maxsize=32)
def _programs(graph: nnx.GraphDef, gather: bool) -> _Programs:
  """Made once a decoder: samplers that differ otherwise share what is compiled."""

  def merged(params):
    model = nnx.merge(graph, params)
    if not gather:
      return model
    return nnx.merge(graph, sharding.gathered(params, model.config.dtype))

  @functools.partial(jax.jit, static_argnames=('s', 'k', 't', 'options'))
  def start(params, new, numbers, *, s, k, t, options):
    model = merged(params)
    rows = decoding.empty(model.config, new, s, k, t, options)
    return decoding.admit(model, rows, new, numbers, options)

  @functools.partial(jax.jit, static_argnames='options', donate_argnums=1)
  def admit(params, rows, new, numbers, *, options):
    return decoding.admit(merged(params), rows, new, numbers, options)

  @functools.partial(jax.jit, static_argnames='options', donate_argnums=1)
  def decode(params, rows, steps, numbers, *, options):
    return decoding.decode(merged(params), rows, steps, numbers, options)

  return _Programs(start, admit, decode)


class _Run:
  """One call: which prompt has which slot, and who waits."""

  def __init__(self, sampler, params, waiting, k, t, controls):
    self.sampler, self.params, self.waiting = sampler, params, waiting
    self.k, self.t = k, t
    self.numbers = controls.numbers()
    self.options = sampler.options(controls)
    count = len(waiting.slots)
    self.slots = sampler.slots or count
    shards = sharding.data_shards(sampler.mesh)
    self.slots += -self.slots % shards
    # A quarter at a time: prefill runs whole admissions, filled or not.
    self.at_once = max(self.slots // 4 // shards * shards, shards)
    self.next = 0
    self.holds = np.full(self.slots, -1)

  def groups(self):
    sampler = self.sampler
    first = self._placed(self._admission(np.arange(self.slots), self.slots))
    rows = self._call(sampler._programs.start, first, s=self.slots, k=self.k, t=self.t)
    block = jnp.asarray(sampler.block or self.t, jnp.int32)
    while (self.holds >= 0).any():
      rows = self._call(sampler._programs.decode, rows, block)
      if sampler.stop is not None:
        rows = self._stop(rows)
      ended = np.flatnonzero(on_host(rows.done).all(axis=1) & (self.holds >= 0))
      if self._worth_a_look(ended):
        yield self.holds[ended], self._samples(rows, ended)
        self.holds[ended] = -1
        rows = self._refill(rows)

  def _call(self, function, *args, **sizes):
    with sharding.under(self.sampler.mesh):
      return function(self.params, *args, self.numbers, options=self.options, **sizes)

  def _worth_a_look(self, ended):
    left = len(self.waiting.slots) - self.next
    held = (self.holds >= 0).sum()
    return len(ended) == held or (left and len(ended) >= min(self.at_once, left))

  def _refill(self, rows):
    free = np.flatnonzero(self.holds < 0)
    while len(free) and self.next < len(self.waiting.slots):
      new = self._admission(free[: self.at_once], self.at_once)
      rows = self._call(self.sampler._programs.admit, rows, self._placed(new))
      free = free[self.at_once :]
    return rows

  def _admission(self, slots, size):
    """The next waiting prompts for these slots; the rest of `size` is none."""
    chosen = np.arange(self.next, min(self.next + len(slots), len(self.waiting.slots)))
    self.next += len(chosen)
    self.holds[slots[: len(chosen)]] = chosen
    index = np.pad(chosen, (0, size - len(chosen)), mode='edge')
    new = jax.tree.map(lambda x: x[index], self.waiting)
    where = np.full(size, self.slots)
    where[: len(chosen)] = slots[: len(chosen)]
    return jax.tree.map(jnp.asarray, new._replace(slots=where.astype(np.int32)))

  def _placed(self, new):
    if self.sampler.mesh is None:
      return new
    where = jax.sharding.NamedSharding(self.sampler.mesh, sharding.spec('prompts'))
    return jax.tree.map(lambda x: sharding.put(x, where), new)

  def _samples(self, rows, slots):
    """What stands in these slots, out of the ring and padded beyond its end."""
    first, length, truncated, tokens, logps = (
      on_host(x)[slots]
      for x in (rows.first, rows.length, rows.truncated, rows.tokens, rows.logps)
    )
    columns = (first[:, None] + np.arange(self.t)) % self.t
    tokens, logps = (
      np.take_along_axis(x, columns[:, None], axis=2) for x in (tokens, logps)
    )
    real = np.arange(self.t) < length[..., None]
    tokens = np.where(real, tokens, np.int32(self.options.pad_id))
    logps = np.where(real, logps, logps.dtype.type(0))
    return Samples(tokens, length, logps, truncated)

  def _stop(self, rows):
    """Ends the rows whose text holds a stop string, at the token that completes it."""
    held = np.flatnonzero(self.holds >= 0)
    tokens = self._samples(rows, held)
    length, truncated, done = (
      np.array(on_host(x)) for x in (rows.length, rows.truncated, rows.done)
    )
    for i, k in np.ndindex(tokens.length.shape):
      ids = tokens.tokens[i, k, : tokens.length[i, k]].tolist()
      if self.sampler.stop(ids):
        sizes = range(1, len(ids) + 1)
        end = bisect.bisect_left(sizes, True, key=lambda n: self.sampler.stop(ids[:n]))
        at = held[i], k
        length[at], truncated[at], done[at] = sizes[end], False, True
    length, truncated, done = (
      self._placed(jnp.asarray(x)) for x in (length, truncated, done)
    )
    return rows._replace(length=length, truncated=truncated, done=done)
