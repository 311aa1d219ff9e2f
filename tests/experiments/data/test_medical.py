"""PatchCamelyon and LGG slices: laid out as published, damaged in every way we could think of, and real."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.data import DataError, load, prepare, select
from experiments.data.streaming import read_batches
from experiments.run import Run

from .prepared_folders import write_prepared

SIZES = {"patch_camelyon": 96, "pcam32": 32}


def real(*names):
    """The folder of real data sets, or skips the test."""
    data_dir = os.environ.get("GRADNORM_DATA_DIR")
    if not data_dir:
        pytest.skip("GRADNORM_DATA_DIR names no folder of prepared data sets")
    for name in names:
        if not (Path(data_dir) / name).exists():
            pytest.skip(f"GRADNORM_DATA_DIR holds no {name}")
    return data_dir


# PatchCamelyon


def make_patches(count, size):
    random = np.random.default_rng(count)
    return random.integers(0, 256, (count, size, size, 3), np.uint8), np.arange(count) % 2


def write_patches(data_dir, name, size=None):
    size = size or SIZES[name]
    splits = {
        "train": make_patches(6, size),
        "validation": make_patches(2, size),
        "test": make_patches(4, size),
    }
    return write_prepared(data_dir, splits, name=name, version="2.0.0", num_classes=2, num_shards=2)


@pytest.mark.parametrize("name", SIZES)
def test_patches_load_as_they_were_prepared(tmp_path, name):
    write_patches(tmp_path, name)
    dataset = load(name, tmp_path)
    for split, count in (("train", 6), ("test", 4)):
        images, labels = make_patches(count, SIZES[name])
        found = zip(getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels"), strict=True)
        expected = sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True))
        assert sorted((image.tobytes(), label) for image, label in found) == expected
    assert (dataset.num_classes, dataset.has_masks) == (2, False)


@pytest.mark.parametrize("prefix", ["", "stream:"])
def test_the_validation_split_stands_in_for_the_test_patches(tmp_path, prefix):
    write_patches(tmp_path, "patch_camelyon")
    names = [f"{prefix}patch_camelyon{split}" for split in ("", ":validation")]
    for _ in range(2):  # from the files, and from what was kept of them
        whole, validation = (load(name, tmp_path) for name in names)
        assert [whole.name, validation.name] == names
        assert (len(whole.test_labels), len(validation.test_labels)) == (4, 2)
        found, expected = (
            np.concatenate([batch for part in parts for batch in read_batches(part, np.arange(len(part)), 4)])
            for parts in ([validation.train_images, validation.test_images], [whole.train_images])
        )
        np.testing.assert_array_equal(found[:6], expected)
        images, labels = make_patches(2, 96)
        assert {image.tobytes() for image in found[6:]} == {image.tobytes() for image in images}
        assert sorted(validation.test_labels) == sorted(labels)
    with pytest.raises(ValueError, match="unknown dataset 'patch_camelyon:validation' to prepare"):
        prepare("patch_camelyon:validation", tmp_path)


@pytest.mark.parametrize("name", SIZES)
def test_damaged_and_foreign_patches_are_refused(tmp_path, name):
    folder = write_patches(tmp_path, name)
    shard = sorted(folder.glob("*-train.array_record-*"))[0]
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(DataError, match="whole records, dataset_info"):
        load(name, tmp_path)
    other = tmp_path / "other"
    write_patches(other, name, size=8)
    with pytest.raises(DataError, match=rf"images must have shape \({SIZES[name]}, {SIZES[name]}, 3\)"):
        load(name, other)


def test_missing_patches_say_how_to_get_them(tmp_path):
    with pytest.raises(DataError, match="python -m experiments prepare patch_camelyon") as error:
        load("patch_camelyon", tmp_path)
    assert "GRADNORM_DATA_DIR" in str(error.value)
    with pytest.raises(DataError, match="it is not in the catalogue of TensorFlow Datasets") as error:
        load("pcam32", tmp_path)
    assert "GRADNORM_DATA_DIR" in str(error.value)
    with pytest.raises(
        ValueError, match="unknown dataset 'pcam32' to prepare; choose from cifar10, cifar100, pat"
    ):
        prepare("pcam32", tmp_path)


@pytest.mark.parametrize("name", SIZES)
def test_real_patches(name):
    dataset = load(name, real(name))
    assert dataset.train_images.shape[1:] == (SIZES[name], SIZES[name], 3)
    assert set(dataset.train_labels) == {0, 1}
    # Haematoxylin and eosin: sections are pink and violet, so green is the darkest colour.
    red, green, blue = dataset.mean
    assert green < 0.9 * min(red, blue)


# LGG slices


def write_slices(data_dir, patients=6, slices=12, size=8):
    """Slice k of patient p is grey p * 20 + k; its object is a square of k pixels in a corner."""
    for p in range(patients):
        folder = data_dir / "kaggle_3m" / f"TCGA_P{p}"
        folder.mkdir(parents=True)
        for k in range(1, slices + 1):
            image = np.full((size, size, 3), p * 20 + k, np.uint8)
            image[0, 0] = 255  # a corner, so that a flipped image is noticed
            Image.fromarray(image).save(folder / f"TCGA_P{p}_{k}.tif")
            mask = np.zeros((size, size), np.uint8)
            mask[: k % size, : k % size] = 255
            Image.fromarray(mask).save(folder / f"TCGA_P{p}_{k}_mask.tif")
    return data_dir


@pytest.fixture
def data_dir(tmp_path):
    return write_slices(tmp_path)


def patients_of(images):
    return [(int(image[-1, -1, 0]) - 1) // 20 for image in images]


def write_splits(data_dir, train, test):
    names = {"train": [f"TCGA_P{p}" for p in train], "test": [f"TCGA_P{p}" for p in test]}
    (data_dir / "lgg_splits.json").write_text(json.dumps(names))


def test_slices_come_with_their_masks_in_order(data_dir):
    write_splits(data_dir, train=range(5), test=[5])
    dataset = load("lgg", data_dir)
    assert dataset.train_images.shape == (60, 8, 8, 3)
    assert dataset.train_labels.shape == (60, 8, 8)
    assert dataset.train_labels.dtype == np.uint8
    for images, masks, groups in (
        (dataset.train_images, dataset.train_labels, dataset.train_groups),
        (dataset.test_images, dataset.test_labels, dataset.test_groups),
    ):
        np.testing.assert_array_equal(groups, patients_of(images))
        numbers = images[:, -1, -1, 0] - 20 * groups
        np.testing.assert_array_equal(numbers, np.tile(np.arange(1, 13), len(images) // 12))  # 2 before 10
        np.testing.assert_array_equal(masks.sum((1, 2)), (numbers % 8) ** 2)
        assert set(np.unique(masks)) == {0, 1}
    assert set(dataset.test_groups) == {5}
    assert (dataset.num_classes, dataset.has_masks) == (1, True)


def test_without_a_split_file_patients_are_split_at_random_and_always_alike(data_dir):
    first, again = load("lgg", data_dir), load("lgg", data_dir)
    np.testing.assert_array_equal(first.test_images, again.test_images)
    assert set(first.train_groups).isdisjoint(first.test_groups)
    assert set(first.train_groups) | set(first.test_groups) == set(range(6))
    assert len(set(first.test_groups)) == 1  # a fifth of six


def test_resized_masks_stay_masks_and_images_are_averaged(data_dir):
    write_splits(data_dir, train=range(5), test=[5])
    dataset = load("lgg:4", data_dir)
    assert dataset.train_images.shape == (60, 4, 4, 3)
    whole = load("lgg", data_dir).train_labels
    # The nearest pixel, of every two rows and columns one: of whichever of the four the library takes.
    picks = [whole[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    assert any(np.array_equal(dataset.train_labels, pick) for pick in picks)
    corner = dataset.train_images[:, 0, 0, 0].astype(int)
    background = dataset.train_images[:, -1, -1, 0].astype(int)
    assert ((corner > background) & (corner < 255)).all()  # neither picked nor lost
    assert load("lgg:16", data_dir).train_images.shape == (60, 16, 16, 3)


def slice_path(data_dir, ending=".tif"):
    return data_dir / "kaggle_3m" / "TCGA_P2" / f"TCGA_P2_3{ending}"


def save(path, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def save_frames(path, channels):
    """Two frames of the size of the slices."""
    frame = Image.new("RGB" if channels == 3 else "L", (8, 8))
    frame.save(path, save_all=True, append_images=[frame])


@pytest.mark.parametrize("endings", [(".tif",), ("_mask.tif",), (".tif", "_mask.tif")])
def test_slices_and_masks_whose_ending_has_capitals_are_read(data_dir, endings):
    write_splits(data_dir, train=range(5), test=[5])
    expected = load("lgg", data_dir)
    for ending in endings:
        slice_path(data_dir, ending).rename(slice_path(data_dir, ending.replace("tif", "TIF")))
    for path in (data_dir / "kaggle_3m" / "TCGA_P4").iterdir():  # a patient with no other files
        path.rename(path.with_suffix(".TIF"))
    found = load("lgg", data_dir)
    np.testing.assert_array_equal(found.train_images, expected.train_images)
    np.testing.assert_array_equal(found.train_labels, expected.train_labels)


def test_a_slice_with_capitals_needs_its_mask_too(data_dir):
    slice_path(data_dir, "_mask.tif").unlink()
    slice_path(data_dir).rename(slice_path(data_dir, ".TIF"))
    with pytest.raises(DataError, match=r"TCGA_P2_3.TIF has no mask TCGA_P2_3_mask.TIF"):
        load("lgg", data_dir)


@pytest.mark.parametrize(
    ("damage", "named", "complaint"),
    [
        (lambda d: slice_path(d, "_mask.tif").unlink(), "TCGA_P2_3.tif", "has no mask TCGA_P2_3_mask.tif"),
        (lambda d: slice_path(d).unlink(), "TCGA_P2_3_mask.tif", "is the mask of no slice"),
        (
            lambda d: save(slice_path(d, "_mask.tif"), np.zeros((8, 4))),
            "TCGA_P2_3_mask.tif",
            "has 4 x 8 pixels, but its slice has 8 x 8",
        ),
        (
            lambda d: save(slice_path(d, "_mask.tif"), np.full((8, 8), 1)),
            "TCGA_P2_3_mask.tif",
            r"must hold 0 and 255 alone, it holds \[1\]",
        ),
        (
            lambda d: save(slice_path(d, "_mask.tif"), np.zeros((8, 8, 3))),
            "TCGA_P2_3_mask.tif",
            r"must be a grey image of 8 bits \(L\), it is RGB$",
        ),
        (lambda d: save_frames(slice_path(d), 3), "TCGA_P2_3.tif", "must be one image, it has 2 frames"),
        (
            lambda d: save_frames(slice_path(d, "_mask.tif"), 1),
            "TCGA_P2_3_mask.tif",
            "must be one image, it has 2 frames",
        ),
        (
            lambda d: save(slice_path(d), np.zeros((8, 8))),
            "TCGA_P2_3.tif",
            r"must be a colour image .* it is L",
        ),
        (
            lambda d: (
                save(slice_path(d), np.zeros((9, 9, 3))),
                save(slice_path(d, "_mask.tif"), np.zeros((9, 9))),
            ),
            "TCGA_P2_3.tif",
            "has 9 x 9 pixels, but .*8 x 8; give all one size by dataset 'lgg:",
        ),
        (lambda d: slice_path(d).write_bytes(b""), "TCGA_P2_3.tif", "cannot be read as an image"),
        (
            lambda d: slice_path(d).write_bytes(b"II*\0" + b"x" * 100),
            "TCGA_P2_3.tif",
            "cannot be read as an image",
        ),
        (
            lambda d: os.truncate(slice_path(d), slice_path(d).stat().st_size // 2),
            "TCGA_P2_3.tif",
            "cannot be read as an image",
        ),
        (lambda d: (d / "kaggle_3m" / "TCGA_P9").mkdir(), "TCGA_P9", "holds no slices"),
    ],
)
def test_a_damaged_file_is_named(data_dir, damage, named, complaint):
    damage(data_dir)
    with pytest.raises(DataError, match=complaint) as error:
        load("lgg", data_dir)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "must hold patients under 'train' and 'test'"),
        ("[]", "must hold patients under 'train' and 'test'"),
        (
            '{"train": [1], "test": ["TCGA_P0"]}',
            "must hold patients under .*: 1 is not the name of a patient",
        ),
        ('{"train": [["TCGA_P1"]], "test": []}', "must hold patients under .* is not the name of a patient"),
        ('{"train": 5, "test": []}', "must hold patients under 'train' and 'test'"),
        ('{"train": []}', "must hold patients under 'train' and 'test': 'test'"),
        ((range(6), [0]), "names patient TCGA_P0 for training and for testing"),
        ((range(4), [5]), "patient TCGA_P4: .*lgg_splits.json does not name it"),
        ((range(6), [6]), "patient TCGA_P6: kaggle_3m has no such folder"),
        ((range(6), []), "names no patient for testing"),
    ],
)
def test_a_wrong_split_file_is_refused(data_dir, content, complaint):
    if isinstance(content, str):
        (data_dir / "lgg_splits.json").write_text(content)
    else:
        write_splits(data_dir, *content)
    with pytest.raises(DataError, match=complaint) as error:
        load("lgg", data_dir)
    assert "\n" not in str(error.value)


def test_no_slices_at_all(tmp_path):
    with pytest.raises(
        DataError, match=r"no kaggle_3m in .*mateuszbuda/lgg-mri-segmentation .* GRADNORM_DATA_DIR"
    ):
        load("lgg", tmp_path)
    (tmp_path / "kaggle_3m").mkdir()
    with pytest.raises(DataError, match="kaggle_3m holds no PATIENT/NAME"):
        load("lgg", tmp_path)
    write_slices(tmp_path, patients=1)
    with pytest.raises(DataError, match="kaggle_3m holds one patient; training and testing need one each"):
        load("lgg", tmp_path)


@pytest.mark.parametrize("name", ["lgg:", "lgg:big", "lgg:0", "lgg:-4", "lgg:1.5"])
def test_a_size_is_a_number_of_pixels(data_dir, name):
    with pytest.raises(ValueError, match=f"needs a number of pixels, such as 'lgg:64', got '{name}'"):
        load(name, data_dir)


def test_real_slices(tmp_path):
    data_dir = real("kaggle_3m")
    dataset = load("lgg:64", data_dir)
    assert dataset.train_images.shape[1:] == (64, 64, 3)
    assert set(dataset.train_groups).isdisjoint(dataset.test_groups)
    splits = json.loads((Path(data_dir) / "lgg_splits.json").read_text())
    assert len(set(dataset.test_groups)) == len(splits["test"])
    masks = np.concatenate([dataset.train_labels, dataset.test_labels]).astype(bool)
    assert 0.001 < masks.mean() < 0.1
    # In the middle channel (FLAIR) a glioma is brighter than the rest of the head.
    flair = np.concatenate([dataset.train_images, dataset.test_images])[..., 1].astype(np.float64)
    assert flair[masks].mean() > 1.5 * flair[~masks & (flair > 20)].mean()

    run = Run("lgg:64", "unet", "znorm", "adam", 0.1, 1, 4, 0, loss="tversky", validation_examples=40)
    chosen = select(dataset, run)
    assert set(chosen.train_groups).isdisjoint(chosen.test_groups)
    assert 0 < len(chosen.test_images) <= 40


def test_a_copied_folder_gives_the_same(data_dir, tmp_path):
    """The order of the files on disk decides nothing."""
    copy = tmp_path / "copy"
    for path in sorted((data_dir / "kaggle_3m").rglob("*.tif"), reverse=True):
        target = copy / path.relative_to(data_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    one, other = load("lgg", data_dir), load("lgg", copy)
    np.testing.assert_array_equal(one.train_images, other.train_images)
    np.testing.assert_array_equal(one.test_labels, other.test_labels)
