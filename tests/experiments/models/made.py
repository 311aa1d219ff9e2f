"""Networks and images for tests, with weights that a mistake would show in."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import optax_gradnorm
from experiments import models


def fill(build):
    """Builds a model with weights from NumPy, which saves compiling the initialisation of every shape.

    Scales, biases and running statistics get values that a mistake would show in.
    """
    graph, state = nnx.split(nnx.eval_shape(build))
    random = np.random.default_rng(1)
    leaves = []
    for name, leaf in zip(optax_gradnorm.layer_names(state), jax.tree.leaves(state), strict=True):
        if name.endswith("kernel"):
            value = random.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        else:
            low, high = (0.5, 1.5) if name.endswith(("scale", "var")) else (-0.5, 0.5)
            value = random.uniform(low, high, leaf.shape)
        leaves.append(jnp.asarray(value, leaf.dtype))
    return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(state), leaves))


def abstract(name, *, num_classes=10, channels=3, image_size=8, **options):
    return models.create(
        name,
        num_classes=num_classes,
        channels=channels,
        image_size=image_size,
        rngs=nnx.Rngs(0),
        **options,
    )


def create(name, **options):
    return fill(lambda: abstract(name, **options))


apply = nnx.jit(lambda model, images, train: model(images, train=train), static_argnames="train")


def images_for(shape, seed=2):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
