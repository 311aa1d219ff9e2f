"""What the command line refuses, explains and lists; most of it in this process, where it starts at once."""

import dataclasses
import os
import signal

import numpy as np
import pytest

from experiments import reproduce
from experiments.preflight import UsageError, check_data
from experiments.run import Run
from experiments.studies import load_studies

from .processes import run, start


@pytest.mark.parametrize("command", ["list", "--help"])
def test_a_reader_that_goes_at_once_gets_no_traceback(command):
    process = start(command)
    process.stdout.close()
    with process.stderr as stream:
        assert stream.read() == ""
    assert process.wait(timeout=240) == 128 + signal.SIGPIPE


def test_one_file_is_one_data_set_however_its_path_is_spelt(tmp_path, call, monkeypatch):
    path = tmp_path / "own.npz"
    images, labels = np.zeros((80, 8, 8), np.uint8), np.arange(80) % 2
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    names = []

    def stop(study, *arguments):
        names.extend(run.name for run in study.runs("", []))
        raise UsageError("enough")

    monkeypatch.setattr(reproduce, "reproduce", stop)
    for spelling in (path, os.path.relpath(path), tmp_path / "runs" / ".." / "own.npz"):
        options = (
            "--methods",
            "baseline",
            "--optimizers",
            "sgdm",
            "--seeds",
            "0",
            "--out",
            tmp_path / "runs",
        )
        assert call("compare", "--dataset", f"arrays:{spelling}", *options)[2] == "error: enough\n"
    assert len(names) == 3
    assert len(set(names)) == 1


def test_list_shows_every_study_with_its_data_and_the_minutes_of_its_records(call):
    code, out, err = call("list")
    assert code == 0, err
    first_words = [line.split()[0] for line in out.splitlines() if line and not line.startswith(" ")]
    assert first_words[1:] == list(load_studies())
    (line,) = [line for line in out.splitlines() if line.startswith("pcam ")]
    assert "pcam32" in line
    assert max(map(len, out.splitlines())) <= 80


def test_devices_that_cannot_share_a_batch_are_refused(tmp_path, call):
    code, _out, err = call("compare", "--batch-size", "51", "--devices", "2", "--out", tmp_path)
    assert code == 2
    assert "51" in err
    assert "2 devices" in err


# What the parser, a study's name and a data set's file bring to light; other packages say nothing beside it.
IN_A_PROCESS = [("comapre",), ("reproduce", "table9"), ("compare", "--dataset", "arrays:missing.npz")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("compare", "--dataset", "mnist"), ("mnist", "digits", "cifar10")),
        (("compare", "--model", "resnet9"), ("resnet9", "resnet8", "vgg16_bn")),
        (("compare", "--methods", "zscore"), ("zscore", "znorm", "gan")),
        (("compare", "--optimizers", "sgd"), ("sgd", "sgdm", "adam")),
        (("compare", "--learning-rate", "0"), ("learning-rate", "0")),
        (("compare", "--learning-rate", "nan"), ("learning-rate", "nan")),
        (("compare", "--epochs", "0"), ("epochs", "0")),
        (("compare", "--batch-size", "100000"), ("batch", "100000")),
        (("compare", "--out", "/dev/null/runs"), ("--out", "/dev/null")),
        (("compare", "--dataset", "arrays:missing.npz"), ("missing.npz",)),
        (
            ("compare", "--dataset", "cifar10", "--data-dir", "/nonexistent"),
            ("cifar10", "/nonexistent", "prepare"),
        ),
        (("reproduce", "table9"), ("table9", "overlap_table1", "gan_cifar100")),
        (("reproduce", "overlap_tabel1"), ("did you mean 'overlap_table1'?",)),
        (("comapre",), ("did you mean 'compare'?", "reproduce, publish, report")),
        (("compare", "--methods", "znrom"), ("did you mean 'znorm'?",)),
        (("report", "overlap_table1", "--out", "/nonexistent"), ("/nonexistent", "records")),
        (("prepare", "mnist"), ("mnist", "cifar10")),
    ],
    ids=lambda value: "-".join(value)[:40].replace("/", "_") if isinstance(value, tuple) else None,
)
def test_bad_input_is_one_clear_line(arguments, words, tmp_path, call):
    command = run if arguments in IN_A_PROCESS else call
    if arguments[0] == "compare" and "--out" not in arguments:
        arguments = (*arguments, "--out", tmp_path / "runs")
    code, out, err = command(*arguments)
    assert code == 2, out + err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "resnet9"}, "unknown model 'resnet9'"),
        ({"model": "unet8"}, "a U-Net tells one kind of object"),
        ({"loss": "tversky"}, "does not fit dataset digits"),
        ({"test_examples": 100_000}, "test_examples=100000"),
        ({"train_examples": 100_000}, "train_examples=100000"),
        ({"validation_examples": 100_000}, "validation_examples must leave"),
        ({"train_examples": 40, "batch_size": 41}, "batch_size is 41, but there are only 40"),
        ({"batch_size": 1_443}, "batch_size is 1443, but there are only 1442"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_run_is_checked_before_the_first_begins(changes, words, place):
    runs = [Run("digits", "resnet8", "znorm", "adam", 0.001, 1, 64, seed) for seed in range(2)]
    check_data(runs)
    runs.insert(place, dataclasses.replace(runs[0], **changes))
    with pytest.raises(UsageError, match=words):
        check_data(runs)


def test_help_says_what_it_is_for_and_what_there_is(call):
    code, out, _ = call("--help")
    assert code == 0
    assert out.splitlines()[2].startswith("Trains networks with and without gradient normalization")
    code, out, _ = call("reproduce", "--help")
    assert code == 0
    assert all(name in out for name in load_studies())


def test_help_explains_every_option(call):
    code, out, _ = call("compare", "--help")
    assert code == 0
    for option in (
        "dataset",
        "model",
        "methods",
        "optimizers",
        "seeds",
        "epochs",
        "batch-size",
        "learning-rate",
        "out",
    ):
        assert f"--{option}" in out
