"""Recorded gradient statistics against NumPy, through kills, and without a trace in the metrics."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import models, records, training
from experiments.data.dataset import make_dataset
from experiments.models.layers import BatchNorm
from experiments.records import RecordError, RunRecord
from experiments.records.dynamics import GradientDynamics
from experiments.run import Run
from experiments.training.methods import make_optimizer
from experiments.training.state import init_state

from .small import without_seconds

STATISTICS = ("std", "smallest_std", "mean", "global_std")


class TwoLayers(nnx.Module):
    """Linear, rectifier, linear: small enough to differentiate by hand."""

    def __init__(self, *, num_classes, channels, image_size, rngs, dtype):
        self.hidden = nnx.Linear(image_size * image_size * channels, 6, dtype=dtype, rngs=rngs)
        self.to_logits = nnx.Linear(6, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, images, *, train):
        del train
        return self.to_logits(nnx.relu(self.hidden(images.reshape(len(images), -1)))).astype(jnp.float32)


class Convolution(nnx.Module):
    """Convolution, BatchNorm and a linear layer."""

    def __init__(self, *, num_classes, channels, image_size, rngs, dtype):
        del image_size
        self.conv = nnx.Conv(channels, 3, (3, 3), dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(3, dtype=dtype, rngs=rngs)
        self.to_logits = nnx.Linear(3, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, images, *, train):
        x = nnx.relu(self.norm(self.conv(images), train=train))
        return self.to_logits(x.mean((1, 2))).astype(jnp.float32)


class Deep(nnx.Module):
    """Eleven linear layers in a list: as text, '10' sorts before '2'."""

    def __init__(self, *, num_classes, channels, image_size, rngs, dtype):
        features = [image_size * image_size * channels, *[2] * 10, num_classes]
        self.layers = nnx.List(
            nnx.Linear(m, n, dtype=dtype, rngs=rngs) for m, n in itertools.pairwise(features)
        )

    def __call__(self, images, *, train):
        del train
        x = images.reshape(len(images), -1)
        for layer in self.layers:
            x = layer(x)
        return x.astype(jnp.float32)


SMALL_MODELS = {"two_layers": TwoLayers, "convolution": Convolution, "deep": Deep}


pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(autouse=True)
def _small_models(monkeypatch):
    for name, model in SMALL_MODELS.items():
        monkeypatch.setitem(models.MODELS, name, model)


def make_patches(train=24, size=4, num_classes=3):
    generator = np.random.default_rng(0)

    def split(count):
        images = generator.integers(0, 256, (count, size, size, 1)).astype(np.uint8)
        return images, generator.integers(0, num_classes, count)

    return make_dataset("patches", *split(train), *split(10), num_classes)


def make_run(**options) -> Run:
    defaults = {"dataset": "patches", "model": "two_layers", "method": "znorm", "optimizer": "sgdm"}
    defaults |= {"learning_rate": 0.05, "epochs": 3, "batch_size": 8, "seed": 0, "dynamics": True}
    return Run(**(defaults | options))


def read(out, record: RunRecord) -> GradientDynamics:
    dynamics = records.read_dynamics(out, record)
    assert dynamics is not None
    return dynamics


def assert_same(one: GradientDynamics, other: GradientDynamics) -> None:
    assert one.layers == other.layers
    for name in ("sizes", *STATISTICS):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)


# Against NumPy


class NumPyNetwork:
    """The two layers in float64, from the same first parameters."""

    def __init__(self, run, dataset):
        _, state = init_state(run, dataset, make_optimizer(run, 1))
        layers = [state.params["hidden"], state.params["to_logits"]]
        self.kernels = [np.float64(layer["kernel"]) for layer in layers]
        self.biases = [np.float64(layer["bias"]) for layer in layers]
        self.dataset = dataset

    def gradients(self, images, labels):
        scaled = (images / 255 - np.float64(self.dataset.mean)) / np.float64(self.dataset.std)
        pixels = scaled.reshape(len(images), -1)
        before = pixels @ self.kernels[0] + self.biases[0]
        hidden = np.maximum(before, 0)
        exponentials = np.exp(hidden @ self.kernels[1] + self.biases[1])
        targets = np.eye(self.dataset.num_classes)[labels]
        error = (exponentials / exponentials.sum(1, keepdims=True) - targets) / len(images)
        hidden_error = (error @ self.kernels[1].T) * (before > 0)
        return [pixels.T @ hidden_error, hidden.T @ error], [hidden_error.sum(0), error.sum(0)]


def pooled_std(kernels):
    total = sum(kernel.size for kernel in kernels)
    return np.sqrt(sum(kernel.size * kernel.var() for kernel in kernels) / total)


@pytest.mark.parametrize("method", ["baseline", "znorm"])
def test_an_epoch_has_the_statistics_of_its_steps(tmp_path, method):
    """At a vanishing learning rate and one image a step, the steps of an epoch are known in any order."""
    dataset = make_patches()
    run = make_run(method=method, learning_rate=1e-30, batch_size=1, epochs=2)
    dynamics = read(tmp_path, training.train(run, dataset, out=tmp_path))
    network = NumPyNetwork(run, dataset)
    steps = [
        network.gradients(dataset.train_images[i : i + 1], dataset.train_labels[i : i + 1])[0]
        for i in range(24)
    ]
    std = np.array([[kernel.std() for kernel in kernels] for kernels in steps])
    mean = np.array([[kernel.mean() for kernel in kernels] for kernels in steps])

    assert dynamics.layers == ("hidden/kernel", "to_logits/kernel")
    assert dynamics.sizes.tolist() == [16 * 6, 6 * 3]
    for epoch in range(2):
        np.testing.assert_allclose(dynamics.std[epoch], std.mean(0), rtol=1e-5)
        np.testing.assert_allclose(dynamics.smallest_std[epoch], std.min(0), rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(dynamics.mean[epoch], abs(mean).mean(0), rtol=1e-4, atol=1e-8)
        expected = np.mean([pooled_std(kernels) for kernels in steps])
        np.testing.assert_allclose(dynamics.global_std[epoch], expected, rtol=1e-5)
    assert {getattr(dynamics, name).dtype.name for name in STATISTICS} == {"float32"}


def test_epochs_follow_the_training_and_see_the_gradients_before_the_method(tmp_path):
    dataset = make_patches()
    run = make_run(batch_size=24, epochs=6)
    dynamics = read(tmp_path, training.train(run, dataset, out=tmp_path))
    network = NumPyNetwork(run, dataset)
    traces = [[0.0, 0.0], [0.0, 0.0]]
    for epoch in range(6):
        kernels, biases = network.gradients(dataset.train_images, dataset.train_labels)
        np.testing.assert_allclose(dynamics.std[epoch], [k.std() for k in kernels], rtol=1e-3)
        np.testing.assert_array_equal(dynamics.smallest_std[epoch], dynamics.std[epoch])  # one step
        np.testing.assert_allclose(
            dynamics.mean[epoch], [abs(k.mean()) for k in kernels], rtol=1e-2, atol=1e-7
        )
        np.testing.assert_allclose(dynamics.global_std[epoch], pooled_std(kernels), rtol=1e-3)
        normalized = [(kernel - kernel.mean()) / (kernel.std() + 1e-10) for kernel in kernels]
        for trace, gradients, parameters in (
            (traces[0], normalized, network.kernels),
            (traces[1], biases, network.biases),
        ):
            for layer in range(2):
                trace[layer] = 0.9 * trace[layer] + gradients[layer]
                parameters[layer] -= 0.05 * trace[layer]


def test_layers_are_in_the_order_of_the_network(tmp_path):
    run = make_run(model="deep", epochs=1)
    dynamics = read(tmp_path, training.train(run, make_patches(), out=tmp_path))
    assert dynamics.layers == tuple(f"layers/{i}/kernel" for i in range(11))
    assert dynamics.sizes.tolist() == [16 * 2, *[2 * 2] * 9, 2 * 3]


# What stays as it is


@pytest.mark.parametrize("method", ["baseline", "znorm", "gan"])
def test_metrics_do_not_change(tmp_path, method):
    dataset = make_patches()
    options = {"model": "convolution", "method": method, "optimizer": "sgdm", "learning_rate": 0.01}
    on, off = (make_run(**options, dynamics=dynamics) for dynamics in (True, False))
    with_it = training.train(on, dataset, out=tmp_path)
    without = training.train(off, dataset, out=tmp_path)
    # To rounding: the statistics make it another program, which XLA may fuse otherwise.
    for epoch, wanted in zip(without_seconds(with_it), without_seconds(without), strict=True):
        assert epoch == pytest.approx(wanted, rel=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{on.name}.json",
        f"{on.name}.dynamics.npz",
        f"{off.name}.json",
    }
    assert records.read_dynamics(tmp_path, without) is None
    assert {record.run for record in records.read_records(tmp_path)} == {on, off}


def test_names_of_runs_without_it_stay():
    """Its name was given before the option came."""
    run = Run("digits", "resnet8", "baseline", "adam", 0.001, 10, 64, 0)
    assert run.name == "digits-resnet8-baseline-adam-lr0.001-s0-06484f53"
    assert dataclasses.replace(run, dynamics=True).name != run.name


@pytest.mark.parametrize("value", [1, "yes", None])
def test_the_option_is_a_truth_value(value):
    with pytest.raises(ValueError, match="dynamics must be True or False, got"):
        make_run(dynamics=value)
    assert make_run(dynamics=np.bool_(True)) == make_run()


def test_devices_that_share_the_batch_see_the_same_gradients(tmp_path):
    dataset, run = make_patches(), make_run()
    one, four = (
        read(tmp_path / str(n), training.train(run, dataset, out=tmp_path / str(n), devices=n))
        for n in (1, 4)
    )
    for name in STATISTICS:
        np.testing.assert_allclose(getattr(one, name), getattr(four, name), rtol=1e-4, atol=1e-7)


# Interruption


class Interrupted(Exception):
    pass


def stop_after(epochs: int):
    def on_epoch(record):
        if len(record.epochs) == epochs:
            raise Interrupted

    return on_epoch


def interrupted_run(dataset, out) -> Run:
    run = make_run(epochs=4)
    with pytest.raises(Interrupted):
        training.train(run, dataset, out=out, on_epoch=stop_after(2))
    return run


def test_an_epoch_ahead_of_the_checkpoint_is_replaced(tmp_path):
    """Killed after the statistics were written and before the record or the checkpoint."""
    dataset = make_patches()
    run = interrupted_run(dataset, tmp_path)
    record = records.read_record(tmp_path, run)
    dynamics = read(tmp_path, record)
    false = {name: np.full_like(getattr(dynamics, name)[0], 99) for name in STATISTICS}
    records.write_dynamics(tmp_path, run, dynamics.append(false))
    assert_same(read(tmp_path, record), dynamics)  # a report does not see it either
    resumed = training.train(run, dataset, out=tmp_path)
    assert [restart["after_epoch"] for restart in resumed.resumed] == [2]
    whole = training.train(run, dataset, out=tmp_path / "whole")
    assert_same(read(tmp_path, resumed), read(tmp_path / "whole", whole))


def test_without_its_statistics_a_run_starts_again(tmp_path):
    dataset = make_patches()
    run = interrupted_run(dataset, tmp_path)
    (tmp_path / f"{run.name}.dynamics.npz").unlink()
    again = training.train(run, dataset, out=tmp_path)
    assert again.resumed == ()
    assert len(read(tmp_path, again).std) == 4


def test_statistics_that_do_not_fit_together_are_named(tmp_path):
    dataset = make_patches()
    run = interrupted_run(dataset, tmp_path)
    path = tmp_path / f"{run.name}.dynamics.npz"
    arrays = dict(np.load(path))
    for changed in ({"sizes": arrays["sizes"][:1]}, {"unknown": arrays["std"]}, {"layers": np.float32(1)}):
        np.savez(path, **(arrays | changed))
        with pytest.raises(RecordError, match=rf"cannot read .*{run.name}\.dynamics\.npz") as error:
            training.train(run, dataset, out=tmp_path)
        assert "\n" not in str(error.value)


def test_a_diverged_run_keeps_the_epoch_in_which_it_diverged(tmp_path):
    run = make_run(method="baseline", learning_rate=1e30, epochs=3)
    record = training.train(run, make_patches(), out=tmp_path)
    assert record.status == "diverged"
    dynamics = read(tmp_path, record)
    assert len(dynamics.std) == len(record.epochs)
    assert not np.isfinite(dynamics.global_std[-1])
