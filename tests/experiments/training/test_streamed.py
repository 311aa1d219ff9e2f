"""Streamed sets: the same images and losses as in memory, and no more memory for more of them."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import models, records, training
from experiments.data import load, select
from experiments.data.streaming import read_batches
from experiments.run import Run

from ..data.prepared_folders import write_prepared

pytestmark = pytest.mark.usefixtures("compile_once")
ROOT = Path(__file__).parents[3]


class Small(nnx.Module):
    """A linear layer on the image in sixteenths: NumPy-like speed, and it compiles fast."""

    def __init__(self, *, num_classes, channels, image_size, rngs, dtype=jnp.float32):
        del image_size
        self.conv = nnx.Conv(channels, 4, (8, 8), strides=8, dtype=dtype, rngs=rngs)
        self.linear = nnx.Linear(4, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, images, *, train):
        del train
        return self.linear(nnx.relu(self.conv(images)).mean((1, 2))).astype(jnp.float32)


@pytest.fixture(autouse=True)
def _small_model(monkeypatch):
    monkeypatch.setitem(models.MODELS, "small", Small)


def make_patches(count, size=32):
    random = np.random.default_rng(count)
    labels = random.integers(0, 2, count)
    images = random.integers(0, 200, (count, size, size, 3)) + 55 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """250 and 90 patches: four shards of each, and neither a multiple of a batch."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        splits = {"train": make_patches(250), "test": make_patches(90)}
        write_prepared(folder, splits, name="pcam32", version="1.0.0", num_classes=2, num_shards=4)
    return folder


def make_run(**options):
    defaults = {"dataset": "stream:pcam32", "model": "small", "method": "gan", "optimizer": "sgdm"}
    defaults |= {"learning_rate": 0.1, "epochs": 2, "batch_size": 16, "seed": 3, "augment": "crop_flip"}
    return Run(**(defaults | options))


def test_a_streamed_set_is_the_set(data_dir):
    memory, streamed = load("pcam32", data_dir), load("stream:pcam32", data_dir)
    again = load("stream:pcam32", data_dir)  # from the labels kept
    assert [path.suffix for path in (data_dir / "pcam32" / "1.0.0").glob("streamed-*")] == [".npz"]
    for other in (streamed, again):
        for field in ("train_labels", "test_labels", "mean", "std"):
            np.testing.assert_array_equal(getattr(other, field), getattr(memory, field))
            assert getattr(other, field).dtype == getattr(memory, field).dtype
        assert other.train_images.shape == memory.train_images.shape
        assert len(other.test_images) == 90
        assert (other.is_streamed, memory.is_streamed) == (True, False)
    order = np.random.default_rng(0).permutation(250)[:100]
    batches = list(read_batches(streamed.train_images, order, 32))
    assert [len(batch) for batch in batches] == [32, 32, 32, 4]
    np.testing.assert_array_equal(np.concatenate(batches), memory.train_images[order])
    np.testing.assert_array_equal(
        np.concatenate(list(read_batches(memory.train_images, order, 32))), memory.train_images[order]
    )


@pytest.mark.parametrize(
    "options", [{"train_examples": 30, "test_examples": 8}, {"validation_examples": 50, "train_examples": 40}]
)
def test_subsets_of_a_streamed_set_are_those_of_the_set(data_dir, options):
    run = make_run(**options)
    memory, streamed = (select(load(name, data_dir), run) for name in ("pcam32", "stream:pcam32"))
    for split in ("train", "test"):
        images, expected = getattr(streamed, f"{split}_images"), getattr(memory, f"{split}_images")
        found = np.concatenate(list(read_batches(images, np.arange(len(images)), 16)))
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(
            getattr(streamed, f"{split}_labels"), getattr(memory, f"{split}_labels")
        )


@pytest.mark.parametrize("batch_size", [16, 100])  # 15 steps in chunks of 5, and 2 steps
def test_streaming_one_device_and_many_give_the_same_losses(data_dir, tmp_path, batch_size):
    run = make_run(batch_size=batch_size, dynamics=batch_size == 16)
    memory, streamed = (load(name, data_dir) for name in ("pcam32", "stream:pcam32"))
    whole = training.train(run, memory, out=tmp_path / "memory")
    for name, dataset, devices in (("one", streamed, 1), ("four", streamed, 4)):
        record = training.train(run, dataset, out=tmp_path / name, devices=devices)
        for a, b in zip(whole.epochs, record.epochs, strict=True):
            np.testing.assert_allclose((a.train_loss, a.test_loss), (b.train_loss, b.test_loss), rtol=1e-5)
            assert (a.train_accuracy, a.test_accuracy) == (b.train_accuracy, b.test_accuracy)
        assert record.scores == pytest.approx(whole.scores, rel=1e-5)
        if run.dynamics:
            ours, theirs = (records.read_dynamics(tmp_path / n, whole) for n in (name, "memory"))
            np.testing.assert_allclose(ours.std, theirs.std, rtol=1e-4)
            np.testing.assert_allclose(ours.global_std, theirs.global_std, rtol=1e-4)
    assert whole.epochs[-1].train_loss < whole.epochs[0].train_loss


def test_a_prime_number_of_steps(data_dir, tmp_path):
    run = make_run(batch_size=13, epochs=1)  # 19 steps
    memory, streamed = (load(name, data_dir) for name in ("pcam32", "stream:pcam32"))
    a = training.train(run, memory, out=tmp_path / "memory").epochs[0]
    b = training.train(run, streamed, out=tmp_path / "streamed").epochs[0]
    np.testing.assert_allclose((a.train_loss, a.test_loss), (b.train_loss, b.test_loss), rtol=1e-5)


def test_nothing_compiles_after_the_first_epoch(data_dir, tmp_path, caplog):
    compiled = []

    def note(record):
        del record
        messages = [message for message in caplog.messages if message.startswith("Finished XLA compilation")]
        compiled.append(len(messages))

    with caplog.at_level("DEBUG", logger="jax._src.dispatch"):
        training.train(make_run(epochs=3), load("stream:pcam32", data_dir), out=tmp_path, on_epoch=note)
    assert compiled[0] > 0
    assert compiled == [compiled[0]] * 3


class Counted:
    """A split that counts how often an image is read."""

    def __init__(self, split):
        self.split, self.reads = split, 0

    def __len__(self):
        return len(self.split)

    def __getitem__(self, i):
        self.reads += 1
        return self.split[i]


def test_other_images_are_told_by_a_few_that_are_read_once(data_dir, tmp_path):
    """The same labels, counts, mean and deviation: every image is upside down."""
    images, labels = make_patches(250)
    splits = {"train": (images[:, ::-1], labels), "test": make_patches(90)}
    write_prepared(tmp_path / "other", splits, name="pcam32", version="1.0.0", num_classes=2)
    dataset, other = load("stream:pcam32", data_dir), load("stream:pcam32", tmp_path / "other")
    run = make_run(epochs=2)
    counted = dataset.train_images._split = Counted(dataset.train_images._split)
    assert dataset.images_checksum == load("stream:pcam32", data_dir).images_checksum
    assert dataset.images_checksum == dataset.images_checksum
    assert counted.reads == 128

    def stop(record):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        training.train(run, dataset, out=tmp_path / "out", on_epoch=stop)
    before = records.read_record(tmp_path / "out", run)
    with pytest.raises(records.RecordError, match=r"made on other data \(images_checksum was \d+, is \d+\)"):
        training.train(run, other, out=tmp_path / "out")
    assert records.read_record(tmp_path / "out", run) == before
    assert training.train(run, dataset, out=tmp_path / "out").status == "finished"


@pytest.mark.parametrize("name", ["stream:digits", "stream:", "stream:lgg", "stream"])
def test_what_cannot_be_streamed(name):
    with pytest.raises(ValueError, match=f"dataset '{name}' cannot be streamed; choose from cifar10,"):
        load(name)


MEMORY_CHILD = """
import resource, sys
sys.path[:0] = sys.argv[3:]
from tests.experiments.training import test_streamed
from experiments import data, models, training
models.MODELS["small"] = test_streamed.Small
dataset = data.load("stream:patch_camelyon", sys.argv[1])
run = test_streamed.make_run(dataset="stream:patch_camelyon", batch_size=50, epochs=1, augment="none")
record = training.train(run, dataset, out=sys.argv[2])
assert record.status == "finished" and record.data["train_images"] == len(dataset.train_images)
print(len(dataset.train_images), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


class Repeated:
    """Many images from a few, one at a time."""

    def __init__(self, images, count):
        self.images, self.count = images, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i >= self.count:
            raise IndexError
        return self.images[i % len(self.images)]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """500 and 3,500 patches of 96 x 96: in memory they would take 14 and 97 MB."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (50, 3, 3, 3), np.uint8).repeat(32, axis=1).repeat(32, axis=2)
    test = images[:20], np.arange(20) % 2
    peaks = {}
    for count in (500, 3_500):
        data_dir = tmp_path / str(count)
        train = Repeated(images, count), np.arange(count) % 2
        splits = {"train": train, "test": test}
        write_prepared(data_dir, splits, name="patch_camelyon", version="2.0.0", num_classes=2)
        command = [
            sys.executable,
            "-c",
            MEMORY_CHILD,
            str(data_dir),
            str(tmp_path / f"out{count}"),
            str(ROOT),
        ]
        # One device: the others of the tests would have arenas of their own.
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
        made = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=True, timeout=300
        )
        trained, peak = map(int, made.stdout.split())
        assert trained == count
        peaks[count] = peak * 1024
    # The same process peaks some 20 MB higher or lower from time to time, whatever the number of images.
    assert peaks[3_500] - peaks[500] < 32 * 2**20
