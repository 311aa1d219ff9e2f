"""Data that needs no preparation: digits, a user's arrays, subsets, and what happens on the device."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from experiments.data import DataError, load, select
from experiments.data.augment import augment, crop, flip, normalize
from experiments.data.dataset import make_dataset
from experiments.run import Run

from .. import strange_files


def run(**options):
    return Run(
        dataset="digits",
        model="resnet8",
        method="baseline",
        optimizer="sgdm",
        learning_rate=0.1,
        epochs=1,
        batch_size=8,
        seed=0,
        **options,
    )


def keys(images):
    return [image.tobytes() for image in images]


def labelled(images, labels):
    return sorted(zip(keys(images), labels.tolist(), strict=True))


def test_digits_are_all_there_once():
    digits = load("digits")
    original = load_digits()
    images = np.concatenate([digits.train_images, digits.test_images])
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    grey = np.rint(images[..., 0] / 255 * 16)
    assert labelled(grey, labels) == labelled(original.images, original.target)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    assert images.shape == (1797, 8, 8, 1)
    assert (images.min(), images.max(), digits.num_classes) == (0, 255, 10)


def test_digits_split_is_fixed_and_stratified():
    digits = load("digits")
    train, test = np.bincount(digits.train_labels), np.bincount(digits.test_labels)
    np.testing.assert_allclose(test / (train + test), 0.2, atol=0.005)
    np.testing.assert_array_equal(load("digits").test_images, digits.test_images)


def test_mean_and_std_are_those_of_the_training_images():
    digits = load("digits")
    pixels = digits.train_images.astype(np.float64) / 255
    np.testing.assert_allclose(digits.mean, [pixels.mean()], rtol=1e-6)
    np.testing.assert_allclose(digits.std, [pixels.std()], rtol=1e-6)
    assert digits.mean.dtype == digits.std.dtype == np.float32


def test_mean_and_std_are_taken_per_channel_over_many_images():
    images = np.random.default_rng(0).integers(0, 256, (20_001, 2, 2, 3), np.uint8)
    images[..., 1] //= 3
    images[..., 2] = 255
    labels = np.zeros(20_001, int)
    dataset = make_dataset("many", images, labels, images[:1], labels[:1], 1)
    pixels = images[..., :2].astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, [*pixels.mean((0, 1, 2)), 1], rtol=1e-6)
    np.testing.assert_allclose(dataset.std, [*pixels.std((0, 1, 2)), 1], rtol=1e-6)
    assert np.isfinite(normalize(images[:4], dataset.mean, dataset.std)).all()


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(
        ValueError, match=r"unknown dataset 'mnist'; choose from digits, cifar10, cifar100, .*, arrays"
    ):
        load("mnist")


@pytest.fixture
def good_arrays():
    random = np.random.default_rng(0)
    return {
        "x_train": random.integers(0, 256, (12, 6, 6, 3), np.uint8),
        "y_train": np.arange(12) % 4,
        "x_test": random.integers(0, 256, (5, 6, 6, 3), np.uint8),
        "y_test": np.array([3, 2, 1, 0, 0], np.uint8),
    }


def test_arrays_load_as_they_were_saved(tmp_path, good_arrays):
    np.savez_compressed(tmp_path / "mine.npz", **good_arrays, notes=np.array([{}], object))
    dataset = load(f"arrays:{tmp_path / 'mine.npz'}")
    np.testing.assert_array_equal(dataset.train_images, good_arrays["x_train"])
    np.testing.assert_array_equal(dataset.test_images, good_arrays["x_test"])
    np.testing.assert_array_equal(dataset.train_labels, good_arrays["y_train"])
    np.testing.assert_array_equal(dataset.test_labels, good_arrays["y_test"])
    assert dataset.test_labels.dtype == np.int32
    assert dataset.num_classes == 4


def test_grey_arrays_get_a_channel(tmp_path, good_arrays):
    good_arrays["x_train"] = good_arrays["x_train"][..., 0]
    good_arrays["x_test"] = good_arrays["x_test"][..., :1]
    np.savez(tmp_path / "mine.npz", **good_arrays)
    assert load(f"arrays:{tmp_path / 'mine.npz'}").train_images.shape == (12, 6, 6, 1)


@pytest.mark.parametrize("kind", strange_files.SAID)
def test_arrays_that_are_no_file_are_not_waited_for(tmp_path, kind):
    said = strange_files.put(kind, tmp_path / "mine.npz")
    with pytest.raises(DataError, match=f"^cannot read {tmp_path / 'mine.npz'}: {re.escape(said)}$"):
        load(f"arrays:{tmp_path / 'mine.npz'}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": None}, "has no x_train; it holds y_train, x_test, y_test"),
        ({"x_train": np.zeros((12, 6, 6, 3), np.float32)}, "x_train must be uint8, got float32"),
        ({"x_test": np.zeros((5, 6, 7, 3), np.uint8)}, r"x_test must have shape .* got \(5, 6, 7, 3\)"),
        ({"x_test": np.zeros((5, 108), np.uint8)}, r"x_test must have shape .* got \(5, 108\)"),
        ({"x_test": np.zeros((5, 8, 8, 3), np.uint8)}, r"one shape, got \(6, 6, 3\) and \(8, 8, 3\)"),
        ({"x_test": np.zeros((0, 6, 6, 3), np.uint8), "y_test": np.zeros(0, int)}, "x_test must have shape"),
        ({"y_train": np.arange(12.0) % 4}, "y_train must hold whole numbers, got float64"),
        ({"y_train": np.arange(11) % 4}, r"y_train must have shape \(12,\) as x_train, got \(11,\)"),
        ({"y_train": (np.arange(12) % 4)[:, None]}, r"y_train must have shape \(12,\)"),
        ({"y_train": np.arange(12) % 4 - 1}, "y_train must not be negative, got -1"),
        ({"y_train": np.arange(12) % 4 + 1}, "from 0 to its largest; 0 never occurs"),
        ({"y_test": np.array([0, 1, 2, 3, 4])}, "y_test has label 4, which y_train never has"),
        ({"y_train": np.array([object()] * 12)}, r"y_train\.npy holds Python objects, which are not read"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, good_arrays, change, message):
    arrays = {name: value for name, value in {**good_arrays, **change}.items() if value is not None}
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(DataError, match=message) as error:
        load(f"arrays:{tmp_path / 'mine.npz'}")
    assert "\n" not in str(error.value)
    assert "mine.npz" in str(error.value)


def test_a_file_that_is_no_archive_of_arrays_is_refused(tmp_path, good_arrays):
    path = tmp_path / "mine.npz"
    with pytest.raises(DataError, match=r"no file .*mine\.npz"):
        load(f"arrays:{path}")
    path.write_text("not an archive")
    with pytest.raises(DataError, match=r"not a whole \.npz file"):
        load(f"arrays:{path}")
    with path.open("wb") as file:
        np.save(file, good_arrays["x_train"])
    with pytest.raises(DataError, match="holds one array"):
        load(f"arrays:{path}")
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError):
        load(f"arrays:{path}")


def test_no_subset_is_the_whole_set():
    digits = load("digits")
    selected = select(digits, run())
    np.testing.assert_array_equal(selected.train_images, digits.train_images)
    np.testing.assert_array_equal(selected.test_images, digits.test_images)


@pytest.mark.parametrize("count", [3, 100, 137, 1390])
def test_training_subsets_are_balanced_and_the_first_of_each_class(count):
    digits = load("digits")
    selected = select(digits, run(train_examples=count, test_examples=20))
    sizes = np.bincount(selected.train_labels, minlength=10)
    assert sizes.sum() == count
    assert sizes.max() - sizes.min() <= 1
    for label in range(10):
        own = digits.train_images[digits.train_labels == label][: sizes[label]]
        assert keys(selected.train_images[selected.train_labels == label]) == keys(own)
    assert np.bincount(selected.test_labels).tolist() == [2] * 10
    np.testing.assert_array_equal(selected.mean, digits.mean)


def test_a_smaller_subset_lies_in_a_larger_one():
    digits = load("digits")
    small, large = (select(digits, run(train_examples=n)) for n in (53, 500))
    assert set(keys(small.train_images)) <= set(keys(large.train_images))


@pytest.mark.parametrize("count", [10, 144, 301])
def test_validation_images_are_held_out_in_proportion(count):
    digits = load("digits")
    selected = select(digits, run(validation_examples=count, validation_seed=3))
    assert len(selected.test_labels) == count
    together = np.concatenate([selected.train_images, selected.test_images])
    labels = np.concatenate([selected.train_labels, selected.test_labels])
    assert labelled(together, labels) == labelled(digits.train_images, digits.train_labels)
    shares = np.bincount(digits.train_labels) * count / len(digits.train_labels)
    assert np.abs(np.bincount(selected.test_labels, minlength=10) - shares).max() < 1


def test_validation_is_decided_by_its_seed_alone():
    digits = load("digits")
    one, same, other = (
        select(digits, run(validation_examples=100, validation_seed=seed, train_examples=count)).test_images
        for seed, count in ((0, None), (0, 200), (1, None))
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_validation_images_stay_out_of_a_training_subset_and_test_images_unseen():
    digits = load("digits")
    # Were anything of the test set looked at, this would fail.
    blind = dataclasses.replace(digits, test_images=None, test_labels=None)
    selected = select(blind, run(validation_examples=300, train_examples=900, test_examples=10))
    assert len(selected.test_images) == 300
    # Digits holds no two equal training images.
    assert len(set(keys(digits.train_images))) == len(digits.train_images)
    assert not set(keys(selected.train_images)) & set(keys(selected.test_images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_examples": 1440}, "train_examples=1440 takes 144 images of class 0, but there are only 143"),
        ({"test_examples": 360}, "test_examples=360 takes 36 images of class 0, but there are only 35"),
        ({"validation_examples": 1442}, "validation_examples must leave some of the 1442 training images"),
        ({"validation_examples": 1000, "train_examples": 500}, "train_examples=500 takes 50 images of class"),
    ],
)
def test_asking_for_more_images_than_there_are(options, message):
    with pytest.raises(DataError, match=message):
        select(load("digits"), run(**options))


def test_normalize_matches_numpy():
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), np.uint8)
    mean, std = np.array([0.1, 0.5, 0.9], np.float32), np.array([0.2, 0.3, 0.01], np.float32)
    result = jax.jit(normalize)(images, mean, std)
    expected = (images / 255.0 - mean.astype(np.float64)) / std.astype(np.float64)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (81, 7, 7, 2), np.uint8)


def crop_reference(images, offsets):
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    height, width = images.shape[1:3]
    return np.stack([p[r : r + height, c : c + width] for p, (r, c) in zip(padded, offsets, strict=True)])


def test_crop_matches_numpy_at_every_offset(images):
    offsets = np.stack(np.meshgrid(np.arange(9), np.arange(9)), -1).reshape(-1, 2).astype(np.int32)
    result = jax.jit(crop)(images, offsets)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, crop_reference(images, offsets))


def test_flip_matches_numpy(images):
    is_flipped = np.arange(81) % 3 == 0
    expected = np.where(is_flipped[:, None, None, None], images[:, :, ::-1], images)
    np.testing.assert_array_equal(jax.jit(flip)(images, is_flipped), expected)


def test_augment_gives_each_image_its_own_crop_and_flip():
    images = np.random.default_rng(2).integers(1, 256, (2000, 9, 9, 1), np.uint8)
    result = np.asarray(jax.jit(augment, static_argnums=2)(images, jax.random.key(0), "crop_flip"))
    counts = np.zeros((9, 9, 2), int)
    for row, column, flipped in np.ndindex(9, 9, 2):
        expected = crop_reference(images, np.full((2000, 2), (row, column)))
        expected = expected[:, :, ::-1] if flipped else expected
        counts[row, column, flipped] = (result == expected).all((1, 2, 3)).sum()
    # Each image is one of the 162 possible ones, and these are equally likely.
    assert counts.sum() == 2000
    expected = 2000 / 162
    assert ((counts - expected) ** 2 / expected).sum() < 230  # 161 degrees of freedom: p = 3e-4.
    assert abs(counts[..., 1].sum() - 1000) < 4 * np.sqrt(500)


def test_flip_alone_mirrors_every_second_image_and_crops_none():
    images = np.random.default_rng(2).integers(1, 256, (2000, 9, 9, 1), np.uint8)
    result = np.asarray(jax.jit(augment, static_argnums=2)(images, jax.random.key(0), "flip"))
    kept, mirrored = ((result == x).all((1, 2, 3)).sum() for x in (images, images[:, :, ::-1]))
    assert kept + mirrored == 2000
    assert abs(mirrored - 1000) < 4 * np.sqrt(500)


def test_augment_is_decided_by_its_key(images):
    one, same, other = (augment(images, jax.random.key(seed), "crop_flip") for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(augment(images, jax.random.key(0), "none"), images)


def test_an_unknown_augmentation_lists_the_choices(images):
    with pytest.raises(ValueError, match="unknown augmentation 'cutout'; choose from none, flip, crop_flip"):
        augment(images, jax.random.key(0), "cutout")
