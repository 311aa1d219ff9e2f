"""Records on real files: read back exactly, and never lost."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from experiments import machine, records
from experiments.files import FileError
from experiments.records import EpochMetrics, RecordError, RunRecord
from experiments.run import Run

from .made import epoch_values

ROOT = Path(__file__).parents[2]
RUN = Run("digits", "resnet8", "znorm", "adam", 0.001, 10, 64, 0)
LONG = dataclasses.replace(RUN, epochs=500)


def _record(epochs: int = 3, **changes) -> RunRecord:
    metrics = tuple(EpochMetrics(i, 1 / i, 0.5, 1.1 / i, 0.4, 0, 0.25) for i in range(1, epochs + 1))
    return dataclasses.replace(RunRecord(RUN, parameters=123, epochs=metrics), **changes)


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth else []


def _path(out: Path) -> Path:
    return out / f"{RUN.name}.json"


DATA = {
    "train_images": 90,
    "test_images": 10,
    "image_shape": [8, 8, 1],
    "num_classes": 10,
    "mean": [0.5],
    "std": [0.25],
    "damaged": 1,
    "from_a_later_version": [1, "a"],
}


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(
    epochs=st.lists(epoch_values, max_size=5),
    lost=st.none() | st.sampled_from([math.nan, math.inf, -math.inf]),
    message=st.text(max_size=30),
    status=st.sampled_from(records.STATUSES),
    compile_seconds=st.floats(0, 1e6),
)
def test_round_trip_is_exact_and_strict_json(tmp_path, epochs, lost, message, status, compile_seconds):
    metrics = [EpochMetrics(i, *values) for i, values in enumerate(epochs, 1)]
    run = dataclasses.replace(RUN, epochs=max(1, len(metrics)))
    if not metrics and status in ("finished", "diverged"):
        status = "running"
    if metrics and lost is not None and status in ("diverged", "failed"):
        metrics[-1] = dataclasses.replace(metrics[-1], train_loss=lost, test_loss=lost)
    record = RunRecord(
        run,
        status,
        message,
        parameters=7,
        data=DATA,
        environment={"jax": "0.10.2", "commit": None, "dirty": None},
        resumed=({"after_epoch": 2, "jax": "0.11"},),
        compile_seconds=compile_seconds,
        epochs=tuple(metrics),
        scores={"f1": 0.5, "roc_auc": math.nan, "hausdorff": 12.5},
    )
    path = records.write_record(tmp_path, record)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    # repr tells every float from every other, and NaN equals itself.
    assert repr(records.read_record(tmp_path, run)) == repr(record)
    path.unlink()  # the next example has another name


def test_no_record():
    assert records.read_record("/nowhere", RUN) is None
    with pytest.raises(RecordError, match="/nowhere"):
        records.read_records("/nowhere")


def test_records_of_a_folder_come_by_name(tmp_path):
    runs = [dataclasses.replace(RUN, seed=seed) for seed in (2, 0, 1)]
    for run in runs:
        records.write_record(tmp_path, RunRecord(run))
        records.write_checkpoint(tmp_path, run, {"epoch": np.array(1)})
    found = records.read_records(tmp_path)
    assert [record.run.seed for record in found] == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda content: content.pop("run"), "has no 'run'"),
        (lambda content: content.pop("schema"), "has no 'schema'"),
        (lambda content: content.update(schema=99), "schema is 99"),
        (lambda content: content.update(status="done"), "unknown status 'done'"),
        (lambda content: content.update(surprise=1), "surprise"),
        (lambda content: content["run"].update(method="zscore"), "unknown method 'zscore'"),
        (lambda content: content["run"].pop("seed"), "seed"),
        (lambda content: content["run"].update(seed=1), "of another run"),
        (lambda content: content["epochs"].pop(0), "epochs are not 1, 2, 3"),
        (lambda content: content["epochs"][0].pop("test_loss"), "test_loss"),
        (
            lambda content: content["epochs"][0].update(test_loss="low"),
            r"epochs\[0\].test_loss must be .*'low'",
        ),
        (
            lambda content: content["epochs"][1].update(train_loss="1e400"),
            r"epochs\[1\].train_loss .*'1e400'",
        ),
        (lambda content: content["epochs"][1].update(train_loss=1e39), r"train_loss must be from -0.001"),
        (lambda content: content["epochs"][1].update(train_loss="nan"), "train_loss of epoch 2 is nan"),
        (lambda content: content["epochs"][2].update(test_loss="inf"), "test_loss of epoch 3 is inf"),
        (lambda content: content["epochs"][2].update(test_accuracy=7.0), "test_accuracy must be from 0 to 1"),
        (lambda content: content["epochs"][2].update(test_accuracy="nan"), "test_accuracy must be a finite"),
        (
            lambda content: content["epochs"][2].update(train_accuracy=1e308),
            "train_accuracy must be from 0 to",
        ),
        (lambda content: content["epochs"][2].update(train_accuracy=True), "train_accuracy must be a finite"),
        (lambda content: content["epochs"][2].update(seconds=-1), "seconds must be from 0 to"),
        (lambda content: content["epochs"][2].update(nonfinite_steps=0.5), "nonfinite_steps must be a whole"),
        (
            lambda content: content["epochs"][2].update(nonfinite_steps=10**30),
            "nonfinite_steps must be a whole",
        ),
        (lambda content: content["epochs"][2].update(epoch=7), "epochs are not 1, 2, 3"),
        (lambda content: content["epochs"][2].update(extra=1), r"epochs\[2\] has 'extra'"),
        (lambda content: content.update(epochs=content["epochs"] * 4), "epochs are not 1, 2, 3, .* up to 10"),
        (lambda content: content.update(status="finished"), "is finished, but has 3 of 10 epochs"),
        (lambda content: content.update(status="diverged", epochs=[]), "is diverged, but has 0 of 10 epochs"),
        (lambda content: content["epochs"][0].update(test_loss=-0.5), "test_loss must be from -0.001"),
        (lambda content: content.update(epochs=3), "epochs must be a list, got 3"),
        (lambda content: content.update(run=[]), "run must be an object"),
        (lambda content: content["run"].update(epochs="10"), "run.epochs must be a whole number"),
        (lambda content: content.update(message=3), "message must be a text"),
        (lambda content: content.update(compile_seconds=-0.1), "compile_seconds must be from 0 to"),
        (lambda content: content.update(parameters=-1), "parameters must be at least 0"),
        (lambda content: content.update(environment=["jax"]), "environment must be an object"),
        (lambda content: content.update(resumed=[3]), r"resumed\[0\] must be an object"),
        (lambda content: content.update(scores={"f1": 7.0}), "scores.f1 must be from 0 to 1"),
        (lambda content: content.update(scores={"hausdorff": -1.0}), "scores.hausdorff must be from 0"),
        (lambda content: content.update(scores=[0.5]), "scores must be an object"),
        (lambda content: content["data"].pop("mean"), "data has no 'mean'"),
        (lambda content: content["data"].update(mean=[0.5, 0.5]), "data.mean must have one number for each"),
        (lambda content: content["data"].update(image_shape="8 x 8"), "data.image_shape must be a list"),
        (lambda content: content["data"].update(image_shape=[8, 8]), "data.image_shape must be a list of 3"),
        (lambda content: content["data"].update(train_images="90"), "data.train_images must be a whole"),
        (lambda content: content["data"].update(more=[[[]]] * 2), None),
        (lambda content: content["data"].update(more=nested(200)), "nested more than"),
    ],
)
def test_wrong_content_is_refused(tmp_path, change, complaint):
    path = records.write_record(tmp_path, _record(data=DATA))
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    if complaint is None:
        assert records.read_record(tmp_path, RUN).data == content["data"]
        return
    with pytest.raises(RecordError, match=f"{complaint}.*remove it") as error:
        records.read_record(tmp_path, RUN)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400", "-1e400", "1" * 400, "1" * 5000])
@pytest.mark.parametrize("name", ["train_loss", "seconds", "epoch"])
def test_numbers_that_json_or_floats_do_not_have_are_refused(tmp_path, number, name):
    path = records.write_record(tmp_path, _record())
    path.write_text(re.sub(rf'"{name}": [^,}}]*', f'"{name}": {number}', path.read_text()))
    with pytest.raises(RecordError, match=str(path)):
        records.read_record(tmp_path, RUN)


def test_a_pipe_a_folder_a_link_to_nothing_and_a_renamed_record_are_named(tmp_path):
    os.mkfifo(_path(tmp_path))  # nobody ever writes to it
    with pytest.raises(RecordError, match=f"{RUN.name}.json: it is a pipe"):
        records.read_record(tmp_path, RUN)
    _path(tmp_path).unlink()
    _path(tmp_path).mkdir()
    with pytest.raises(RecordError, match=f"{RUN.name}.json: it is a folder"):
        records.read_records(tmp_path)
    _path(tmp_path).rmdir()
    _path(tmp_path).symlink_to("nothing")
    with pytest.raises(RecordError, match=f"{RUN.name}.json: it is a link to nothing, which is not there"):
        records.read_records(tmp_path)
    _path(tmp_path).unlink()
    records.write_record(tmp_path, _record()).rename(tmp_path / "copy.json")
    with pytest.raises(RecordError, match=f"copy.json: it is the record of another run, {RUN.name}"):
        records.find_record(tmp_path / "copy.json")
    with pytest.raises(RecordError, match=r"x.npz is no record"):
        records.find_record(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "content", [b"", b" \n", b"[]", b"3", b"null", b"\xff\xfe", b'{"schema": 1}', b"[" * 100_000]
)
def test_foreign_files_are_refused(tmp_path, content):
    _path(tmp_path).write_bytes(content)
    with pytest.raises(RecordError, match=RUN.name):
        records.read_record(tmp_path, RUN)


@pytest.fixture
def full_disk():
    """Makes every write beyond some bytes of a file fail, as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("size", [0, 1, 500])
def test_a_full_disk_damages_nothing(tmp_path, full_disk, size):
    other = _record(run=dataclasses.replace(RUN, seed=1))
    arrays = {"weights": np.arange(1000.0)}
    for record in (_record(), other):
        records.write_record(tmp_path, record)
        records.write_checkpoint(tmp_path, record.run, arrays)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    full_disk(size)
    try:
        with pytest.raises(FileError, match=rf"cannot write .*{RUN.name}.json: File too large"):
            records.write_record(tmp_path, _record(epochs=9))
        with pytest.raises(FileError, match=rf"cannot write .*{RUN.name}.npz: File too large"):
            records.write_checkpoint(tmp_path, RUN, {"weights": np.arange(2000.0)})
    finally:
        full_disk(resource.RLIM_INFINITY)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        records.write_record(tmp_path / "file" / "out", _record())


WRITER = """
import dataclasses, sys
sys.path[:0] = sys.argv[2:]
from tests.experiments.test_records import LONG, _record
from experiments import records
import numpy as np
while True:
    for epochs in (1, 500):
        records.write_record(sys.argv[1], _record(epochs, run=LONG))
        records.write_checkpoint(sys.argv[1], LONG, {"weights": np.full(epochs * 100, epochs)})
        print(epochs, flush=True)
"""


def test_readers_and_kills_never_see_half_a_file(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(ROOT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert [writer.stdout.readline() for _ in range(2)] == ["1\n", "500\n"]
            seen = set()
            deadline = time.monotonic() + 20
            while len(seen) < 2 and time.monotonic() < deadline:
                for _ in range(20):
                    seen.add(len(records.read_record(tmp_path, LONG).epochs))
                    weights = records.read_checkpoint(tmp_path, LONG)["weights"]
                    assert (weights == len(weights) // 100).all()
            assert seen == {1, 500}
        finally:
            writer.kill()
    assert len(records.read_record(tmp_path, LONG).epochs) in (1, 500)
    assert len(records.read_checkpoint(tmp_path, LONG)["weights"]) in (100, 50_000)
    assert len(records.read_records(tmp_path)) == 1


def test_checkpoints(tmp_path):
    arrays = {
        "params/conv/kernel": np.random.default_rng(0).standard_normal((3, 3, 1, 2)).astype(np.float32),
        "opt_state/0/count": np.array(7, np.int32),
        "empty": np.zeros((0, 2), np.float32),
    }
    assert records.read_checkpoint(tmp_path, RUN) is None
    assert not records.has_checkpoint(tmp_path, RUN)
    records.write_checkpoint(tmp_path, RUN, arrays)
    assert records.has_checkpoint(tmp_path, RUN)
    read = records.read_checkpoint(tmp_path, RUN)
    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in read.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()
    }
    records.remove_checkpoint(tmp_path, RUN)
    records.remove_checkpoint(tmp_path, RUN)
    assert list(tmp_path.iterdir()) == []


def test_environment_says_what_is_installed_and_not_where(tmp_path, monkeypatch):
    jax.devices()  # XLA reads its flags once, and ends the process where it does not know one
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={tmp_path} --xla_a=1")
    environment = machine.describe_environment(devices=2)
    assert environment["xla_flags"][-2:] == ["--xla_dump_to", "--xla_a=1"]
    assert environment["cpu_model"]
    assert environment["xla_threads"] == environment["cpu_usable"] >= 1
    for package in ("jax", "jaxlib", "flax", "optax", "numpy"):
        assert environment[package] == importlib.metadata.version(package)
    assert environment["device_count"] == 2
    assert environment["backend"] == "cpu"
    assert environment["cpu_count"] == os.cpu_count()
    text = records.write_record(tmp_path, _record(environment=environment)).read_text()
    for private in (socket.gethostname(), str(ROOT), str(Path.home()), sys.prefix, str(tmp_path)):
        assert not re.search(rf"(?<!\w){re.escape(private)}(?!\w)", text)


def test_commit_is_that_of_the_code(tmp_path, monkeypatch):
    """A copy of the code in a checkout of its own: unknown to git, committed, changed; and without git."""
    code = tmp_path / "experiments" / "machine.py"
    code.parent.mkdir()
    shutil.copy(machine.__file__, code)

    def git(*arguments):
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit():
        spec = importlib.util.spec_from_file_location("copied_machine", code)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        environment = module.describe_environment()
        return environment["commit"], environment["dirty"]

    assert commit() == (None, None)
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "somebody else's")
    assert commit() == (None, None)  # the checkout does not know this file
    git("add", ".")
    git("commit", "-q", "-m", "code")
    assert commit() == (git("rev-parse", "HEAD"), False)
    results = code.parent / "results"
    results.mkdir()
    (results / "record.json").write_text("{}")
    assert commit() == (git("rev-parse", "HEAD"), False)  # results are not code
    (code.parent / "new.py").write_text("")
    assert commit() == (git("rev-parse", "HEAD"), True)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == (None, None)
