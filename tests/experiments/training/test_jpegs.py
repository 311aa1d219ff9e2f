"""Training on JPEGs: any number of devices, and a run that was killed, give the same losses."""

import dataclasses

import numpy as np
import pytest

from experiments import data, models, training

from ..data.jpegs import write_folder
from .small import without_seconds
from .test_streamed import Small, make_run

pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jpegs")
    counts = {f"{split}/{label}": n for split, n in (("train", 12), ("test", 3)) for label in "abcdef"}
    data.prepare("folder", folder, source=write_folder(folder / "photographs", counts))
    return data.load("jpeg:photographs:32", folder)


class Killed(Exception):
    pass


def train_whole_and_killed(run, dataset, folder):
    """A run killed after its first epoch goes on to the same bits; returns the whole run's record."""

    def kill_after_one(record):
        if len(record.epochs) == 1:
            raise Killed

    whole = training.train(run, dataset, out=folder / "whole")
    with pytest.raises(Killed):
        training.train(run, dataset, out=folder / "cut", on_epoch=kill_after_one)
    resumed = training.train(run, dataset, out=folder / "cut")
    assert without_seconds(resumed) == without_seconds(whole)
    assert resumed.scores == whole.scores
    return whole


def test_a_run_on_jpegs_that_was_killed_ends_with_the_same_bits(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "small", Small)
    run = make_run(dataset="jpeg:photographs:32", augment="resized_crop", label_smoothing=0.1, epochs=3)
    whole = train_whole_and_killed(run, dataset, tmp_path)
    assert whole.scores["top_1"] == pytest.approx(whole.epochs[-1].test_accuracy)
    shared = training.train(run, dataset, out=tmp_path / "four", devices=4)
    for a, b in zip(whole.epochs, shared.epochs, strict=True):
        np.testing.assert_allclose((a.train_loss, a.test_loss), (b.train_loss, b.test_loss), rtol=1e-5)
    # The crops change from epoch to epoch, and are not the middle.
    middle = training.train(dataclasses.replace(run, augment="none"), dataset, out=tmp_path / "middle")
    assert middle.epochs[0].train_loss != whole.epochs[0].train_loss
