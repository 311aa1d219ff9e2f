"""CIFAR from prepared folders: whole, damaged in every way we could think of, and real."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from experiments.data import DataError, load, prepare, prepared
from experiments.data.prepared import PreparedSet

from .prepared_folders import write_prepared

COUNTS = {"train": 60, "test": 20}


def make_images(split):
    random = np.random.default_rng(len(split))
    return random.integers(0, 256, (COUNTS[split], 32, 32, 3), np.uint8), np.arange(COUNTS[split]) % 10


def write_cifar(data_dir, *, images=make_images, name="cifar10", **options):
    splits = {split: images(split) for split in COUNTS}
    return write_prepared(data_dir, splits, name=name, version="3.0.2", **{"num_classes": 10, **options})


@pytest.fixture(scope="module", autouse=True)
def temporary_files(tmp_path_factory):
    """Preparing leaves empty temporary folders behind; here they go with the test's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_cifar(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole, tmp_path):
    """A fresh copy, without decoded arrays."""
    copy = tmp_path / "cifar10" / "3.0.2"
    shutil.copytree(whole, copy, ignore=shutil.ignore_patterns("decoded-*"))
    return copy


def data_dir_of(folder):
    return folder.parent.parent


def assert_right(dataset):
    for split in COUNTS:
        images, labels = make_images(split)
        found_images = getattr(dataset, f"{split}_images")
        found_labels = getattr(dataset, f"{split}_labels")
        expected = sorted(zip([image.tobytes() for image in images], labels.tolist(), strict=True))
        found = sorted(zip([image.tobytes() for image in found_images], found_labels.tolist(), strict=True))
        assert found == expected
    assert dataset.num_classes == 10


def refuse(folder, message):
    with pytest.raises(DataError, match=message) as error:
        load("cifar10", data_dir_of(folder))
    assert "\n" not in str(error.value)
    assert str(data_dir_of(folder)) in str(error.value)


def shard(folder, split="train", index=1):
    return sorted(folder.glob(f"*-{split}.array_record-*"))[index]


def test_a_prepared_folder_loads_and_loads_the_same_from_the_decoded_arrays(folder):
    first = load("cifar10", data_dir_of(folder))
    assert_right(first)
    (decoded,) = folder.glob("decoded-*.npz")
    before = decoded.stat().st_mtime_ns
    second = load("cifar10", str(data_dir_of(folder)))
    assert decoded.stat().st_mtime_ns == before
    for field in ("train_images", "train_labels", "test_images", "test_labels", "mean", "std"):
        one, other = getattr(first, field), getattr(second, field)
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    assert [path.name for path in folder.glob("deco*")] == [decoded.name]


def test_the_environment_names_the_folder(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADNORM_DATA_DIR", str(data_dir_of(folder)))
    assert_right(load("cifar10"))
    monkeypatch.delenv("GRADNORM_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(DataError, match=str(tmp_path / "home" / "tensorflow_datasets")):
        load("cifar10")


def test_too_little_memory_does_not_look_like_damage(folder, monkeypatch):
    def decode(self):
        raise MemoryError("Unable to allocate 6.59 TiB")

    monkeypatch.setattr("experiments.data.prepared.Split.decode", decode)
    with pytest.raises(DataError, match=r"does not fit into memory.*stream:cifar10") as error:
        load("cifar10", data_dir_of(folder))
    assert "remove it" not in str(error.value)


def test_a_missing_package_does_not_look_like_damage(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(DataError, match=r"needs grain.*\[experiments\]") as error:
        load("stream:cifar10", data_dir_of(folder))
    assert "remove it" not in str(error.value)


def test_a_missing_set_says_where_and_both_ways_to_get_it(tmp_path):
    with pytest.raises(DataError) as error:
        load("cifar100", tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert f"no cifar100 in {tmp_path} (looked for cifar100/*/dataset_info.json)" in message
    assert f"python -m experiments prepare cifar100 --data-dir {tmp_path}" in message
    assert "--data-dir or GRADNORM_DATA_DIR" in message


def test_a_missing_shard_is_named(folder):
    gone = shard(folder)
    gone.unlink()
    refuse(folder, f"lacks {gone.name}")


def test_damage_after_decoding_is_noticed(folder):
    load("cifar10", data_dir_of(folder))
    path = shard(folder)
    os.truncate(path, path.stat().st_size // 2)
    refuse(folder, "whole records")


def test_damaged_decoded_arrays_are_decoded_again(folder):
    load("cifar10", data_dir_of(folder))
    (decoded,) = folder.glob("decoded-*.npz")
    original = decoded.read_bytes()
    for damage in (b"", original[: len(original) // 2], b"x" * 1000):
        decoded.write_bytes(damage)
        assert_right(load("cifar10", data_dir_of(folder)))
    for position in np.linspace(0, len(original) - 1, 20).astype(int):
        damaged = bytearray(original)
        damaged[position] ^= 0x10
        decoded.write_bytes(damaged)
        assert_right(load("cifar10", data_dir_of(folder)))


def test_decoded_arrays_follow_the_files(folder, tmp_path):
    load("cifar10", data_dir_of(folder))
    (old,) = folder.glob("decoded-*.npz")

    def inverted(split):
        images, labels = make_images(split)
        return 255 - images, labels

    other = write_cifar(tmp_path / "other", images=inverted)
    for path in other.iterdir():
        shutil.copy(path, folder / path.name)
    expected = 255 - load("cifar10", data_dir_of(folder)).train_images
    assert {image.tobytes() for image in expected} == {image.tobytes() for image in make_images("train")[0]}
    assert not old.exists()  # Nothing would ever read it again.
    assert len(list(folder.glob("decoded-*.npz"))) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_decoded_arrays_of_two_pairs_of_splits_live_side_by_side(tmp_path, stream):
    splits = {name: make_images("test" if name == "validation" else name) for name in (*COUNTS, "validation")}
    folder = write_prepared(tmp_path, splits, name="cifar10", version="3.0.2", num_classes=10)
    wanted = PreparedSet("cifar10", (32, 32, 3), 10)
    both = (wanted, dataclasses.replace(wanted, test_split="validation"))
    for each in both:
        prepared.load(each, tmp_path, stream=stream)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert len(kept) == 2
    for each in both:
        prepared.load(each, tmp_path, stream=stream)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")} == kept


def test_what_killed_processes_left_half_decoded_is_removed_and_what_live_ones_write_is_not(folder):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    dead, live, foreign = (folder / f"decoding-{owner}.npz" for owner in (ended.pid, os.getppid(), "mine"))
    for attempt in range(2):  # Without and with decoded arrays.
        for path in (dead, live, foreign):
            path.write_bytes(b"half")
        assert_right(load("cifar10", data_dir_of(folder)))
        assert not dead.exists(), attempt
        assert live.exists(), attempt
        assert foreign.exists(), attempt


def test_a_folder_where_nothing_can_be_written_still_loads(folder):
    # A directory in the decoded arrays' place cannot be replaced by a file, whoever runs the test.
    load("cifar10", data_dir_of(folder))
    (decoded,) = folder.glob("decoded-*.npz")
    decoded.unlink()
    decoded.mkdir()
    assert_right(load("cifar10", data_dir_of(folder)))
    assert not list(folder.glob("decoding-*"))


def test_metadata_that_counts_differently_is_refused(folder):
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    train = next(split for split in info["splits"] if split["name"] == "train")
    for difference in (-1, 1):
        changed = json.loads(json.dumps(info))
        split = next(split for split in changed["splits"] if split["name"] == "train")
        split["shardLengths"][1] = str(int(train["shardLengths"][1]) + difference)
        path.write_text(json.dumps(changed))
        refuse(folder, "whole records, dataset_info.json says")


def test_a_missing_split_is_refused(folder):
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"] = [split for split in info["splits"] if split["name"] == "train"]
    path.write_text(json.dumps(info))
    refuse(folder, "test")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [None, "", "{", "[]"])
def test_damaged_metadata_is_refused(folder, name, content):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    refuse(folder, "cifar10")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 100}, "labels must have 10 classes"),
        ({"name": "cifar100", "num_classes": 100}, "holds cifar100, not cifar10"),
        (
            {"images": lambda split: (make_images(split)[0][:, :8, :8], make_images(split)[1])},
            "images must have shape",
        ),
    ],
)
def test_a_foreign_folder_is_refused(tmp_path, options, message):
    foreign = write_cifar(tmp_path / "foreign", **options)
    folder = tmp_path / "data" / "cifar10" / "3.0.2"
    shutil.copytree(foreign, folder)
    refuse(folder, message)


@pytest.mark.parametrize("load_name", ["cifar10", "stream:cifar10"])
def test_a_foreign_folder_with_its_decoded_arrays_is_refused(tmp_path, load_name):
    foreign = write_cifar(tmp_path, name="cifar100", num_classes=100)
    load(load_name.replace("cifar10", "cifar100"), tmp_path)
    assert list(foreign.glob("*ed-*.npz"))
    shutil.copytree(foreign, tmp_path / "cifar10" / "3.0.2")
    with pytest.raises(DataError, match="holds cifar100, not cifar10"):
        load(load_name, tmp_path)


def test_decoded_arrays_are_of_one_name_and_number_of_classes(tmp_path):
    folder = write_cifar(tmp_path)
    names = set()
    for wanted in (
        PreparedSet("cifar10", (32, 32, 3), 10),
        PreparedSet("cifar100", (32, 32, 3), 10),
        PreparedSet("cifar10", (32, 32, 3), 100),
        PreparedSet("cifar10", (16, 64, 3), 10),
    ):
        names.add(prepared._cache_path(wanted, folder, "decoded").name)
    assert len(names) == 4


def test_records_that_are_not_what_the_metadata_says_are_refused(folder, tmp_path):
    small = write_cifar(
        tmp_path / "small",
        images=lambda split: (make_images(split)[0][:, :8, :8], make_images(split)[1]),
    )
    for path in small.glob("*.array_record-*"):
        shutil.copy(path, folder / path.name)
    refuse(folder, r"image 0 has shape \(8, 8, 3\)")


def test_another_file_format_is_refused(folder):
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    refuse(folder, "is in the file format tfrecord, wanted array_record")


def test_prepare_leaves_a_prepared_set_alone_and_names_what_it_cannot_prepare(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare("cifar10", data_dir_of(folder)) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(
        ValueError, match="unknown dataset 'digits' to prepare; choose from cifar10, cifar100"
    ):
        prepare("digits")


def test_prepare_without_tensorflow_says_what_to_install(tmp_path):
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("TensorFlow is installed")
    with pytest.raises(DataError, match=r"needs TensorFlow once: pip install -e '\.\[experiments,prepare\]'"):
        prepare("cifar10", tmp_path)


# Published constants of the whole training sets.
MEANS = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.5071, 0.4865, 0.4409)}
STDS = {"cifar10": (0.2470, 0.2435, 0.2616), "cifar100": (0.2673, 0.2564, 0.2762)}


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_real_cifar(name):
    data_dir = os.environ.get("GRADNORM_DATA_DIR")
    if not data_dir:
        pytest.skip("GRADNORM_DATA_DIR names no folder of prepared data sets")
    if not (Path(data_dir) / name).exists():
        pytest.skip(f"GRADNORM_DATA_DIR holds no {name}")
    dataset = load(name, data_dir)
    tolerance = 6e-5 if len(dataset.train_images) == 50_000 else 0.03
    np.testing.assert_allclose(dataset.mean, MEANS[name], atol=tolerance)
    np.testing.assert_allclose(dataset.std, STDS[name], atol=tolerance)
    assert dataset.train_images.shape[1:] == (32, 32, 3)
    assert set(dataset.train_labels) <= set(range(dataset.num_classes))
    # Neighbouring pixels of photographs are alike; of a wrongly shaped array they are not.
    pixels = dataset.train_images.astype(np.float64)
    for axis in (1, 2):
        steps = np.diff(pixels, axis=axis)
        assert (steps**2).mean() < 0.3 * pixels.var()


def test_reading_imports_no_tensorflow(folder):
    script = (
        "import sys; from experiments.data import load; load('cifar10', sys.argv[1]); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(data_dir_of(folder))], check=True, timeout=120)
