"""Data sets with files that are none, that are too large, or whose names cannot be kept: one line names them."""

import contextlib
import os
import re
import shutil
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments.data import DataError, archives

from .. import strange_files
from ..processes import run
from .jpegs import encode, photo, write_folder, write_imagenet, write_tar
from .prepared_folders import write_prepared

SYNSET = "n01440764"


def images(count):
    return {f"{SYNSET}_{i}.JPEG": encode(photo(i)) for i in range(count)}


def left_over(folder):
    return list(folder.rglob("*")) if folder.exists() else []


def check_refused(complaint, out, name, **arguments):
    with pytest.raises(DataError, match=complaint) as error:
        data.prepare(name, out, **arguments)
    assert "\n" not in str(error.value)
    assert left_over(out) == []


@pytest.fixture
def trees(tmp_path):
    return write_folder(tmp_path / "trees", {"oak": 4, "ash": 4})


@pytest.mark.parametrize("kind", strange_files.SAID)
def test_an_image_of_a_folder_that_is_no_file(trees, tmp_path, kind):
    path = trees / "oak" / "image001.jpg"
    said = strange_files.put(kind, path)
    check_refused(re.escape(f"cannot read {path}: {said}"), tmp_path / "data", "folder", source=trees)


@pytest.mark.parametrize("kind", strange_files.SAID)
def test_an_archive_that_is_no_file(tmp_path, kind):
    archive = write_imagenet(tmp_path / "archive", {SYNSET: images(2)}, {})
    path = archive / "ILSVRC2012_img_val.tar"
    said = strange_files.put(kind, path)
    check_refused(
        re.escape(f"cannot read {path}: {said}"), tmp_path / "data", "imagenet2012", archive=archive
    )


def write_members(path, *members):
    """A tar file of members with headers of their own, and what follows each."""
    with path.open("wb") as file:
        for member, content in members:
            file.write(member.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512))
        file.write(bytes(10240))


def member(name, **fields):
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def sparse(name, size):
    """A member that holds nothing, and says that it has so many zeros."""
    header = bytearray(member(name, type=tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header) + bytes(10240)


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_member_that_is_no_file(tmp_path, kind):
    archive = write_imagenet(tmp_path / "archive", {SYNSET: images(2)}, {})
    name = "ILSVRC2012_val_00000001.JPEG"
    write_members(archive / "ILSVRC2012_img_val.tar", (member(name, type=kind, linkname="/dev/zero"), b""))
    complaint = f"img_val.tar: {name} is neither a file nor a folder"
    check_refused(complaint, tmp_path / "data", "imagenet2012", archive=archive)


def test_a_sparse_member_takes_no_memory(tmp_path):
    """10 KB that would be 3.2 GB."""
    archive = write_imagenet(tmp_path / "archive", {SYNSET: images(2)}, {})
    name = "ILSVRC2012_val_00000001.JPEG"
    (archive / "ILSVRC2012_img_val.tar").write_bytes(sparse(name, 3_200_000_000))
    with tarfile.open(archive / "ILSVRC2012_img_val.tar") as tar:
        assert tar.getmembers()[0].size == 3_200_000_000  # as any reader understands it
    tracemalloc.start()
    try:
        check_refused(f"img_val.tar: {name} is sparse", tmp_path / "data", "imagenet2012", archive=archive)
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()


def test_images_beyond_the_bound_are_named_with_it(trees, tmp_path, monkeypatch):
    large = trees / "ash" / "image002.jpg"
    os.truncate(large, 2**27)
    complaint = "has 128.0 MiB, images of at most 64.0 MiB are read"
    check_refused(f"{re.escape(str(large))} {complaint}", tmp_path / "data", "folder", source=trees)
    encoded = images(2)
    name = f"{SYNSET}_1.JPEG"
    archive = write_imagenet(tmp_path / "archive", {SYNSET: {**encoded, name: bytes(2**26 + 1)}}, {"a": b"b"})
    complaint = rf"img_train\.tar: {SYNSET}\.tar: {name} has 64\.0 MiB, images of at most 64\.0 MiB are read"
    check_refused(complaint, tmp_path / "data", "imagenet2012", archive=archive)


def test_an_image_of_too_many_pixels_is_not_taken(trees, tmp_path):
    Image.new("1", (13_000, 13_000)).save(trees / "oak" / "image001.png")
    complaint = (
        "oak/image001.png cannot be read as an image: it has too many pixels, at most 67,108,864 are read"
    )
    check_refused(complaint, tmp_path / "data", "folder", source=trees)


def test_members_that_are_larger_than_their_archive(tmp_path):
    """The tar file that lies is named, the outer or the inner one."""
    whole = write_imagenet(tmp_path / "archive", {SYNSET: images(2)}, {"ILSVRC2012_val_00000001.JPEG": b""})
    huge = member(f"{SYNSET}_0.JPEG", size=2**25)
    inner_path = tmp_path / "inner.tar"
    write_members(inner_path, (huge, b"short"))
    write_tar(whole / "ILSVRC2012_img_train.tar", {f"{SYNSET}.tar": inner_path.read_bytes()})
    complaint = rf"img_train\.tar: {SYNSET}\.tar is no whole tar file: unexpected end of data"
    check_refused(complaint, tmp_path / "data", "imagenet2012", archive=whole)
    write_members(whole / "ILSVRC2012_img_train.tar", (member(f"{SYNSET}.tar", size=2**40), b"short"))
    complaint = rf"img_train\.tar: {SYNSET}\.tar is no whole tar file: unexpected end of data"
    check_refused(complaint, tmp_path / "data", "imagenet2012", archive=whole)


def test_an_empty_archive_is_named(tmp_path):
    archive = write_imagenet(tmp_path / "archive", {SYNSET: {}}, {})
    complaint = rf"img_train\.tar: {SYNSET}\.tar holds no file"
    check_refused(complaint, tmp_path / "data", "imagenet2012", archive=archive)
    write_imagenet(archive, {}, {})
    check_refused(r"img_train\.tar holds no file", tmp_path / "data", "imagenet2012", archive=archive)


def test_two_images_of_one_name_are_named(tmp_path):
    name = "ILSVRC2012_val_00000001.JPEG"
    validation = {f"{folder}/{name}": encode(photo(1)) for folder in "ab"}
    archive = write_imagenet(tmp_path / "archive", {SYNSET: images(2)}, validation)
    complaint = f"there are two images {name}"
    check_refused(complaint, tmp_path / "data", "imagenet2012", archive=archive)


@pytest.mark.parametrize("in_class", [False, True])
def test_a_name_that_is_no_utf8_is_named(trees, tmp_path, in_class):
    strange = os.fsdecode(b"caf\xe9")
    path = trees / "oak" / f"{strange}.jpg"
    shutil.copy(trees / "oak" / "image001.jpg", path)
    said = r"the name of oak/caf\xe9.jpg is no UTF-8: rename it"
    if in_class:
        (trees / "oak").rename(trees / strange)
        said = rf"the folder {trees}/caf\xe9 cannot name a class: rename it"
    code, _, err = run("prepare", "folder", trees, "--data-dir", tmp_path / "data")
    assert (code, err.count("\n")) == (2, 1), err
    assert said in err
    assert left_over(tmp_path / "data") == []


def test_a_disk_that_is_too_small_is_told_in_units_that_say_something(trees, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage._replace(free=5 * 1024))
    complaint = r"cannot write .*: [1-9][\d.]* KiB are needed, 5\.0 KiB are free"
    check_refused(complaint, tmp_path / "data", "folder", source=trees)


@pytest.fixture
def nobody():
    """A folder of a user who is not root, whom permissions stop."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if os.geteuid() == 0:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
            stack.callback(os.seteuid, 0)
        yield folder


def test_a_folder_that_may_not_be_read_is_named(nobody, capsys):
    source = write_folder(nobody / "trees", {"oak": 3, "ash": 3})
    patient = nobody / "kaggle_3m" / "patient"
    patient.mkdir(parents=True)
    for folder, use in (
        (source / "oak", lambda: data.prepare("folder", nobody / "data", source=source)),
        (source, lambda: data.prepare("folder", nobody / "data", source=source)),
        (patient, lambda: data.load("lgg", nobody)),
        (patient.parent, lambda: data.load("lgg", nobody)),
    ):
        folder.chmod(0)
        with pytest.raises(DataError, match=f"^cannot read the folder {folder}: Permission denied$"):
            use()
        folder.chmod(0o700)
    image = source / "oak" / "image000.jpg"
    image.chmod(0)
    with pytest.raises(DataError, match=f"^cannot read {image}: Permission denied$"):
        data.prepare("folder", nobody / "data", source=source)


@pytest.mark.parametrize("kind", strange_files.SAID)
def test_a_slice_that_is_no_file(tmp_path, kind):
    for patient in "ab":
        (tmp_path / "kaggle_3m" / patient).mkdir(parents=True)
        for name in ("a_1", "a_1_mask"):
            mode = "L" if name.endswith("mask") else "RGB"
            Image.new(mode, (8, 8)).save(tmp_path / "kaggle_3m" / patient / f"{name}.tif")
    for path in (tmp_path / "lgg_splits.json", tmp_path / "kaggle_3m" / "b" / "a_1_mask.tif"):
        said = strange_files.put(kind, path)
        with pytest.raises(DataError, match=f"{re.escape(str(path))} .*{re.escape(said)}"):
            data.load("lgg", tmp_path)
        path.rmdir() if kind == "folder" else path.unlink()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    splits = {key: (pixels, np.arange(12) % 2) for key in ("train", "test")}
    return write_prepared(folder, splits, name="pcam32", version="1.0.0", num_classes=2)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", ["pcam32", "stream:pcam32", "jpeg:pcam32:32"])
def test_a_file_of_a_prepared_set_that_is_none(prepared, tmp_path, name, kind):
    for pattern in ("dataset_info.json", "features.json", "*train*-00001-of-*"):
        folder = tmp_path / pattern.strip("*") / "pcam32" / "1.0.0"
        folder.parent.mkdir(parents=True)
        shutil.copytree(prepared, folder, ignore=shutil.ignore_patterns("*.npz"))
        (path,) = folder.glob(pattern)
        said = strange_files.put(kind, path)
        with pytest.raises(DataError, match=f"^cannot read {re.escape(str(path))}: {re.escape(said)}$"):
            data.load(name, folder.parent.parent)
