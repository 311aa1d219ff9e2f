"""Derivatives through an update, as learned optimizers take them: at every scale, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_gradnorm

from . import reference
from .tables import each_normalizer


def znorm(layer):
    return (layer - layer.mean()) / (layer.std() + 1e-10)


def gan(layer):
    sigma = layer.std()
    phi = sigma / (1 + sigma)
    return phi ** (1 / (1 - jnp.log(phi))) * (layer - layer.mean())


def centralize(layer):
    return layer - layer.mean(0, keepdims=True)


FORMULAS = {"znorm": znorm, "gan": gan, "centralize": centralize}
VALUES = np.random.default_rng(0).standard_normal((3, 4)) + 0.5
WEIGHTS = np.random.default_rng(1).standard_normal((3, 4))


@each_normalizer
def test_derivatives_at_every_scale(factory):
    transformation = factory()

    def weighted(function):
        return jax.jit(jax.grad(lambda layer: jnp.sum(jnp.asarray(WEIGHTS, layer.dtype) * function(layer))))

    found = weighted(lambda layer: transformation.update(layer, transformation.init(layer))[0])
    wanted = weighted(FORMULAS[factory.__name__])
    for exponent in range(-30, 19):
        layer = np.float32(VALUES * 10.0**exponent)
        with reference.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            expected = np.asarray(wanted(jnp.asarray(layer, jnp.float64)))
        error = np.abs(np.asarray(found(jnp.asarray(layer)), np.float64) - expected)
        assert error.max() <= 1e-5 * np.abs(expected).max(), exponent


@pytest.mark.parametrize("argument", [0, 1], ids=["sigma", "first_sigma"])
def test_derivatives_of_the_multiplier(argument):
    """Finite wherever the derivative itself is."""
    found = jax.jit(jax.grad(optax_gradnorm.default_autoscale, argument))
    wanted = jax.jit(jax.grad(lambda *sigmas: _autoscale(*sigmas), argument))
    for exponent, first_exponent in [(k, j) for k in range(-36, 19, 3) for j in (-36, -18, 0, 18)]:
        sigmas = np.float32(10.0**exponent), np.float32(10.0**first_exponent)
        with reference.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            expected = float(wanted(*map(jnp.float64, sigmas)))
            # Next to 1 the multiplier is held at the last number below it.
            is_held = _autoscale(*map(jnp.float64, sigmas)) > 1 - 1e-6
        result = float(found(*map(jnp.float32, sigmas)))
        assert np.isfinite(result)
        if 1e-36 < abs(expected) < 1e36 and not is_held:
            assert result == pytest.approx(expected, rel=1e-4)


def _autoscale(sigma, first_sigma):
    """The definition, in a form that float64 differentiates exactly enough."""
    return jnp.exp(-jnp.log1p(1 / sigma) / (1 + jnp.log1p(1 / first_sigma)))
