"""Preparing sets of JPEGs from ImageNet's archives and from folders: whole or nothing, and one line on bad input."""

import dataclasses
import io
import re
import signal
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments.data import DataError
from experiments.data.archives import write_jpegs

from ..processes import run, start
from .jpegs import encode, photo, write_folder, write_imagenet, write_tar

# Some of ImageNet's 1,000 classes, numbered in the order of their names, as everywhere.
SYNSETS = {"n02776631": 415, "n01440764": 0, "n15075141": 999}
# Labels of the first validation images, as the organisers published them: n01751748, n09193705, n02105855.
VALIDATION_LABELS = [65, 970, 230]


def images(synset, count):
    return {f"{synset}_{i}.JPEG": encode(photo(i + int(synset[1:]) % 1000)) for i in range(count)}


@pytest.fixture
def archive(tmp_path):
    train = {synset: images(synset, 3) for synset in SYNSETS}
    validation = {f"ILSVRC2012_val_{i:08d}.JPEG": encode(photo(500 + i)) for i in (2, 1, 3)}
    return write_imagenet(tmp_path / "archive", train, validation)


def left_over(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


def test_imagenet_from_its_archives(archive, tmp_path):
    code, out, err = run("prepare", "imagenet2012", "--archive", archive, "--data-dir", tmp_path / "data")
    assert code == 0, err
    assert out.count("\n") == 1
    assert ": 9 train, 3 validation (the whole of ImageNet: 1,281,167 train, 50,000 validation)" in out
    dataset = data.load("jpeg:imagenet2012:64", tmp_path / "data")
    assert dataset.num_classes == 1000
    assert dataset.train_images.shape == (9, 64, 64, 3)
    found = {
        encoded: label
        for split in (dataset.train_images, dataset.test_images)
        for encoded, label in (split._split.read(i) for i in range(len(split)))
    }
    expected = {image: label for s, label in SYNSETS.items() for image in images(s, 3).values()}
    expected |= {encode(photo(501 + i)): label for i, label in enumerate(VALIDATION_LABELS)}
    assert found == expected
    again = data.prepare("imagenet2012", tmp_path / "data", archive=archive)
    assert again == tmp_path / "data" / "imagenet2012" / "5.1.0"


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda folder: (folder / "ILSVRC2012_img_val.tar").unlink(), "no ILSVRC2012_img_val.tar in "),
        (lambda folder: cut(folder / "ILSVRC2012_img_train.tar", 9000), "img_train.tar is no whole tar file"),
        (lambda folder: (folder / "ILSVRC2012_img_val.tar").write_bytes(b"x" * 5000), "is no whole tar file"),
        (lambda folder: (folder / "ILSVRC2012_img_val.tar").write_bytes(b""), "is no whole tar file"),
        (
            lambda folder: write_imagenet(folder, {"n00000000": images("n00000000", 1)}, {}),
            "n00000000.tar is not the archive of one of ImageNet's 1,000 classes",
        ),
        (
            lambda folder: write_imagenet(folder, {"n01440764": {"a.JPEG": b"no image"}}, {}),
            "a.JPEG is no image",
        ),
        (
            lambda folder: write_imagenet(folder, {"n01440764": images("n01440764", 2)}, {"cat.JPEG": b""}),
            "cat.JPEG is not one of ImageNet's 50,000 validation images",
        ),
    ],
)
def test_bad_archives_leave_nothing_behind(archive, tmp_path, harm, complaint):
    harm(archive)
    target = tmp_path / "data"
    with pytest.raises(DataError, match=re.escape(complaint)) as error:
        data.prepare("imagenet2012", target, archive=archive)
    assert "\n" not in str(error.value)
    assert [name for name in left_over(target) if name] == []


def test_a_class_whose_archive_is_cut_off_inside_is_noticed(tmp_path):
    archive = write_imagenet(tmp_path / "archive", {}, {})
    stream = io.BytesIO()
    write_tar(stream, images("n01440764", 4))
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as tar:
        second = tar.getmembers()[1].offset
    # Cut in an image, and at the end of one, where what is left looks like a tar file.
    for keep in (second - 1000, second):
        write_tar(archive / "ILSVRC2012_img_train.tar", {"n01440764.tar": stream.getvalue()[:keep]})
        with pytest.raises(DataError, match=r"img_train\.tar: n01440764\.tar is no whole tar file"):
            data.prepare("imagenet2012", tmp_path / "data", archive=archive)
    assert left_over(tmp_path / "data") == []


def test_a_folder_of_classes_holds_out_every_tenth_image(tmp_path):
    source = write_folder(tmp_path / "My photos", {"oak": 23, "ash": 5})
    (source / "oak" / "notes.txt").write_text("not an image")
    (source / "oak" / ".image.jpg").write_text("hidden")
    code, out, err = run("prepare", "folder", source, "--data-dir", tmp_path / "data")
    assert code == 0, err
    assert "my_photos/1.0.0: 25 train, 3 test" in out
    dataset = data.load("jpeg:my_photos:32", tmp_path / "data")
    assert np.bincount(dataset.train_labels).tolist() == [4, 21]  # ash, oak
    assert np.bincount(dataset.test_labels).tolist() == [1, 2]
    data.prepare("folder", tmp_path / "again", source=source, save_as="trees")
    other = data.load("jpeg:trees:32", tmp_path / "again")
    np.testing.assert_array_equal(other.train_labels, dataset.train_labels)
    with pytest.raises(DataError, match="my_photos is there already: choose another name by --save-as"):
        data.prepare("folder", tmp_path / "data", source=source)


@pytest.mark.parametrize(
    ("counts", "complaint"),
    [
        ({"oak": 3}, "must hold the folders of two classes or more, it holds 1"),
        ({}, "holds no folder; it should hold CLASS/NAME.jpg"),
        ({"oak": 3, "ash": 0}, "ash holds no image (.jpg, .jpeg, .png)"),
        ({"oak": 3, "ash": 1}, "ash holds one image; training and testing need one each"),
        ({"train/oak": 2, "train/ash": 2}, "has train/ but none of test/, validation/, val/"),
        ({"train/oak": 2, "train/ash": 2, "val/elm": 1}, "has a class 'elm' that "),
    ],
)
def test_folders_that_are_no_set(tmp_path, counts, complaint):
    source = tmp_path / "trees"
    source.mkdir()
    write_folder(source, counts)
    with pytest.raises(DataError, match=re.escape(complaint)) as error:
        data.prepare("folder", tmp_path / "data", source=source)
    assert "\n" not in str(error.value)
    assert left_over(tmp_path / "data") == []


def test_a_file_that_is_no_image_is_named_and_leaves_nothing_behind(tmp_path):
    source = write_folder(tmp_path / "trees", {"oak": 4, "ash": 4})
    (source / "oak" / "image001.jpg").write_bytes(b"GIF89a" + bytes(50))
    code, _, err = run("prepare", "folder", source, "--data-dir", tmp_path / "data")
    assert code == 2
    assert err.count("\n") == 1
    assert "oak/image001.jpg" in err
    assert left_over(tmp_path / "data") == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"name": "imagenet2012"}, "'prepare imagenet2012' needs --archive DIR"),
        ({"name": "folder"}, "'prepare folder' needs the folder: prepare folder DIR"),
        ({"name": "cifar10", "archive": "x"}, "archive goes with 'prepare imagenet2012', not with 'cifar10'"),
        ({"name": "cifar10", "source": "x"}, "source goes with 'prepare folder', not with 'cifar10'"),
        ({"name": "folder", "source": "x", "save_as": "a b"}, "--save-as must give the set a name"),
        (
            {"name": "folder", "source": "2024 fotos"},
            "--save-as must give the set a name that begins with a letter",
        ),
        (
            {"name": "imagenet"},
            "choose from cifar10, cifar100, patch_camelyon, imagenet2012, folder, cifar10_jpeg",
        ),
        ({"name": "folder", "source": "/nowhere/here"}, "no folder /nowhere/here"),
    ],
)
def test_what_cannot_be_prepared(tmp_path, options, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        data.prepare(options.pop("name"), tmp_path, **options)


def test_a_preparation_that_is_killed_leaves_no_set_and_the_next_one_tidies_up(tmp_path):
    source = write_folder(tmp_path / "trees", {"oak": 1500, "ash": 2})
    process = start("prepare", "folder", source, "--data-dir", tmp_path / "data")
    deadline = time.monotonic() + 100
    while not list((tmp_path / "data").glob("trees/.preparing-*/*")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with pytest.raises(DataError, match="no trees in "):
        data.load("jpeg:trees", tmp_path / "data")
    assert left_over(tmp_path / "data")
    data.prepare("folder", tmp_path / "data", source=source)
    assert [path.name for path in (tmp_path / "data" / "trees").iterdir()] == ["1.0.0"]


def test_jpegs_of_many_sizes_from_a_set_in_memory(tmp_path):
    digits = data.load("digits")
    images = np.repeat(digits.train_images, 3, axis=-1)
    write_jpegs(dataclasses.replace(digits, train_images=images, test_images=images), tmp_path, 20, 5)
    files = sorted((tmp_path / "train").rglob("*.jpg"))
    assert len(files) == 20
    sizes = set()
    for path in files:
        with Image.open(path) as image:
            sizes.add(image.size)
    assert len(sizes) > 10
    labels = [int(path.parent.name) for path in sorted(files, key=lambda path: path.name)]
    assert labels == digits.train_labels[:20].tolist()
