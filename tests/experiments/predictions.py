"""Networks with weights from NumPy, and the command that asks them about an image."""

import dataclasses
import re

import jax
import numpy as np
from flax import nnx
from PIL import Image

import optax_gradnorm
from experiments import models
from experiments.records import EpochMetrics, RunRecord, write_checkpoint, write_record
from experiments.run import Run

CLASSIFIER = Run("digits", "resnet8", "baseline", "adam", 0.003, epochs=2, batch_size=50, seed=0)
SEGMENTER = dataclasses.replace(CLASSIFIER, dataset="ink", model="unet2", loss="bce_dice", epochs=1)


def write_network(run, image_shape, num_classes, out):
    """A finished run with weights from NumPy, which saves training and compiling it."""
    options = {"num_classes": num_classes, "channels": image_shape[2], "image_size": image_shape[0]}
    model = nnx.eval_shape(lambda: models.create(run.model, rngs=nnx.Rngs(0), **options))
    random = np.random.default_rng(5)
    arrays = {"epoch": np.array(run.epochs)}
    for prefix, kind in (("params", nnx.Param), ("batch_stats", nnx.BatchStat)):
        state = nnx.to_pure_dict(nnx.state(model, kind))
        for name, leaf in zip(optax_gradnorm.layer_names(state), jax.tree.leaves(state), strict=True):
            fan_in = np.prod(leaf.shape[:-1])
            values = random.normal(size=leaf.shape) * np.sqrt(2 / fan_in) if leaf.ndim > 1 else 1.0
            arrays[f"{prefix}/{name}"] = np.broadcast_to(values, leaf.shape).astype(leaf.dtype)
    channels = image_shape[2]
    trained_on = {
        "train_images": 100,
        "test_images": 20,
        "image_shape": image_shape,
        "num_classes": num_classes,
    }
    trained_on |= {"mean": [0.4] * channels, "std": [0.2] * channels}
    epochs = tuple(EpochMetrics(n, 0.5, 0.9, 0.6, 0.9, 0, 2.0) for n in range(1, run.epochs + 1))
    write_record(out, RunRecord(run, "finished", data=trained_on, epochs=epochs))
    write_checkpoint(out, run, arrays)
    return out


def load(path):
    with Image.open(path) as image:
        return np.asarray(image)


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def record_of(folder, run):
    return folder / f"{run.name}.json"


def check_line(err, message):
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    assert re.search(message, err), err
