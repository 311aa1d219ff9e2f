"""Several hosts, as real processes with four devices each, and parameters divided among devices."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import hosts, models, records, supervision, training
from experiments.hosts import HostError
from experiments.options import Devices
from experiments.training import resuming
from experiments.training.layout import lay_out, make_mesh

from ..processes import run, start
from .on_hosts import RUN, make_dataset
from .small import SMALL_MODELS

pytestmark = pytest.mark.usefixtures("compile_once")
# Sums over a batch are added up in another order, in float32; what the steps make of that stays below it.
TOLERANCE = 1e-5
MEASURED = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "nonfinite_steps")


@pytest.fixture(scope="module", autouse=True)
def _small_models():
    with pytest.MonkeyPatch.context() as patch:
        for name, model in SMALL_MODELS.items():
            patch.setitem(models.MODELS, name, model)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run on one host with eight devices, each of which has all parameters."""
    out = tmp_path_factory.mktemp("whole")
    training.train(RUN, make_dataset(), out=out, devices=8, keep_checkpoint=True)
    return out


class Interrupted(Exception):
    pass


def train_here(out, *, stop_after=0, shard_params=True):
    def on_epoch(record):
        if len(record.epochs) == stop_after:
            raise Interrupted

    options = {"devices": 8, "shard_params": shard_params, "keep_checkpoint": True}
    return training.train(RUN, make_dataset(), out=out, on_epoch=on_epoch, **options)


def find_coordinator():
    """An address on this machine that nothing listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{server.getsockname()[1]}"


def start_all(out, data, shard_params, kill=(0, 0), number=signal.SIGKILL, file_bytes=(None, None)):
    """Starts one process per entry of `kill`; one with `file_bytes` can write no longer file, as on a full disk."""
    coordinator = find_coordinator()
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    if any(file_bytes):
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # Others would read what it wrote a part of.
    script = ("-m", "tests.experiments.training.on_hosts")
    out.mkdir(exist_ok=True)
    processes = [
        subprocess.Popen(
            [sys.executable, *script, out, coordinator]
            + [str(x) for x in (len(kill), i, data, shard_params, kill[i], int(number))],
            env=environment,
            cwd=Path(__file__).parents[3],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(len(kill))
    ]
    for process, size in zip(processes, file_bytes, strict=False):
        if size is not None:
            limit_files(process, size)
    return processes


def limit_files(process, size):
    """Before the process has children, which then have the same limit."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))


def wait_for(processes, seconds=240):
    """Exit code, output and messages of each."""
    try:
        outputs = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def assert_same(out, whole):
    record, expected = (records.read_record(folder, RUN) for folder in (out, whole))
    assert record.status == "finished"
    assert len(record.epochs) == len(expected.epochs) == 3
    for epoch, wanted in zip(record.epochs, expected.epochs, strict=True):
        for name in MEASURED:
            assert getattr(epoch, name) == pytest.approx(getattr(wanted, name), rel=TOLERANCE), name
    dynamics = records.read_dynamics(out, record)
    assert dynamics.layers == records.read_dynamics(whole, expected).layers
    np.testing.assert_allclose(dynamics.std, records.read_dynamics(whole, expected).std, rtol=TOLERANCE)
    arrays, wanted = (resuming.read_arrays(folder, RUN) for folder in (out, whole))
    assert arrays.keys() == wanted.keys()
    for name in arrays:
        np.testing.assert_allclose(arrays[name], wanted[name], rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def test_parameters_divided_among_devices(whole, tmp_path):
    """They train as whole ones do; every checkpoint is that of its own epoch, and the last alone is kept."""
    for epoch in (1, 2):
        with pytest.raises(Interrupted):
            train_here(tmp_path, stop_after=epoch)
    record = train_here(tmp_path)
    assert [restart["after_epoch"] for restart in record.resumed] == [1, 2]
    assert_same(tmp_path, whole)
    folder = records.sharded_checkpoint(tmp_path, RUN)
    assert [path.name for path in folder.iterdir()] == ["3"]
    model = training.load_model(RUN, out=tmp_path)
    np.testing.assert_allclose(
        jax.tree.leaves(nnx.state(model, nnx.Param))[0],
        jax.tree.leaves(nnx.state(training.load_model(RUN, out=whole), nnx.Param))[0],
        rtol=TOLERANCE,
        atol=TOLERANCE,
    )


def test_the_largest_axis_that_devices_share_equally_is_divided():
    leaf = jax.ShapeDtypeStruct
    state = training.state.TrainState(
        params={"kernel": leaf((3, 8, 16), "f4"), "bias": leaf((16,), "f4"), "odd": leaf((7, 9), "f4")},
        batch_stats={"mean": leaf((16,), "f4")},
        opt_state=({"kernel": leaf((8, 8), "f4")}, leaf((), "i4")),
    )
    mesh = make_mesh(8)
    specs = jax.tree.map(lambda sharding: tuple(sharding.spec), lay_out(state, mesh, True))
    assert specs.params == {"kernel": (None, None, "batch"), "bias": ("batch",), "odd": ()}
    assert specs.batch_stats == {"mean": ()}
    assert specs.opt_state == ({"kernel": ("batch",)}, ())
    assert all(s.is_fully_replicated for s in jax.tree.leaves(lay_out(state, mesh, False)))


@pytest.mark.slow
def test_two_hosts_go_on_with_what_one_began(whole, tmp_path):
    with pytest.raises(Interrupted):
        train_here(tmp_path, stop_after=1)
    for code, _out, err in wait_for(start_all(tmp_path, "memory", shard_params=1)):
        assert (code, err) == (0, "")
    assert_same(tmp_path, whole)
    environment = records.read_record(tmp_path, RUN).resumed[0]
    assert (environment["after_epoch"], environment["hosts"]) == (1, 2)
    assert not (tmp_path / "logs").exists()


@pytest.mark.slow
def test_two_hosts_read_a_part_each_and_one_that_is_killed_ends_both(whole, tmp_path):
    processes = start_all(tmp_path, "streamed", shard_params=0, kill=(0, 2))
    ended = wait_for(processes[1:])
    killed = time.monotonic()
    ended = wait_for(processes[:1]) + ended
    assert time.monotonic() - killed < hosts.HEARTBEAT_SECONDS + 30
    (code0, output0, err0), (code1, output1, err1) = ended
    assert (code0, code1) == (1, 1)
    # In each epoch of 48 images half of them.
    assert output0.split()[:2] == output1.split() == ["24", "48"]
    assert err1.startswith("error: killed by SIGKILL")
    (line,) = err0.splitlines()
    # Who it was is known by address or, where the connections said nothing, by number.
    left = "|".join(
        re.escape(supervision.LOST.format(who=who)) for who in ("the host at 127.0.0.1", "host 1")
    )
    assert re.fullmatch(f"error: ({left})", line)
    # What was there when it died is whole, and goes on here, on one host.
    assert len(records.read_record(tmp_path, RUN).epochs) == 2
    record = train_here(tmp_path, shard_params=False)
    assert record.resumed[0]["after_epoch"] in (1, 2)
    assert record.resumed[0]["hosts"] == 1
    assert_same(tmp_path, whole)
    assert not records.sharded_checkpoint(tmp_path, RUN).exists()  # What it wrote is one file.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--keep-checkpoints"], "--keep-checkpoints of host 1 is not that of host 0: True, not False"),
        (["--shard-params"], "--shard-params of host 1 is not that of host 0: True, not False"),
        (["--seeds", "0", "1"], "the number of runs of host 1 is not that of host 0: 2, not 1"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_hosts_with_different_commands_end_with_one_line(option, message, tmp_path):
    by_hand = ("--out", tmp_path, "--coordinator", find_coordinator(), "--num-processes", 2, "--process-id")
    command = ("compare", "--methods", "znorm", "--optimizers", "adam", "--seeds", "0")
    started = [start(*command, *by_hand, i, *(option if i else ()), devices=1) for i in range(2)]
    assert [(code, err) for code, _, err in wait_for(started)] == [(2, f"error: {message}\n")] * 2


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(
            HostError, match=f"host 0 cannot listen at localhost:{port}: Address already in use"
        ):
            hosts.join(Devices(coordinator=f"localhost:{port}", num_processes=2, process_id=0), tmp_path)


@pytest.mark.slow
def test_the_command_line_started_on_two_hosts_trains_as_on_one(tmp_path):
    # Eight steps: in longer training rounding is amplified now and then, with any method and on one host too.
    command = ["compare", "--methods", "znorm", "gan", "--optimizers", "sgdm", "--learning-rate", "0.0003"]
    command += ["--seeds", "0", "--epochs", "2"]
    command += ["--batch-size", "100", "--train-examples", "400"]
    code, out, err = run(*command, "--out", tmp_path / "one", "--devices", 4, devices=4)
    assert code == 0, err
    by_hand = ("--coordinator", find_coordinator(), "--num-processes", 2, "--process-id")
    ended = wait_for([start(*command, "--out", tmp_path / "two", *by_hand, i, devices=2) for i in range(2)])
    assert [(code, err) for code, _, err in ended] == [(0, ""), (0, "")]
    # The first host alone shows the table and writes.
    (_, first, _), (_, second, _) = ended
    assert second == ""
    _, header, table = out.partition("optimizer method")
    assert header
    assert first.partition(header)[2].replace("/two/", "/one/") == table
    ones, twos = (records.read_records(tmp_path / name / "records") for name in ("one", "two"))
    for one, two in zip(ones, twos, strict=True):
        assert (one.environment["hosts"], two.environment["hosts"]) == (1, 2)
        for epoch, wanted in zip(two.epochs, one.epochs, strict=True):
            for name in MEASURED:
                assert getattr(epoch, name) == pytest.approx(getattr(wanted, name), rel=TOLERANCE), name


@pytest.mark.slow
def test_a_host_ends_when_it_is_asked_to(tmp_path):
    """JAX takes SIGTERM for itself, and a cluster that ends a job would wait in vain."""
    ((code, _output, err),) = wait_for(start_all(tmp_path, "memory", 0, kill=(1,), number=signal.SIGTERM))
    assert code == 1
    assert err.startswith("error: killed by SIGTERM")
    assert len(records.read_record(tmp_path, RUN).epochs) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coordinator": "localhost:1234"}, "go together"),
        ({"process_id": 0, "num_processes": 2}, "go together"),
        ({"coordinator": "localhost", "num_processes": 2, "process_id": 0}, "HOST:PORT"),
        ({"coordinator": "a:b", "num_processes": 2, "process_id": 0}, "HOST:PORT"),
        ({"shard_params": True}, "--devices of at least 2"),
        ({"coordinator": "localhost:1", "num_processes": 2, "process_id": 2}, "from 0 to 1, got 2"),
    ],
)
def test_options_that_do_not_go_together(options, words, tmp_path):
    with pytest.raises(HostError, match=words):
        hosts.join(Devices(**options), tmp_path)
