"""Networks, images and runs so small that training takes a second."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.data.dataset import make_dataset
from experiments.models.layers import BatchNorm
from experiments.records import RunRecord
from experiments.run import Run


class Linear(nnx.Module):
    """One linear layer on the pixels: NumPy can follow it, and it compiles fast."""

    def __init__(self, *, num_classes, channels, image_size, rngs, dtype):
        self.linear = nnx.Linear(image_size * image_size * channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, images, *, train):
        del train
        return self.linear(images.reshape(len(images), -1)).astype(jnp.float32)


class Tiny(nnx.Module):
    """Convolution, BatchNorm and linear layer: everything that training has to carry along."""

    def __init__(self, *, num_classes, channels, image_size, rngs, dtype):
        del image_size
        self.conv = nnx.Conv(channels, 4, (3, 3), strides=2, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(4, dtype=dtype, rngs=rngs)
        self.linear = nnx.Linear(4, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, images, *, train):
        x = nnx.relu(self.norm(self.conv(images), train=train))
        return self.linear(x.mean((1, 2))).astype(jnp.float32)


class SwallowsNaN(Linear):
    """Its unused parameter becomes NaN in the first step and the outputs stay finite."""

    def __init__(self, *, rngs, **options):
        super().__init__(rngs=rngs, **options)
        self.unused = nnx.Param(jnp.zeros(()))

    def __call__(self, images, *, train):
        # The root has an infinite slope where its argument is zero.
        return super().__call__(images, train=train) + jnp.nan_to_num(jnp.sqrt(self.unused[...]), posinf=0)


SMALL_MODELS = {"linear": Linear, "tiny": Tiny, "swallows_nan": SwallowsNaN}


def small_dataset(train: int = 96, test: int = 50, size: int = 8, channels: int = 1, num_classes: int = 3):
    """Noise with a bright patch whose place tells the class."""
    generator = np.random.default_rng(0)

    def split(count):
        labels = generator.integers(0, num_classes, count)
        images = generator.integers(0, 160, (count, size, size, channels))
        for image, label in zip(images, labels, strict=True):
            image[label : label + 2] += 90
        return images.astype(np.uint8), labels

    return make_dataset("patches", *split(train), *split(test), num_classes)


def small_run(**options) -> Run:
    defaults = {"dataset": "patches", "model": "tiny", "method": "znorm", "optimizer": "adam"}
    defaults |= {"learning_rate": 0.01, "epochs": 3, "batch_size": 16, "seed": 0, "augment": "crop_flip"}
    return Run(**(defaults | options))


def without_seconds(record: RunRecord) -> list[dict]:
    return [dataclasses.asdict(epoch) | {"seconds": 0.0} for epoch in record.epochs]
