"""Losses of binary segmentation, against float64 NumPy and by their properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.training.losses import LOSSES


def reference(name, logits, targets):
    """The printed formulas, in float64; `np.logaddexp` is the stable logarithm of 1 + exp."""
    x, t = np.asarray(logits, np.float64)[..., 0], np.asarray(targets, np.float64)
    p = np.exp(-np.logaddexp(0, -x))
    if name == "bce_dice":
        cross_entropy = np.mean(t * np.logaddexp(0, -x) + (1 - t) * np.logaddexp(0, x))
        return cross_entropy + 1 - (2 * np.sum(p * t) + 1) / (np.sum(p) + np.sum(t) + 1)
    true, false_positive, false_negative = np.sum(p * t), np.sum(p * (1 - t)), np.sum((1 - p) * t)
    index = (true + 1) / (true + 0.3 * false_positive + 0.7 * false_negative + 1)
    return 1 - index


def numerical_gradient(name, logits, targets, step=1e-5):
    gradient = np.zeros_like(logits, np.float64)
    for index in np.ndindex(logits.shape):
        shift = np.zeros_like(gradient)
        shift[index] = step
        above, below = (reference(name, logits + sign * shift, targets) for sign in (1, -1))
        gradient[index] = (above - below) / (2 * step)
    return gradient


@pytest.mark.parametrize("name", LOSSES)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.1, 1.0, 10.0]), share=st.floats(0, 1))
def test_equals_the_formula_in_float64(name, seed, scale, share):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=scale, size=(2, 5, 3, 1)).astype(np.float32)
    targets = (rng.random((2, 5, 3)) < share).astype(np.uint8)
    assert float(LOSSES[name](logits, targets)) == pytest.approx(
        reference(name, logits, targets), rel=2e-6, abs=1e-9
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_gradient_equals_differences_in_float64(name, share):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 4, 3, 1)).astype(np.float32)
    targets = (rng.random((2, 4, 3)) < share).astype(np.uint8)
    gradient = jax.jit(jax.grad(LOSSES[name]))(logits, targets)
    np.testing.assert_allclose(gradient, numerical_gradient(name, logits, targets), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("magnitude", [0.0, 90.0, 1e4])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_certain_logits_and_empty_masks_stay_finite(name, magnitude, dtype):
    shape = (2, 64, 64)
    loss_and_gradient = jax.jit(jax.value_and_grad(LOSSES[name]))
    checker = np.indices(shape).sum(axis=0) % 2
    for targets in (np.zeros(shape), np.ones(shape), checker):
        # All right, all wrong, all object, none.
        for sign in (2 * targets - 1, 1 - 2 * targets, np.ones(shape), -np.ones(shape)):
            logits = jnp.asarray(magnitude * sign[..., None], dtype)
            loss, gradient = loss_and_gradient(logits, targets.astype(np.uint8))
            assert loss.dtype == jnp.float32
            assert np.isfinite(loss)
            assert np.isfinite(gradient.astype(jnp.float32)).all()
            assert 0 <= loss <= magnitude + 2


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_perfect_is_zero_and_every_step_towards_the_target_lowers_it(name, share):
    targets = (np.random.default_rng(2).random((2, 8, 8)) < share).astype(np.uint8)
    right = (2.0 * targets[..., None] - 1).astype(np.float32)
    losses = [float(LOSSES[name](strength * right, targets)) for strength in (-50, -3, 0, 3, 50)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-6
    assert losses[0] > 0.9


def test_missing_a_pixel_costs_more_than_inventing_one():
    targets = np.zeros((1, 8, 8), np.uint8)
    targets[0, 2:6, 2:6] = 1
    invented, missed = targets.copy(), targets.copy()
    invented[0, 6, 6], missed[0, 2, 2] = 1, 0
    losses = [LOSSES["tversky"](100 * (2.0 * m[..., None] - 1), targets) for m in (invented, missed)]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("name", LOSSES)
def test_the_whole_batch_counts_whatever_its_order(name):
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(4, 6, 6, 1)).astype(np.float32)
    targets = rng.random((4, 6, 6)) < 0.3
    expected = float(LOSSES[name](logits, targets))
    assert LOSSES[name](logits[::-1], targets[::-1]) == pytest.approx(expected, rel=1e-6)
    by_slice = np.mean([LOSSES[name](logits[i : i + 1], targets[i : i + 1]) for i in range(4)])
    assert abs(by_slice - expected) > 1e-4


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 4, 4, 2), (2, 4, 5, 1), (1, 4, 4, 1)])
def test_shapes_that_would_broadcast_are_refused(shape):
    with pytest.raises(ValueError, match=r"logits must have the shape.*\(2, 4, 4, 1\)"):
        LOSSES["bce_dice"](jnp.zeros(shape), np.zeros((2, 4, 4), np.uint8))
