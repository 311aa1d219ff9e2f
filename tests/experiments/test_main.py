"""A comparison as a user meets it: real processes, real files, kills and interruptions."""

import importlib.metadata
import io
import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import pytest
from PIL import Image

from experiments import data
from experiments.studies import load_studies

from .processes import finish, metrics, run, start, wait_for_epochs

EPOCHS = 10
KNOWS_ONEDNN = importlib.metadata.version("jaxlib").startswith("0.12.")
SMALL = (
    "--methods", "baseline", "znorm", "--optimizers", "sgdm", "--seeds", "0", "1", "--epochs", str(EPOCHS),
    "--train-examples", "200", "--batch-size", "50", "--workers", "2",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def optimized():
    """The processes of this module train longer than they compile, so that it pays to optimize more."""
    jax.devices()  # This process has read the flags.
    flags = os.environ.get("XLA_FLAGS", "").replace("optimization_level=0", "optimization_level=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", flags)
        yield


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


def test_a_kept_network_tells_what_digit_an_image_shows(undisturbed, tmp_path, call):
    folder, _ = undisturbed
    records = sorted((folder / "records").glob("*.json"))
    assert [path.with_suffix(".npz") for path in records] == sorted((folder / "records").glob("*.npz"))
    Image.fromarray(data.load("digits").test_images[0, :, :, 0]).save(tmp_path / "digit.png")
    name = records[0].stem
    out = tmp_path / "digit.json"
    code, printed, err = call(
        "predict", name, tmp_path / "digit.png", "--records", folder / "records", "--out", out
    )
    assert code == 0, err
    answer = json.loads(out.read_text())
    assert answer.items() <= json.loads(printed).items()
    assert answer["class"] in range(10)
    assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-5)


def test_a_narrow_terminal_that_knows_ascii_alone_shows_the_table(undisturbed, call, monkeypatch):
    folder, _ = undisturbed
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stdout", stream)
    code, _, err = call("compare", *SMALL, "--out", folder)
    assert code == 0, err
    stream.flush()
    out = stream.buffer.getvalue().decode("ascii")
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


def test_the_minutes_of_a_study_are_those_of_its_records(undisturbed, tmp_path, call):
    folder = tmp_path / "gan_cifar100" / "cpu" / "records"
    folder.mkdir(parents=True)
    path = sorted((undisturbed[0] / "records").glob("*.json"))[0]
    record = json.loads(path.read_text())
    record["compile_seconds"] = 3600.0
    for epoch in record["epochs"]:
        epoch["seconds"] = 60.0
    (folder / path.name).write_text(json.dumps(record))
    code, out, err = call("list", "--out", tmp_path)
    assert code == 0, err
    assert out.count("cpu 70") == 1
    assert out.count("not run") == len(load_studies()) - 1


@pytest.fixture
def heeded_interrupt():
    """Processes started here heed SIGINT, which a shell's background jobs ignore with all their children."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def test_a_killed_sweep_goes_on_though_a_worker_dies_and_ends_with_the_same_bits(undisturbed, tmp_path):
    process = start("compare", *SMALL, "--out", tmp_path, start_new_session=True)
    wait_for_epochs(tmp_path / "records", 3, process)
    process.kill()
    finish(process, timeout=30)
    stopped = wait_for_stillness(tmp_path / "records")

    process = start("compare", *SMALL, "--out", tmp_path)
    wait_for_epochs(tmp_path / "records", sum(map(len, stopped.values())) + 1, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(workers[0]), signal.SIGKILL)
    _, out, err = finish(process, timeout=200)
    assert process.returncode == 0, err
    assert "killed by SIGKILL" in out
    assert metrics(tmp_path / "records") == metrics(undisturbed[0] / "records")
    for name, epochs in stopped.items():
        # An epoch in the record and the checkpoint is not made again; the last one may lack its checkpoint.
        record = json.loads((tmp_path / "records" / name).read_text())
        resumed = [restart["after_epoch"] for restart in record["resumed"]]
        if 1 < len(epochs) < EPOCHS:
            assert resumed
            assert resumed[0] >= len(epochs) - 1
        # The same bits, though XLA takes another library where it can.
        assert any("onednn" in flag for flag in record["environment"]["xla_flags"]) == KNOWS_ONEDNN
        assert record["environment"]["cpu_usable"] == record["environment"]["xla_threads"] == 1
    assert not list((tmp_path / "records").glob("*.npz"))


def wait_for_stillness(folder):
    """The metrics that are there, once it is seen that no worker outlived its parent and writes more."""
    time.sleep(1)
    stopped = metrics(folder)
    time.sleep(1)
    assert metrics(folder) == stopped
    return stopped


@pytest.mark.usefixtures("heeded_interrupt")
def test_ctrl_c_ends_a_sweep_with_one_line_that_says_how_to_go_on(tmp_path):
    process = start("compare", *SMALL, "--out", tmp_path, start_new_session=True)
    wait_for_epochs(tmp_path / "records", 1, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "same command" in err
    assert "Traceback" not in err
    wait_for_stillness(tmp_path / "records")


def test_a_comparison_is_published_and_reported_as_a_study_is(undisturbed, tmp_path, call):
    folder, _ = undisturbed
    code, out, err = call("publish", "compare", "--from", folder, "--out", tmp_path)
    assert code == 0, err
    assert "4 runs" in out
    code, _, err = call("report", "compare", "--out", tmp_path)
    assert code == 0, err
    for name in ("report.md", "learning_curves.svg"):
        assert (tmp_path / "compare" / "cpu" / name).read_bytes() == (folder / name).read_bytes()


def test_an_unreadable_record_stops_its_run_and_no_other(undisturbed, tmp_path, call):
    folder, _ = undisturbed
    (tmp_path / "records").mkdir()
    for path in (folder / "records").glob("*.json"):
        (tmp_path / "records" / path.name).write_bytes(path.read_bytes())
    damaged = sorted((tmp_path / "records").glob("*.json"))[0]
    damaged.write_text('{"schema": 1, "run"')
    code, out, err = call("compare", *SMALL, "--out", tmp_path)
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


def test_a_report_names_the_record_that_is_damaged_and_what_to_do(undisturbed, tmp_path, call):
    records = tmp_path / "gan_cifar100" / "smoke" / "records"
    records.mkdir(parents=True)
    for path in (undisturbed[0] / "records").glob("*.json"):
        (records / path.name).write_bytes(path.read_bytes())
    damaged = sorted(records.glob("*.json"))[1]
    damaged.write_bytes(damaged.read_bytes()[:200])
    code, _out, err = call("report", "gan_cifar100", "--out", tmp_path)
    assert code == 2
    (line,) = err.strip().splitlines()
    assert str(damaged) in line
    assert line.endswith("remove it to start the run again")
    # Those that are left are of another protocol.
    damaged.unlink()
    code, _out, err = call("report", "gan_cifar100", "--out", tmp_path)
    assert code == 2
    (line,) = err.strip().splitlines()
    assert "no run that the protocol of gan_cifar100, preset smoke, names" in line
    assert not (records.parent / "report.md").exists()
