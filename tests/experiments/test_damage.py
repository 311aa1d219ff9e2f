"""Damage to whatever is read: a file that is cut off or has a flipped bit is refused by name, or says the same."""

import dataclasses
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from experiments import data, records
from experiments.data.streaming import read_batches
from experiments.files import FileError
from experiments.predict import read_image
from experiments.records import EpochMetrics, MeasurementRecord, RunRecord
from experiments.records.dynamics import GradientDynamics
from experiments.run import Run

from .data.jpegs import write_folder
from .data.prepared_folders import write_prepared

RUN = Run("digits", "resnet8", "znorm", "adam", 0.001, 3, 64, 0, dynamics=True)
EPOCHS = tuple(EpochMetrics(i, 1 / i, 0.5, 1.1 / i, 0.4, 0, 0.25) for i in (1, 2, 3))
RECORD = RunRecord(RUN, "finished", parameters=123, epochs=EPOCHS)
RNG = np.random.default_rng(0)


class Reader(NamedTuple):
    """A kind of file.

    Attributes:
      write: makes one in a folder, and returns its path.
      read: gives what it says, as what can be compared.
      bits: to flip in a byte; none where no checksum tells a flipped bit from another number.
      steps: how many bytes from one damage to the next: for a cut, and for a flip.
      shortest: length of the shortest cut. An empty file of lines says that nothing was published.
      error: refuses it.
      advice: of its message, a regular expression.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    bits: tuple[int, ...] = ()
    steps: tuple[int, int] = (1, 1)
    shortest: int = 0
    error: type[Exception] = FileError
    advice: str = "remove it"


def arrays_of(arrays):
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}


# Records


CHECKPOINT = {"weights": np.arange(30.0), "epoch": np.array(3)}


def write_checkpoint(folder):
    records.write_checkpoint(folder, RUN, CHECKPOINT)
    return folder / f"{RUN.name}.npz"


def read_checkpoint(folder):
    return arrays_of(records.read_checkpoint(folder, RUN, CHECKPOINT))


def write_statistics(folder):
    std = RNG.random((3, 2), np.float32)
    statistics = GradientDynamics(("a/kernel", "b/kernel"), np.array([6, 9]), std, std, std, std[:, 0])
    records.write_dynamics(folder, RUN, statistics)
    return folder / f"{RUN.name}.dynamics.npz"


def read_statistics(folder):
    statistics = records.read_dynamics(folder, RECORD)
    fields = {field.name: getattr(statistics, field.name) for field in dataclasses.fields(statistics)}
    return fields.pop("layers"), arrays_of(fields)


def write_measurement(folder):
    records.write_measurement(folder, MeasurementRecord("norms", {"of": "resnet8"}, {"norm": [0.1]}, {}, 1.0))
    return folder / "norms.json"


def publish(folder):
    (folder / "records").mkdir()
    records.write_record(folder / "records", RECORD)
    write_statistics(folder / "records")
    write_measurement(folder / "measurements")
    records.publish(folder, folder / "out", lambda found: None)
    return folder / "out"


# Data sets


def random_images(count, size):
    return RNG.integers(0, 256, (count, size, size, 3), np.uint8), np.arange(count) % 2


def write_arrays(folder):
    (x_train, y_train), (x_test, y_test) = random_images(8, 4), random_images(4, 4)
    np.savez(folder / "own.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return folder / "own.npz"


def write_shards(folder):
    splits = {"train": random_images(12, 32), "test": random_images(4, 32)}
    options = {"name": "pcam32", "version": "1.0.0", "num_classes": 2, "num_shards": 2}
    return sorted(write_prepared(folder, splits, **options).glob("*-train.array_record-*"))[1]


def write_jpegs(folder):
    counts = {f"{split}/{label}": n for split, n in (("train", 4), ("test", 2)) for label in "ab"}
    data.prepare("folder", folder, source=write_folder(folder / "photographs", counts))
    (path,) = (folder / "photographs" / "1.0.0").glob("*-train.array_record-*")
    return path


def read_set(name):
    def read(folder):
        dataset = data.load(name.format(folder=folder), folder)
        splits = {}
        for split in ("train", "test"):
            images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
            splits[split] = np.concatenate(list(read_batches(images, np.arange(len(images)), 8)))
            splits[f"{split}_labels"] = labels
        return arrays_of(splits)

    return read


def write_image(folder):
    Image.fromarray(random_images(1, 12)[0][0]).save(folder / "own.png")
    return folder / "own.png"


BITS = (0, 1, 3, 4, 7)
READERS = {
    "record": Reader(lambda f: records.write_record(f, RECORD), lambda f: repr(records.read_record(f, RUN))),
    "checkpoint": Reader(write_checkpoint, read_checkpoint, BITS, advice=r"remove (it|\S+\.npz)"),
    "statistics": Reader(write_statistics, read_statistics, (0, 4), (7, 2)),
    "measurement": Reader(write_measurement, lambda f: repr(records.read_measurements(f))),
    "published runs": Reader(
        lambda f: publish(f) / "records.jsonl",
        lambda f: repr(records.read_records(f / "out" / "records")),
        shortest=1,
        advice="put back the committed file",
    ),
    "published statistics": Reader(
        lambda f: publish(f) / "records.dynamics.jsonl",
        lambda f: read_statistics(f / "out" / "records"),
        shortest=1,
        advice="put back the committed file",
    ),
    "published measurements": Reader(
        lambda f: publish(f) / "measurements.jsonl",
        lambda f: repr(records.read_measurements(f / "out" / "measurements")),
        shortest=1,
        advice="put back the committed file",
    ),
    "arrays": Reader(write_arrays, read_set("arrays:{folder}/own.npz"), (4,), (97, 31), advice="cannot read"),
    "set in memory": Reader(
        write_shards, read_set("pcam32"), (0,), (5_003, 3_001), advice="prepare it again"
    ),
    "streamed set": Reader(
        write_shards, read_set("stream:pcam32"), (0,), (5_003, 3_001), advice="prepare it again"
    ),
    "set of JPEGs": Reader(
        write_jpegs,
        read_set("jpeg:photographs:32"),
        (0,),
        (9_001, 7_001),
        advice="prepare it again|--skip-damaged",
    ),
    "image": Reader(
        write_image,
        lambda f: read_image(f / "own.png", 3).tobytes(),
        (4,),
        error=ValueError,
        advice="cannot read",
    ),
}


def damages(whole, reader):
    cut, flip = reader.steps
    # The last byte too.
    for length in (*range(reader.shortest, len(whole) - 1, cut), len(whole) - 1):
        yield f"cut to {length}", whole[:length]
    for position in range(0, len(whole), flip):
        for bit in reader.bits:
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            yield f"bit {bit} of byte {position}", bytes(damaged)


@pytest.mark.parametrize("kind", READERS)
def test_damage_is_refused_by_name_or_changes_nothing(kind, tmp_path, monkeypatch):
    reader = READERS[kind]
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))  # Preparing leaves folders there.
    (folder := tmp_path / "files").mkdir()
    path = reader.write(folder)
    expected = reader.read(folder)
    whole, refused = path.read_bytes(), 0
    for name, content in damages(whole, reader):
        path.write_bytes(content)
        try:
            assert reader.read(folder) == expected, name
            continue
        except reader.error as error:
            message = str(error)
        refused += 1
        assert path.name in message or str(path.parent) in message, name
        assert "\n" not in message, name
        assert re.search(reader.advice, message), name
    assert refused > 3
    # What is mended is read again.
    path.write_bytes(whole)
    assert reader.read(folder) == expected
