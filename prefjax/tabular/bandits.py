"""The bandits of the IPO paper: what a loss makes of pairs that say little.

Three actions, no context, a uniform reference: the policy is softmax(theta), and the
margin of a pair is theta_w - theta_l. IPO (arXiv:2310.12036), Section 5.4.
"""

from collections.abc import Callable, Sequence
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import optax

Margin = Float[Array, '*b']
# tau -> (margin of log-ratios -> loss): DPO and IPO differ in nothing else.
LinkOf = Callable[[Float[Array, '']], Callable[[Margin], Margin]]

TOTAL_ORDER = ((0, 1), (1, 2), (0, 2))  # the paper's D1: a > b, b > c, a > c
UNSEEN_ACTION = ((0, 1), (1, 0))  # a and b beat each other, c is never seen


def train(
  pairs: Sequence[tuple[int, int]],
  link_of: LinkOf,
  taus: Sequence[float],
  *,
  seeds: int = 10,
  steps: int = 18_000,
  batch_size: int = 9,
  learning_rate: float = 0.01,
  record_every: int = 100,
) -> Float[Array, 'taus seeds records 3']:
  """The policies on the way, from theta = 0: every tau and every seed at once.

  Each step draws `batch_size` pairs with replacement and takes one step of Adam on the
  mean of link(theta_w - theta_l). The first record is the reference.
  """
  keys = jax.random.split(jax.random.key(0), seeds)
  run = functools.partial(
    _train,
    jnp.asarray(pairs),
    link_of,
    steps // record_every,
    record_every,
    batch_size,
    learning_rate,
  )
  over_seeds = jax.vmap(run, in_axes=(None, 0))
  return jax.jit(jax.vmap(over_seeds, in_axes=(0, None)))(jnp.asarray(taus), keys)


def _train(pairs, link_of, records, between, batch_size, learning_rate, tau, key):
  optimizer = optax.adam(learning_rate)
  link = link_of(tau)

  def loss(theta, batch):
    return jnp.mean(link(theta[batch[:, 0]] - theta[batch[:, 1]]))

  def step(state, key):
    theta, inner = state
    drawn = jax.random.randint(key, (batch_size,), 0, len(pairs))
    updates, inner = optimizer.update(jax.grad(loss)(theta, pairs[drawn]), inner)
    return (optax.apply_updates(theta, updates), inner), None

  def block(state, key):
    state, _ = jax.lax.scan(step, state, jax.random.split(key, between))
    return state, jax.nn.softmax(state[0])

  theta = jnp.zeros(3)
  start = (theta, optimizer.init(theta))
  _, policies = jax.lax.scan(block, start, jax.random.split(key, records))
  return jnp.concatenate([jax.nn.softmax(theta)[None], policies])
