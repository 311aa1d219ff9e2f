"""Methods, optimizers and schedules against float64 NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import models
from experiments.run import Run
from experiments.training.methods import METHODS, OPTIMIZERS, decayed, make_optimizer, make_schedule

RUN = Run("digits", "resnet8", "baseline", "sgdm", 0.1, 10, 64, 0)
SHAPES = {"kernel": (5, 7), "bias": (7,)}


def _trees(count: int, scale: float = 1.0):
    generator = np.random.default_rng(0)
    return [
        {name: scale * generator.standard_normal(shape) for name, shape in SHAPES.items()}
        for _ in range(count)
    ]


def _steps(run: Run, params, gradients, steps_per_epoch: int = 5):
    """Parameters after one update per gradient, through one jitted step."""
    optimizer = make_optimizer(run, steps_per_epoch)

    @jax.jit
    def step(params, state, gradient):
        with jax.numpy_dtype_promotion("standard"):  # optax is not written for strict promotion
            updates, state = optimizer.update(gradient, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    params = jax.tree.map(jnp.float32, params)
    state = optimizer.init(params)
    for gradient in gradients:
        params, state = step(params, state, jax.tree.map(jnp.float32, gradient))
    return params


def _assert_close(actual, expected, tolerance=2e-6):
    for name in SHAPES:
        assert actual[name].dtype == jnp.float32
        np.testing.assert_allclose(actual[name], expected[name], rtol=tolerance, atol=tolerance)


def _centralized(g):
    return g - g.mean(0) if g.ndim > 1 else g


def _znormed(g):
    return (g - g.mean()) / g.std() if g.ndim > 1 else g


def _gan_first(g):
    phi = g.std() / (1 + g.std())
    return phi ** (1 / (1 - np.log(phi))) * (g - g.mean())


METHOD_REFERENCES = {
    "baseline": lambda tree: tree,
    "centralization": lambda tree: {name: _centralized(g) for name, g in tree.items()},
    "layer_centralization": lambda tree: {
        name: g - g.mean() if g.ndim > 1 else g for name, g in tree.items()
    },
    "clipping": lambda tree: {
        name: g * 0.1 / np.sqrt(sum((h**2).sum() for h in tree.values())) for name, g in tree.items()
    },
    "clipping_1": lambda tree: {
        name: g / np.sqrt(sum((h**2).sum() for h in tree.values())) for name, g in tree.items()
    },
    "clipping_value": lambda tree: {name: np.clip(g, -0.1, 0.1) for name, g in tree.items()},
    "znorm": lambda tree: {name: _znormed(g) for name, g in tree.items()},
    "gan": lambda tree: {"kernel": _gan_first(tree["kernel"]), "bias": tree["bias"]},
}


def test_every_method_has_a_reference():
    assert set(METHOD_REFERENCES) == set(METHODS)


@pytest.mark.parametrize("method", METHOD_REFERENCES)
def test_method_before_sgd(method):
    params, gradient = _trees(2)
    after = _steps(dataclasses.replace(RUN, method=method), params, [gradient])
    changed = METHOD_REFERENCES[method](gradient)
    _assert_close(after, {name: params[name] - 0.1 * changed[name] for name in SHAPES})


@pytest.mark.parametrize("method", ["clipping", "clipping_1", "clipping_value"])
def test_clipping_leaves_small_gradients(method):
    params, gradient = _trees(2, scale=1e-3)
    after = _steps(dataclasses.replace(RUN, method=method), params, [gradient])
    _assert_close(after, {name: params[name] - 0.1 * gradient[name] for name in SHAPES}, 1e-8)


def _momentum(gradients):
    trace = 0.0
    for g in gradients:
        trace = 0.9 * trace + g
        yield trace


def _adam(gradients, epsilon=1e-8):
    first = second = 0.0
    for t, g in enumerate(gradients, 1):
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        yield first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + epsilon)


def _rms(gradients):
    mean_square = 0.0
    for g in gradients:
        mean_square = 0.9 * mean_square + 0.1 * g**2
        yield g / np.sqrt(mean_square + 1e-8)


def _decoupled(preconditioner):
    def run(w, gradients, rates, decay):
        for u, rate in zip(preconditioner(gradients), rates, strict=True):
            w = w - rate * (u + (decay * w if w.ndim > 1 else 0))
        return w

    return run


def _lars(w, gradients, rates, decay):
    trace = 0.0
    for g, rate in zip(gradients, rates, strict=True):
        if w.ndim > 1:
            g = g + decay * w
            g = g * 0.001 * np.linalg.norm(w) / np.linalg.norm(g)
        trace = 0.9 * trace - rate * g
        w = w + trace
    return w


def _lamb(w, gradients, rates, decay):
    for u, rate in zip(_adam(gradients, epsilon=1e-6), rates, strict=True):
        u = u + (decay * w if w.ndim > 1 else 0)
        w = w - rate * u * np.linalg.norm(w) / np.linalg.norm(u)
    return w


OPTIMIZER_REFERENCES = {
    "sgdm": _decoupled(_momentum),
    "adam": _decoupled(_adam),
    "adamw": _decoupled(_adam),
    "rmsprop": _decoupled(_rms),
    "lars": _lars,
    "lamb": _lamb,
}


def test_every_optimizer_has_a_reference():
    assert set(OPTIMIZER_REFERENCES) == set(OPTIMIZERS)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("optimizer", OPTIMIZER_REFERENCES)
def test_optimizer_over_several_steps(optimizer, weight_decay):
    params, *gradients = _trees(6)
    run = dataclasses.replace(RUN, optimizer=optimizer, weight_decay=weight_decay)
    after = _steps(run, params, gradients)
    expected = {
        name: OPTIMIZER_REFERENCES[optimizer](
            params[name], [g[name] for g in gradients], [0.1] * 5, weight_decay
        )
        for name in SHAPES
    }
    _assert_close(after, expected, 1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZER_REFERENCES)
def test_method_comes_before_the_optimizer(optimizer):
    params, *gradients = _trees(4)
    clipped = [{name: np.clip(g, -0.1, 0.1) for name, g in gradient.items()} for gradient in gradients]
    run = dataclasses.replace(RUN, optimizer=optimizer, weight_decay=0.05)
    after = _steps(dataclasses.replace(run, method="clipping_value"), params, gradients)
    _assert_close(after, _steps(run, params, clipped))


@pytest.mark.parametrize("optimizer", OPTIMIZER_REFERENCES)
def test_schedule_scales_update_and_decay(optimizer):
    params, *gradients = _trees(6)
    run = dataclasses.replace(RUN, optimizer=optimizer, weight_decay=0.05, warmup_epochs=1.0)
    run = dataclasses.replace(run, schedule="step", step_epochs=1, step_factor=0.5)
    after = _steps(run, params, gradients, steps_per_epoch=2)
    rates = [0.0, 0.05, 0.1, 0.1, 0.05]
    expected = {
        name: OPTIMIZER_REFERENCES[optimizer](params[name], [g[name] for g in gradients], rates, 0.05)
        for name in SHAPES
    }
    _assert_close(after, expected, 1e-5)


def _rates(steps_per_epoch: int, **options):
    """Under jit, as in training: XLA divides by constants through their reciprocals."""
    run = dataclasses.replace(RUN, **options)
    schedule = jax.jit(make_schedule(run, steps_per_epoch))
    with jax.numpy_dtype_promotion("standard"):
        return np.array([schedule(jnp.array(n)) for n in range(run.epochs * steps_per_epoch)], np.float64)


def test_constant_schedule():
    np.testing.assert_allclose(_rates(3), 0.1, rtol=1e-6)


def test_cosine_schedule_reaches_zero_at_the_end():
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(30) / 30))
    np.testing.assert_allclose(_rates(3, schedule="cosine"), expected, rtol=1e-5, atol=1e-8)


def test_step_schedule_counts_epochs():
    expected = 0.1 * 0.75 ** (np.arange(30) // 12)
    np.testing.assert_allclose(_rates(3, schedule="step", step_epochs=4), expected, rtol=1e-6)


@pytest.mark.parametrize("steps_per_epoch", [41, 55, 61, 107])
def test_step_schedule_drops_at_the_step_itself(steps_per_epoch):
    expected = 0.1 * 0.75 ** (np.arange(10 * steps_per_epoch) // steps_per_epoch)
    np.testing.assert_allclose(_rates(steps_per_epoch, schedule="step", step_epochs=1), expected, rtol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_warm_up_comes_first_and_is_not_counted(schedule):
    rates = _rates(4, schedule=schedule, warmup_epochs=2.5, step_epochs=2, epochs=10)
    np.testing.assert_allclose(rates[:10], 0.1 * np.arange(10) / 10, rtol=1e-6)
    later = np.arange(30)
    expected = {
        "constant": np.full(30, 0.1),
        "cosine": 0.05 * (1 + np.cos(np.pi * later / 30)),
        "step": 0.1 * 0.75 ** (later // 8),
    }
    np.testing.assert_allclose(rates[10:], expected[schedule], rtol=1e-5, atol=1e-8)


def test_warm_up_that_rounds_to_the_whole_run():
    rates = _rates(3, schedule="cosine", epochs=1, warmup_epochs=0.99)
    np.testing.assert_allclose(rates, 0.1 * np.arange(3) / 3, rtol=1e-6)


SPLIT = "query", "key", "value"


def _attention_tree(seed: int, stacked: bool):
    """A block as Flax names and shapes its parameters, alone or three of them stacked."""
    random = np.random.default_rng(seed)
    kernels = {**dict.fromkeys(SPLIT, (6, 2, 3)), "out": (2, 3, 6)}
    biases = {**dict.fromkeys(SPLIT, (2, 3)), "out": (6,)}
    stack = (3,) if stacked else ()
    attention = {
        part: {
            "kernel": random.normal(size=stack + kernels[part]),
            "bias": random.normal(size=stack + biases[part]),
        }
        for part in kernels
    }
    block = {"attention": attention, "norm1": {"scale": random.normal(size=(*stack, 6))}}
    blocks = {"stacked_encoder": block} if stacked else {"encoder": {0: block}}
    return jax.tree.map(jnp.float32, {**blocks, "embedding": {"class_token": random.normal(size=(1, 1, 6))}})


@pytest.mark.parametrize(
    ("optimizer", "stacked"),
    [(optimizer, False) for optimizer in OPTIMIZERS]
    + [(optimizer, True) for optimizer in ("sgdm", "adamw", "rmsprop")],
)
def test_kernels_alone_decay(optimizer, stacked):
    """Without a gradient, what changes is what decays: no biases, whatever their shape, no norms and tokens."""
    params = _attention_tree(0, stacked)
    run = dataclasses.replace(RUN, optimizer=optimizer, weight_decay=0.5)
    transform = make_optimizer(run, 5)
    with jax.numpy_dtype_promotion("standard"):
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = jax.jit(transform.update)(zeros, transform.init(params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        assert (np.abs(update) > 0).all() == (path[-1].key == "kernel"), path


@pytest.mark.parametrize("stacked", [False, True])
def test_centralization_keeps_both_feature_axes_of_attention(stacked):
    params, gradient = _attention_tree(0, stacked), _attention_tree(1, stacked)
    transform = make_optimizer(dataclasses.replace(RUN, method="centralization"), 5)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = transform.update(gradient, transform.init(params), params)

    def attention(tree):
        block = tree["stacked_encoder"] if stacked else tree["encoder"][0]
        return jax.tree.map(np.float64, block["attention"])

    ours, raw, block_axes = attention(updates), attention(gradient), int(stacked)
    for part in raw:
        kernel = raw[part]["kernel"]
        axes = (block_axes,) if part in SPLIT else (block_axes, block_axes + 1)
        centred = kernel - kernel.mean(axes, keepdims=True)
        np.testing.assert_allclose(ours[part]["kernel"], -0.1 * centred, atol=1e-6)
        np.testing.assert_allclose(ours[part]["bias"], -0.1 * raw[part]["bias"], atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_stacked_blocks_are_normalized_one_by_one(method):
    params, gradient = _attention_tree(0, True), _attention_tree(1, True)
    # Blocks of different scale: one statistic for all would show.
    scales = jnp.array([1.0, 10.0, 100.0])
    gradient["stacked_encoder"] = jax.tree.map(
        lambda leaf: leaf * scales.reshape(-1, *[1] * (leaf.ndim - 1)), gradient["stacked_encoder"]
    )

    def unstack(tree):
        blocks = {i: jax.tree.map(lambda leaf, i=i: leaf[i], tree["stacked_encoder"]) for i in range(3)}
        return {"encoder": blocks, "embedding": tree["embedding"]}

    transform = make_optimizer(dataclasses.replace(RUN, method=method, dynamics=True), 5)
    with jax.numpy_dtype_promotion("standard"):
        actual, _ = transform.update(gradient, transform.init(params), params)
        one_by_one = unstack(params)
        expected, _ = transform.update(unstack(gradient), transform.init(one_by_one), one_by_one)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-6), unstack(actual), expected
    )


@pytest.mark.parametrize("optimizer", ["lars", "lamb"])
def test_one_trust_ratio_for_all_stacked_blocks_is_refused(optimizer):
    run = dataclasses.replace(RUN, model="vit_tiny_stacked", optimizer=optimizer)
    with pytest.raises(
        ValueError, match=f"must not be {optimizer} with vit_tiny_stacked: .*choose vit_tiny$"
    ):
        make_optimizer(run, 5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "name",
    ["resnet20", "resnet56", "plain20", "resnet50", "vgg16", "vgg16_bn"]
    + [
        f"{network}:{normalizer}"
        for network in ("cnn10w16", "resnet20w8")
        for normalizer in (
            "batch_norm",
            "group_norm:groups=8",
            "layer_norm",
            "weight_norm",
            "scaled_ws",
            "frn",
        )
    ]
    + ["cnn10w16:evonorm_b0", "cnn10w16:evonorm_s0:groups=8", "resnet20w8:weight_norm:skip_init"],
)
def test_convolutional_networks_decay_what_they_always_did(name, channels):
    """All that has more than one axis: the rule before there were biases of attention."""
    options = {"num_classes": 10, "channels": channels, "image_size": 32}
    model = nnx.eval_shape(lambda: models.create(name, rngs=nnx.Rngs(0), **options))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert decayed(params) == jax.tree.map(lambda leaf: leaf.ndim > 1, params)
