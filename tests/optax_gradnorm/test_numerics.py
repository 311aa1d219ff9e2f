"""Accuracy against float64 NumPy: every dtype, scale and size, and awkward distributions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_gradnorm

from . import reference
from .tables import each_normalizer, gaussian, shared_first_update


def assert_accurate(factory, layers, bound):
    """Every element of the first updates meets the formula, in the dtype of its layer.

    The bound is relative to the element, or to the deviation of the whole update if that is larger. In half
    precision one unit in the last place is allowed; elements next to the mean are small by cancellation, and
    so is their unit: there the bound is the larger of the two.
    """
    updates, _ = shared_first_update(factory, mask=True)(layers)
    for update, layer, expected in zip(
        updates, layers, reference.first_updates(factory.__name__, layers), strict=True
    ):
        assert (update.dtype, update.shape) == (layer.dtype, layer.shape)
        allowed = bound * np.maximum(reference.std(expected), np.abs(expected))
        if update.dtype in (jnp.float16, jnp.bfloat16):
            allowed = np.maximum(allowed, reference.ulp(expected, update.dtype))
        assert np.max(np.abs(reference.exact(update) - expected) / allowed) <= 1, layer.shape


def standard(shape, mean, seed):
    """Real numbers of exactly this mean and the deviation 1."""
    values = np.random.default_rng(seed).standard_normal(shape)
    values -= values.mean()
    values /= values.std()
    return values + mean


class Case(NamedTuple):
    """Layers of these shapes in one tree, once for every scale and seed, and the bound of their error."""

    dtype: Any
    mean: float = 0.5  # in units of the deviation
    shapes: Sequence[tuple[int, ...]] = ((100, 100),)
    scales: Sequence[float] = (1.0,)
    seeds: int = 1
    bound: float = 2e-6


POWERS = [10.0**k for k in range(-31, 38)]
# Of the largest element: from the smallest subnormal number to the end of the range.
FLOAT16 = [6e-8, 3e-7, 1e-6, 1e-5, 1e-4, 1e-2, 1.0, 1e2, 1e4, 6e4]
FLOAT16 = [largest / np.abs(standard((100, 100), 0.5, 0)).max() for largest in FLOAT16]
FLOAT64 = [1e-290, 1e-31, 1.0, 1e37, 1e290]
# XLA adds up to about a thousand elements one after the other: the hardest case for a sum.
SMALL = [(1, 2), (2, 1), (1, 3), (2, 2), (1, 1000), (1000, 1), (13, 77), (30, 30), (32, 32), (3, 5, 7)]
SMALL += [(3, 3, 16, 64)]
CASES = {
    "no mean": Case(jnp.float32, mean=0.0, seeds=3),
    "mean": Case(jnp.float32, mean=1.0, seeds=3),
    "far from zero": Case(jnp.float32, mean=-1e3, seeds=3, bound=2e-4),
    "every scale": Case(jnp.float32, scales=POWERS),
    "bfloat16": Case(jnp.bfloat16, scales=POWERS),
    "bfloat16 far from zero": Case(jnp.bfloat16, mean=1e3, bound=2e-4),
    "float16": Case(jnp.float16, scales=FLOAT16),
    "float16 far from zero": Case(jnp.float16, mean=1e3, bound=2e-4),
    "complex64": Case(jnp.complex64, shapes=[(50, 100)], scales=POWERS[::4]),
    "float64": Case(jnp.float64, scales=FLOAT64, bound=1e-12),
    "float64 far from zero": Case(jnp.float64, mean=1e3, scales=FLOAT64, bound=1e-12),
    "complex128": Case(jnp.complex128, mean=0.0, shapes=[(30, 30)], bound=1e-12),
    "small": Case(jnp.float32, mean=1.0, shapes=SMALL),
    "small, far from zero": Case(jnp.float32, mean=1e3, shapes=SMALL, bound=2e-4),
    "five axes": Case(jnp.float32, mean=1.0, shapes=[(10,) * 5]),
    "five axes, far from zero": Case(jnp.float32, mean=1e3, shapes=[(10,) * 5], bound=2e-4),
    "ten million": Case(jnp.float32, mean=1.0, shapes=[(2500, 4000)]),
    "ten million, far from zero": Case(jnp.float32, mean=1e3, shapes=[(2500, 4000)], bound=2e-4),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@each_normalizer
def test_accuracy(factory, case):
    bound = case.bound
    # Up to jax 0.9, XLA on CPU added all elements of five axes one after the other; `centralize` leaves four axes.
    if case is CASES["five axes"] and factory is not optax_gradnorm.centralize:
        bound = 2e-6 if jax.__version_info__ >= (0, 10) else 2e-5
    with reference.enable_x64(jnp.finfo(case.dtype).bits == 64):
        for seed in range(case.seeds):
            values = [standard(shape, case.mean, seed) for shape in case.shapes]
            if jnp.issubdtype(case.dtype, jnp.complexfloating):
                values = [g + 1j * standard(g.shape, 0.0, seed + 1) for g in values]
            for scale in case.scales:
                assert_accurate(factory, [jnp.asarray(g * scale, case.dtype) for g in values], bound)


def test_complex_layer_with_a_constant_part():
    """The other part varies by 1e-20 of it: the deviation is that part's."""
    imaginary = standard((30, 30), 0.0, 0)
    layer = jnp.asarray(1.0 + 1e-20j * imaginary, jnp.complex64)
    expected = 1j * (imaginary - imaginary.mean()) / imaginary.std()
    update, _ = shared_first_update(optax_gradnorm.znorm, eps=0.0)(layer)
    assert reference.error(update, expected) <= 2e-6


def test_gan_state_follows_the_widest_layer():
    with reference.enable_x64(True):
        gan = optax_gradnorm.gan()
        single = {"a": jnp.ones((2, 2), jnp.float32), "bias": jnp.ones(2, jnp.float64)}
        double = {"a": jnp.ones((2, 2), jnp.float32), "b": jnp.ones((2, 2), jnp.float64)}
        assert {x.dtype for x in gan.init(single)} == {jnp.dtype(jnp.float32)}
        assert {x.dtype for x in gan.init(double)} == {jnp.dtype(jnp.float64)}
        grads = {"a": gaussian(9, 9), "b": gaussian(7, 7, dtype=jnp.float64)}
        updates, state = jax.jit(gan.update)(grads, gan.init(grads))
        assert {x.dtype for x in state} == {jnp.dtype(jnp.float64)}
        assert {k: u.dtype for k, u in updates.items()} == {k: g.dtype for k, g in grads.items()}
        assert reference.error(updates["b"], reference.gan([grads["a"], grads["b"]])[1]) <= 1e-7


def heavy_tailed():
    return np.random.default_rng(2).standard_cauchy((200, 500))


def mostly_zero():
    generator = np.random.default_rng(3)
    return generator.standard_normal((200, 500)) * (generator.random((200, 500)) < 0.01)


def one_spike():
    values = np.zeros((200, 500))
    values[17, 19] = 3.0
    return values


@each_normalizer
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("distribution", [heavy_tailed, mostly_zero, one_spike])
def test_awkward_distributions(factory, distribution, dtype):
    for scale in (1e-30, 1.0, 1e30):
        assert_accurate(factory, [jnp.asarray(distribution() * scale, dtype)], 2e-6)


@pytest.mark.parametrize(
    ("dtype", "scales", "bound"),
    [
        (jnp.float32, POWERS, 2e-6),
        (jnp.bfloat16, POWERS, 1e-3),
        (jnp.float16, [6e-8, 1e-7, 1e-6, 1e-4, 1.0, 1e2, 1e4], 2e-4),
    ],
    ids=["float32", "bfloat16", "float16"],
)
def test_znorm_without_eps_has_unit_deviation_at_every_scale(dtype, scales, bound):
    for scale in scales:
        update, _ = shared_first_update(optax_gradnorm.znorm, eps=0.0)(
            gaussian(100, 100, scale=scale, dtype=dtype)
        )
        assert abs(reference.std(update) - 1) <= bound, scale


def test_znorm_with_large_eps():
    layer = gaussian(50, 50)
    for eps in (1e-3, 1, 1e4, np.float32(0.5)):
        znorm = optax_gradnorm.znorm(eps)
        expected = reference.znorm(layer, eps=float(eps))
        assert reference.error(znorm.update(layer, znorm.init(layer))[0], expected, expected.std()) <= 2e-6


@each_normalizer
def test_sum_of_one_sign_at_the_top_of_the_range(factory):
    """No partial sum overflows: 1e4 elements near float32's largest number."""
    layer = jnp.asarray(np.linspace(1.0, 3.4, 10_000).reshape(100, 100) * 1e38, jnp.float32)
    (expected,) = reference.first_updates(factory.__name__, [layer])
    update = reference.exact(shared_first_update(factory)(layer)[0])
    assert np.max(np.abs(update - expected)) <= 1e-5 * reference.std(expected)


@pytest.mark.parametrize("feature_axis", [0, 1, 2, -1, -3])
def test_centralize_keeps_the_chosen_axis(feature_axis):
    centralize = optax_gradnorm.centralize(feature_axis=feature_axis)
    layer = gaussian(4, 5, 6, mean=0.5)
    update, _ = centralize.update(layer, centralize.init(layer))
    assert reference.error(update, reference.centralize(layer, feature_axis)) <= 2e-6
    axes = tuple(axis for axis in range(3) if axis != feature_axis % 3)
    assert np.abs(reference.exact(update).mean(axes)).max() <= 1e-6


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gan_over_layers_of_very_different_scale(dtype):
    grads = {
        f"1e{k}": gaussian(20 + i, 30, mean=0.5, scale=10.0**k, seed=i, dtype=dtype)
        for i, k in enumerate((-31, -12, 0, 4, 19, 37))
    }
    for kept in (list(grads), list(grads)[:3]):
        tree = {k: grads[k] for k in kept}
        updates, state = shared_first_update(optax_gradnorm.gan)(tree)
        sigma = reference.global_std(tree.values())
        assert abs(float(state.sigma) / sigma - 1) <= 2e-6
        assert abs(float(state.first_sigma) / sigma - 1) <= 2e-6
        assert abs(float(state.multiplier) / reference.autoscale(sigma, sigma) - 1) <= 2e-6
        for (key, layer), expected in zip(tree.items(), reference.gan(tree.values()), strict=True):
            bound = 2e-6 if dtype == jnp.float32 else float(jnp.finfo(dtype).eps)
            assert reference.error(updates[key], expected, reference.std(layer)) <= bound, key


def test_gan_weighs_layers_by_their_size():
    grads = [gaussian(100, 100), gaussian(2, 2, scale=50)]
    _, state = shared_first_update(optax_gradnorm.gan)(grads)
    assert abs(float(state.sigma) / reference.global_std(grads) - 1) <= 2e-6


def test_gan_over_several_steps():
    """The exponent stays that of the first step while the deviation moves over twelve decades."""
    gan = optax_gradnorm.gan()
    update = jax.jit(gan.update)
    layers = [gaussian(30, 40, seed=i, scale=10.0**-k) for i, k in enumerate(range(-6, 7))]
    state = gan.init(layers[0])
    first = reference.global_std([layers[0]])
    for layer in layers:
        u, state = update(layer, state)
        assert reference.error(u, reference.gan([layer], first)[0], reference.std(layer)) <= 2e-6
        scale = reference.autoscale(reference.global_std([layer]), first)
        assert abs(float(state.multiplier) / scale - 1) <= 1e-5
        assert abs(float(state.first_sigma) / first - 1) <= 2e-6


def test_gan_takes_another_autoscale():
    gan = optax_gradnorm.gan(autoscale=lambda sigma, first_sigma: first_sigma / (sigma + first_sigma))
    layer = gaussian(20, 20, mean=0.5)
    update, state = gan.update(layer, gan.init(layer))
    assert float(state.multiplier) == pytest.approx(0.5)
    assert reference.error(update, 0.5 * (reference.exact(layer) - reference.exact(layer).mean())) <= 2e-6
    constant = optax_gradnorm.gan(autoscale=lambda sigma, first_sigma: 2.0)
    update, _ = constant.update(layer, constant.init(layer))
    assert reference.error(update, 2.0 * (reference.exact(layer) - reference.exact(layer).mean())) <= 2e-6
