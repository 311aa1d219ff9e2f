"""Measurements of gradient overlap against gradients and Jacobians of the whole network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from matplotlib.image import imread

import optax_gradnorm
from experiments import data, models
from experiments.records import MeasurementRecord
from experiments.studies import gradient_overlap
from experiments.studies.gradient_overlap import figures, measures


def batch(count):
    digits = data.load("digits")
    images = jnp.asarray(digits.train_images[:count], jnp.float32) / 255
    return images, jnp.asarray(digits.train_labels[:count], jnp.int32)


def create(name):
    # This kind of key compiles faster.
    rngs = nnx.Rngs(jax.random.key(0, impl="rbg"))
    return models.create(name, num_classes=10, channels=1, image_size=8, rngs=rngs)


def log_gradient_norms(model, images, labels):
    """Gradients of the loss at the input of the first block and at the output of the last."""
    graphdef, state = nnx.split(model)
    stem = nnx.merge(graphdef, state, copy=True).stem(images, train=True)
    shift = jnp.zeros(jax.eval_shape(lambda x: run_blocks(graphdef, state, x), stem).shape)

    def loss(x, shift):
        x = run_blocks(graphdef, state, x) + shift
        logits = nnx.merge(graphdef, state).to_logits(jnp.mean(x, axis=(1, 2)))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(stem, shift)
    return [np.log(np.linalg.norm(np.asarray(g, np.float64))) for g in gradients]


def run_blocks(graphdef, state, x):
    for block in nnx.merge(graphdef, state, copy=True).blocks:
        x = block(x, train=True)
    return x


def dense_alpha(model, images):
    """Operator norm of the first branch from its whole Jacobian."""
    graphdef, state = nnx.split(model)
    x = nnx.merge(graphdef, state, copy=True).stem(images, train=True)

    def branch(x):
        return nnx.merge(graphdef, state, copy=True).blocks[0].branch(x, train=True)

    jacobian = np.asarray(jax.jit(jax.jacrev(branch))(x), np.float64).reshape(x.size, x.size)
    return np.sqrt(np.linalg.eigvalsh(jacobian @ jacobian.T)[-1])


def test_the_gradient_is_that_of_the_network_and_the_bounds_hold():
    images, labels = batch(1)
    model = create("resnet8")
    statistics = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    measured = measures.measure(model, images, labels, iterations=100)
    expected = log_gradient_norms(model, images, labels)
    np.testing.assert_allclose(
        [measured.log_input_gradient, measured.log_output_gradient], expected, atol=1e-4
    )
    np.testing.assert_allclose(
        sum(np.log(block.gain) for block in measured.blocks), expected[0] - expected[1], atol=1e-4
    )
    assert measured.log_input_gradient <= measured.log_residual_bound
    assert measured.slack > 0
    for block in measured.blocks:
        # One step of Lemma 2.1; the ReLU behind the addition only shrinks.
        assert block.gain <= (block.shortcut_alpha + block.alpha) * (1 + 1e-3)
        assert block.alpha_error < 0.05
    assert nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)).keys() == statistics.keys()
    for before, after in zip(
        jax.tree.leaves(statistics), jax.tree.leaves(nnx.state(model, nnx.BatchStat)), strict=True
    ):
        np.testing.assert_array_equal(before, after)

    assert measured.blocks[0].alpha == pytest.approx(dense_alpha(model, images), rel=1e-3)
    assert measured.blocks[0].shortcut_alpha == 1
    assert measured.log_plain_bound < measured.log_residual_bound
    assert all(-1 <= block.cosine <= 1 for block in measured.blocks)


def test_a_network_without_shortcuts_has_one_bound_and_no_angle_between_paths():
    measured = measures.measure(create("plain8"), *batch(1), iterations=1)
    assert [block.shortcut_alpha for block in measured.blocks] == [0, 0, 0]
    assert measured.log_residual_bound == pytest.approx(measured.log_plain_bound, abs=1e-5)
    assert all(np.isnan(block.cosine) for block in measured.blocks)
    assert sum(np.log(block.gain) for block in measured.blocks) == pytest.approx(
        measured.log_input_gradient - measured.log_output_gradient, abs=1e-4
    )


def test_gradient_fields():
    """Against JAX's gradient of the surface that the captions print, and the library's ZNorm."""

    def surface(x):
        return jnp.sin(2 * x[0]) * jnp.cos(2 * x[1]) + jnp.sum(jnp.square(x)) / 4

    axis, (original, residual, normalized, difference) = figures.gradient_fields(31)
    points = jnp.stack(jnp.meshgrid(jnp.float32(axis), jnp.float32(axis)), axis=-1)
    gradient = jax.vmap(jax.vmap(jax.grad(surface)))(points)
    np.testing.assert_allclose(original, gradient, atol=1e-5)
    np.testing.assert_allclose(residual, 1.5 * gradient, atol=1e-5)
    znorm = optax_gradnorm.znorm()
    update, _ = znorm.update(1.5 * gradient, znorm.init(gradient))
    np.testing.assert_allclose(normalized, update, atol=1e-5)
    np.testing.assert_allclose(difference, normalized - residual, atol=1e-12)


def test_figures(tmp_path):
    for draw in (figures.draw_magnitudes, figures.draw_directions):
        path = tmp_path / "figures" / draw.__name__
        draw(path.with_suffix(".png"), points=21)
        image = imread(path.with_suffix(".png"))
        assert min(image.shape[:2]) > 800
        assert image.std() > 0.05
        draw(path.with_suffix(".svg"), points=21)
        assert "<svg" in path.with_suffix(".svg").read_text()


def planted(growth):
    """Networks of one state whose gradients grow by powers of ten, [seeds] for residual and plain."""

    def network(kind, logs):
        blocks = {n: [1.0] for n in ("alpha", "cosine", "amplification", "alpha_error", "gain")}
        blocks["shortcut_alpha"] = [0.0 if kind == "plain20" else 1.0]
        zero = dict.fromkeys(("log_output_gradient", "log_residual_bound", "log_plain_bound"), 0.0)
        return measures.Network(
            [
                MeasurementRecord(
                    f"initialisation-{kind}-s{seed}",
                    arguments={},
                    environment={},
                    seconds=1.0,
                    values={"blocks": blocks, "log_input_gradient": log * np.log(10), **zero},
                )
                for seed, log in logs.items()
            ]
        )

    return {(kind, "initialisation"): network(kind, logs) for kind, logs in growth.items()}


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        # Differences of -2, -1 and -3: -2 +- 4.3027 * 1 / sqrt(3).
        (
            {0: 3, 1: 2, 2: 5},
            ("**cannot be told**, 10 against 1e+03", "-2.00 [-4.48, +0.48]"),
        ),
        # -2, -2.1 and -1.9, paired by seed and not by place.
        (
            {2: 3.9, 1: 3.1, 0: 3},
            ("**smaller**, 10 against 1.26e+03", "-2.00 [-2.25, -1.75]"),
        ),
        ({0: 3, 1: 2}, ("too few seeds",)),
    ],
)
def test_growth_is_compared_seed_by_seed(plain, words):
    text = gradient_overlap.describe(
        planted({"resnet20": {0: 1, 1: 1, 2: 2}, "plain20": plain}), gradient_overlap.STATES
    )
    for word in words:
        assert word in text
