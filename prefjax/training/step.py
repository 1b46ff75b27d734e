"""One step for every method: gradients of an objective, exact under accumulation."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from prefjax import logprobs
from prefjax.errors import InputError
from prefjax.models import heads, lora, sharding
from prefjax.objectives import Objective, PolicyObjective
from prefjax.training.mesh import Jitted, batch_shardings, place
from prefjax.training.optimizers import Optimizer
from prefjax.types import Head, Mean, Outputs, PreferenceBatch

State = dict[str, Any]  # {'params', 'optimizer', 'step'}: nested dicts of arrays
Hyper = Mapping[str, Mapping[str, Any]]

# Zeros read none of their arguments, which yet say on what device they lie.
_READ_NOTHING = {'keep_unused': True}


def hyper(
  objective: Objective, optimizer: Optimizer, temperature: float = 1.0
) -> Hyper:
  """The traced numbers, all as arrays of one type, so that a sweep compiles once.

  `temperature` is that of the policy: of the sampler, where responses were sampled.
  """
  numbers = {
    'objective': objective.numbers,
    'optimizer': optimizer.numbers,
    'temperature': temperature,
  }
  dtype = jax.dtypes.canonicalize_dtype(float)
  return jax.tree.map(lambda x: jnp.asarray(x, dtype), numbers)


def _program(method: Callable) -> property:
  """A jitted function of a step, which all steps that compile to the same share."""
  return property(functools.lru_cache(maxsize=32)(method))


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
  """The jitted functions of one objective on one model.

  Steps are equal where only traced numbers differ: they run the same programs, so that
  a sweep compiles no more than its first trial.

  Attributes:
    want: quantities formed for metrics beside what the objective needs.
    mesh: where batches and parameters are cut; None for one device.
    frozen: parameters that are not trained, the base of adapters: every `params` and
      every state is then of the adapters alone. None where all are trained.
    chunk: tokens a chunk of the log-prob op.
    moments: the memory that the optimiser's state waits in, `device` or `host`.
  """

  forward: Callable[..., tuple[jax.Array, Head]]  # a `Forward`
  objective: Objective
  optimizer: Optimizer
  mesh: jax.sharding.Mesh | None = None
  want: Sequence[str] = ()
  chunk: int = 512
  frozen: Any = None
  moments: str = 'device'

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Step) and self._structure == other._structure

  def __hash__(self) -> int:
    return hash(self._structure)

  @functools.cached_property
  def _structure(self) -> tuple:
    """All that is no traced number."""
    objective, optimizer = self.objective, self.optimizer
    return (
      self.forward,
      (objective.name, objective.recipe, tuple(sorted(objective.structure.items()))),
      dataclasses.replace(optimizer, **dict.fromkeys(optimizer.numbers, 0.0)),
      self.mesh,
      tuple(self.want),
      self.chunk,
      self.moments,
    )

  def initial_state(self, params: Any) -> State:
    """The state before the first update, where an update wants it.

    It shares no buffer with `params`: an update donates it.
    """
    return self._initial(place(params, self.mesh))

  def state_shapes(self, params: Any) -> State:
    """The shapes of an initial state, where they lie; nothing is allocated."""
    return self._initial.shapes(params)

  def update(
    self, state: State, batches: Sequence[PreferenceBatch], hyper: Hyper
  ) -> tuple[State, dict[str, jax.Array]]:
    """One optimiser step on the micro-batches of one global batch.

    The state is donated. Metrics are those of the whole batch, with `loss`,
    `grad_norm` and `learning_rate`.
    """
    if len(batches) == 1:
      return self._fused(self.frozen, state, batches[0], hyper)
    if self.objective.couples_batch:
      return self._update_coupled(state, batches, hyper)
    weight = functools.reduce(jnp.add, (self._weigh(batch, hyper) for batch in batches))
    params = state['params']
    carry = self._start(self.frozen, params, batches[0], weight, hyper)
    for batch in batches:
      carry = self._accumulate(carry, self.frozen, params, batch, weight, hyper)
    return self._apply(state, carry, hyper)

  def _update_coupled(self, state, batches, hyper):
    """An update where the loss is no sum over micro-batches.

    All outputs first, then the loss of the whole batch and its slopes in them, then
    each micro-batch's forward again, pulled back along its slopes.
    """
    params = state['params']
    outputs = self._outputs_of(params, batches, hyper)
    means, slopes = self._slopes(outputs, list(batches), hyper)
    grads = self._zeros(params)
    for batch, slope in zip(batches, slopes, strict=True):
      grads = self._pull(grads, self.frozen, params, batch, slope, hyper)
    return self._apply(state, (grads, means), hyper)

  def evaluate(
    self, params: Any, batches: Sequence[PreferenceBatch], hyper: Hyper
  ) -> dict[str, float]:
    """The metrics of any number of micro-batches together, `loss` among them."""
    if self.objective.couples_batch:
      batches = list(batches)
      outputs = self._outputs_of(params, batches, hyper)
      means, _ = self._slopes(outputs, batches, hyper)
      return {name: float(value) for name, value in _values(means).items()}
    merged = None
    for batch in batches:
      means = self._measure(self.frozen, params, batch, hyper)
      merged = means if merged is None else _add(merged, means)
    return {name: float(value) for name, value in _values(merged).items()}

  def score(
    self, params: Any, batch: PreferenceBatch, temperature: Any = 1.0
  ) -> Outputs:
    """What a forward gives on a batch, as constants."""
    dtype = jax.dtypes.canonicalize_dtype(float)
    return self._score(self.frozen, params, batch, jnp.asarray(temperature, dtype))

  def _outputs_of(self, params, batches, hyper):
    return [self.score(params, batch, hyper['temperature']) for batch in batches]

  def memory(self, state: State, batch: PreferenceBatch, hyper: Hyper) -> Any:
    """The compiler's account of an update on one micro-batch, in bytes a device.

    Shapes will do; nothing is allocated.
    """
    lowered = self._fused.lower(self.frozen, state, batch, hyper)
    return lowered.compile().memory_analysis()

  def outputs(
    self, params: Any, batch: PreferenceBatch, temperature: Any = 1.0
  ) -> Outputs:
    """The forward and everything that the objective and the metrics read of it.

    The parameters are all of them, with what is frozen.
    """
    hidden, head = self.forward(params, batch)
    wanted = {*self.want, *self.objective.reads}
    found = Outputs()
    if not wanted.isdisjoint(logprobs.QUANTITIES):
      found = logprobs.from_hidden(
        hidden[:, :, :-1],
        head,
        batch.responses,
        batch.mask,
        want=[name for name in logprobs.QUANTITIES if name in wanted],
        temperature=temperature,
        chunk=self.chunk,
        mesh=self.mesh,
      )
    if 'values' in wanted:
      found = found.replace(values=heads.values(hidden, head))
    if 'scores' in wanted:
      found = found.replace(scores=heads.scores(hidden, head, batch))
    return found

  @_program
  def _initial(self) -> Callable:
    def initial(params):
      params = jax.tree.map(jnp.copy, params)
      return {
        'params': params,
        'optimizer': self._put_away(self.optimizer.build().init(params)),
        'step': jnp.zeros((), jnp.int32),
      }

    return self._jit(initial)

  @_program
  def _fused(self) -> Callable:
    def fused(frozen, state, batch, hyper):
      grads, means = self._gradient(frozen, state['params'], batch, None, hyper)
      return self._advance(state, grads, means, hyper)

    return self._jit(fused, donate=(1,))

  @_program
  def _start(self) -> Callable:
    """Zeros in the shape of what a micro-batch adds."""

    def start(frozen, params, batch, weight, hyper):
      shapes = jax.eval_shape(self._gradient, frozen, params, batch, weight, hyper)
      return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return self._jit(start, **_READ_NOTHING)

  @_program
  def _accumulate(self) -> Callable:
    def accumulate(carry, frozen, params, batch, weight, hyper):
      return _add(carry, self._gradient(frozen, params, batch, weight, hyper))

    return self._jit(accumulate, donate=(0,))

  @_program
  def _apply(self) -> Callable:
    def apply(state, carry, hyper):
      return self._advance(state, *carry, hyper)

    # No output could take the gradients' buffers, and jax warns of such a gift.
    return self._jit(apply, donate=(0,))

  @_program
  def _weigh(self) -> Callable:
    """The loss's denominators on a micro-batch; they depend on the batch alone."""

    def weigh(batch, hyper):
      p, k, t = batch.mask.shape
      shapes = {'values': (p, k, t + 1), 'scores': (p, k)}
      names = [field.name for field in dataclasses.fields(Outputs)]
      zeros = {name: jnp.zeros(shapes.get(name, (p, k, t))) for name in names}
      loss_fn = self.objective.build(hyper['objective'])
      return loss_fn(Outputs(**zeros), batch)[0].weight

    return self._jit(weigh)

  @_program
  def _measure(self) -> Callable:
    def measure(frozen, params, batch, hyper):
      whole = lora.joined(frozen, params)
      outputs = self.outputs(whole, batch, hyper['temperature'])
      loss, means = self.objective.build(hyper['objective'])(outputs, batch)
      return means | {'loss': loss}

    return self._jit(measure)

  @_program
  def _slopes(self) -> Callable:
    """Means of a whole batch, and each micro-batch's d loss / d outputs."""

    def slopes(outputs, batches, hyper):
      whole = _joined(batches)

      def loss_fn(outputs):
        loss_fn = self.objective.build(hyper['objective'])
        loss, means = loss_fn(_joined(outputs), whole)
        return loss.value(), means | {'loss': loss}

      slopes, means = jax.grad(loss_fn, has_aux=True)(outputs)
      return means, slopes

    return jax.jit(slopes)

  @_program
  def _zeros(self) -> Callable:
    """A gradient of nothing, in the accumulation dtype."""

    def zeros(params):
      return jax.tree.map(lambda x: _wide(jnp.zeros_like(x)), params)

    return self._jit(zeros, **_READ_NOTHING)

  @_program
  def _pull(self) -> Callable:
    def pull(grads, frozen, params, batch, slope, hyper):
      def outputs(params):
        whole = lora.joined(frozen, params)
        return self.outputs(whole, batch, hyper['temperature'])

      _, pullback = jax.vjp(outputs, params)
      return _add(grads, jax.tree.map(_wide, pullback(slope)[0]))

    return self._jit(pull, donate=(0,))

  @_program
  def _score(self) -> Callable:
    def score(frozen, params, batch, temperature):
      return self.outputs(lora.joined(frozen, params), batch, temperature)

    return Jitted(score, self.mesh, where=batch_shardings)

  @_program
  def credit(self) -> Callable:
    """(rollouts, the objective's numbers) -> rollouts with advantages."""

    def credit(batch, numbers):
      objective = self.objective.build(numbers)
      if not isinstance(objective, PolicyObjective):
        raise InputError(f'{self.objective.name} does not learn from rollouts.')
      return objective.credit(batch)

    return jax.jit(credit)

  def _jit(self, function, donate=(), **options):
    return Jitted(function, self.mesh, donate_argnums=donate, **options)

  def _gradient(self, frozen, params, batch, weight, hyper):
    """Gradients in the accumulation dtype, and the means of this micro-batch."""

    def loss_fn(params):
      whole = lora.joined(frozen, params)
      outputs = self.outputs(whole, batch, hyper['temperature'])
      loss, means = self.objective.build(hyper['objective'])(outputs, batch)
      return loss.value(weight), means | {'loss': loss}

    grads, means = jax.grad(loss_fn, has_aux=True)(params)
    return jax.tree.map(_wide, grads), means

  def _advance(self, state, grads, means, hyper):
    transform = self.optimizer.build(hyper['optimizer'])
    grad_norm = optax.tree.norm(grads)
    inner = sharding.from_host_memory(state['optimizer'])
    updates, inner = transform.update(grads, inner, state['params'])
    metrics = _values(means) | {
      'grad_norm': grad_norm,
      'learning_rate': self.optimizer.rate(state['step'], hyper['optimizer']),
    }
    new = {
      'params': optax.apply_updates(state['params'], updates),
      'optimizer': self._put_away(inner),
      'step': state['step'] + 1,
    }
    return new, metrics

  def _put_away(self, moments):
    """Moments in the memory where they wait for the next update."""
    return sharding.to_host_memory(moments) if self.moments == 'host' else moments


def _wide(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _add(a, b):
  return jax.tree.map(jnp.add, a, b)


def _joined(parts):
  """Trees of `[p, ...]` as one: prompts end to end, every other axis filled with 0."""

  def join(*arrays):
    shape = [max(sizes) for sizes in zip(*(x.shape[1:] for x in arrays), strict=True)]
    filled = [
      jnp.pad(
        x, [(0, 0), *((0, n - m) for n, m in zip(shape, x.shape[1:], strict=True))]
      )
      for x in arrays
    ]
    return jnp.concatenate(filled)

  return jax.tree.map(join, *parts)


def _values(means: Mapping[str, Mean]) -> dict[str, Any]:
  return {name: mean.value() for name, mean in sorted(means.items())}
