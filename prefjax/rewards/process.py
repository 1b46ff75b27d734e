"""Process rewards: what each step of a response earns, by an implicit reward model.

The implicit rewards of `prefjax.objectives.process` become step rewards, scores of
whole responses, or rewards on the last token of each step, as the process supervision
of an on-policy objective reads them. Where the steps are says `prefjax.rewards.steps`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prefjax.errors import InputError
from prefjax.objectives import process
from prefjax.objectives.advantages import step_ends
from prefjax.objectives.links import Scalar

FORMS = ('single', 'accumulated')


def implicit_rewards(
  logps: Float[Array, '*b t'],
  reference_logps: Float[Array, '*b t'] | None,
  step: Int[Array, '*b t'],
  *,
  beta: Scalar,
  num_steps: int,
) -> tuple[Float[Array, '*b s'], Bool[Array, '*b s']]:
  """r_s = beta log pi / pi_ref summed over a step, nats; and which steps there are.

  Implicit PRM (arXiv:2412.01981), Eq. 3; without a reference, of log pi alone (its
  Table 5).
  """
  ratios = logps if reference_logps is None else logps - reference_logps
  return process.step_rewards(ratios, step, beta=beta, num_steps=num_steps)


def response_scores(
  rewards: Float[Array, '*b s'],
  present: Bool[Array, '*b s'],
  *,
  form: str,
  how: str,
) -> Float[Array, '*b']:
  """One number a response, from its step rewards.

  Args:
    form: `single` rewards, or `accumulated` ones: the values q_s.
    how: `min`, `sum`, `mean` or `last` of them.

  Raises:
    InputError: another form or aggregation.
  """
  if form not in FORMS:
    raise InputError(f'Unknown form of step rewards {form!r}; known are {FORMS}.')
  found = process.values(rewards) if form == 'accumulated' else rewards
  return process.aggregate(found, present, how)


def on_last_tokens(
  rewards: Float[Array, 'p k s'], step: Int[Array, 'p k t']
) -> Float[Array, 'p k t']:
  """Each step's reward on the last token of the step, 0 elsewhere: `batch.rewards`."""
  at = jnp.clip(step, 0, rewards.shape[-1] - 1)
  picked = jnp.take_along_axis(rewards, at, axis=-1)
  return jnp.where(step_ends(step), picked, 0.0)
