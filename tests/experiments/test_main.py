"""The command line as a user meets it: real processes, real files, kills and interruptions."""

import dataclasses
import importlib.metadata
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments.preflight import UsageError, check_data
from experiments.run import Run
from experiments.studies import load_studies

from .processes import ROOT, finish, metrics, run, start, wait_for_epochs

EPOCHS = 10
KNOWS_ONEDNN = importlib.metadata.version("jaxlib").startswith("0.12.")
SMALL = (
    "--methods", "baseline", "znorm", "--optimizers", "sgdm", "--seeds", "0", "1", "--epochs", str(EPOCHS),
    "--train-examples", "200", "--batch-size", "50", "--workers", "2",
)  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    code, out, err = run("compare", *SMALL, "--keep-checkpoints", "--out", folder)
    assert code == 0, err
    return folder, out


def final_accuracies(folder, method):
    """Mean of the last three epochs, as the learning rate is constant."""
    return [
        sum(epoch["test_accuracy"] for epoch in epochs[-3:]) / 3
        for name, epochs in metrics(folder / "records").items()
        if f"-{method}-" in name
    ]


def test_compare_ends_with_a_table_of_80_columns_a_report_and_a_figure(undisturbed):
    folder, out = undisturbed
    lines = [line for line in out.splitlines() if line.startswith("[")]
    assert lines[0].startswith("[0/4, 1 run, 3 left] started ")
    assert lines[-1].startswith("[4/4, 0 run, 0 left (0:00), best ")
    assert " finished " in lines[-1]
    table = out[out.index("optimizer") :]
    rows = [line.split() for line in table.splitlines() if line.startswith("SGDM")]
    assert [row[1] for row in rows] == ["baseline", "ZNorm"]
    assert max(map(len, table.partition("Report:")[0].splitlines())) <= 80
    assert "vs baseline [95 %]" in table.splitlines()[0]

    accuracies = final_accuracies(folder, "znorm")
    assert f"{100 * sum(accuracies) / 2:.1f}" in rows[1]
    baseline = final_accuracies(folder, "baseline")
    assert f"{100 * (sum(accuracies) - sum(baseline)) / 2:+.1f}" in rows[1]
    assert f"{100 * sum(accuracies) / 2:.1f} ±" in (folder / "report.md").read_text()
    assert "<svg" in (folder / "learning_curves.svg").read_text()
    assert len(metrics(folder / "records")) == 4
    assert all(len(epochs) == EPOCHS for epochs in metrics(folder / "records").values())


def test_a_kept_network_tells_what_digit_an_image_shows(undisturbed, tmp_path):
    folder, _ = undisturbed
    records = sorted((folder / "records").glob("*.json"))
    assert [path.with_suffix(".npz") for path in records] == sorted((folder / "records").glob("*.npz"))
    Image.fromarray(data.load("digits").test_images[0, :, :, 0]).save(tmp_path / "digit.png")
    name = records[0].stem
    out = tmp_path / "digit.json"
    code, printed, err = run(
        "predict", name, tmp_path / "digit.png", "--records", folder / "records", "--out", out
    )
    assert code == 0, err
    answer = json.loads(out.read_text())
    assert answer.items() <= json.loads(printed).items()
    assert answer["class"] in range(10)
    assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-5)


def test_a_narrow_terminal_that_knows_ascii_alone_shows_the_table(undisturbed):
    folder, _ = undisturbed
    environment = {"COLUMNS": "60", "PYTHONIOENCODING": "ascii"}
    code, out, err = run("compare", *SMALL, "--out", folder, environment=environment)
    assert code == 0, err
    assert out.isascii()
    table = out[out.index("optimizer") : out.index("Report:")]
    assert max(map(len, table.splitlines())) <= 60
    # Folded, not cut: both ends of each interval are there.
    assert table.count("[") - table.count("[95") == table.count("]") - table.count("%]") == 1


def test_a_reader_that_goes_after_the_first_line_gets_no_traceback(undisturbed):
    folder, _ = undisturbed
    process = start("compare", *SMALL, "--out", folder)
    assert process.stdout.readline().startswith("[1/4")
    process.stdout.close()
    with process.stderr as stream:
        assert stream.read() == ""
    assert process.wait(timeout=240) == 128 + signal.SIGPIPE


@pytest.mark.parametrize("command", ["list", "--help"])
def test_a_reader_that_goes_at_once_gets_no_traceback(command):
    process = start(command)
    process.stdout.close()
    with process.stderr as stream:
        assert stream.read() == ""
    assert process.wait(timeout=240) == 128 + signal.SIGPIPE


def test_one_file_is_one_data_set_however_its_path_is_spelt(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (80, 8, 8), np.uint8)
    labels = np.arange(80) % 2
    path = tmp_path / "own.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    spellings = [path, os.path.relpath(path, ROOT), tmp_path / "runs" / ".." / "own.npz"]
    options = ("--methods", "baseline", "--optimizers", "sgdm", "--seeds", "0", "--epochs", "1")
    printed = []
    for spelling in spellings:
        code, out, err = run(
            "compare", "--dataset", f"arrays:{spelling}", *options, "--out", tmp_path / "runs"
        )
        assert code == 0, err
        printed.append(out)
    assert ["skipped" in out for out in printed] == [False, True, True]
    assert len(list((tmp_path / "runs" / "records").glob("*.json"))) == 1


def test_list_shows_every_study_with_its_data_and_the_minutes_of_its_records():
    code, out, err = run("list")
    assert code == 0, err
    first_words = [line.split()[0] for line in out.splitlines() if line and not line.startswith(" ")]
    assert first_words[1:] == list(load_studies())
    (line,) = [line for line in out.splitlines() if line.startswith("pcam ")]
    assert "pcam32" in line
    assert max(map(len, out.splitlines())) <= 80


def test_the_minutes_of_a_study_are_those_of_its_records(undisturbed, tmp_path):
    folder = tmp_path / "gan_cifar100" / "cpu" / "records"
    folder.mkdir(parents=True)
    path = sorted((undisturbed[0] / "records").glob("*.json"))[0]
    record = json.loads(path.read_text())
    record["compile_seconds"] = 3600.0
    for epoch in record["epochs"]:
        epoch["seconds"] = 60.0
    (folder / path.name).write_text(json.dumps(record))
    code, out, err = run("list", "--out", tmp_path)
    assert code == 0, err
    assert out.count("cpu 70") == 1
    assert out.count("not run") == len(load_studies()) - 1


@pytest.fixture
def heeded_interrupt():
    """Processes started here heed SIGINT, which a shell's background jobs ignore with all their children."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("heeded_interrupt")
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_stopped_sweep_goes_on_and_ends_with_the_same_bits(undisturbed, tmp_path, ending):
    process = start("compare", *SMALL, "--out", tmp_path)
    wait_for_epochs(tmp_path / "records", 3, process)
    process.send_signal(ending)
    _, _, err = finish(process, timeout=30)
    if ending == signal.SIGINT:
        assert process.returncode == 130, err
        assert "same command" in err
        assert "Traceback" not in err
    # Workers do not outlive their parent: nothing is written any more.
    time.sleep(1)
    stopped = metrics(tmp_path / "records")
    time.sleep(1)
    assert metrics(tmp_path / "records") == stopped

    code, _out, err = run("compare", *SMALL, "--out", tmp_path)
    assert code == 0, err
    assert metrics(tmp_path / "records") == metrics(undisturbed[0] / "records")
    for name, epochs in stopped.items():
        # An epoch in the record and the checkpoint is not made again; the last one may lack its checkpoint.
        record = json.loads((tmp_path / "records" / name).read_text())
        resumed = [restart["after_epoch"] for restart in record["resumed"]]
        if 1 < len(epochs) < EPOCHS:
            assert resumed
            assert resumed[-1] >= len(epochs) - 1
        # The same bits, though XLA takes another library where it can.
        assert any("onednn" in flag for flag in record["environment"]["xla_flags"]) == KNOWS_ONEDNN
        assert record["environment"]["cpu_usable"] == record["environment"]["xla_threads"] == 1
    assert not list((tmp_path / "records").glob("*.npz"))


def test_a_comparison_is_published_and_reported_as_a_study_is(undisturbed, tmp_path):
    folder, _ = undisturbed
    code, out, err = run("publish", "compare", "--from", folder, "--out", tmp_path)
    assert code == 0, err
    assert "4 runs" in out
    code, _, err = run("report", "compare", "--out", tmp_path)
    assert code == 0, err
    for name in ("report.md", "learning_curves.svg"):
        assert (tmp_path / "compare" / "cpu" / name).read_bytes() == (folder / name).read_bytes()


def test_a_worker_that_dies_is_reported_and_its_run_made_again(undisturbed, tmp_path):
    process = start("compare", *SMALL, "--out", tmp_path)
    wait_for_epochs(tmp_path / "records", 1, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(workers[0]), signal.SIGKILL)
    _, out, err = finish(process, timeout=200)
    assert process.returncode == 0, err
    assert "killed by SIGKILL" in out
    assert metrics(tmp_path / "records") == metrics(undisturbed[0] / "records")


def test_an_unreadable_record_stops_its_run_and_no_other(undisturbed, tmp_path):
    folder, _ = undisturbed
    (tmp_path / "records").mkdir()
    for path in (folder / "records").glob("*.json"):
        (tmp_path / "records" / path.name).write_bytes(path.read_bytes())
    damaged = sorted((tmp_path / "records").glob("*.json"))[0]
    damaged.write_text('{"schema": 1, "run"')
    code, out, err = run("compare", *SMALL, "--out", tmp_path)
    assert code == 1
    assert damaged.name in out + err
    assert "Traceback" not in err
    assert f"{damaged}: " in err
    assert "remove it to start the run again" in err
    assert damaged.read_text() == '{"schema": 1, "run"'
    damaged.unlink()  # as it says
    code, out, err = run("compare", *SMALL, "--out", tmp_path)
    assert code == 0, err
    assert metrics(tmp_path / "records") == metrics(folder / "records")


def test_a_report_names_the_record_that_is_damaged_and_what_to_do(undisturbed, tmp_path):
    records = tmp_path / "gan_cifar100" / "smoke" / "records"
    records.mkdir(parents=True)
    for path in (undisturbed[0] / "records").glob("*.json"):
        (records / path.name).write_bytes(path.read_bytes())
    damaged = sorted(records.glob("*.json"))[1]
    damaged.write_bytes(damaged.read_bytes()[:200])
    code, _out, err = run("report", "gan_cifar100", "--out", tmp_path)
    assert code == 2
    (line,) = err.strip().splitlines()
    assert str(damaged) in line
    assert line.endswith("remove it to start the run again")
    # Those that are left are of another protocol.
    damaged.unlink()
    code, _out, err = run("report", "gan_cifar100", "--out", tmp_path)
    assert code == 2
    (line,) = err.strip().splitlines()
    assert "no run that the protocol of gan_cifar100, preset smoke, names" in line
    assert not (records.parent / "report.md").exists()


def test_devices_share_each_batch_and_learn_the_same(undisturbed, tmp_path):
    shared = (*SMALL[:-2], "--devices", "2", "--epochs", "1", "--out", tmp_path)
    code, _out, err = run("compare", *shared, devices=2)
    assert code == 0, err
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "records").glob("*.json"))]
    assert [record["environment"]["device_count"] for record in records] == [2] * 4
    alone = {
        (record["run"]["method"], record["run"]["seed"]): record["epochs"][0]["train_loss"]
        for record in (json.loads(path.read_text()) for path in (undisturbed[0] / "records").glob("*.json"))
    }
    for record in records:
        expected = alone[record["run"]["method"], record["run"]["seed"]]
        assert record["epochs"][0]["train_loss"] == pytest.approx(expected, rel=1e-3)

    code, _out, err = run("compare", *shared, "--batch-size", "51", devices=2)
    assert code == 2
    assert "51" in err
    assert "2 devices" in err


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
def test_bad_input_is_one_clear_line(arguments, words, tmp_path):
    if arguments[0] == "compare" and "--out" not in arguments:
        arguments = (*arguments, "--out", tmp_path / "runs")
    code, out, err = run(*arguments)
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
        ({"train_examples": 40, "batch_size": 41}, "batch size is 41, but there are only 40"),
        ({"batch_size": 1_443}, "batch size is 1443, but there are only 1442"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_run_is_checked_before_the_first_begins(changes, words, place):
    runs = [Run("digits", "resnet8", "znorm", "adam", 0.001, 1, 64, seed) for seed in range(2)]
    check_data(runs, None)
    runs.insert(place, dataclasses.replace(runs[0], **changes))
    with pytest.raises(UsageError, match=words):
        check_data(runs, None)


def test_help_says_what_it_is_for_and_what_there_is():
    code, out, _ = run("--help")
    assert code == 0
    assert out.splitlines()[2].startswith("Trains networks with and without gradient normalization")
    code, out, _ = run("reproduce", "--help")
    assert code == 0
    assert all(name in out for name in load_studies())


def test_help_explains_every_option():
    code, out, _ = run("compare", "--help")
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
