"""Sets of JPEGs, prepared and streamed: the same batches however they are read, and damage that is named."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import data
from experiments.data import DataError, crops, decoding
from experiments.data.streaming import read_batches
from experiments.options import Reading

from .jpegs import encode, photo, write_folder

ROOT = Path(__file__).parents[3]
COUNTS = {"train/ant": 23, "train/bee": 21, "test/ant": 5, "test/bee": 6}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jpegs")
    source = write_folder(folder / "insects", COUNTS)
    data.prepare("folder", folder / "data", source=source)
    return folder / "data"


@pytest.fixture
def copied(data_dir, tmp_path):
    """A copy to damage, without what was kept of the first reading."""
    folder = tmp_path / "insects" / "1.0.0"
    folder.mkdir(parents=True)
    for path in (data_dir / "insects" / "1.0.0").iterdir():
        if path.suffix != ".npz":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def records(dataset, split="train"):
    images = getattr(dataset, f"{split}_images")
    return [images._split.read(int(i)) for i in images._indices]


def test_every_image_has_its_label_and_is_cropped_in_the_middle(data_dir):
    dataset = data.load("jpeg:insects:48", data_dir)
    assert dataset.is_streamed
    assert dataset.train_images.shape == (44, 48, 48, 3)
    assert np.bincount(dataset.train_labels).tolist() == [23, 21]
    assert np.bincount(dataset.test_labels).tolist() == [5, 6]
    # TFDS shuffles: the file of a record is known by its bytes.
    files = {encode(photo(100 * c + i)): c for c, count in enumerate((23, 21)) for i in range(count)}
    found = records(dataset)
    assert dict(found) == files
    assert [label for _, label in found] == dataset.train_labels.tolist()
    order = np.random.RandomState(0).permutation(44)
    expected = np.stack([crops.decode(found[i][0], 48) for i in order])
    batches = list(read_batches(dataset.train_images, order, 10))
    assert [len(batch) for batch in batches] == [10, 10, 10, 10, 4]
    np.testing.assert_array_equal(np.concatenate(batches), expected)
    whole = np.stack([crops.decode(encoded, 48) for encoded, _ in found]) / 255
    np.testing.assert_allclose(dataset.mean, whole.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(dataset.std, whole.std((0, 1, 2)), rtol=1e-5)


def test_the_checksum_tells_other_images_of_the_same_labels(data_dir, tmp_path):
    source = write_folder(tmp_path / "insects", COUNTS)
    data.prepare("folder", tmp_path / "same", source=source)
    (source / "test/bee/image005.jpg").write_bytes(encode(photo(999)))
    data.prepare("folder", tmp_path / "other", source=source)
    found, same, other = (
        data.load("jpeg:insects:32", d) for d in (data_dir, tmp_path / "same", tmp_path / "other")
    )
    np.testing.assert_array_equal(found.test_labels, other.test_labels)
    assert found.images_checksum == same.images_checksum != other.images_checksum


@pytest.mark.parametrize(
    ("piece_bytes", "hosts_by_workers"),
    [(2**22, {0: (1, 2, 4), 1: (1,), 2: (2,)}), (3 * 32 * 32 * 3, {0: (1, 4), 2: (1,)})],
)
def test_global_batches_are_the_same_for_any_number_of_workers_and_hosts(
    data_dir, monkeypatch, piece_bytes, hosts_by_workers
):
    monkeypatch.setattr(decoding, "PIECE_BYTES", piece_bytes)
    order = np.random.RandomState(1).permutation(44)[:40]
    found = records(data.load("jpeg:insects:32", data_dir))
    for epoch in (0, 1):
        expected = [crops.decode(found[i][0], 32, crops.draw(5, epoch, i)) for i in order]
        expected = np.stack(expected).reshape(5, 8, 32, 32, 3)
        for workers, all_hosts in hosts_by_workers.items() if epoch == 0 else [(0, (1,))]:
            dataset = data.load("jpeg:insects:32", data_dir, Reading(input_workers=workers))
            images = dataset.train_images.at_random(5, epoch)
            for hosts in all_hosts:
                of_hosts = [list(read_batches(images, order, 8, host, hosts)) for host in range(hosts)]
                batches = [np.concatenate(parts) for parts in zip(*of_hosts, strict=True)]
                np.testing.assert_array_equal(np.stack(batches), expected)


def test_crops_of_a_subset_are_those_of_the_record(data_dir):
    """A subset changes which images are read, and nothing about them."""
    dataset = data.load("jpeg:insects:32", data_dir)
    (whole,) = read_batches(dataset.train_images.at_random(3, 4), np.arange(44), 44)
    taken = dataset.train_labels == 1
    (part,) = read_batches(dataset.train_images[taken].at_random(3, 4), np.arange(21), 21)
    np.testing.assert_array_equal(part, whole[taken])
    (other,) = read_batches(dataset.train_images.at_random(3, 5), np.arange(44), 44)
    assert (other != whole).any(axis=(1, 2, 3)).mean() > 0.9


@pytest.mark.parametrize(("index", "count", "batch"), [(2, 2, 8), (-1, 2, 8), (0, 0, 8), (0, 3, 8)])
def test_hosts_that_cannot_be(data_dir, index, count, batch):
    dataset = data.load("jpeg:insects:32", data_dir)
    with pytest.raises(ValueError, match=r"host_index must be from|3 hosts cannot share equally"):
        next(read_batches(dataset.train_images, np.arange(40), batch, index, count))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_or_left_out(copied, tmp_path, workers):
    expected = data.load("jpeg:insects:32", tmp_path)
    (whole,) = read_batches(expected.train_images.at_random(0, 0), np.arange(44), 44)
    bad = cut_off(copied, 4)
    reading = Reading(input_workers=workers)
    with pytest.raises(DataError, match=re.escape(f"{bad}, record 4 is damaged: ")) as error:
        list(read_batches(data.load("jpeg:insects:32", tmp_path, reading).train_images, np.arange(44), 11))
    assert "--skip-damaged" in str(error.value)
    assert "\n" not in str(error.value)
    skipping = data.load("jpeg:insects:32", tmp_path, Reading(workers, skip_damaged=True))
    assert skipping.damaged == 1
    kept = np.arange(44) != 4
    np.testing.assert_array_equal(skipping.train_labels, expected.train_labels[kept])
    (left,) = read_batches(skipping.train_images.at_random(0, 0), np.arange(43), 43)
    np.testing.assert_array_equal(left, whole[kept])


def cut_off(folder, number, split="train"):
    """Replaces an image by its first half; returns the file."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    (path,) = folder.glob(f"*-{split}.array_record-*")
    features = tfds.builder_from_directory(folder).info.features
    content = ArrayRecordReader(str(path)).read_all()
    skip = {"image": tfds.decode.SkipDecoding()}
    example = features.deserialize_example_np(content[number], decoders=skip)
    example["image"] = example["image"][: len(example["image"]) // 2]
    content[number] = features.serialize_example(features.encode_example(example))
    path.unlink()
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in content:
        writer.write(record)
    writer.close()
    return path


def test_flipped_bits_in_a_file_are_noticed_and_skipped(copied, tmp_path):
    (path,) = copied.glob("*-train.array_record-*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(
        DataError, match=r"train.array_record-00000-of-00001, record \d+ is damaged: "
    ) as error:
        data.load("jpeg:insects:32", tmp_path)
    assert "\n" not in str(error.value)
    skipping = data.load("jpeg:insects:32", tmp_path, Reading(skip_damaged=True))
    assert skipping.damaged >= 1
    assert len(skipping.train_images) == len(skipping.train_labels) == 44 - skipping.damaged
    assert len(np.concatenate(list(read_batches(skipping.train_images, np.arange(20), 8)))) == 20


def test_a_file_that_is_missing_or_cut_off(copied, tmp_path):
    (path,) = copied.glob("*-test.array_record-*")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"holds 0 whole records, dataset_info\.json says 11"):
        data.load("jpeg:insects", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=f"lacks {path.name}; remove it and prepare it again"):
        data.load("jpeg:insects", tmp_path)


@pytest.mark.parametrize(
    "name", ["jpeg:", "jpeg", "jpeg:insects:0", "jpeg:insects:a", "jpeg:../x", "jpeg:a:1:2"]
)
def test_names_that_cannot_be(name, tmp_path):
    with pytest.raises(ValueError, match="such as 'jpeg:imagenet2012:224', got 'jpeg"):
        data.load(name, tmp_path)


def test_a_set_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"no nothing in .*prepare folder DIR --save-as nothing"):
        data.load("jpeg:nothing", tmp_path)


MEMORY_CHILD = """
import resource, sys
import numpy as np
from experiments import data
from experiments.data.streaming import read_batches
from experiments.options import Reading
if __name__ == "__main__":
    images = data.load("jpeg:insects:224", sys.argv[1], Reading(int(sys.argv[3]))).train_images.at_random(0, 0)
    order = np.resize(np.arange(44), int(sys.argv[2]))
    count = sum(len(batch) for batch in read_batches(images, order, 16))
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(count, *peaks)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(data_dir, tmp_path):
    """100 and 1,100 squares of 224 x 224: 15 and 166 MB, half of which each worker reads."""
    (tmp_path / "child.py").write_text(MEMORY_CHILD)
    peaks = {}
    for count in (100, 1_100):
        command = [sys.executable, str(tmp_path / "child.py"), str(data_dir), str(count), "2"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
        made = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250)
        assert made.returncode == 0, made.stderr
        read, *peaks[count] = map(int, made.stdout.split())
        assert read == count
    grown = [after - before for before, after in zip(peaks[100], peaks[1_100], strict=True)]
    assert max(grown) * 1024 < 48 * 2**20, peaks


ORPHAN_CHILD = """
import sys
import numpy as np
from experiments import data
from experiments.data.streaming import read_batches
from experiments.options import Reading
if __name__ == "__main__":
    images = data.load("jpeg:insects:224", sys.argv[1], Reading(2)).train_images.at_random(0, 0)
    for batch in read_batches(images, np.resize(np.arange(44), 10**6), 8):
        print("batch", flush=True)
"""


def children(pid):
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(word) for word in found.stdout.split()]


def test_workers_end_when_their_parent_is_killed(data_dir, tmp_path):
    (tmp_path / "child.py").write_text(ORPHAN_CHILD)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, str(tmp_path / "child.py"), str(data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "batch\n"
        workers = children(process.pid)
        assert len(workers) >= 2
        process.kill()
        process.wait()
    deadline = time.monotonic() + 60
    while alive := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.2)
