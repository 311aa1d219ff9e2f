"""What must hold for every gradient: invariances, descent, and the range of GAN's multiplier."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import optax_gradnorm

from . import reference
from .tables import first_update

# Multiples of 1/8 add exactly, so that a shift is a shift and not a rounding.
SHAPE = (4, 6)
layers = hnp.arrays(np.float32, SHAPE, elements=st.integers(-800, 800).map(lambda n: n / 8))
varied = layers.filter(lambda layer: np.ptp(layer) > 0)
shifts = st.integers(-800, 800).map(lambda n: np.float32(n / 8))
scales = st.floats(2.0**-90, 2.0**90, width=32)
any_layers = hnp.arrays(
    np.float32, SHAPE, elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
)


ZNORM = first_update(optax_gradnorm.znorm, eps=0.0)
ZNORM_EPS = first_update(optax_gradnorm.znorm)
GAN = first_update(optax_gradnorm.gan)
GAN_STEP = jax.jit(optax_gradnorm.gan().update)
CENTRALIZE = first_update(optax_gradnorm.centralize)
AUTOSCALE = jax.jit(optax_gradnorm.default_autoscale)


@given(layers, scales)
def test_znorm_does_not_depend_on_scale(layer, scale):
    assert np.abs(np.asarray(ZNORM(layer * scale)[0]) - np.asarray(ZNORM(layer)[0])).max() <= 1e-5


@given(layers, shifts)
def test_znorm_does_not_depend_on_shift(layer, shift):
    assert np.abs(np.asarray(ZNORM(layer + shift)[0]) - np.asarray(ZNORM(layer)[0])).max() <= 1e-4


@given(layers)
def test_znorm_is_odd(layer):
    assert np.abs(np.asarray(ZNORM(-layer)[0]) + np.asarray(ZNORM(layer)[0])).max() <= 2e-6


@given(any_layers)
def test_znorm_meets_the_formula(layer):
    # Subnormal results are flushed; elsewhere the bound of 1e3 deviations is that of the contract.
    expected = reference.znorm(layer)
    assume(abs(reference.exact(layer).mean()) <= 1e3 * reference.std(layer))
    assert reference.error(ZNORM_EPS(layer)[0], expected) <= 2e-4


@given(varied)
def test_znorm_has_zero_mean_and_unit_deviation(layer):
    update = reference.exact(ZNORM(layer)[0])
    assert abs(update.mean()) <= 1e-6
    assert abs(update.std() - 1) <= 2e-6


@given(any_layers)
def test_zero_mean(layer):
    for transform in (ZNORM_EPS, GAN, CENTRALIZE):
        update = reference.exact(transform(layer)[0])
        assert abs(update.mean()) <= 1e-6 * max(np.abs(update).max(), 1e-30)


@given(any_layers)
def test_descent(layer):
    """No update points up the gradient: <g, u> >= 0, to the rounding of a product of sums."""
    for transform in (ZNORM_EPS, GAN, CENTRALIZE):
        update, gradient = reference.exact(transform(layer)[0]), reference.exact(layer)
        slack = 1e-6 * np.abs(gradient).max() * np.abs(update).max() * gradient.size
        assert np.sum(gradient * update) >= -slack


@given(any_layers, st.randoms(use_true_random=False))
def test_order_of_elements(layer, random):
    order = list(range(layer.size))
    random.shuffle(order)
    shuffled = layer.ravel()[order].reshape(SHAPE)
    for transform in (ZNORM_EPS, GAN):
        update, moved = (reference.exact(transform(g)[0]) for g in (layer, shuffled))
        difference = np.abs(update.ravel()[order] - moved.ravel()).max()
        assert difference <= 1e-5 * max(np.abs(update).max(), 1e-30)


@given(st.lists(layers, min_size=3, max_size=3), st.permutations(range(3)))
def test_order_of_leaves(leaves, order):
    for transform in (ZNORM_EPS, GAN):
        updates, state = transform(leaves)
        moved, moved_state = transform([leaves[i] for i in order])
        for u, i in zip(moved, order, strict=True):
            assert np.abs(np.asarray(u) - np.asarray(updates[i])).max() <= 2e-5
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(moved_state), strict=True):
            assert abs(float(a) - float(b)) <= 1e-6 * max(1, abs(float(a)))


@given(
    hnp.arrays(np.float32, SHAPE, elements=st.floats(-(2.0**127), 2.0**127, width=32)).map(lambda a: a[:1])
)
def test_one_unit_repeated_gives_zero(row):
    """Equal rows are constant units for centralize: exactly 0, whatever the number."""
    layer = np.repeat(row, 37, axis=0)
    update = CENTRALIZE(layer)[0]
    assert not np.any(np.asarray(update))


# What float32 holds without becoming subnormal, quotients included.
sigmas = st.floats(-37, 37).map(lambda exponent: np.float32(10.0**exponent))


@given(sigmas, sigmas)
@example(np.float32(1e-37), np.float32(1e-37))
@example(np.float32(1e37), np.float32(1e37))
@example(np.float32(1e37), np.float32(1e-37))
def test_multiplier_lies_between_zero_and_one(sigma, first_sigma):
    scale = float(AUTOSCALE(sigma, first_sigma))
    assert 0 < scale < 1
    expected = reference.autoscale(np.float64(sigma), np.float64(first_sigma))
    assert abs(scale / expected - 1) <= 1e-5


@given(sigmas, sigmas, sigmas)
def test_multiplier_grows_with_sigma(first_sigma, sigma, other):
    low, high = sorted((sigma, other))
    assert float(AUTOSCALE(low, first_sigma)) <= float(AUTOSCALE(high, first_sigma))
    # Strictly, where float32 can tell.
    if high <= 1e3 and low <= 0.9 * high:
        assert float(AUTOSCALE(low, first_sigma)) < float(AUTOSCALE(high, first_sigma))


@given(sigmas)
@example(np.float32(1e-37))
@example(np.float32(1e37))
def test_first_multiplier_exceeds_one_over_e(sigma):
    assert float(AUTOSCALE(sigma, sigma)) > 1 / math.e


@given(varied, st.integers(-36, 34))
def test_first_multiplier_of_a_layer(layer, exponent):
    _, state = GAN(jnp.asarray(layer * np.float32(10.0**exponent)))
    assert 1 / math.e < float(state.multiplier) < 1
    assert float(state.sigma) == float(state.first_sigma) > 0


@given(varied, st.floats(1e-4, 0.9))
def test_smaller_gradients_get_smaller_steps(layer, factor):
    """GAN never amplifies: the update shrinks faster than the gradient."""
    _, state = GAN(layer)
    first, _ = GAN_STEP(layer, state)
    second, later = GAN_STEP(layer * np.float32(factor), state)
    assert float(later.multiplier) < float(state.multiplier)
    assert np.abs(second).max() <= factor * np.abs(first).max() * (1 + 1e-5)
    assert np.abs(first).max() < np.abs(layer - layer.mean()).max() * (1 + 1e-6)
