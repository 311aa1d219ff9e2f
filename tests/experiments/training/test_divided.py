"""Checkpoints of a divided state on full disks and after damage: one line, and the last whole one stays."""

import os
import resource
import shutil
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from experiments import hosts, models, records, supervision
from experiments.files import FileError
from experiments.training import resuming

from ..processes import ROOT
from .on_hosts import RUN
from .small import SMALL_MODELS
from .test_hosts import Interrupted, start_all, train_here, wait_for

pytestmark = [pytest.mark.usefixtures("compile_once"), pytest.mark.slow]
ENOUGH = 3_000  # bytes of a file: less than a part of the checkpoint has


@pytest.fixture(autouse=True)
def _small_models(monkeypatch):
    for name, model in SMALL_MODELS.items():
        monkeypatch.setitem(models.MODELS, name, model)


@pytest.fixture
def begun(tmp_path):
    """A run with a checkpoint of its first epoch."""
    with pytest.raises(Interrupted):
        train_here(tmp_path, stop_after=1)
    return tmp_path


def assert_goes_on(out, epoch, arrays):
    """The checkpoint is the one it was, and the same command goes on after it."""
    kept = resuming.read_arrays(out, RUN)
    assert kept.keys() == arrays.keys()
    for name in kept:
        np.testing.assert_array_equal(kept[name], arrays[name], err_msg=name)
    record = train_here(out)
    assert record.status == "finished"
    assert record.resumed[-1]["after_epoch"] == epoch
    folder = records.sharded_checkpoint(out, RUN)
    assert [path.name for path in folder.iterdir()] == ["3"]  # nothing half-written is left


def test_a_full_disk_on_one_host_ends_both(begun):
    arrays = resuming.read_arrays(begun, RUN)
    started = time.monotonic()
    ended = wait_for(start_all(begun, "memory", shard_params=1, file_bytes=(None, ENOUGH)))
    assert time.monotonic() - started < hosts.HEARTBEAT_SECONDS + 120
    (code0, _, err0), (code1, _, err1) = ended
    assert (code0, code1) == (1, 1)
    folder = records.sharded_checkpoint(begun, RUN)
    (line,) = err1.splitlines()
    assert line.startswith(f"error: FileError: cannot write {folder}: File too large; the same command")
    (line,) = err0.splitlines()
    assert line == f"error: {supervision.LOST.format(who='host 1')}"
    assert_goes_on(begun, 1, arrays)


def test_a_full_disk_on_both_hosts_ends_both(begun):
    arrays = resuming.read_arrays(begun, RUN)
    ended = wait_for(start_all(begun, "memory", shard_params=1, file_bytes=(ENOUGH, ENOUGH)))
    for code, _, err in ended:
        assert code == 1, err
        assert len(err.splitlines()) == 1, err
        (line,) = err.splitlines()
        assert line.startswith("error: ")
    assert "File too large" in ended[0][2] + ended[1][2]
    assert_goes_on(begun, 1, arrays)


def train_on_a_full_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (ENOUGH, ENOUGH))
    models.MODELS.update(SMALL_MODELS)
    with pytest.raises(FileError) as caught:
        train_here(sys.argv[1])
    print(caught.value)


def test_a_full_disk_on_one_host_alone_is_one_line(tmp_path):
    code = "from tests.experiments.training import test_divided as t; t.train_on_a_full_disk()"
    ended = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        cwd=ROOT,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    folder = records.sharded_checkpoint(tmp_path, RUN)
    assert (ended.stdout, ended.stderr) == (f"cannot write {folder}: File too large\n", "")
    assert list(folder.iterdir()) == []


def part(folder):
    """A file that holds numbers."""
    return max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: part(folder).write_bytes(b""),
        lambda folder: part(folder).write_bytes(part(folder).read_bytes()[:-50] + b"x" * 50),
        lambda folder: part(folder).unlink(),
        lambda folder: next(folder.rglob("manifest.ocdbt")).unlink(),
        lambda folder: next(folder.rglob("_METADATA")).write_bytes(b"\x00{"),
        lambda folder: next(folder.rglob("_METADATA")).unlink(),
        lambda folder: shutil.rmtree(next(folder.rglob("default"))),
    ],
    ids=["emptied", "overwritten", "without a part", "no manifest", "no JSON", "no metadata", "nothing"],
)
def test_a_damaged_checkpoint_is_one_line(begun, damage, capfd):
    folder = records.sharded_checkpoint(begun, RUN)
    damage(folder)
    capfd.readouterr()
    for read in (train_here, partial(resuming.read_arrays, run=RUN)):
        with pytest.raises(FileError) as caught:
            read(begun)
        assert str(caught.value).startswith(f"cannot read {folder}: ")
        assert len(str(caught.value)) < 300 + len(str(folder)) + 100
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
