"""Where gradient descent ends behind a transformation: on a convex quadratic, whose minima NumPy finds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_gradnorm

SIZES = (12, 8)  # weights of the two layers
STEPS = 20_000

_random = np.random.default_rng(0)
_root = _random.normal(size=(40, sum(SIZES)))
HESSIAN = _root.T @ _root / 40
SMOOTHNESS = np.linalg.eigvalsh(HESSIAN)[-1]
MINIMUM = _random.normal(size=sum(SIZES))
START = _random.normal(size=sum(SIZES))


def loss(params):
    x = jnp.concatenate([params["first"].ravel(), params["second"].ravel()]) - jnp.asarray(
        MINIMUM, jnp.float32
    )
    return 0.5 * x @ jnp.asarray(HESSIAN, jnp.float32) @ x


def descend(transformation, rate):
    """The losses of all steps, and the weights after the last, as one float64 vector."""
    optimizer = optax.chain(transformation, optax.sgd(rate))
    first, second = np.split(START.astype(np.float32), [SIZES[0]])
    params = {"first": jnp.asarray(first.reshape(3, 4)), "second": jnp.asarray(second.reshape(2, 4))}

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    run = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS))
    (params, _), losses = run(params)
    weights = np.concatenate([np.ravel(params[name]) for name in ("first", "second")])
    return np.asarray(losses, np.float64), weights.astype(np.float64)


def minimum_with_means_kept():
    """The minimum over all weights whose mean in every layer is that of the start."""
    means = np.zeros((2, sum(SIZES)))
    means[0, : SIZES[0]] = 1 / SIZES[0]
    means[1, SIZES[0] :] = 1 / SIZES[1]
    system = np.block([[HESSIAN, means.T], [means, np.zeros((2, 2))]])
    return np.linalg.solve(system, np.concatenate([HESSIAN @ MINIMUM, means @ START]))[: sum(SIZES)]


@pytest.mark.parametrize("share", [1.0, 1.9])  # of 1 / SMOOTHNESS; gradient descent alone descends below 2
def test_gan_keeps_descending_to_the_minimum_with_the_layers_means_kept(share):
    losses, weights = descend(optax_gradnorm.gan(), share / SMOOTHNESS)
    assert np.all(np.diff(losses) <= 1e-6 * losses[0])
    np.testing.assert_allclose(weights, minimum_with_means_kept(), atol=2e-3)
    assert np.abs(minimum_with_means_kept() - MINIMUM).max() > 0.1  # so that the two minima are told apart


def test_znorm_does_not_settle_at_a_constant_rate():
    rate = 0.3 / SMOOTHNESS
    losses, _ = descend(optax_gradnorm.znorm(), rate)
    assert losses[-100:].max() > 1e-2 * losses[0]
