"""Runs that were interrupted: exceptions, lost files, full disks and kills of real processes."""

import dataclasses
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import models, records, training
from experiments.files import FileError
from experiments.records import RecordError, RunRecord

from .small import SMALL_MODELS, Linear, small_dataset, small_run, without_seconds

pytestmark = pytest.mark.usefixtures("compile_once")
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _small_models(monkeypatch):
    for name, model in SMALL_MODELS.items():
        monkeypatch.setitem(models.MODELS, name, model)


class Interrupted(Exception):
    pass


def _stop_after(epochs: int):
    def on_epoch(record):
        if len(record.epochs) == epochs:
            raise Interrupted

    return on_epoch


@pytest.mark.parametrize("optimizer", ["sgdm", "lamb"])
def test_resumed_training_is_bit_identical(tmp_path, optimizer):
    dataset = small_dataset()
    run = small_run(optimizer=optimizer, method="gan", epochs=4, schedule="cosine", warmup_epochs=1.0)
    whole = training.train(run, dataset, out=tmp_path / "whole", keep_checkpoint=True)
    for epochs in (1, 3):
        with pytest.raises(Interrupted):
            training.train(
                run, dataset, out=tmp_path / "cut", on_epoch=_stop_after(epochs), keep_checkpoint=True
            )
    before = records.read_record(tmp_path / "cut", run)
    assert (before.status, len(before.epochs)) == ("running", 3)
    cut = training.train(run, dataset, out=tmp_path / "cut", keep_checkpoint=True)
    assert cut.epochs[:3] == before.epochs  # with their seconds: not made again
    assert without_seconds(cut) == without_seconds(whole)
    assert [restart["after_epoch"] for restart in cut.resumed] == [1, 3]
    one, other = (records.read_checkpoint(tmp_path / part, run) for part in ("whole", "cut"))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_epochs_without_a_checkpoint_are_made_again(tmp_path):
    """Killed between writing the record and the checkpoint: the record knows one epoch too many."""
    dataset, run = small_dataset(), small_run(epochs=3)
    whole = training.train(run, dataset, out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        training.train(run, dataset, out=tmp_path, on_epoch=_stop_after(1))
    record = records.read_record(tmp_path, run)
    ahead = dataclasses.replace(record.epochs[0], epoch=2, train_loss=99.0)
    records.write_record(tmp_path, dataclasses.replace(record, epochs=(*record.epochs, ahead)))
    assert without_seconds(training.train(run, dataset, out=tmp_path)) == without_seconds(whole)


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    dataset, run, other = small_dataset(), small_run(epochs=1), small_run(epochs=1, seed=1)
    leftover, not_ours = tmp_path / f".{run.name}.npz.123", tmp_path / f".{other.name}.npz.123"
    for path in (leftover, not_ours):
        path.write_bytes(b"half")
    training.train(run, dataset, out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{run.name}.json", not_ours.name}


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_a_lost_file_starts_the_run_again(tmp_path, suffix):
    dataset, run = small_dataset(), small_run(epochs=3)
    whole = training.train(run, dataset, out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        training.train(run, dataset, out=tmp_path, on_epoch=_stop_after(2))
    (tmp_path / f"{run.name}{suffix}").unlink()
    again = training.train(run, dataset, out=tmp_path)
    assert without_seconds(again) == without_seconds(whole)
    assert again.resumed == ()


def test_a_checkpoint_of_another_model_is_refused(tmp_path, monkeypatch):
    dataset, run = small_dataset(), small_run()
    with pytest.raises(Interrupted):
        training.train(run, dataset, out=tmp_path, on_epoch=_stop_after(1))
    monkeypatch.setitem(models.MODELS, "tiny", Linear)
    with pytest.raises(RecordError, match=f"checkpoint of {run.name} is of another model"):
        training.train(run, dataset, out=tmp_path)


class WithMore(Linear):
    """As `Linear`, with one layer more."""

    def __init__(self, **options):
        super().__init__(**options)
        self.more = nnx.Param(jnp.ones(4))

    def __call__(self, images, *, train):
        return super().__call__(images, train=train) * self.more[...].mean()


@pytest.mark.parametrize("divided", [False, True])
def test_a_checkpoint_of_a_network_with_more_layers_is_refused(tmp_path, monkeypatch, divided):
    dataset, run = small_dataset(), small_run()
    options = {"out": tmp_path, "devices": 2, "shard_params": divided}
    monkeypatch.setitem(models.MODELS, "tiny", WithMore)
    with pytest.raises(Interrupted):
        training.train(run, dataset, on_epoch=_stop_after(2), **options)
    assert (tmp_path / f"{run.name}.checkpoint").is_dir() == divided
    monkeypatch.setitem(models.MODELS, "tiny", Linear)
    with pytest.raises(RecordError, match=f"checkpoint of {run.name} is of another model .* see '.*more'"):
        training.train(run, dataset, **options)


def _without(name: str, arrays: dict) -> dict:
    return {key: array for key, array in arrays.items() if key != name}


@pytest.mark.parametrize("lacking", ["epoch", "params/linear/bias"])
def test_a_checkpoint_without_one_array_is_refused(tmp_path, lacking):
    dataset, run = small_dataset(), small_run()
    with pytest.raises(Interrupted):
        training.train(run, dataset, out=tmp_path, on_epoch=_stop_after(1))
    arrays = records.read_checkpoint(tmp_path, run)
    records.write_checkpoint(tmp_path, run, _without(lacking, arrays))
    with pytest.raises(RecordError, match=rf"{run.name}.*'{lacking}'.*remove {run.name}\.npz"):
        training.train(run, dataset, out=tmp_path)
    records.remove_checkpoint(tmp_path, run)
    assert training.train(run, dataset, out=tmp_path).status == "finished"


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda data: small_dataset(train=2 * len(data.train_images)), "train_images was 96, is 192"),
        (lambda data: small_dataset(test=7), "test_images was 50, is 7"),
        (lambda data: small_dataset(size=10), r"image_shape was \[8, 8, 1\], is \[10, 10, 1\]"),
        (lambda data: small_dataset(channels=3), r"image_shape was \[8, 8, 1\], is \[8, 8, 3\]"),
        (lambda data: small_dataset(num_classes=4), "num_classes was 3, is 4"),
        (lambda data: dataclasses.replace(data, mean=data.mean + 0.01), "mean was"),
        (lambda data: dataclasses.replace(data, std=data.std * 1.01), "std was"),
        (lambda data: dataclasses.replace(data, train_labels=data.train_labels[::-1]), "labels_checksum was"),
        (
            lambda data: dataclasses.replace(data, test_labels=(data.test_labels + 1) % 3),
            "labels_checksum was",
        ),
        # The same pixels elsewhere: labels, counts, mean and deviation stay.
        (
            lambda data: dataclasses.replace(data, train_images=data.train_images[:, ::-1]),
            "images_checksum was",
        ),
        (
            lambda data: dataclasses.replace(data, test_images=np.roll(data.test_images, 1, axis=0)),
            "images_checksum was",
        ),
    ],
)
@pytest.mark.parametrize("ended", [False, True])
def test_a_run_does_not_go_on_with_other_data(tmp_path, change, difference, ended):
    dataset, run = small_dataset(), small_run(epochs=2)
    if ended:
        training.train(run, dataset, out=tmp_path)
    else:
        with pytest.raises(Interrupted):
            training.train(run, dataset, out=tmp_path, on_epoch=_stop_after(1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RecordError, match=f"{run.name}.*{difference}.*another --out") as error:
        training.train(run, change(dataset), out=tmp_path, keep_checkpoint=ended)
    assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    # What the message says to do helps.
    (tmp_path / f"{run.name}.json").unlink()
    changed = change(dataset)
    record = training.train(run, changed, out=tmp_path)
    assert record.data["train_images"] == len(changed.train_images)
    assert (record.status, record.resumed) == ("finished", ())


def test_a_run_that_failed_before_its_first_epoch_may_have_other_data(tmp_path):
    run = small_run(epochs=1)
    records.write_record(tmp_path, RunRecord(run, status="failed", message="its worker died"))
    record = training.train(run, small_dataset(), out=tmp_path)
    assert (record.status, record.data["train_images"]) == ("finished", 96)


def test_the_last_digit_of_a_mean_may_depend_on_the_machine(tmp_path):
    dataset, run = small_dataset(), small_run(epochs=2)
    with pytest.raises(Interrupted):
        training.train(run, dataset, out=tmp_path, on_epoch=_stop_after(1))
    elsewhere = dataclasses.replace(dataset, mean=np.nextafter(dataset.mean, np.float32(1)))
    assert training.train(run, elsewhere, out=tmp_path).resumed[0]["after_epoch"] == 1


@pytest.mark.parametrize(("lacking", "said"), [("labels_checksum", ""), ("images_checksum", "images")])
def test_a_record_without_a_checksum_goes_on(tmp_path, capsys, lacking, said):
    """As those that were written before there was one."""
    dataset, run = small_dataset(), small_run(epochs=2)
    with pytest.raises(Interrupted):
        training.train(run, dataset, out=tmp_path, on_epoch=_stop_after(1))
    record = records.read_record(tmp_path, run)
    data = {name: value for name, value in record.data.items() if name != lacking}
    records.write_record(tmp_path, dataclasses.replace(record, data=data))
    capsys.readouterr()
    again = training.train(run, dataset, out=tmp_path)
    assert (again.status, again.epochs[:1]) == ("finished", record.epochs)
    warning = f"the record of {run.name} has no checksum of its images: whether they are still the same "
    warning += "was not checked\n"
    assert capsys.readouterr().err == (warning if said else "")


def test_a_finished_run_is_not_made_again(tmp_path):
    dataset, run = small_dataset(), small_run(epochs=1)
    first = training.train(run, dataset, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{run.name}.json"]
    assert training.train(run, dataset, out=tmp_path) == first
    with pytest.raises(RecordError, match="no checkpoint"):
        training.load_model(run, out=tmp_path)
    # Unless its checkpoint is wanted now.
    again = training.train(run, dataset, out=tmp_path, keep_checkpoint=True)
    assert without_seconds(again) == without_seconds(first)
    training.load_model(run, out=tmp_path)


def test_a_full_disk_stops_the_run_and_it_goes_on_later(tmp_path):
    dataset, run = small_dataset(), small_run(epochs=3)
    whole = training.train(run, dataset, out=tmp_path / "whole")
    out = tmp_path / "full"
    with pytest.raises(Interrupted):
        training.train(run, dataset, out=out, on_epoch=_stop_after(1))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3500, limit[1]))  # enough for the record alone
    try:
        with pytest.raises(FileError, match=rf"cannot write .*{run.name}\.npz: File too large"):
            training.train(run, dataset, out=out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert sorted(path.suffix for path in out.iterdir()) == [".json", ".npz"]
    assert without_seconds(training.train(run, dataset, out=out)) == without_seconds(whole)


CHILD = """
import sys
sys.path[:0] = sys.argv[2:]
import jax
jax.config.update("jax_numpy_dtype_promotion", "strict")
from tests.experiments.training.test_resuming import KILLED_RUN, SMALL_MODELS, small_dataset
from experiments import models, training
models.MODELS.update(SMALL_MODELS)
training.train(
    KILLED_RUN,
    small_dataset(train=1600),
    out=sys.argv[1],
    on_epoch=lambda record: print(len(record.epochs), flush=True),
    keep_checkpoint=True,
)
"""
KILLED_RUN = small_run(epochs=40, batch_size=16, dynamics=True)


def _train_until_killed(out: Path, after_epochs: int, delay: float) -> list[int]:
    """Trains in a process of its own, kills it `delay` seconds after some epochs; says which it made."""
    command = [sys.executable, "-W", "error", "-c", CHILD, str(out), str(ROOT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        made = [int(child.stdout.readline()) for _ in range(after_epochs)]
        time.sleep(delay)
        child.kill()
        return made + [int(line) for line in child.stdout if line.endswith("\n")]


def test_killed_processes_end_with_the_same_bits(tmp_path):
    """In metrics, parameters and the statistics of gradients."""
    whole = training.train(
        KILLED_RUN, small_dataset(train=1600), out=tmp_path / "whole", keep_checkpoint=True
    )
    out = tmp_path / "killed"
    generator = random.Random(0)
    last = 0
    for after_epochs in (3, 2):
        made = _train_until_killed(out, after_epochs, delay=generator.uniform(0, 0.05))
        # Goes on after the last epoch reported; one more may have been finished before the kill.
        assert made == list(range(made[0], made[0] + len(made)))
        assert made[0] in (last + 1, last + 2)
        last = made[-1]
        record = records.read_record(out, KILLED_RUN)
        assert record.status == "running"
        assert last <= len(record.epochs) <= last + 1
        dynamics = records.read_dynamics(out, record)
        assert len(dynamics.std) == len(record.epochs)
    assert last < KILLED_RUN.epochs
    resumed = training.train(KILLED_RUN, small_dataset(train=1600), out=out, keep_checkpoint=True)
    assert resumed.status == "finished"
    assert len(resumed.resumed) == 2
    assert without_seconds(resumed) == without_seconds(whole)
    ended, undisturbed = (
        records.read_checkpoint(tmp_path / part, KILLED_RUN) for part in ("killed", "whole")
    )
    for name in undisturbed:
        np.testing.assert_array_equal(ended[name], undisturbed[name])
    statistics = f"{KILLED_RUN.name}.dynamics.npz"
    assert (out / statistics).read_bytes() == (tmp_path / "whole" / statistics).read_bytes()
    names = {f"{KILLED_RUN.name}.json", f"{KILLED_RUN.name}.npz", statistics}
    assert {path.name for path in out.iterdir()} == names
