"""Training against NumPy, on several devices, and through kills of real processes."""

import contextlib
import dataclasses
import logging
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments import models, records, training
from experiments.data.dataset import make_dataset
from experiments.files import FileError
from experiments.models.layers import BatchNorm
from experiments.records import RecordError, RunRecord
from experiments.run import Run
from experiments.training.epoch import make_evaluate, make_mesh, make_train_epoch
from experiments.training.methods import METHODS, make_optimizer
from experiments.training.state import init_state

pytestmark = pytest.mark.usefixtures("compile_once")
ROOT = Path(__file__).parents[3]


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


@pytest.fixture(autouse=True)
def _small_models(monkeypatch):
    for name, model in SMALL_MODELS.items():
        monkeypatch.setitem(models.MODELS, name, model)


def _dataset(train: int = 96, test: int = 50, size: int = 8, channels: int = 1, num_classes: int = 3):
    """Noise with a bright patch whose place tells the class."""
    generator = np.random.default_rng(0)

    def split(count):
        labels = generator.integers(0, num_classes, count)
        images = generator.integers(0, 160, (count, size, size, channels))
        for image, label in zip(images, labels, strict=True):
            image[label : label + 2] += 90
        return images.astype(np.uint8), labels

    return make_dataset("patches", *split(train), *split(test), num_classes)


def _run(**options) -> Run:
    defaults = {"dataset": "patches", "model": "tiny", "method": "znorm", "optimizer": "adam"}
    defaults |= {"learning_rate": 0.01, "epochs": 3, "batch_size": 16, "seed": 0, "augment": "crop_flip"}
    return Run(**(defaults | options))


def _without_seconds(record: RunRecord) -> list[dict]:
    return [dataclasses.asdict(epoch) | {"seconds": None} for epoch in record.epochs]


# Against NumPy


class NumPyRegression:
    """Softmax regression in float64, from the same first parameters."""

    def __init__(self, run, dataset):
        _, state = init_state(run, dataset, make_optimizer(run, 1))
        self.kernel = np.float64(state.params["linear"]["kernel"])
        self.bias = np.float64(state.params["linear"]["bias"])
        self.dataset = dataset

    def pixels(self, images):
        scaled = (images / 255 - np.float64(self.dataset.mean)) / np.float64(self.dataset.std)
        return scaled.reshape(len(images), -1)

    def probabilities(self, images):
        logits = self.pixels(images) @ self.kernel + self.bias
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        return exponentials / exponentials.sum(1, keepdims=True)

    def measure(self, images, labels, smoothing=0.0):
        probabilities = self.probabilities(images)
        targets = self.targets(labels, smoothing)
        loss = -(targets * np.log(probabilities)).sum(1).mean()
        return loss, (probabilities.argmax(1) == labels).mean()

    def targets(self, labels, smoothing):
        count = self.dataset.num_classes
        return np.eye(count)[labels] * (1 - smoothing) + smoothing / count

    def gradients(self, images, labels, smoothing):
        error = (self.probabilities(images) - self.targets(labels, smoothing)) / len(images)
        return self.pixels(images).T @ error, error.sum(0)


@pytest.mark.parametrize(("smoothing", "weight_decay"), [(0.0, 0.0), (0.2, 0.3)])
def test_full_batch_gradient_descent(tmp_path, smoothing, weight_decay):
    dataset = _dataset(channels=2)
    run = _run(
        model="linear",
        method="baseline",
        optimizer="sgdm",
        learning_rate=0.1,
        epochs=5,
        batch_size=96,
        augment="none",
        label_smoothing=smoothing,
        weight_decay=weight_decay,
    )
    record = training.train(run, dataset, out=tmp_path)
    reference = NumPyRegression(run, dataset)
    train_data = dataset.train_images, dataset.train_labels
    kernel_trace = bias_trace = 0.0
    for metrics in record.epochs:
        loss, accuracy = reference.measure(*train_data, smoothing)
        np.testing.assert_allclose(metrics.train_loss, loss, rtol=2e-5)
        assert metrics.train_accuracy == pytest.approx(accuracy, abs=1e-12)
        kernel_gradient, bias_gradient = reference.gradients(*train_data, smoothing)
        kernel_trace = 0.9 * kernel_trace + kernel_gradient
        bias_trace = 0.9 * bias_trace + bias_gradient
        reference.kernel -= 0.1 * (kernel_trace + weight_decay * reference.kernel)
        reference.bias -= 0.1 * bias_trace
        loss, accuracy = reference.measure(dataset.test_images, dataset.test_labels)
        np.testing.assert_allclose(metrics.test_loss, loss, rtol=2e-5)
        assert metrics.test_accuracy == pytest.approx(accuracy, abs=1e-12)
    assert record.status == "finished"
    assert record.parameters == reference.kernel.size + reference.bias.size
    assert [metrics.nonfinite_steps for metrics in record.epochs] == [0] * 5


def test_an_epoch_takes_every_image_once(tmp_path):
    """At a vanishing learning rate the epoch's mean loss is the mean over all images, repeats none."""
    dataset = _dataset(train=96)
    run = _run(model="linear", method="baseline", optimizer="sgdm", learning_rate=1e-30, augment="none")
    record = training.train(run, dataset, out=tmp_path)
    loss, accuracy = NumPyRegression(run, dataset).measure(dataset.train_images, dataset.train_labels)
    for metrics in record.epochs:
        np.testing.assert_allclose(metrics.train_loss, loss, rtol=2e-6)
        assert metrics.train_accuracy == pytest.approx(accuracy, abs=1e-12)


def test_the_last_incomplete_batch_is_dropped(tmp_path):
    dataset = _dataset(train=37)
    run = _run(model="linear", method="baseline", optimizer="sgdm", learning_rate=1e-30, epochs=8)
    record = training.train(run, dataset, out=tmp_path)
    for metrics in record.epochs:
        assert 32 * metrics.train_accuracy == round(32 * metrics.train_accuracy)  # a share of two batches
    # Which five images are left out changes from epoch to epoch.
    assert len({metrics.train_loss for metrics in record.epochs}) > 4


@pytest.mark.parametrize("count", [1, 7, 500, 501, 1203])
@pytest.mark.parametrize("devices", [1, 4])
def test_evaluation_counts_every_image_once(count, devices):
    dataset = _dataset(test=count)
    run = _run(model="linear")
    graphdef, state = init_state(run, dataset, make_optimizer(run, 1))
    evaluate = make_evaluate(run, dataset, graphdef, make_mesh(devices))
    measured = evaluate(state, dataset.test_images, dataset.test_labels)
    loss, accuracy = NumPyRegression(run, dataset).measure(dataset.test_images, dataset.test_labels)
    np.testing.assert_allclose(measured["test_loss"], loss, rtol=3e-6)
    assert int(measured["test_correct"]) == round(accuracy * count)


def test_batch_statistics_are_carried_and_used(tmp_path):
    """After training at a vanishing rate, the running mean is that of the batches the model saw."""
    dataset = _dataset()
    run = _run(
        method="baseline", optimizer="sgdm", learning_rate=1e-30, epochs=2, batch_size=96, augment="none"
    )
    record = training.train(run, dataset, out=tmp_path, keep_checkpoint=True)
    model = training.load_model(run, out=tmp_path)
    images = (dataset.train_images / 255 - dataset.mean) / dataset.std
    channels = np.asarray(model.conv(jnp.float32(images)), np.float64)
    expected = (1 - 0.9**2) * channels.mean((0, 1, 2))  # momentum 0.9, starting at zero
    np.testing.assert_allclose(model.norm.mean[...], expected, rtol=1e-4, atol=1e-6)

    test_images = (dataset.test_images / 255 - dataset.mean) / dataset.std
    logits = np.asarray(model(jnp.float32(test_images), train=False), np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), dataset.test_labels]
    np.testing.assert_allclose(record.epochs[-1].test_loss, losses.mean(), rtol=1e-5)


def test_learns(tmp_path):
    dataset = _dataset(train=480)
    record = training.train(_run(augment="none", epochs=8), dataset, out=tmp_path)
    assert record.epochs[-1].train_loss < 0.5 * record.epochs[0].train_loss
    assert record.epochs[-1].test_accuracy > 0.9


# Randomness


def _epoch_results(*seeds_and_epochs: tuple[int, int], augment: str = "none"):
    """Parameters and measurements after one epoch from the same state, for each seed and epoch."""
    dataset, run = _dataset(), _run(augment=augment)
    optimizer = make_optimizer(run, 6)
    graphdef, first_state = init_state(run, dataset, optimizer)
    train_epoch = make_train_epoch(run, dataset, graphdef, optimizer, make_mesh(1))
    results = []
    for seed, epoch in seeds_and_epochs:
        state = jax.tree.map(jnp.copy, first_state)  # it is donated
        data = dataset.train_images, dataset.train_labels
        state, measured = train_epoch(state, *data, np.uint32(seed), np.int32(epoch))
        results.append(jax.tree.map(np.asarray, (state.params, measured)))
    return results


def test_order_depends_on_seed_and_epoch_alone():
    first, again, *others = _epoch_results((0, 0), (0, 0), (0, 1), (1, 0))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = {params["conv"]["kernel"].tobytes() for params, _ in (first, *others)}
    assert len(kernels) == 3


def test_augmentation_changes_the_images():
    [(_, plain)] = _epoch_results((0, 0))
    [(_, augmented)] = _epoch_results((0, 0), augment="crop_flip")
    assert plain["train_loss"] != augmented["train_loss"]


def test_seeds_differ_from_the_start():
    dataset = _dataset()
    kernels = [
        init_state(_run(seed=seed), dataset, optax.identity())[1].params["conv"]["kernel"]
        for seed in (0, 1, 2**32 - 1)
    ]
    assert len({np.asarray(kernel).tobytes() for kernel in kernels}) == 3


def test_methods_start_from_the_same_parameters():
    dataset = _dataset()
    first, *others = [
        init_state(_run(method=method), dataset, optax.identity())[1].params for method in METHODS
    ]
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first, other)


# Several devices


@pytest.mark.parametrize("method", ["baseline", "znorm", "gan"])
def test_data_parallel_training_is_the_same(tmp_path, method):
    dataset = _dataset(test=51, channels=3)
    run = _run(method=method, optimizer="sgdm", epochs=2)
    one = training.train(run, dataset, out=tmp_path / "one", devices=1)
    four = training.train(run, dataset, out=tmp_path / "four", devices=4)
    for a, b in zip(one.epochs, four.epochs, strict=True):
        np.testing.assert_allclose((a.train_loss, a.test_loss), (b.train_loss, b.test_loss), rtol=1e-5)
        assert (a.train_accuracy, a.test_accuracy) == (b.train_accuracy, b.test_accuracy)
    assert four.environment["device_count"] == 4


def test_devices_share_the_batch():
    """Each of four devices convolves a quarter of the images."""
    dataset, run = _dataset(), _run(batch_size=32)
    optimizer = make_optimizer(run, 3)

    def program(devices):
        graphdef, state = init_state(run, dataset, optimizer)
        train_epoch = make_train_epoch(run, dataset, graphdef, optimizer, make_mesh(devices))
        data = dataset.train_images, dataset.train_labels
        return train_epoch.lower(state, *data, np.uint32(0), np.int32(0)).compile().as_text()

    one, four = program(1), program(4)
    assert "all-reduce" not in one
    assert "all-reduce" in four
    assert "f32[32,4,4,4]" in one  # activations of the convolution
    assert "f32[8,4,4,4]" in four
    assert "f32[32,4,4,4]" not in four


# Wrong arguments


@pytest.mark.parametrize(
    ("options", "devices", "complaint"),
    [
        ({"batch_size": 97}, 1, "batch_size is 97, but there are only 96 training images"),
        ({"batch_size": 30}, 4, "batch_size is 30, which 4 devices cannot share equally"),
        ({}, 0, "devices must be from 1 to the 8 there are, got 0"),
        ({}, 9, "devices must be from 1 to the 8 there are, got 9"),
        ({"model": "resnet21"}, 1, "unknown model 'resnet21'; choose from .*resnet20"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(tmp_path, options, devices, complaint):
    with pytest.raises(ValueError, match=complaint):
        training.train(_run(**options), _dataset(), out=tmp_path, devices=devices)
    assert list(tmp_path.iterdir()) == []


# Divergence


def test_divergence_is_a_result(tmp_path):
    run = _run(model="linear", method="baseline", optimizer="sgdm", learning_rate=1e38, epochs=9)
    record = training.train(run, _dataset(), out=tmp_path)
    assert record.status == "diverged"
    assert len(record.epochs) < 9
    assert not np.isfinite(record.epochs[-1].train_loss)
    assert 0 < record.epochs[-1].nonfinite_steps <= 6
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
    read = records.read_record(tmp_path, run)
    assert repr(read) == repr(record)
    assert repr(training.train(run, _dataset(), out=tmp_path)) == repr(record)  # is not tried again


def test_parameters_that_are_nan_are_a_divergence_though_the_loss_is_finite(tmp_path):
    """XLA's maximum can swallow a NaN on CPU, so that the loss behind a ReLU stays finite."""
    run = _run(model="swallows_nan", method="baseline", optimizer="sgdm", epochs=3)
    record = training.train(run, _dataset(), out=tmp_path)
    assert np.isfinite(record.epochs[-1].train_loss + record.epochs[-1].test_loss)
    assert (record.status, len(record.epochs)) == ("diverged", 1)


def test_a_step_with_finite_loss_and_infinite_gradient_counts():
    dataset = _dataset()
    run = _run(model="linear", method="baseline", optimizer="sgdm", batch_size=96, augment="none")
    optimizer = make_optimizer(run, 1)
    graphdef, state = init_state(run, dataset, optimizer)

    class InfiniteGradient(Linear):
        def __call__(self, images, *, train):
            logits = super().__call__(images, train=train)
            # The root has an infinite slope where its argument is zero.
            return logits + jnp.sqrt(jnp.sum(self.linear.kernel[...] * 0))

    model = nnx.merge(graphdef, state.params, state.batch_stats)
    model.__class__ = InfiniteGradient
    graphdef = nnx.split(model, nnx.Param, nnx.BatchStat)[0]
    train_epoch = make_train_epoch(run, dataset, graphdef, optimizer, make_mesh(1))
    _, measured = train_epoch(state, dataset.train_images, dataset.train_labels, np.uint32(0), np.int32(0))
    assert np.isfinite(measured["train_loss"])
    assert int(measured["nonfinite_steps"]) == 1


# One compilation


class _Compilations(logging.Handler):
    def __init__(self):
        super().__init__(logging.DEBUG)
        self.names = []

    def emit(self, record):
        message = record.getMessage()
        if message.startswith("Finished XLA compilation of"):
            self.names.append(message.split()[4])


@contextlib.contextmanager
def _compilations():
    handler, logger = _Compilations(), logging.getLogger("jax._src.dispatch")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield handler.names
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.mark.parametrize("devices", [1, 4])
def test_nothing_compiles_after_the_start(tmp_path, devices):
    compiled_by_epoch = []
    with _compilations() as names:
        training.train(
            _run(epochs=4),
            _dataset(),
            out=tmp_path,
            devices=devices,
            on_epoch=lambda record: compiled_by_epoch.append(list(names)),
        )
    assert compiled_by_epoch[0].count("jit(train_epoch)") == 1
    assert compiled_by_epoch[0].count("jit(evaluate)") == 1
    assert compiled_by_epoch == [compiled_by_epoch[0]] * 4


# Interruption


class Interrupted(Exception):
    pass


def _stop_after(epochs: int):
    def on_epoch(record):
        if len(record.epochs) == epochs:
            raise Interrupted

    return on_epoch


@pytest.mark.parametrize("optimizer", ["sgdm", "lamb"])
def test_resumed_training_is_bit_identical(tmp_path, optimizer):
    dataset = _dataset()
    run = _run(optimizer=optimizer, method="gan", epochs=4, schedule="cosine", warmup_epochs=1.0)
    whole = training.train(run, dataset, out=tmp_path / "whole", keep_checkpoint=True)
    for epochs in (1, 3):
        with pytest.raises(Interrupted):
            training.train(
                run, dataset, out=tmp_path / "cut", on_epoch=_stop_after(epochs), keep_checkpoint=True
            )
    before = records.read_record(tmp_path / "cut", run)
    assert (before.status, len(before.epochs)) == ("running", 3)
    cut = training.train(run, dataset, out=tmp_path / "cut", keep_checkpoint=True)
    assert cut.epochs[:3] == before.epochs  # with their seconds: not made again
    assert _without_seconds(cut) == _without_seconds(whole)
    assert [restart["after_epoch"] for restart in cut.resumed] == [1, 3]
    one, other = (records.read_checkpoint(tmp_path / part, run) for part in ("whole", "cut"))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_epochs_without_a_checkpoint_are_made_again(tmp_path):
    """Killed between writing the record and the checkpoint: the record knows one epoch too many."""
    dataset, run = _dataset(), _run(epochs=3)
    whole = training.train(run, dataset, out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        training.train(run, dataset, out=tmp_path, on_epoch=_stop_after(1))
    record = records.read_record(tmp_path, run)
    ahead = dataclasses.replace(record.epochs[0], epoch=2, train_loss=99.0)
    records.write_record(tmp_path, dataclasses.replace(record, epochs=(*record.epochs, ahead)))
    assert _without_seconds(training.train(run, dataset, out=tmp_path)) == _without_seconds(whole)


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    dataset, run, other = _dataset(), _run(epochs=1), _run(epochs=1, seed=1)
    leftover, not_ours = tmp_path / f".{run.name}.npz.123", tmp_path / f".{other.name}.npz.123"
    for path in (leftover, not_ours):
        path.write_bytes(b"half")
    training.train(run, dataset, out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{run.name}.json", not_ours.name}


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_a_lost_file_starts_the_run_again(tmp_path, suffix):
    dataset, run = _dataset(), _run(epochs=3)
    whole = training.train(run, dataset, out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        training.train(run, dataset, out=tmp_path, on_epoch=_stop_after(2))
    (tmp_path / f"{run.name}{suffix}").unlink()
    again = training.train(run, dataset, out=tmp_path)
    assert _without_seconds(again) == _without_seconds(whole)
    assert again.resumed == ()


def test_a_checkpoint_of_another_model_is_refused(tmp_path, monkeypatch):
    dataset, run = _dataset(), _run()
    with pytest.raises(Interrupted):
        training.train(run, dataset, out=tmp_path, on_epoch=_stop_after(1))
    monkeypatch.setitem(models.MODELS, "tiny", Linear)
    with pytest.raises(RecordError, match=f"checkpoint of {run.name} is of another model"):
        training.train(run, dataset, out=tmp_path)


def _without(name: str, arrays: dict) -> dict:
    return {key: array for key, array in arrays.items() if key != name}


@pytest.mark.parametrize("lacking", ["epoch", "params/linear/bias"])
def test_a_checkpoint_without_one_array_is_refused(tmp_path, lacking):
    dataset, run = _dataset(), _run()
    with pytest.raises(Interrupted):
        training.train(run, dataset, out=tmp_path, on_epoch=_stop_after(1))
    arrays = records.read_checkpoint(tmp_path, run)
    records.write_checkpoint(tmp_path, run, _without(lacking, arrays))
    with pytest.raises(RecordError, match=rf"{run.name}.*'{lacking}'.*remove {run.name}\.npz"):
        training.train(run, dataset, out=tmp_path)
    records.remove_checkpoint(tmp_path, run)
    assert training.train(run, dataset, out=tmp_path).status == "finished"


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda data: _dataset(train=2 * len(data.train_images)), "train_images was 96, is 192"),
        (lambda data: _dataset(test=7), "test_images was 50, is 7"),
        (lambda data: _dataset(size=10), r"image_shape was \[8, 8, 1\], is \[10, 10, 1\]"),
        (lambda data: _dataset(channels=3), r"image_shape was \[8, 8, 1\], is \[8, 8, 3\]"),
        (lambda data: _dataset(num_classes=4), "num_classes was 3, is 4"),
        (lambda data: dataclasses.replace(data, mean=data.mean + 0.01), "mean was"),
        (lambda data: dataclasses.replace(data, std=data.std * 1.01), "std was"),
        (lambda data: dataclasses.replace(data, train_labels=data.train_labels[::-1]), "labels_checksum was"),
        (
            lambda data: dataclasses.replace(data, test_labels=(data.test_labels + 1) % 3),
            "labels_checksum was",
        ),
    ],
)
@pytest.mark.parametrize("ended", [False, True])
def test_a_run_does_not_go_on_with_other_data(tmp_path, change, difference, ended):
    dataset, run = _dataset(), _run(epochs=2)
    if ended:
        training.train(run, dataset, out=tmp_path)
    else:
        with pytest.raises(Interrupted):
            training.train(run, dataset, out=tmp_path, on_epoch=_stop_after(1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RecordError, match=f"{run.name}.*{difference}.*another --out") as error:
        training.train(run, change(dataset), out=tmp_path, keep_checkpoint=ended)
    assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    # What the message says to do helps.
    (tmp_path / f"{run.name}.json").unlink()
    changed = change(dataset)
    record = training.train(run, changed, out=tmp_path)
    assert record.data["train_images"] == len(changed.train_images)
    assert (record.status, record.resumed) == ("finished", ())


def test_a_run_that_failed_before_its_first_epoch_may_have_other_data(tmp_path):
    run = _run(epochs=1)
    records.write_record(tmp_path, RunRecord(run, status="failed", message="its worker died"))
    record = training.train(run, _dataset(), out=tmp_path)
    assert (record.status, record.data["train_images"]) == ("finished", 96)


def test_the_last_digit_of_a_mean_may_depend_on_the_machine(tmp_path):
    dataset, run = _dataset(), _run(epochs=2)
    with pytest.raises(Interrupted):
        training.train(run, dataset, out=tmp_path, on_epoch=_stop_after(1))
    elsewhere = dataclasses.replace(dataset, mean=np.nextafter(dataset.mean, np.float32(1)))
    assert training.train(run, elsewhere, out=tmp_path).resumed[0]["after_epoch"] == 1


def test_a_record_without_a_checksum_goes_on(tmp_path):
    """As those that were written before there was one."""
    dataset, run = _dataset(), _run(epochs=1)
    record = training.train(run, dataset, out=tmp_path)
    data = {name: value for name, value in record.data.items() if name != "labels_checksum"}
    records.write_record(tmp_path, dataclasses.replace(record, data=data))
    assert training.train(run, dataset, out=tmp_path).epochs == record.epochs


def test_a_finished_run_is_not_made_again(tmp_path):
    dataset, run = _dataset(), _run(epochs=1)
    first = training.train(run, dataset, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{run.name}.json"]
    assert training.train(run, dataset, out=tmp_path) == first
    with pytest.raises(RecordError, match="no checkpoint"):
        training.load_model(run, out=tmp_path)
    # Unless its checkpoint is wanted now.
    again = training.train(run, dataset, out=tmp_path, keep_checkpoint=True)
    assert _without_seconds(again) == _without_seconds(first)
    training.load_model(run, out=tmp_path)


def test_a_full_disk_stops_the_run_and_it_goes_on_later(tmp_path):
    dataset, run = _dataset(), _run(epochs=3)
    whole = training.train(run, dataset, out=tmp_path / "whole")
    out = tmp_path / "full"
    with pytest.raises(Interrupted):
        training.train(run, dataset, out=out, on_epoch=_stop_after(1))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3500, limit[1]))  # enough for the record alone
    try:
        with pytest.raises(FileError, match=rf"cannot write .*{run.name}\.npz: File too large"):
            training.train(run, dataset, out=out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert sorted(path.suffix for path in out.iterdir()) == [".json", ".npz"]
    assert _without_seconds(training.train(run, dataset, out=out)) == _without_seconds(whole)


CHILD = """
import sys
sys.path[:0] = sys.argv[2:]
import jax
jax.config.update("jax_numpy_dtype_promotion", "strict")
import test_loop
from experiments import models, training
models.MODELS.update(test_loop.SMALL_MODELS)
training.train(
    test_loop.KILLED_RUN,
    test_loop._dataset(train=1600),
    out=sys.argv[1],
    on_epoch=lambda record: print(len(record.epochs), flush=True),
    keep_checkpoint=True,
)
"""
KILLED_RUN = _run(epochs=40, batch_size=16)


def _train_until_killed(out: Path, after_epochs: int, delay: float) -> list[int]:
    """Trains in a process of its own, kills it `delay` seconds after some epochs; says which it made."""
    command = [sys.executable, "-W", "error", "-c", CHILD, str(out), str(ROOT), str(Path(__file__).parent)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        made = [int(child.stdout.readline()) for _ in range(after_epochs)]
        time.sleep(delay)
        child.kill()
        return made + [int(line) for line in child.stdout if line.endswith("\n")]


def test_killed_processes_end_with_the_same_bits(tmp_path):
    whole = training.train(KILLED_RUN, _dataset(train=1600), out=tmp_path / "whole", keep_checkpoint=True)
    out = tmp_path / "killed"
    generator = random.Random(0)
    last = 0
    for after_epochs in (3, 2):
        made = _train_until_killed(out, after_epochs, delay=generator.uniform(0, 0.05))
        # Goes on after the last epoch reported; one more may have been finished before the kill.
        assert made == list(range(made[0], made[0] + len(made)))
        assert made[0] in (last + 1, last + 2)
        last = made[-1]
        record = records.read_record(out, KILLED_RUN)
        assert record.status == "running"
        assert last <= len(record.epochs) <= last + 1
    assert last < KILLED_RUN.epochs
    resumed = training.train(KILLED_RUN, _dataset(train=1600), out=out, keep_checkpoint=True)
    assert resumed.status == "finished"
    assert len(resumed.resumed) == 2
    assert _without_seconds(resumed) == _without_seconds(whole)
    ended, undisturbed = (
        records.read_checkpoint(tmp_path / part, KILLED_RUN) for part in ("killed", "whole")
    )
    for name in undisturbed:
        np.testing.assert_array_equal(ended[name], undisturbed[name])
    assert {path.name for path in out.iterdir()} == {f"{KILLED_RUN.name}.json", f"{KILLED_RUN.name}.npz"}


# Precision


def test_bfloat16_keeps_float32_parameters(tmp_path):
    dataset = _dataset()
    run = _run(dtype="bfloat16", epochs=2)
    record = training.train(run, dataset, out=tmp_path, keep_checkpoint=True)
    assert record.status == "finished"
    arrays = records.read_checkpoint(tmp_path, run)
    assert {str(a.dtype) for name, a in arrays.items() if name.startswith(("params", "batch_stats"))} == {
        "float32"
    }
    full = training.train(_run(epochs=2), dataset, out=tmp_path)
    assert record.epochs[0].train_loss == pytest.approx(full.epochs[0].train_loss, rel=0.05)
    assert record.epochs[0].train_loss != full.epochs[0].train_loss


def test_a_real_model_of_the_collection(tmp_path):
    run = _run(model="resnet8", epochs=1, batch_size=32)
    record = training.train(run, _dataset(train=64, test=10), out=tmp_path)
    assert record.status == "finished"
    assert record.parameters > 70_000
    assert os.path.getsize(tmp_path / f"{run.name}.json") < 3000
