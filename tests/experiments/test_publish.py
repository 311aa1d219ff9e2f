"""What is published: every bit comes back, the same bytes each time, and nothing is lost on the way."""

import dataclasses
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from experiments import records
from experiments.files import FileError
from experiments.jobs.measure import find_missing
from experiments.jobs.sweep import sweep
from experiments.options import Options
from experiments.records import EpochMetrics, MeasurementRecord, RecordError, RunRecord
from experiments.records.dynamics import GradientDynamics
from experiments.run import Run

from .made import epoch_values, shares
from .processes import run as command

ROOT = Path(__file__).parents[2]
RUN = Run("digits", "resnet8", "znorm", "adam", 0.001, 2, 64, 0)
FILES = ("records.jsonl", "records.dynamics.jsonl", "measurements.jsonl")


def _record(seed=0, status="finished", **changes):
    epochs = tuple(EpochMetrics(i, 1 / 3 / i, 0.1, 1.1 / i, 0.4, 0, 0.25) for i in (1, 2))
    changes = {"epochs": epochs, "environment": {"jax": "0.10.2", "commit": None}, **changes}
    return RunRecord(dataclasses.replace(RUN, seed=seed), status, **changes)


def _fill(folder, seeds=(0, 1, 2), **changes):
    for seed in seeds:
        records.write_record(folder / "records", _record(seed, **changes))
    return folder


def _publish(source, target, check=lambda found: None):
    return records.publish(source, target, check)


def _bytes(folder):
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


def _floats(record):
    """Their repr tells every float from every other, and NaN equals itself."""
    return repr(record.epochs), repr(dict(sorted(record.scores.items()))), repr(record.compile_seconds)


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], max_examples=50)
@hypothesis.given(
    epochs=st.lists(epoch_values, min_size=2, max_size=2),
    scores=st.dictionaries(st.text(max_size=5), shares | st.just(math.nan), max_size=3),
    message=st.text(max_size=30),
)
def test_every_number_comes_back_bit_for_bit(tmp_path, epochs, scores, message):
    metrics = tuple(EpochMetrics(i, *values) for i, values in enumerate(epochs, 1))
    record = _record(epochs=metrics, scores=scores, message=message)
    records.write_record(tmp_path / "work" / "records", record)
    _publish(tmp_path / "work", tmp_path / "out")
    (found,) = records.read_records(tmp_path / "out" / "records")
    assert _floats(found) == _floats(record)
    assert (found.run, found.status, found.message) == (record.run, record.status, record.message)
    for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines():
        assert json.dumps(json.loads(line), sort_keys=True) == line


def test_statistics_of_gradients_come_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, (3, 2, 40), np.uint64).astype(np.uint32).view(np.float32)
    words = np.where(np.isnan(words), np.float32(np.nan), abs(words))
    words[0, 0, :4] = np.nan, np.inf, -0.0, 1e-45
    layers = tuple(f"layer{i}/kernel" for i in range(40))
    dynamics = GradientDynamics(layers, np.arange(1, 41), *words, words[0, :, 0])
    record = dataclasses.replace(_record(), run=dataclasses.replace(RUN, dynamics=True))
    records.write_record(tmp_path / "records", record)
    records.write_dynamics(tmp_path / "records", record.run, dynamics)
    _publish(tmp_path, tmp_path / "out")
    found = records.read_dynamics(tmp_path / "out" / "records", record)
    for field in dataclasses.fields(dynamics):
        ours, theirs = getattr(found, field.name), getattr(dynamics, field.name)
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    assert records.read_dynamics(tmp_path / "out" / "records", _record()) is None


def test_the_same_bytes_each_time_and_a_further_run_adds_a_line(tmp_path):
    source, target = _fill(tmp_path / "work"), tmp_path / "out"
    measurement = MeasurementRecord(
        "norms", {"of": "resnet8"}, {"norm": [0.1, "nan"]}, {"jax": "0.10.2"}, 1.0
    )
    records.write_measurement(source / "measurements", measurement)
    assert _publish(source, target) == records.Published(3, 1, 0)
    first = _bytes(target)
    _publish(source, target)
    assert _bytes(target) == first
    # Nor do they depend on the order, or on how many calls it took.
    for seed in (2, 0, 1):
        _publish(_fill(tmp_path / f"work{seed}", [seed]), tmp_path / "piecewise")
    assert _bytes(tmp_path / "piecewise")["records.jsonl"] == first["records.jsonl"]
    _publish(_fill(source, [7]), target)
    before, after = (text["records.jsonl"].splitlines() for text in (first, _bytes(target)))
    assert [line for line in after if line not in before] == [line for line in after if b'"seed": 7' in line]
    assert len(after) == 4
    assert records.read_measurements(target / "measurements") == {"norms": measurement}


def test_what_has_not_ended_waits_until_it_has(tmp_path):
    source, target = _fill(tmp_path / "work", [0]), tmp_path / "out"
    _fill(source, [1], status="diverged")
    _fill(source, [2], status="running")
    _fill(source, [3], status="failed")
    assert _publish(source, target) == records.Published(2, 0, 2)
    _fill(source, [2])
    assert _publish(source, target) == records.Published(3, 0, 1)
    statuses = [record.status for record in records.read_records(target / "records")]
    assert statuses == ["finished", "diverged", "finished"]


@pytest.mark.parametrize("statuses", [[], ["running"], ["failed", "running", "running"]])
def test_nothing_is_published_where_nothing_has_ended(tmp_path, statuses):
    source, target = tmp_path / "work", tmp_path / "out"
    (source / "records").mkdir(parents=True)
    for seed, status in enumerate(statuses):
        _fill(source, [seed], status=status)
    told = r"none of its {} runs has ended \(.*{} running" if statuses else "it holds no records"
    with pytest.raises(RecordError, match=told.format(len(statuses), statuses.count("running"))) as error:
        _publish(source, target)
    assert str(source) in str(error.value)
    assert not target.exists()
    (source / "records.jsonl").touch()  # as after a copy onto a full disk
    with pytest.raises(RecordError, match=f"{source / 'records.jsonl'}: it is empty"):
        records.read_records(source / "records")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda content: content.pop("std"), "has no 'std'"),
        (
            lambda content: content.update(std=[["high"] * 2]),
            r"std\[0\]\[0\] must be a finite number, got 'high'",
        ),
        (lambda content: content.update(std=[[0.5]]), "shapes"),
        (lambda content: content.update(mean=[[0.5, -0.5]]), r"mean\[0\]\[1\] must be from 0"),
        (lambda content: content.update(layers=["a", "a"]), "different names"),
        (lambda content: content.update(layers=["a"]), "statistics of 1 layers"),
        (lambda content: content.update(sizes=[1, 0]), "sizes must be at least 1"),
        (lambda content: content.update(extra=0), "has 'extra'"),
    ],
)
def test_damaged_statistics_are_named_with_their_line(tmp_path, change, complaint):
    one = np.ones((1, 2), np.float32)
    dynamics = GradientDynamics(("a", "b"), np.array([3, 4]), one, one, one, one[0, :1])
    for seed in (0, 1):
        record = dataclasses.replace(_record(seed), run=dataclasses.replace(RUN, seed=seed, dynamics=True))
        record = dataclasses.replace(record, status="diverged", epochs=record.epochs[:1])
        records.write_record(tmp_path / "work" / "records", record)
        records.write_dynamics(tmp_path / "work" / "records", record.run, dynamics)
    _publish(tmp_path / "work", tmp_path / "out")
    path = tmp_path / "out" / "records.dynamics.jsonl"
    first, second = path.read_text().splitlines()
    content = json.loads(second)
    change(content)
    path.write_text(f"{first}\n{json.dumps(content)}\n")
    (damaged,) = (
        r for r in records.read_records(tmp_path / "out" / "records") if r.run.name == content["name"]
    )
    with pytest.raises(RecordError, match=complaint) as error:
        records.read_dynamics(tmp_path / "out" / "records", damaged)
    assert f"line 2 of {path}" in str(error.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"seconds": -1}, "seconds must be from 0 to"),
        ({"seconds": "nan"}, "seconds must be a finite number"),
        ({"values": [1]}, "values must be an object"),
        ({"environment": []}, "environment must be an object"),
        ({"name": 3}, "name must be a text"),
    ],
)
def test_damaged_measurements_are_named_with_their_line(tmp_path, change, complaint):
    measurement = MeasurementRecord("norms", {}, {"norm": [0.1, "nan"]}, {"jax": "0.10.2"}, 1.0)
    records.write_measurement(tmp_path / "work" / "measurements", measurement)
    _publish(tmp_path / "work", tmp_path / "out")
    path = tmp_path / "out" / "measurements.jsonl"
    path.write_text(json.dumps(json.loads(path.read_text()) | change) + "\n")
    with pytest.raises(RecordError, match=complaint) as error:
        records.read_measurements(tmp_path / "out" / "measurements")
    assert f"line 1 of {path}" in str(error.value)


def test_published_runs_count_as_made(tmp_path):
    """And not the one that was never made: a copy of what was published and one run to train."""
    _publish(_fill(tmp_path / "work", [0, 1]), tmp_path / "out")
    folder = tmp_path / "elsewhere"
    records.take_published(tmp_path / "out", folder)
    runs = [dataclasses.replace(RUN, seed=seed, epochs=epochs) for seed, epochs in ((0, 2), (1, 2), (2, 1))]
    events = []
    made = sweep(runs, folder / "records", Options(workers=1), events.append)
    skipped = [event.run.seed for event in events if event.kind == "skipped"]
    assert skipped == [0, 1]
    assert [record.status for record in made] == ["finished"] * 3
    assert [len(record.epochs) for record in made] == [2, 2, 1]
    assert [path.stem for path in (folder / "records").glob("*.json")] == [runs[2].name]
    assert [record.run.seed for record in records.read_records(folder / "records")] == [0, 1, 2]
    # What is no longer published is not taken for made.
    records.take_published(tmp_path / "nothing", folder)
    assert [record.run.seed for record in records.read_records(folder / "records")] == [2]


def test_published_measurements_are_not_made_again(tmp_path):
    record = MeasurementRecord("norms", {}, {"norm": 0.1}, {}, 1.0)
    records.write_measurement(tmp_path / "work" / "measurements", record)
    _publish(tmp_path / "work", tmp_path / "out")
    assert find_missing([record], tmp_path / "out" / "measurements") == []


def test_a_run_trained_again_takes_the_place_of_its_line_when_it_has_ended(tmp_path):
    folder = _fill(tmp_path / "work", [0])
    _publish(folder, folder)
    _fill(folder, [0], status="running", epochs=())
    (record,) = records.read_records(folder / "records")
    assert len(record.epochs) == 2
    _fill(folder, [0], compile_seconds=3.0)
    (record,) = records.read_records(folder / "records")
    assert record.compile_seconds == 3.0


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda line: line[: len(line) // 2], "Unterminated|Expecting"),
        (lambda line: b"<<<<<<< HEAD", "Expecting value"),
        (lambda line: b"3", "it must be an object with names, got 3"),
        (lambda line: b"", "it is empty"),
        (lambda line: b"[" * 100_000, "nested more than"),
        (
            lambda line: line.replace(b'"seconds": 0.25', b'"seconds": -1'),
            r"epochs\[0\].seconds must be from 0 to",
        ),
        (
            lambda line: line.replace(b'"environment": {', b'"environment": [{').replace(
                b'}, "epochs', b'}], "epochs'
            ),
            "environment must be an object",
        ),
        (lambda line: line.replace(b'"schema": 1', b'"schema": 9'), "schema is 9"),
        (lambda line: line.replace(b'"seed": 1', b'"seed": 5'), "but its run is"),
        (lambda line: line.replace(b'"name"', b'"title"'), "has no 'name'"),
        (lambda line: line + b"\n" + line, "stands in an earlier line too"),
        (lambda line: line.replace(b'"finished"', b'"done"'), "unknown status"),
        (lambda line: b"\xff\xfe", "Expecting value"),
    ],
)
def test_a_damaged_or_foreign_line_is_named(tmp_path, damage, complaint):
    _publish(_fill(tmp_path / "work"), tmp_path / "out")
    path = tmp_path / "out" / "records.jsonl"
    lines = path.read_bytes().splitlines()
    lines[1] = damage(lines[1])
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(RecordError, match=complaint) as error:
        records.read_records(tmp_path / "out" / "records")
    assert f"line {3 if 'earlier' in complaint else 2} of {path}" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(RecordError, match=complaint):
        _publish(tmp_path / "work", tmp_path / "out")
    assert path.read_bytes() == b"\n".join(lines) + b"\n"


def test_a_full_disk_leaves_the_old_file_whole(tmp_path):
    source, target = _fill(tmp_path / "work", [0]), tmp_path / "out"
    _publish(source, target)
    before = _bytes(target)
    _fill(source, range(20))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, old[1]))
    try:
        with pytest.raises(FileError, match=r"cannot write .*records.jsonl: File too large"):
            _publish(source, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert _bytes(target) == before
    assert [path.name for path in target.iterdir()] == ["records.jsonl"]


PUBLISHER = """
import sys
from pathlib import Path
from experiments import records
small, large, target = map(Path, sys.argv[1:])
while True:
    for source in (small, large):
        records.publish(source, target, lambda found: None)
        print(source.name, flush=True)
"""


def test_readers_and_kills_never_see_half_a_file(tmp_path):
    small, large, target = _fill(tmp_path / "a", [0]), _fill(tmp_path / "b", range(60)), tmp_path / "out"
    _fill(large, [0], compile_seconds=1.0)  # so that every call writes other bytes
    arguments = [sys.executable, "-c", PUBLISHER, str(small), str(large), str(target)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT) as publisher:
        try:
            assert [publisher.stdout.readline() for _ in range(2)] == ["a\n", "b\n"]
            deadline, seen = time.monotonic() + 20, set()
            while len(seen) < 2 and time.monotonic() < deadline:
                found = records.read_records(target / "records")
                assert len(found) == 60
                seen.add(found[0].compile_seconds)
            assert seen == {0.0, 1.0}
        finally:
            publisher.kill()
    assert len(records.read_records(target / "records")) == 60


def test_runs_of_another_study_are_refused_by_name(tmp_path):
    """As a user meets it: a wrong folder, no folder, and what `report` says of a damaged line."""
    options = ("gan_cifar100", "--preset", "smoke", "--out", tmp_path / "out")
    code, _, err = command("publish", *options, "--from", _fill(tmp_path / "work", [0]))
    assert code == 2
    (line,) = err.strip().splitlines()
    assert RUN.name in line
    assert not (tmp_path / "out").exists()
    code, _, err = command("publish", *options, "--from", tmp_path / "nowhere")
    assert code == 2
    (line,) = err.strip().splitlines()
    assert f"nothing to publish in {tmp_path / 'nowhere'}" in line
    folder = tmp_path / "out" / "gan_cifar100" / "smoke"
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text('{"name": "x"\n')
    code, _, err = command("report", "gan_cifar100", "--out", tmp_path / "out")
    assert code == 2
    (line,) = err.strip().splitlines()
    assert f"line 1 of {folder / 'records.jsonl'}" in line
