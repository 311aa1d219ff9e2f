"""Runs that end within an epoch, and runs that look at the test images in their last epochs alone."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import models, records, training
from experiments.data.streaming import StreamedImages
from experiments.report.cells import best_accuracy, final_accuracy, last_accuracy
from experiments.training.epoch import draw_batches
from experiments.training.methods import make_schedule
from experiments.training.resuming import read_arrays

from .small import SMALL_MODELS, small_dataset, small_run

STEPS_PER_EPOCH = 6  # 96 images in batches of 16


@pytest.fixture(autouse=True)
def _small_models(monkeypatch):
    for name, model in SMALL_MODELS.items():
        monkeypatch.setitem(models.MODELS, name, model)


def run_of(**options):
    return small_run(**{"model": "tiny", "batch_size": 16, "epochs": 3, "seed": 3, **options})


def updates(out, run) -> int:
    """How many the optimizer counted."""
    arrays = read_arrays(out, run)
    (count,) = {int(value) for name, value in arrays.items() if name.endswith("count")}
    return count


def test_a_run_ends_after_its_steps(tmp_path):
    dataset = small_dataset()
    run = run_of(steps=2 * STEPS_PER_EPOCH + 2, augment="flip")
    whole = training.train(dataclasses.replace(run, steps=None), dataset, out=tmp_path, keep_checkpoint=True)
    record = training.train(run, dataset, out=tmp_path, keep_checkpoint=True)
    assert record.status == "finished"
    assert updates(tmp_path, run) == 14
    assert updates(tmp_path, whole.run) == 18
    for ours, theirs in zip(record.epochs[:2], whole.epochs[:2], strict=True):
        assert dataclasses.replace(ours, seconds=0.0) == dataclasses.replace(theirs, seconds=0.0)
    assert record.epochs[2].train_loss != whole.epochs[2].train_loss


def test_the_steps_of_a_shorter_epoch_are_the_first_of_a_whole_one():
    run, seed, epoch = run_of(), np.uint32(5), np.int32(1)
    whole, keys = draw_batches(run, 96, seed, epoch)
    assert sorted(np.ravel(whole)) == list(range(96))
    for steps in (1, 4):
        indices, first_keys = draw_batches(run, 96, seed, epoch, steps)
        np.testing.assert_array_equal(indices, whole[:steps])
        np.testing.assert_array_equal(jax.random.key_data(first_keys), jax.random.key_data(keys[:steps]))


def test_the_rate_falls_to_zero_over_the_steps():
    run = run_of(steps=14, schedule="cosine", warmup_epochs=2 / STEPS_PER_EPOCH, learning_rate=0.1)
    schedule = make_schedule(run, STEPS_PER_EPOCH)
    rates = np.array([schedule(step) for step in range(15)])
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(13) / 12))
    np.testing.assert_allclose(rates, [0.0, 0.05, *expected], atol=1e-8)


def test_a_streamed_run_ends_after_the_same_steps(tmp_path):
    dataset = small_dataset()
    run = run_of(steps=STEPS_PER_EPOCH + 4, epochs=2)
    whole = training.train(run, dataset, out=tmp_path / "memory", keep_checkpoint=True)
    splits = {
        name: list(zip(getattr(dataset, f"{name}_images"), getattr(dataset, f"{name}_labels"), strict=True))
        for name in ("train", "test")
    }
    streamed = dataclasses.replace(
        dataset,
        **{
            f"{name}_images": StreamedImages(split, np.arange(len(split)), dataset.train_images.shape[1:])
            for name, split in splits.items()
        },
    )
    record = training.train(run, streamed, out=tmp_path / "streamed", keep_checkpoint=True)
    assert updates(tmp_path / "streamed", run) == 10
    for ours, theirs in zip(record.epochs, whole.epochs, strict=True):
        np.testing.assert_allclose(ours.train_loss, theirs.train_loss, rtol=1e-5)
        np.testing.assert_allclose(ours.test_loss, theirs.test_loss, rtol=1e-5)


@pytest.mark.parametrize(("steps", "epochs", "begun"), [(7, 3, 2), (18, 4, 3), (19, 3, 4)])
def test_epochs_that_do_not_fit_the_steps_are_refused(tmp_path, steps, epochs, begun):
    with pytest.raises(ValueError, match=rf"^epochs must be {begun} with steps={steps}, 6 in an epoch"):
        training.train(run_of(steps=steps, epochs=epochs), small_dataset(), out=tmp_path)


def test_only_the_last_epochs_are_evaluated(tmp_path):
    dataset = small_dataset()
    run = run_of(evaluated_epochs=2)
    whole = training.train(dataclasses.replace(run, evaluated_epochs=None), dataset, out=tmp_path)
    record = training.train(run, dataset, out=tmp_path)
    assert (record.epochs[0].test_loss, record.epochs[0].test_accuracy) == (None, None)
    for ours, theirs in zip(record.epochs, whole.epochs, strict=True):
        assert (ours.train_loss, ours.train_accuracy) == (theirs.train_loss, theirs.train_accuracy)
    for ours, theirs in zip(record.epochs[1:], whole.epochs[1:], strict=True):
        assert (ours.test_loss, ours.test_accuracy) == (theirs.test_loss, theirs.test_accuracy)
    assert records.read_record(tmp_path, run) == record
    accuracies = [epoch.test_accuracy for epoch in whole.epochs]
    assert final_accuracy(record) == pytest.approx(np.mean(accuracies[1:]))
    assert last_accuracy(record) == accuracies[-1]
    assert best_accuracy(record) == max(accuracies[1:])


def test_a_run_that_diverges_early_has_an_accuracy(tmp_path):
    run = run_of(model="swallows_nan", evaluated_epochs=1)
    record = training.train(run, small_dataset(), out=tmp_path)
    assert record.status == "diverged"
    assert len(record.epochs) == 1
    assert 0 <= final_accuracy(record) <= 1
    assert records.read_record(tmp_path, run) == record


def test_a_record_without_the_accuracy_of_an_evaluated_epoch_is_refused(tmp_path):
    run = run_of(evaluated_epochs=1)
    training.train(run, small_dataset(), out=tmp_path)
    path = tmp_path / f"{run.name}.json"
    text = path.read_text()
    path.write_text(text.replace('"evaluated_epochs": 1', '"evaluated_epochs": 2'))
    with pytest.raises(records.RecordError, match="its epoch 2 has no test_loss"):
        records.read_record(tmp_path, run)
