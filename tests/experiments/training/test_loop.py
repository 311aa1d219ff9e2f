"""Training against NumPy, on several devices, in one compilation."""

import contextlib
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments import models, records, training
from experiments.training.epoch import make_evaluate, make_train_epoch
from experiments.training.layout import set_up
from experiments.training.methods import METHODS, make_optimizer
from experiments.training.state import init_state

from .small import SMALL_MODELS, Linear, small_dataset, small_run

pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(autouse=True)
def _small_models(monkeypatch):
    for name, model in SMALL_MODELS.items():
        monkeypatch.setitem(models.MODELS, name, model)


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
    dataset = small_dataset(channels=2)
    run = small_run(
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
    dataset = small_dataset(train=96)
    run = small_run(model="linear", method="baseline", optimizer="sgdm", learning_rate=1e-30, augment="none")
    record = training.train(run, dataset, out=tmp_path)
    loss, accuracy = NumPyRegression(run, dataset).measure(dataset.train_images, dataset.train_labels)
    for metrics in record.epochs:
        np.testing.assert_allclose(metrics.train_loss, loss, rtol=2e-6)
        assert metrics.train_accuracy == pytest.approx(accuracy, abs=1e-12)


def test_the_last_incomplete_batch_is_dropped(tmp_path):
    dataset = small_dataset(train=37)
    run = small_run(model="linear", method="baseline", optimizer="sgdm", learning_rate=1e-30, epochs=8)
    record = training.train(run, dataset, out=tmp_path)
    for metrics in record.epochs:
        assert 32 * metrics.train_accuracy == round(32 * metrics.train_accuracy)  # a share of two batches
    # Which five images are dropped changes from epoch to epoch.
    assert len({metrics.train_loss for metrics in record.epochs}) > 4


@pytest.mark.parametrize("count", [1, 7, 500, 501, 1203])
@pytest.mark.parametrize("devices", [1, 4])
def test_evaluation_counts_every_image_once(count, devices):
    dataset = small_dataset(test=count)
    run = small_run(model="linear")
    setup, state = set_up(run, dataset, devices)
    measured = make_evaluate(setup)(state, dataset.test_images, dataset.test_labels)
    loss, accuracy = NumPyRegression(run, dataset).measure(dataset.test_images, dataset.test_labels)
    np.testing.assert_allclose(measured["test_loss"], loss, rtol=3e-6)
    assert int(measured["test_correct"]) == round(accuracy * count)


def test_batch_statistics_are_carried_and_used(tmp_path):
    """After training at a vanishing rate, the running mean is that of the batches the model saw."""
    dataset = small_dataset()
    run = small_run(
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
    dataset = small_dataset(train=480)
    record = training.train(small_run(augment="none", epochs=8), dataset, out=tmp_path)
    assert record.epochs[-1].train_loss < 0.5 * record.epochs[0].train_loss
    assert record.epochs[-1].test_accuracy > 0.9


# Randomness


def _epoch_results(*seeds_and_epochs: tuple[int, int], augment: str = "none"):
    """Parameters and measurements after one epoch from the same state, for each seed and epoch."""
    dataset, run = small_dataset(), small_run(augment=augment)
    setup, first_state = set_up(run, dataset)
    train_epoch = make_train_epoch(setup)
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
    dataset = small_dataset()
    kernels = [
        init_state(small_run(seed=seed), dataset, optax.identity())[1].params["conv"]["kernel"]
        for seed in (0, 1, 2**32 - 1)
    ]
    assert len({np.asarray(kernel).tobytes() for kernel in kernels}) == 3


def test_methods_start_from_the_same_parameters():
    dataset = small_dataset()
    first, *others = [
        init_state(small_run(method=method), dataset, optax.identity())[1].params for method in METHODS
    ]
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first, other)


# Several devices


@pytest.mark.parametrize("method", ["baseline", "znorm", "gan"])
def test_data_parallel_training_is_the_same(tmp_path, method):
    dataset = small_dataset(test=51, channels=3)
    run = small_run(method=method, optimizer="sgdm", epochs=2)
    one = training.train(run, dataset, out=tmp_path / "one", devices=1)
    four = training.train(run, dataset, out=tmp_path / "four", devices=4)
    for a, b in zip(one.epochs, four.epochs, strict=True):
        np.testing.assert_allclose((a.train_loss, a.test_loss), (b.train_loss, b.test_loss), rtol=1e-5)
        assert (a.train_accuracy, a.test_accuracy) == (b.train_accuracy, b.test_accuracy)
    assert four.environment["device_count"] == 4


def test_devices_share_the_batch():
    """Each of four devices convolves a quarter of the images."""
    dataset, run = small_dataset(), small_run(batch_size=32)

    def program(devices):
        setup, state = set_up(run, dataset, devices)
        data = dataset.train_images, dataset.train_labels
        return make_train_epoch(setup).lower(state, *data, np.uint32(0), np.int32(0)).compile().as_text()

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
        training.train(small_run(**options), small_dataset(), out=tmp_path, devices=devices)
    assert list(tmp_path.iterdir()) == []


# Divergence


def test_divergence_is_a_result(tmp_path):
    run = small_run(model="linear", method="baseline", optimizer="sgdm", learning_rate=1e38, epochs=9)
    record = training.train(run, small_dataset(), out=tmp_path)
    assert record.status == "diverged"
    assert len(record.epochs) < 9
    assert not np.isfinite(record.epochs[-1].train_loss)
    assert 0 < record.epochs[-1].nonfinite_steps <= 6
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
    read = records.read_record(tmp_path, run)
    assert repr(read) == repr(record)
    assert repr(training.train(run, small_dataset(), out=tmp_path)) == repr(record)  # is not tried again


def test_parameters_that_are_nan_are_a_divergence_though_the_loss_is_finite(tmp_path):
    """XLA's maximum can swallow a NaN on CPU, so that the loss behind a ReLU stays finite."""
    run = small_run(model="swallows_nan", method="baseline", optimizer="sgdm", epochs=3)
    record = training.train(run, small_dataset(), out=tmp_path)
    assert np.isfinite(record.epochs[-1].train_loss + record.epochs[-1].test_loss)
    assert (record.status, len(record.epochs)) == ("diverged", 1)


def test_a_step_with_finite_loss_and_infinite_gradient_counts():
    dataset = small_dataset()
    run = small_run(model="linear", method="baseline", optimizer="sgdm", batch_size=96, augment="none")
    setup, state = set_up(run, dataset)

    class InfiniteGradient(Linear):
        def __call__(self, images, *, train):
            logits = super().__call__(images, train=train)
            # The root has an infinite slope where its argument is zero.
            return logits + jnp.sqrt(jnp.sum(self.linear.kernel[...] * 0))

    model = nnx.merge(setup.graphdef, state.params, state.batch_stats)
    model.__class__ = InfiniteGradient
    setup = setup._replace(graphdef=nnx.split(model, nnx.Param, nnx.BatchStat)[0])
    train_epoch = make_train_epoch(setup)
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
            small_run(epochs=4),
            small_dataset(),
            out=tmp_path,
            devices=devices,
            on_epoch=lambda record: compiled_by_epoch.append(list(names)),
        )
    assert compiled_by_epoch[0].count("jit(train_epoch)") == 1
    assert compiled_by_epoch[0].count("jit(evaluate)") == 1
    assert compiled_by_epoch == [compiled_by_epoch[0]] * 4


# Precision


def test_bfloat16_keeps_float32_parameters(tmp_path):
    dataset = small_dataset()
    run = small_run(dtype="bfloat16", epochs=2)
    record = training.train(run, dataset, out=tmp_path, keep_checkpoint=True)
    assert record.status == "finished"
    arrays = records.read_checkpoint(tmp_path, run)
    assert {str(a.dtype) for name, a in arrays.items() if name.startswith(("params", "batch_stats"))} == {
        "float32"
    }
    full = training.train(small_run(epochs=2), dataset, out=tmp_path)
    assert record.epochs[0].train_loss == pytest.approx(full.epochs[0].train_loss, rel=0.05)
    assert record.epochs[0].train_loss != full.epochs[0].train_loss


def test_a_real_model_of_the_collection(tmp_path):
    run = small_run(model="resnet8", epochs=1, batch_size=32)
    record = training.train(run, small_dataset(train=64, test=10), out=tmp_path)
    assert record.status == "finished"
    assert record.parameters > 70_000
    assert os.path.getsize(tmp_path / f"{run.name}.json") < 3000
