"""Masks and scores: losses against NumPy, images and masks changed alike, patients never parted."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import models, records, training
from experiments.data import DataError, select
from experiments.data.augment import augment, augment_both, turn
from experiments.data.dataset import make_dataset
from experiments.run import AUGMENTATIONS, Run
from experiments.training import epoch, tasks
from experiments.training.methods import make_optimizer
from experiments.training.state import init_state

pytestmark = pytest.mark.usefixtures("compile_once")


class Pixelwise(nnx.Module):
    """One linear layer on each pixel's channels: NumPy can follow it."""

    def __init__(self, *, num_classes, channels, image_size, rngs, dtype=jnp.float32):
        del image_size
        self.linear = nnx.Linear(channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, images, *, train):
        del train
        return self.linear(images).astype(jnp.float32)


class Pooled(Pixelwise):
    """The same on the mean over the image: classes in place of masks."""

    def __call__(self, images, *, train):
        return super().__call__(images.mean((1, 2)), train=train)


@pytest.fixture(autouse=True)
def _small_models(monkeypatch):
    monkeypatch.setitem(models.MODELS, "pixelwise", Pixelwise)
    monkeypatch.setitem(models.MODELS, "pooled", Pooled)


def make_slices(train=24, test=11, size=6, patients=5):
    """Noise, brighter in one channel where the object is; some slices have no object."""
    random = np.random.default_rng(0)

    def split(count):
        masks = (random.random((count, size, size)) < 0.3).astype(np.uint8)
        masks[::4] = 0
        images = random.integers(0, 150, (count, size, size, 2))
        images[..., 0] += 40 * masks
        return images.astype(np.uint8), masks

    groups = {"train_groups": np.arange(train) % patients, "test_groups": np.arange(test) % patients}
    return make_dataset("slices", *split(train), *split(test), 1, **groups)


def make_two_classes(train=24, test=1203):
    random = np.random.default_rng(0)

    def split(count):
        labels = random.integers(0, 2, count)
        images = random.integers(0, 250, (count, 3, 3, 1)) * (1 - 0.2 * labels[:, None, None, None])
        return images.astype(np.uint8), labels

    return make_dataset("two", *split(train), *split(test), 2)


def make_run(**options):
    defaults = {"dataset": "slices", "model": "pixelwise", "method": "baseline", "optimizer": "sgdm"}
    defaults |= {"learning_rate": 0.3, "epochs": 4, "batch_size": 24, "seed": 0, "loss": "tversky"}
    return Run(**(defaults | options))


def pixels(images, dataset):
    return (images / 255 - np.float64(dataset.mean)) / np.float64(dataset.std)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def tversky_loss(probabilities, masks):
    hit = (probabilities * masks).sum()
    false_positive, false_negative = (probabilities * (1 - masks)).sum(), ((1 - probabilities) * masks).sum()
    return 1 - (hit + 1) / (hit + 0.3 * false_positive + 0.7 * false_negative + 1)


def tversky_gradient(probabilities, masks):
    """Derivative of the loss with respect to the probabilities, by the quotient rule."""
    numerator = (probabilities * masks).sum() + 1
    denominator = 0.3 * probabilities.sum() + 0.7 * masks.sum() + 1
    return (0.3 * numerator - masks * denominator) / denominator**2


# Training on masks


def test_images_need_not_be_square_but_for_quarter_turns(tmp_path):
    dataset = make_slices()
    wide = dataclasses.replace(
        dataset,
        train_images=np.concatenate([dataset.train_images, dataset.train_images[:, :, ::-1]], axis=2),
        train_labels=np.concatenate([dataset.train_labels, dataset.train_labels[:, :, ::-1]], axis=2),
        test_images=np.concatenate([dataset.test_images, dataset.test_images], axis=2),
        test_labels=np.concatenate([dataset.test_labels, dataset.test_labels], axis=2),
    )
    run = make_run(loss="bce_dice", augment="flip")
    record = training.train(run, wide, out=tmp_path)
    assert record.status == "finished"
    assert record.epochs[-1].train_loss < record.epochs[0].train_loss
    assert record.scores["dice"] > 0.2
    with pytest.raises(ValueError, match=r"'flip_rotate' needs square images, got \(6, 12\)"):
        training.train(make_run(augment="flip_rotate"), wide, out=tmp_path)
    with pytest.raises(ValueError, match="images must be square for vgg16, got 6 x 12"):
        training.train(make_run(model="vgg16"), wide, out=tmp_path)


def test_evaluation_of_large_images_is_shared_by_more_batches(tmp_path, monkeypatch):
    dataset, run = make_slices(), make_run()
    whole = training.train(run, dataset, out=tmp_path / "whole")
    for pixels_of_batch in (3 * 36, 1):
        monkeypatch.setattr(epoch, "EVALUATION_PIXELS", pixels_of_batch)
        parts = training.train(run, dataset, out=tmp_path / str(pixels_of_batch))
        assert parts.epochs[-1].test_loss == pytest.approx(whole.epochs[-1].test_loss, rel=1e-5)
        assert parts.epochs[-1].test_accuracy == pytest.approx(whole.epochs[-1].test_accuracy)
        assert parts.scores == whole.scores


def test_training_on_masks_is_gradient_descent(tmp_path):
    dataset, run = make_slices(), make_run()
    _, state = init_state(run, dataset, make_optimizer(run, 1))
    kernel = np.float64(state.params["linear"]["kernel"])[:, 0]
    bias = np.float64(state.params["linear"]["bias"])[0]
    record = training.train(run, dataset, out=tmp_path)

    train, test = pixels(dataset.train_images, dataset), pixels(dataset.test_images, dataset)
    masks, test_masks = np.float64(dataset.train_labels), np.float64(dataset.test_labels)
    kernel_trace = bias_trace = 0.0
    for metrics in record.epochs:
        probabilities = sigmoid(train @ kernel + bias)
        np.testing.assert_allclose(metrics.train_loss, tversky_loss(probabilities, masks), rtol=1e-5)
        right = (probabilities > 0.5) == (masks == 1)
        np.testing.assert_allclose(metrics.train_accuracy, right.mean(), rtol=1e-6)
        slopes = tversky_gradient(probabilities, masks) * probabilities * (1 - probabilities)
        kernel_trace = 0.9 * kernel_trace + np.einsum("nhwc,nhw->c", train, slopes)
        bias_trace = 0.9 * bias_trace + slopes.sum()
        kernel, bias = kernel - 0.3 * kernel_trace, bias - 0.3 * bias_trace
        probabilities = sigmoid(test @ kernel + bias)
        losses = [tversky_loss(*pair) for pair in zip(probabilities, test_masks, strict=True)]
        np.testing.assert_allclose(metrics.test_loss, np.mean(losses), rtol=1e-5)
        right = (probabilities > 0.5) == (test_masks == 1)
        np.testing.assert_allclose(metrics.test_accuracy, right.mean(), rtol=1e-6)

    predicted = probabilities > 0.5
    sizes = predicted.sum((1, 2)) + test_masks.sum((1, 2))
    dice = np.where(sizes == 0, 1, 2 * (predicted * test_masks).sum((1, 2)) / np.maximum(sizes, 1))
    np.testing.assert_allclose(record.scores["dice"], dice.mean(), rtol=1e-6)
    assert {"f1", "iou", "tversky", "hausdorff", "hausdorff95"} < record.scores.keys()


@pytest.mark.parametrize("loss", ["bce_dice", "tversky"])
def test_devices_share_slices_as_they_share_images(tmp_path, loss):
    dataset, run = make_slices(), make_run(loss=loss, batch_size=8, augment="flip_rotate")
    one = training.train(run, dataset, out=tmp_path / "one")
    four = training.train(run, dataset, out=tmp_path / "four", devices=4)
    for a, b in zip(one.epochs, four.epochs, strict=True):
        np.testing.assert_allclose((a.train_loss, a.test_loss), (b.train_loss, b.test_loss), rtol=1e-5)
        np.testing.assert_allclose(a.test_accuracy, b.test_accuracy, rtol=1e-6)
    assert one.epochs[-1].train_loss < one.epochs[0].train_loss
    assert one.scores == pytest.approx(four.scores, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "make", "complaint"),
    [
        (
            {},
            make_two_classes,
            r"loss 'tversky' does not fit dataset two, .* classes; choose from cross_entr",
        ),
        (
            {"loss": "cross_entropy"},
            make_slices,
            r"loss 'cross_entropy' does not fit dataset slices, whose labels are masks; choose from bce_dice,",
        ),
        ({"model": "pooled"}, make_slices, r"'pooled' gives logits of shape \(1,\) per image, .*\(6, 6, 1\)"),
        (
            {"loss": "cross_entropy"},
            make_two_classes,
            r"'pixelwise' gives logits of shape \(3, 3, 2\) per image, but the classes .* need \(2,\)",
        ),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(tmp_path, options, make, complaint):
    with pytest.raises(ValueError, match=complaint) as error:
        training.train(make_run(**options), make(), out=tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_masks_have_no_label_smoothing():
    with pytest.raises(ValueError, match="label_smoothing must be 0 with loss"):
        make_run(label_smoothing=0.1)


# Scores


def test_scores_of_two_classes_are_those_of_the_network(tmp_path):
    dataset = make_two_classes()  # more test images than a batch has
    run = make_run(dataset="two", model="pooled", loss="cross_entropy")
    record = training.train(run, dataset, out=tmp_path, keep_checkpoint=True)
    linear = training.load_model(run, out=tmp_path).linear
    means = pixels(dataset.test_images, dataset).mean((1, 2))
    logits = means @ np.float64(linear.kernel[...]) + np.float64(linear.bias[...])
    score, is_one = logits[:, 1] - logits[:, 0], dataset.test_labels == 1
    apart = score[is_one][:, None] - score[~is_one][None]
    # Rounding may turn round what is this close.
    assert (apart > 1e-5).mean() <= record.scores["roc_auc"] <= (apart > -1e-5).mean()
    found = score > 0
    np.testing.assert_allclose(record.scores["f1"], 2 * (found & is_one).sum() / (found.sum() + is_one.sum()))
    np.testing.assert_allclose(record.scores["accuracy"], record.epochs[-1].test_accuracy)
    assert records.read_record(tmp_path, run) == record


def test_more_classes_have_no_scores(tmp_path):
    dataset = make_two_classes(test=10)
    dataset = dataclasses.replace(dataset, num_classes=3)
    run = make_run(dataset="two", model="pooled", loss="cross_entropy")
    assert training.train(run, dataset, out=tmp_path).scores == {}


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", ["masks", "classes"])
def test_a_run_killed_before_its_scores_computes_them_later(tmp_path, kind):
    dataset = make_slices() if kind == "masks" else make_two_classes()
    options = {} if kind == "masks" else {"model": "pooled", "loss": "cross_entropy"}
    run = make_run(**options)

    def kill_after_the_last(record):
        if len(record.epochs) == run.epochs:
            raise Killed

    whole = training.train(run, dataset, out=tmp_path / "whole")
    with pytest.raises(Killed):
        training.train(run, dataset, out=tmp_path / "cut", on_epoch=kill_after_the_last)
    before = records.read_record(tmp_path / "cut", run)
    assert (before.status, before.scores) == ("running", {})
    after = training.train(run, dataset, out=tmp_path / "cut")
    assert (after.status, after.epochs, after.scores) == ("finished", before.epochs, whole.scores)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [f"{run.name}.json"]


def test_a_diverged_run_has_no_scores(tmp_path):
    run = make_run(model="pooled", loss="cross_entropy", learning_rate=1e38, epochs=9)
    record = training.train(run, make_two_classes(), out=tmp_path)
    assert (record.status, record.scores) == ("diverged", {})


def test_records_of_before_there_were_scores_are_read(tmp_path):
    run = make_run()
    path = records.write_record(tmp_path, records.RunRecord(run, scores={"dice": 0.5, "roc_auc": np.nan}))
    scores = records.read_record(tmp_path, run).scores
    assert scores["dice"] == 0.5
    assert np.isnan(scores["roc_auc"])
    content = json.loads(path.read_text())
    del content["scores"], content["run"]["loss"]
    content["run"]["loss"] = "tversky"
    path.write_text(json.dumps(content))
    assert records.read_record(tmp_path, run).scores == {}


# Images and masks


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_a_mask_is_changed_as_its_image(kind):
    random = np.random.default_rng(0)
    masks = random.integers(0, 2, (64, 9, 9), np.uint8)
    images = np.stack([masks * 255, 255 - masks * 255], axis=-1)
    for seed in range(3):
        changed, changed_masks = augment_both(images, masks, jax.random.key(seed), kind)
        np.testing.assert_array_equal(changed[..., 0], changed_masks * 255)
        assert changed_masks.dtype == np.uint8
    assert (kind == "none") == np.array_equal(changed_masks, masks)


def test_classes_stay_as_they_are():
    labels = np.arange(4)
    images = np.zeros((4, 5, 5, 1), np.uint8)
    np.testing.assert_array_equal(augment_both(images, labels, jax.random.key(0), "flip_rotate")[1], labels)


def test_all_eight_orientations_are_equally_likely():
    image = np.arange(2 * 5 * 5, dtype=np.uint8).reshape(5, 5, 2)
    orientations = [np.rot90(flipped, k) for flipped in (image, image[:, ::-1]) for k in range(4)]
    index = {orientation.tobytes(): i for i, orientation in enumerate(orientations)}
    turned = augment(np.broadcast_to(image, (8000, 5, 5, 2)), jax.random.key(0), "flip_rotate")
    counts = np.bincount([index[np.asarray(one).tobytes()] for one in turned], minlength=8)
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000 * 7 / 8)  # five standard deviations


def test_turns_are_applied_in_the_stated_order():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (8, 4, 4, 3), np.uint8)
    choices = np.array([[int(bit) for bit in f"{i:03b}"] for i in range(8)], bool).T
    for image, turned, (left_right, top_bottom, diagonal) in zip(
        images, turn(images, jnp.array(choices)), choices.T, strict=True
    ):
        expected = np.fliplr(image) if left_right else image
        expected = np.flipud(expected) if top_bottom else expected
        np.testing.assert_array_equal(turned, expected.transpose(1, 0, 2) if diagonal else expected)


# Subsets of slices


def patients_of(images, dataset):
    """Patients by the images' own pixels, so that groups that went astray are noticed."""
    known = {
        image.tobytes(): group
        for image, group in zip(dataset.train_images, dataset.train_groups, strict=True)
    }
    return [known[image.tobytes()] for image in images]


@pytest.mark.parametrize("count", [1, 4, 5, 7, 23, 24])
def test_a_subset_takes_whole_patients_and_the_first_slices_of_one(count):
    dataset = make_slices()
    chosen = select(dataset, make_run(train_examples=count, batch_size=1))
    assert len(chosen.train_images) == len(chosen.train_labels) == count
    patients = patients_of(chosen.train_images, dataset)
    np.testing.assert_array_equal(chosen.train_groups, patients)
    parted = [p for p in set(patients) if patients.count(p) < np.sum(dataset.train_groups == p)]
    assert len(parted) <= 1
    for patient in parted:
        slices = dataset.train_images[dataset.train_groups == patient][: patients.count(patient)]
        taken = [image for image, of in zip(chosen.train_images, patients, strict=True) if of == patient]
        np.testing.assert_array_equal(taken, slices)
    more = select(dataset, make_run(train_examples=24, batch_size=1))
    assert {i.tobytes() for i in chosen.train_images} <= {i.tobytes() for i in more.train_images}


def test_no_patient_is_trained_on_and_validated_on():
    dataset = make_slices()
    held_out = set()
    for seed in range(6):
        chosen = select(dataset, make_run(validation_examples=10, validation_seed=seed))
        validation = set(patients_of(chosen.test_images, dataset))
        assert validation.isdisjoint(patients_of(chosen.train_images, dataset))
        assert len(chosen.train_images) + len(chosen.test_images) == 24
        assert 5 < len(chosen.test_images) <= 10  # no patient has more than five slices
        np.testing.assert_array_equal(chosen.test_groups, patients_of(chosen.test_images, dataset))
        held_out.add(frozenset(validation))
    assert len(held_out) > 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"train_examples": 25}, "train_examples=25, but there are only 24 images"),
        ({"validation_examples": 3}, "validation_examples=3, but every patient has more images than that"),
        (
            {"validation_examples": 24},
            "validation_examples must leave some of the 24 training images, got 24",
        ),
    ],
)
def test_subsets_of_slices_that_cannot_be(options, complaint):
    with pytest.raises(DataError, match=complaint):
        select(make_slices(), make_run(**options))


def test_random_resized_crops_need_images_that_are_cropped_as_they_are_read():
    images = np.zeros((4, 8, 8, 3), np.uint8)
    dataset = make_dataset("small", images, [0, 1, 0, 1], images, [0, 1, 0, 1], 2)
    run = Run("small", "resnet8", "baseline", "sgdm", 0.1, 1, 2, 0, augment="resized_crop")
    with pytest.raises(
        ValueError, match=r"augment 'resized_crop' does not fit dataset small, .* 'jpeg:NAME'"
    ):
        tasks.make_task(run, dataset)
    assert tasks.make_task(run, dataclasses.replace(dataset, is_cropped=True)).new_scores is not None
