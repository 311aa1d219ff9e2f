"""Probes against float64 NumPy, on arrays taken from the networks by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments import models
from experiments.models.resnet import BasicBlock, ResNet
from experiments.models.signal_propagation.normalizers import Normalization
from experiments.models.signal_propagation.plain import PlainNetwork
from experiments.studies.beyond_batchnorm import probes


def batch(n=12):
    random = np.random.default_rng(0)
    # Images with much in common, so that similarities are not all zero.
    images = random.normal(size=(1, 8, 8, 3)) + 0.7 * random.normal(size=(n, 8, 8, 3))
    return jnp.asarray(images, jnp.float32), jnp.asarray(random.integers(0, 5, n))


def run(probed, images, labels):
    propagate = jax.jit(lambda *arguments: probes.propagate(probed, *arguments))
    return jax.device_get(propagate(probed.params, probed.batch_stats, images, labels))


def loss_of(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# The measures again, in float64.


def log_variance(x):
    return np.log(x.var((0, 1, 2)).mean())


def similarities(x):
    rows = x.reshape(len(x), -1)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def cosine_similarity(x):
    matrix = similarities(x)
    return matrix[~np.eye(len(x), dtype=bool)].mean()


def stable_rank(x):
    return len(x) / np.linalg.norm(similarities(x), 2)


def log_norm(x):
    return np.log(np.linalg.norm(x))


def check_activation(measured, x):
    x = np.asarray(x, np.float64)
    expected = [log_variance(x), cosine_similarity(x), stable_rank(x)]
    found = [measured[key] for key in ("log_variance", "cosine_similarity", "stable_rank")]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_plain_network_matches_numpy():
    model = PlainNetwork(
        ((1, 1), (1, 2), (2, 1), (2, 2)),
        4,
        normalization=Normalization("batch_norm"),
        num_classes=5,
        channels=3,
        dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    images, labels = batch()

    def forward(model, shifts):
        """The network written out, with something added to every pre-activation and activation."""
        x, pre_activations, activations = images, [], []
        for layer, (before, after) in zip(model.layers, shifts, strict=True):
            x = layer.conv(x, layer.norm.normalize_kernel) + before
            pre_activations.append(x)
            x = layer.norm(x, train=True) + after
            activations.append(x)
        return model.to_logits(x.mean((1, 2))), pre_activations, activations

    @jax.jit
    def by_hand(state):
        merged = lambda: nnx.merge(graph, state, copy=True)  # noqa: E731
        none = [(jnp.zeros(()), jnp.zeros(()))] * 4
        _, pre_activations, activations = forward(merged(), none)
        zeros = jax.tree.map(jnp.zeros_like, list(zip(pre_activations, activations, strict=True)))
        gradients = jax.grad(lambda shifts: loss_of(forward(merged(), shifts)[0], labels))(zeros)
        return pre_activations, activations, gradients

    graph, state = nnx.split(model)
    with jax.numpy_rank_promotion("allow"):
        pre_activations, activations, gradients = jax.device_get(by_hand(state))

    probed = probes.insert_probes(model)
    statistics = run(probed, images, labels)[0]
    assert probed.units == tuple(f"layers/{i}" for i in range(4))
    assert probed.convolutions == tuple(f"layers/{i}/conv" for i in range(4))
    for i, (before, after) in enumerate(gradients):
        unit, conv = statistics[f"layers/{i}"], statistics[f"layers/{i}/conv"]
        check_activation(unit, activations[i])
        np.testing.assert_allclose(unit["log_gradient_norm"], log_norm(after), atol=1e-3)
        np.testing.assert_allclose(conv["log_gradient_norm"], log_norm(before), atol=1e-3)
        x = np.asarray(pre_activations[i], np.float64)
        np.testing.assert_allclose(conv["log_std"], np.log(x.std((0, 1, 2)).mean()), atol=1e-4)


def existing_resnet():
    options = {"num_classes": 5, "channels": 3, "dtype": jnp.dtype("float32"), "rngs": nnx.Rngs(0)}
    return ResNet(BasicBlock, (1, 1), (4, 8), shortcut="projection", small_stem=True, **options)


def resnet_with_normalizer():
    options = {"num_classes": 5, "channels": 3, "image_size": 8, "rngs": nnx.Rngs(0)}
    return models.create("resnet8w2:scaled_ws:skip_init", **options)


@pytest.mark.parametrize("build", [existing_resnet, resnet_with_normalizer])
def test_residual_network_matches_its_blocks_and_is_not_changed(build):
    images, labels = batch()
    model = build()
    graph, state = nnx.split(model)
    params, rest = nnx.split_state(state, nnx.Param, ...)

    @jax.jit
    def by_hand(params, rest):
        def loss(params):
            model = nnx.merge(graph, params, rest, copy=True)
            stem = model.stem if build is existing_resnet else model.input_layer
            outputs = [stem(images, train=True)]
            for block in (block for stage in model.stages for block in stage):
                outputs.append(block(outputs[-1], train=True))
            logits = model.to_logits(outputs[-1].mean((1, 2)))
            return loss_of(logits, labels), (outputs, nnx.state(model, nnx.BatchStat))

        return jax.grad(loss, has_aux=True)(params)

    gradient, (outputs, batch_stats) = jax.device_get(by_hand(params, rest))
    probed = probes.insert_probes(model)
    statistics, probed_gradient, probed_stats = run(probed, images, labels)

    blocks = [f"stages/{stage}/0" for stage in range(len(outputs) - 1)]
    assert probed.units == ((*blocks,) if build is existing_resnet else ("input_layer", *blocks))
    for unit, output in zip(blocks, outputs[1:], strict=True):
        check_activation(statistics[unit], output)
    assert len(probed.convolutions) == 1 + 2 * len(blocks)  # none of the shortcuts'
    assert not any("projection" in name for name in probed.convolutions)
    for ours, theirs in (probed_gradient, gradient), (probed_stats, batch_stats):
        sums = [
            sorted(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(tree)) for tree in (ours, theirs)
        ]
        np.testing.assert_allclose(*sums, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30, 3e37])
def test_statistics_do_not_overflow(scale):
    x = np.random.default_rng(1).normal(1, 2, (10, 4, 4, 64)) * scale
    found = probes.activation_statistics(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found["log_variance"], log_variance(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["cosine_similarity"], cosine_similarity(x), rtol=1e-4)
    np.testing.assert_allclose(probes.log_norm(jnp.asarray(x, jnp.float32)), log_norm(x), rtol=1e-5)
    found = probes.pre_activation_statistics(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found["log_std"], np.log(x.std((0, 1, 2)).mean()), rtol=1e-5)


def test_amplifications_match_numpy_and_obey_the_inequality_of_means():
    random = np.random.default_rng(2)
    x = random.normal(size=(10, 4, 4, 64)) * random.uniform(0.3, 3, (10, 1, 1, 64))
    found = probes.pre_activation_statistics(jnp.asarray(x, jnp.float32))
    grouped = x.reshape(10, 4, 4, 32, 2)
    expected = {
        "instance": x.var((1, 2)),
        "group": grouped.var((1, 2, 4)),
        "layer": x.var((1, 2, 3)),
        "batch": x.var((0, 1, 2)),
        "harmonic": x.var((1, 2)).mean(0),
    }
    for name, variance in expected.items():
        np.testing.assert_allclose(
            found[f"log_amplification_{name}"], np.log(np.mean(1 / (variance + 1e-5))), atol=1e-5
        )
    assert found["log_amplification_instance"] > found["log_amplification_harmonic"]
    assert found["log_amplification_instance"] > found["log_amplification_group"]


def test_no_activations_are_no_numbers_but_minus_infinity():
    found = probes.activation_statistics(jnp.zeros((4, 2, 2, 3)))
    assert found["log_variance"] == -np.inf
    assert found["cosine_similarity"] == 0
    assert probes.log_norm(jnp.zeros(3)) == -np.inf
