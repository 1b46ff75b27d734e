"""Implicit process rewards: the log-ratios of an outcome reward model, step by step.

q_t = sum_{i <= t} beta log pi(y_i | y_<i) / pi_ref(y_i | y_<i) equals beta log
E_ref[exp(r / beta) | y_<=t] (Implicit PRM, arXiv:2412.01981, Proposition 3.1), so that
a step's reward is what it adds, and no step was ever labelled.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prefjax.errors import InputError
from prefjax.objectives.links import Scalar

Steps = Float[Array, '*b s']
Present = Bool[Array, '*b s']


def step_rewards(
  log_ratios: Float[Array, '*b t'],
  step: Int[Array, '*b t'],
  *,
  beta: Scalar,
  num_steps: int,
) -> tuple[Steps, Present]:
  """r_s = beta times the sum of log pi / pi_ref over the tokens of step s, nats.

  Implicit PRM (arXiv:2412.01981), Eq. 3. `step` is -1 outside, where log-ratios may
  hold anything. Also says which steps have a token.
  """
  members = step[..., None] == jnp.arange(num_steps).reshape(
    (1,) * step.ndim + (num_steps,)
  )
  sums = jnp.sum(jnp.where(members, log_ratios[..., None], 0.0), axis=-2)
  return beta * sums, members.any(axis=-2)


def values(rewards: Steps) -> Steps:
  """q_s: the rewards of the steps so far; the last is the outcome reward."""
  return jnp.cumsum(rewards, axis=-1)


def aggregate(rewards: Steps, present: Present, how: str) -> Float[Array, '*b']:
  """One number of a response's steps, for best-of-N: `min`, `sum`, `mean` or `last`.

  0 for a response without a step. The paper takes `min`.

  Raises:
    InputError: another aggregation.
  """
  some = present.any(axis=-1)
  count = jnp.maximum(present.sum(axis=-1), 1)
  total = jnp.sum(rewards, axis=-1, where=present)
  if how == 'sum':
    return total
  if how == 'mean':
    return total / count
  if how == 'min':
    return jnp.where(
      some, jnp.min(rewards, axis=-1, where=present, initial=jnp.inf), 0.0
    )
  if how == 'last':
    order = jnp.where(present, jnp.arange(rewards.shape[-1]), -1)
    last = jnp.maximum(order.max(axis=-1), 0)
    picked = jnp.take_along_axis(rewards, last[..., None], axis=-1)[..., 0]
    return jnp.where(some, picked, 0.0)
  raise InputError(f'Unknown aggregation {how!r}; known are min, sum, mean and last.')


def hard_labels(outcomes: Float[Array, '*b n'], drawn: Bool[Array, '*b n']) -> Array:
  """Max over the continuations of a step: 1 if any of them ended right.

  Math-Shepherd (arXiv:2312.08935), hard estimation. 0 where none was drawn.
  """
  return jnp.max(outcomes, axis=-1, where=drawn, initial=0.0)


def soft_labels(outcomes: Float[Array, '*b n'], drawn: Bool[Array, '*b n']) -> Array:
  """The share of a step's continuations that ended right.

  Math-Shepherd (arXiv:2312.08935), soft estimation. 0 where none was drawn.
  """
  count = jnp.maximum(drawn.sum(axis=-1), 1)
  return jnp.sum(outcomes, axis=-1, where=drawn) / count


def best_of_n(
  scores: Float[Array, '*b n'],
  correct: Float[Array, '*b n'],
  present: Bool[Array, '*b n'],
) -> Float[Array, '*b']:
  """Whether the response with the greatest score is right; the first of equals.

  0 where there is none.
  """
  best = jnp.argmax(jnp.where(present, scores, -jnp.inf), axis=-1)
  picked = jnp.take_along_axis(correct, best[..., None], axis=-1)[..., 0]
  return jnp.where(present.any(axis=-1), picked, 0.0)
