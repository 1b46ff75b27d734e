"""KL estimates by hand, and by enumeration of a policy's expected gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.objectives import divergences as dv

N = 6


@pytest.mark.parametrize(
  ('name', 'd', 'value', 'slope'),
  [
    ('k1', 0.5, 0.5, 1.0),
    ('k2', 0.5, 0.125, 0.5),
    ('k3', 0.5, 0.10653066, 0.39346934),  # e^-0.5 - 0.5 and 1 - e^-0.5
    ('k3_as_k2', 0.5, 0.10653066, 0.5),
    ('k3', -0.5, 0.14872127, -0.64872127),
    *((name, 0.0, 0.0, float(name == 'k1')) for name in dv.DIVERGENCES),
  ],
)
def test_by_hand(x64, name, d, value, slope):
  got = jax.value_and_grad(dv.DIVERGENCES[name])(jnp.asarray(d))
  np.testing.assert_allclose(got, (value, slope), atol=1e-8)


@pytest.mark.parametrize('d', [-1e4, -30.0, 30.0, 1e4])
@pytest.mark.parametrize('name', dv.DIVERGENCES)
def test_float32_is_finite(name, d):
  value, slope = jax.value_and_grad(dv.DIVERGENCES[name])(jnp.float32(d))
  assert np.isfinite(value)
  assert np.isfinite(slope)


@pytest.fixture(params=range(3))
def policies(request, x64):
  rng = np.random.default_rng(request.param)
  return jnp.asarray(rng.normal(size=N)), jnp.asarray(rng.normal(size=N))


def kl(p, q):
  return jnp.sum(jnp.exp(p) * (p - q))


def expected(name, theta, reference):
  """(value, gradient) expected under samples of pi, which are held fixed."""
  sampled = jax.nn.softmax(theta)

  def loss(theta):
    d = jax.nn.log_softmax(theta) - jax.nn.log_softmax(reference)
    return jnp.sum(sampled * dv.DIVERGENCES[name](d))

  return jax.value_and_grad(loss)(theta)


def reverse(theta, reference):
  return kl(jax.nn.log_softmax(theta), jax.nn.log_softmax(reference))


def forward(theta, reference):
  return reverse(reference, theta)


@pytest.mark.parametrize(
  ('name', 'objective'),
  [('k2', reverse), ('k3', forward), ('k3_as_k2', reverse)],
)
def test_the_expected_gradient_is_that_of_a_kl(policies, name, objective):
  _, gradient = expected(name, *policies)
  np.testing.assert_allclose(gradient, jax.grad(objective)(*policies), atol=1e-12)
  other = reverse if objective is forward else forward
  assert not np.allclose(gradient, jax.grad(other)(*policies), atol=1e-3)


def test_k1_in_a_loss_teaches_nothing(policies):
  _, gradient = expected('k1', *policies)
  np.testing.assert_allclose(gradient, 0.0, atol=1e-14)
  # In the reward it teaches what is wanted: E[k1 grad log pi] = grad KL(pi || ref).
  theta, reference = policies
  d = jax.nn.log_softmax(theta) - jax.nn.log_softmax(reference)

  def surrogate(theta):
    return jnp.sum(jax.nn.softmax(policies[0]) * d * jax.nn.log_softmax(theta))

  wanted = jax.grad(reverse)(*policies)
  np.testing.assert_allclose(jax.grad(surrogate)(theta), wanted, atol=1e-12)


def test_what_is_unbiased(policies):
  exact = reverse(*policies)
  for name in ('k1', 'k3', 'k3_as_k2'):
    np.testing.assert_allclose(expected(name, *policies)[0], exact, atol=1e-12)
  assert abs(expected('k2', *policies)[0] - exact) > 1e-3


def test_k3_is_never_negative_and_varies_less_than_k1_near_the_reference(policies):
  theta, reference = policies
  near = jax.nn.log_softmax(reference + 0.1 * theta)
  d = near - jax.nn.log_softmax(reference)
  p = jnp.exp(near)

  def variance(x):
    return jnp.sum(p * jnp.square(x)) - jnp.square(jnp.sum(p * x))

  assert np.all(np.asarray(dv.k3(d)) >= 0.0)
  assert variance(dv.k3(d)) < 0.1 * variance(dv.k1(d))
