"""ResNets with amplified gradients of shortcuts: the same forwards, and 1.5 times those gradients backwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import optax_gradnorm
from experiments.models.resnet import OverlapBlock

from .made import abstract, apply, fill, images_for
from .numpy_networks import branch_reference, relu, shortcut_reference


def loss_and_gradients(model, images):
    """The cross-entropy of one batch, and its gradient with respect to every parameter, by name."""
    graph, params, statistics = nnx.split(model, nnx.Param, ...)
    labels = jnp.arange(len(images)) % 10

    @jax.jit
    @jax.value_and_grad
    def of_params(params):
        logits = nnx.merge(graph, params, statistics, copy=True)(images, train=True)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean()

    loss, gradients = of_params(params)
    names = optax_gradnorm.layer_names(gradients)
    return loss, dict(zip(names, map(np.asarray, jax.tree.leaves(gradients)), strict=True))


def test_amplified_gradients_change_no_bit_of_weights_logits_and_loss():
    images = jnp.asarray(images_for((4, 8, 8, 3)))
    normal, amplified = abstract("resnet8"), abstract("resnet8_overlap")
    weights = [nnx.to_pure_dict(nnx.state(model)) for model in (normal, amplified)]
    jax.tree.map(np.testing.assert_array_equal, *weights)
    (loss, gradients), (same_loss, others) = (loss_and_gradients(m, images) for m in (normal, amplified))
    assert loss == same_loss
    for train in (False, True):
        expected = apply(normal, images, train=train)
        np.testing.assert_array_equal(apply(amplified, images, train=train), expected)
    statistics = [nnx.to_pure_dict(nnx.state(model)) for model in (normal, amplified)]
    jax.tree.map(np.testing.assert_array_equal, *statistics)

    # Behind the last addition, and in its branch and its projection, nothing has passed through a shortcut.
    untouched = {name for name in gradients if name.startswith(("stages/2/", "to_logits"))}
    assert any("projection" in name for name in untouched)
    for name in gradients:
        agrees = np.allclose(others[name], gradients[name], rtol=1e-4, atol=1e-6)
        assert agrees == (name in untouched), name


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("features", "strides"), [((3, 3), 1), ((3, 4), 1), ((3, 4), 2)])
def test_gradients_that_leave_a_shortcut_are_one_and_a_half_times_as_large(features, strides, train):
    """Those that leave the branch are not: of one block, by differences of float64 NumPy."""
    block = fill(
        lambda: OverlapBlock(
            *features, strides, shortcut="projection", dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0)
        )
    )
    assert (block.projection is None) == (features == (3, 3))
    x = images_for((2, 4, 4, 3))
    before_relu = sum(
        path(block, x.astype(np.float64), strides, train) for path in (branch_reference, shortcut_reference)
    )
    gradient = images_for(before_relu.shape, seed=3)
    masked = gradient * (before_relu > 0)

    def through(path):
        """The gradient at the block's input, by central differences."""

        def loss(x):
            return np.sum(masked * path(block, x, strides, train))

        steps = 1e-6 * np.eye(x.size).reshape(-1, *x.shape)
        differences = [loss(x + step) - loss(x - step) for step in steps]
        return np.reshape(differences, x.shape) / 2e-6

    expected = through(branch_reference) + 1.5 * through(shortcut_reference)
    graph, state = nnx.split(block)
    output, pull = jax.vjp(lambda x: nnx.merge(graph, state, copy=True)(x, train=train), jnp.asarray(x))
    np.testing.assert_allclose(output, relu(before_relu), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pull(jnp.asarray(gradient))[0], expected, rtol=1e-4, atol=1e-4)
