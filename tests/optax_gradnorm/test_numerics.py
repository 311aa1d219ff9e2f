"""Accuracy against float64 NumPy: every dtype, scale and size, and awkward distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_gradnorm

from . import reference

TRANSFORMATIONS = {
    "znorm": optax_gradnorm.znorm(),
    "gan": optax_gradnorm.gan(),
    "centralize": optax_gradnorm.centralize(),
}
NAMES = list(TRANSFORMATIONS)


def _first_update(transformation):
    return jax.jit(lambda grads: transformation.update(grads, transformation.init(grads))[0])


FIRST_UPDATE = {name: _first_update(transformation) for name, transformation in TRANSFORMATIONS.items()}


def expected_update(name, layer):
    if name == "gan":
        return reference.gan([layer])[0]
    return {"znorm": reference.znorm, "centralize": reference.centralize}[name](layer)


def relative_error(name, layer):
    """The contract's error: of znorm as it is, of the others in units of the layer's deviation."""
    update = FIRST_UPDATE[name](layer)
    assert update.dtype == layer.dtype
    unit = 1.0 if name == "znorm" else reference.std(layer)
    return reference.error(update, expected_update(name, layer), unit)


def excess_over_one_ulp(name, layer, float32_bound):
    """Largest error in half precision as a multiple of what is allowed: one unit in the last place.

    Elements that fall next to the mean are small by cancellation: there the float32 bound is the larger.
    """
    expected = expected_update(name, layer)
    update = reference.exact(FIRST_UPDATE[name](layer))
    unit = 1.0 if name == "znorm" else reference.std(layer)
    rounding = float32_bound * np.maximum(unit, np.abs(expected))
    return float(
        np.max(np.abs(update - expected) / np.maximum(reference.ulp(expected, layer.dtype), rounding))
    )


def gaussian(shape, *, mean=0.0, seed=0):
    return np.random.default_rng(seed).standard_normal(shape) + mean


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("mean", "bound"), [(0.0, 2e-6), (1.0, 2e-6), (-1e3, 2e-4)])
def test_float32_gaussian(name, mean, bound):
    for seed in range(3):
        assert (
            relative_error(name, jnp.asarray(gaussian((100, 100), mean=mean, seed=seed), jnp.float32))
            <= bound
        )


@pytest.mark.parametrize("name", NAMES)
def test_float32_at_every_scale(name):
    values = gaussian((100, 100), mean=0.5)
    errors = {k: relative_error(name, jnp.asarray(values * 10.0**k, jnp.float32)) for k in range(-31, 38)}
    assert max(errors.values()) <= 2e-6, errors


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_at_every_scale(name):
    values = gaussian((100, 100), mean=0.5)
    errors = {
        k: excess_over_one_ulp(name, jnp.asarray(values * 10.0**k, jnp.bfloat16), 2e-6)
        for k in range(-31, 38)
    }
    assert max(errors.values()) <= 1, errors


@pytest.mark.parametrize("name", NAMES)
def test_float16_from_subnormals_to_the_largest(name):
    values = gaussian((100, 100), mean=0.5)
    values /= np.abs(values).max()
    scales = [6e-8, 3e-7, 1e-6, 1e-5, 1e-4, 1e-2, 1.0, 1e2, 1e4, 6e4]
    errors = {
        scale: excess_over_one_ulp(name, jnp.asarray(values * scale, jnp.float16), 2e-6) for scale in scales
    }
    assert max(errors.values()) <= 1, errors


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_far_from_zero(name, dtype):
    layer = jnp.asarray(gaussian((100, 100), mean=1e3), dtype)
    assert excess_over_one_ulp(name, layer, 2e-4) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_complex64_at_every_scale(name):
    values = gaussian((50, 100)) + 1j * gaussian((50, 100), mean=0.5, seed=1)
    errors = {
        k: relative_error(name, jnp.asarray(values * 10.0**k, jnp.complex64)) for k in range(-31, 38, 4)
    }
    assert max(errors.values()) <= 2e-6, errors


@pytest.mark.parametrize("name", NAMES)
def test_float64(name):
    with reference.enable_x64(True):
        for mean, bound in [(0.5, 1e-12), (1e3, 1e-12)]:
            for scale in (1e-290, 1e-31, 1.0, 1e37, 1e290):
                layer = jnp.asarray(gaussian((100, 100), mean=mean) * scale, jnp.float64)
                assert relative_error(name, layer) <= bound, (mean, scale)
        layer = jnp.asarray(gaussian((30, 30)) + 1j * gaussian((30, 30), seed=1), jnp.complex128)
        assert relative_error(name, layer) <= 1e-12


def test_complex_layer_with_a_constant_part():
    """The other part varies by 1e-20 of it: the deviation is that part's."""
    imaginary = gaussian((30, 30))
    layer = jnp.asarray(1.0 + 1e-20j * imaginary, jnp.complex64)
    expected = 1j * (imaginary - imaginary.mean()) / imaginary.std()
    update = jax.jit(lambda g: optax_gradnorm.znorm(eps=0.0).update(g, optax.EmptyState())[0])(layer)
    assert reference.error(update, expected) <= 2e-6


def test_gan_state_follows_the_widest_layer():
    with reference.enable_x64(True):
        gan = optax_gradnorm.gan()
        single = {"a": jnp.ones((2, 2), jnp.float32), "bias": jnp.ones(2, jnp.float64)}
        double = {"a": jnp.ones((2, 2), jnp.float32), "b": jnp.ones((2, 2), jnp.float64)}
        assert {x.dtype for x in gan.init(single)} == {jnp.dtype(jnp.float32)}
        assert {x.dtype for x in gan.init(double)} == {jnp.dtype(jnp.float64)}
        grads = {
            "a": jnp.asarray(gaussian((9, 9)), jnp.float32),
            "b": jnp.asarray(gaussian((7, 7)), jnp.float64),
        }
        updates, state = jax.jit(gan.update)(grads, gan.init(grads))
        assert {x.dtype for x in state} == {jnp.dtype(jnp.float64)}
        assert {k: u.dtype for k, u in updates.items()} == {k: g.dtype for k, g in grads.items()}
        assert reference.error(updates["b"], reference.gan([grads["a"], grads["b"]])[1]) <= 1e-7


SHAPES = [
    (1, 2),
    (2, 1),
    (1, 3),
    (2, 2),
    (1, 1000),
    (1000, 1),
    (13, 77),
    (30, 30),
    (32, 32),
    (3, 5, 7),
    (3, 3, 16, 64),
]
FIVE_AXES = (10, 10, 10, 10, 10)


@pytest.mark.parametrize("name", ["znorm", "centralize"])
@pytest.mark.parametrize(("mean", "bound"), [(1.0, 2e-6), (1e3, 2e-4)])
def test_small_shapes(name, mean, bound):
    """XLA adds up to about a thousand elements one after the other: the hardest case for a sum."""
    check_shapes(SHAPES, name, mean, bound)


# Up to jax 0.9, XLA on CPU added all elements of five axes one after the other; `centralize` leaves four axes.
FIVE_AXES_BOUND = 2e-6 if jax.__version_info__ >= (0, 10) else 2e-5


@pytest.mark.parametrize(
    ("name", "mean", "bound"),
    [
        ("znorm", 1.0, FIVE_AXES_BOUND),
        ("znorm", 1e3, 2e-4),
        ("centralize", 1.0, 2e-6),
        ("centralize", 1e3, 2e-4),
    ],
)
def test_five_axes(name, mean, bound):
    check_shapes([FIVE_AXES], name, mean, bound)


def check_shapes(shapes, name, mean, bound):
    standardized = [(g - g.mean()) / g.std() for g in (gaussian(shape) for shape in shapes)]
    layers = [jnp.asarray(g + mean, jnp.float32) for g in standardized]
    first_update = {
        "znorm": _first_update(optax_gradnorm.znorm(mask=True)),
        "centralize": _first_update(optax_gradnorm.centralize(mask=True)),
    }
    if name == "centralize":  # of whose units some would have a single weight
        layers = [layer for layer in layers if layer.shape[0] > 1]
    for layer, update in zip(layers, first_update[name](layers), strict=True):
        unit = 1.0 if name == "znorm" else reference.std(layer)
        assert reference.error(update, expected_update(name, layer), unit) <= bound, layer.shape


@pytest.mark.parametrize(("mean", "bound"), [(1.0, 2e-6), (1e3, 2e-4)])
def test_ten_million_elements(mean, bound):
    layer = jnp.asarray(gaussian((2500, 4000), mean=mean), jnp.float32)
    values = reference.exact(layer)
    centered, deviation = values - values.mean(), values.std()
    assert reference.error(FIRST_UPDATE["znorm"](layer), centered / (deviation + 1e-10)) <= bound
    scale = reference.autoscale(deviation, deviation)
    assert reference.error(FIRST_UPDATE["gan"](layer), scale * centered, deviation) <= bound
    expected = values - values.mean(0, keepdims=True)
    assert reference.error(FIRST_UPDATE["centralize"](layer), expected, deviation) <= bound


def heavy_tailed():
    return np.random.default_rng(2).standard_cauchy((200, 500))


def mostly_zero():
    generator = np.random.default_rng(3)
    return generator.standard_normal((200, 500)) * (generator.random((200, 500)) < 0.01)


def one_spike():
    values = np.zeros((200, 500))
    values[17, 19] = 3.0
    return values


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("distribution", [heavy_tailed, mostly_zero, one_spike])
def test_awkward_distributions(name, distribution):
    values = distribution()
    for scale in (1e-30, 1.0, 1e30):
        assert relative_error(name, jnp.asarray(values * scale, jnp.float32)) <= 2e-6, scale
        assert excess_over_one_ulp(name, jnp.asarray(values * scale, jnp.bfloat16), 2e-6) <= 1, scale


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_znorm_adds_eps_to_the_deviation_at_every_scale(dtype):
    """The formula as printed, to the precision of the update itself, however small eps makes it."""
    values = gaussian((100, 100))
    bound = 2e-6 if dtype == jnp.float32 else float(jnp.finfo(dtype).eps)
    for k in range(-31, 38):
        layer = jnp.asarray(values * 10.0**k, dtype)
        expected = reference.znorm(layer, eps=1e-10)
        assert reference.error(FIRST_UPDATE["znorm"](layer), expected, expected.std()) <= bound, k


@pytest.mark.parametrize(
    ("dtype", "scales", "bound"),
    [
        (jnp.float32, [10.0**k for k in range(-31, 38)], 2e-6),
        (jnp.bfloat16, [10.0**k for k in range(-31, 38)], 1e-3),
        (jnp.float16, [6e-8, 1e-7, 1e-6, 1e-4, 1.0, 1e2, 1e4], 2e-4),
    ],
    ids=["float32", "bfloat16", "float16"],
)
def test_znorm_without_eps_has_unit_deviation_at_every_scale(dtype, scales, bound):
    update = _first_update(optax_gradnorm.znorm(eps=0.0))
    values = gaussian((100, 100))
    for scale in scales:
        assert abs(reference.std(update(jnp.asarray(values * scale, dtype))) - 1) <= bound, scale


def test_znorm_with_large_eps():
    layer = jnp.asarray(gaussian((50, 50)), jnp.float32)
    for eps in (1e-3, 1, 1e4, np.float32(0.5)):
        znorm = optax_gradnorm.znorm(eps)
        expected = reference.znorm(layer, eps=float(eps))
        assert reference.error(znorm.update(layer, znorm.init(layer))[0], expected, expected.std()) <= 2e-6


@pytest.mark.parametrize("name", NAMES)
def test_sum_of_one_sign_at_the_top_of_the_range(name):
    """No partial sum overflows: 1e4 elements near float32's largest number."""
    layer = jnp.asarray(np.linspace(1.0, 3.4, 10_000).reshape(100, 100) * 1e38, jnp.float32)
    unit = reference.std(layer)
    expected = expected_update(name, layer)
    update = reference.exact(FIRST_UPDATE[name](layer))
    assert np.max(np.abs(update - expected)) <= 1e-5 * (1.0 if name == "znorm" else unit)


@pytest.mark.parametrize("feature_axis", [0, 1, 2, -1, -3])
def test_centralize_keeps_the_chosen_axis(feature_axis):
    centralize = optax_gradnorm.centralize(feature_axis=feature_axis)
    layer = jnp.asarray(gaussian((4, 5, 6), mean=0.5), jnp.float32)
    update, _ = centralize.update(layer, centralize.init(layer))
    assert reference.error(update, reference.centralize(layer, feature_axis)) <= 2e-6
    axes = tuple(axis for axis in range(3) if axis != feature_axis % 3)
    assert np.abs(reference.exact(update).mean(axes)).max() <= 1e-6


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gan_over_layers_of_very_different_scale(dtype):
    grads = {
        f"1e{k}": jnp.asarray(gaussian((20 + i, 30), mean=0.5, seed=i) * 10.0**k, dtype)
        for i, k in enumerate((-31, -12, 0, 4, 19, 37))
    }
    for kept in (list(grads), list(grads)[:3]):
        tree = {k: grads[k] for k in kept}
        updates, state = jax.jit(lambda g: TRANSFORMATIONS["gan"].update(g, TRANSFORMATIONS["gan"].init(g)))(
            tree
        )
        sigma = reference.global_std(tree.values())
        assert abs(float(state.sigma) / sigma - 1) <= 2e-6
        assert abs(float(state.first_sigma) / sigma - 1) <= 2e-6
        assert abs(float(state.multiplier) / reference.autoscale(sigma, sigma) - 1) <= 2e-6
        for (key, layer), expected in zip(tree.items(), reference.gan(tree.values()), strict=True):
            bound = 2e-6 if dtype == jnp.float32 else float(jnp.finfo(dtype).eps)
            assert reference.error(updates[key], expected, reference.std(layer)) <= bound, key


def test_gan_weighs_layers_by_their_size():
    grads = [jnp.asarray(gaussian((100, 100)), jnp.float32), jnp.asarray(gaussian((2, 2)) * 50, jnp.float32)]
    gan = optax_gradnorm.gan()
    _, state = jax.jit(gan.update)(grads, gan.init(grads))
    assert abs(float(state.sigma) / reference.global_std(grads) - 1) <= 2e-6


def test_gan_over_several_steps():
    """The exponent stays that of the first step while the deviation moves over twelve decades."""
    gan = optax_gradnorm.gan()
    update = jax.jit(gan.update)
    layers = [
        jnp.asarray(gaussian((30, 40), seed=i) * 10.0**-k, jnp.float32) for i, k in enumerate(range(-6, 7))
    ]
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
    layer = jnp.asarray(gaussian((20, 20), mean=0.5), jnp.float32)
    update, state = gan.update(layer, gan.init(layer))
    assert float(state.multiplier) == pytest.approx(0.5)
    assert reference.error(update, 0.5 * (reference.exact(layer) - reference.exact(layer).mean())) <= 2e-6
    constant = optax_gradnorm.gan(autoscale=lambda sigma, first_sigma: 2.0)
    update, _ = constant.update(layer, constant.init(layer))
    assert reference.error(update, 2.0 * (reference.exact(layer) - reference.exact(layer).mean())) <= 2e-6
