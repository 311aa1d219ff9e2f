"""Whoever reaches the coordinator's port runs nothing, and cannot end a run without a line that says so."""

import contextlib
import os
import pickle
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import coordinator, hosts, supervision
from experiments.hosts import HostError
from experiments.options import Devices

from ..processes import ROOT, start, wait_for_epochs
from ..test_messages import RunsCode
from .test_hosts import find_coordinator, wait_for

COMMAND = ("compare", "--methods", "znorm", "--optimizers", "sgdm", "--seeds", "0")


@contextlib.contextmanager
def started_stranger(address, *arguments):
    command = [sys.executable, "-m", "tests.experiments.training.stranger", address, *map(str, arguments)]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield
        finally:
            process.kill()


def start_host(address, out, process, *options, processes=2):
    by_hand = ("--coordinator", address, "--num-processes", processes, "--process-id", process)
    return start(*COMMAND, "--out", out, *by_hand, *options, devices=1)


def wait_until_listening(address, process):
    host, port = address.split(":")
    deadline = time.monotonic() + 120
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=5).close()
        except OSError:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (None, "host 1 sent what is no message of this program"),
        (2**31 - 1, "host 1 announced 2147483647 bytes"),
        (-1, "host 1 announced -1 bytes"),
    ],
    ids=["pickle", "huge", "negative"],
)
def test_what_a_stranger_sends_is_not_run(size, words, tmp_path):
    target = tmp_path / "made by a stranger"
    payload = pickle.dumps(RunsCode(target)).ljust(256, b".")
    (tmp_path / "payload").write_bytes(payload)
    address = find_coordinator()
    host = start_host(address, tmp_path / "out", 0)
    wait_until_listening(address, host)
    if size is None:  # Once is enough: by default JAX would listen on every network.
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", int(address.split(":")[1])), timeout=5)
    with started_stranger(address, size or len(payload), tmp_path / "payload"):
        ((code, out, err),) = wait_for([host])
    assert not target.exists()
    assert (code, out) == (2, ""), err
    (line,) = err.splitlines()
    assert line.startswith(f"error: {words}")


@pytest.mark.slow
def test_a_stranger_who_joins_a_run_is_named(tmp_path):
    address = find_coordinator()
    processes = [start_host(address, tmp_path, i, "--epochs", "100000") for i in range(2)]
    wait_for_epochs(tmp_path / "records", 1, processes[0])
    started = time.monotonic()
    with started_stranger(address):
        ended = wait_for(processes)
    assert time.monotonic() - started < hosts.HEARTBEAT_SECONDS + 60
    (code0, _, err0), (code1, _, err1) = ended
    assert (code0, code1) == (1, 1)
    (line,) = err0.splitlines()
    assert line.startswith(
        "error: the hosts ended, because another process joined as host 1, which was there"
    )
    (line,) = err1.splitlines()
    assert re.match("error: (the hosts|training) ended, because ", line)


@pytest.mark.slow
def test_hosts_that_were_told_different_numbers_end_with_one_line(tmp_path):
    address = find_coordinator()
    ended = wait_for([start_host(address, tmp_path, i, processes=2 + i) for i in range(2)])
    message = "error: --num-processes of host 1 is not that of host 0: 3, not 2\n"
    assert [(code, err) for code, _, err in ended] == [(2, message)] * 2


@pytest.mark.slow
def test_hosts_with_different_code_end_with_one_line(tmp_path):
    copy = tmp_path / "copy"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "experiments/*.py", "optax_gradnorm/*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    method = copy / "experiments/training/methods.py"
    assert "0.9" in method.read_text()
    method.write_text(method.read_text().replace("0.9", "0.5"))
    address = find_coordinator()
    by_hand = ("--coordinator", address, "--num-processes", 2, "--process-id")
    started = [
        start(*COMMAND, "--out", tmp_path / "out", *by_hand, i, cwd=folder)
        for i, folder in enumerate((ROOT, copy))
    ]
    for code, _, err in wait_for(started):
        assert code == 2
        start_of_line = (
            "error: the code of host 1 is not that of host 0: experiments/training/methods.py is '"
        )
        assert re.fullmatch(re.escape(start_of_line) + r"[0-9a-f]+', not '[0-9a-f]+'\n", err)


def by_hand(address, process=1):
    return Devices(coordinator=address, num_processes=2, process_id=process)


def test_a_coordinator_that_does_not_answer_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(coordinator, "ANSWER_SECONDS", 2)
    monkeypatch.setattr(coordinator, "PATIENCE_SECONDS", 0.1)
    address = find_coordinator()
    words = (
        f"host 0 does not answer at {address} within 2 seconds (Connection refused); start the same command"
    )
    with pytest.raises(HostError, match=re.escape(words)):
        hosts.join(by_hand(address), tmp_path)
    assert capsys.readouterr().err == f"waiting for host 0 at {address}, for 2 seconds at most\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:0", "the port must be from 1 to 65535, got 0"),
        ("127.0.0.1:65536", "the port must be from 1 to 65535, got 65536"),
        ("no-such-host.invalid:4321", "unknown host 'no-such-host.invalid'"),
        (f"{'a' * 70}.invalid:4321", "unknown host 'aaa"),
    ],
)
def test_an_address_that_cannot_be_is_refused_at_once(address, words, process, tmp_path):
    started = time.monotonic()
    with pytest.raises(HostError, match=words):
        hosts.join(by_hand(address, process), tmp_path)
    assert time.monotonic() - started < 30


def test_host_0_listens_at_its_own_addresses_alone(tmp_path):
    with pytest.raises(
        HostError, match=r"host 0 cannot listen at 192\.0\.2\.1:4321: Cannot assign requested"
    ):
        hosts.join(by_hand("192.0.2.1:4321", 0), tmp_path)  # of documentation, no machine's


def alone():
    coordinator.START_SECONDS, coordinator.PATIENCE_SECONDS = 3, 0.1
    hosts.join(Devices(coordinator=sys.argv[1], num_processes=2, process_id=0), Path(sys.argv[2]))


@pytest.mark.slow
def test_a_start_without_the_others_says_that_nothing_began(tmp_path):
    code = "from tests.experiments.training import test_strangers as t; t.supervision.supervise(t.alone)"
    command = [sys.executable, "-c", code, find_coordinator(), str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 1
    waiting, error = ended.stderr.splitlines()
    assert waiting == "waiting for all 2 hosts, for 3 seconds at most"
    assert error.startswith(
        "error: all 2 hosts did not come within 3 seconds, or were not told one --num-proc"
    )


@pytest.mark.parametrize(
    ("said", "who"),
    [
        ("UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n3\nThe", "host 3"),
        (
            "unhealthy (stopped sending heartbeats):\n/job:jax_worker/replica:0/task:12\nThe tasks",
            "host 12",
        ),
        ("UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was", "host 0"),
        ("Gloo failed: [gloo/pair.cc:547] Connection closed by peer [10.0.0.7]:81", "the host at 10.0.0.7"),
        ("Read error [fe80::1]:35232: Connection reset by peer", "the host at fe80::1"),
        ("no words that are known", "another host"),
    ],
)
def test_the_line_says_who_left(said, who, tmp_path):
    log = tmp_path / "log"
    log.write_text("Gloo Rank 0 is connected to 1 peer ranks\n" * 100_000 + said)
    expected = supervision.LOST.format(who=who)
    for code in (-6, 1):  # of several versions of JAX
        assert supervision._why_it_ended(code, {"log": str(log), "waits": ""}) == expected
    assert supervision._why_it_ended(1, {"lost": said, "ended": "by itself"}) == expected
    assert supervision._why_it_ended(2, {"log": str(log), "ended": "by itself"}) == ""


def test_hosts_compare_all_that_describes_the_data(monkeypatch):
    """But for means, whose last digit may depend on the machine."""
    from experiments.training import resuming

    from .small import small_dataset, small_run

    data = resuming.describe_data(small_dataset()) | {"any key that comes later": 1}
    monkeypatch.setattr(hosts, "count", lambda: 2)
    monkeypatch.setattr(resuming, "describe_data", lambda dataset: dict(data))
    for name in data.keys() - {"mean", "std"}:
        # The other host has another value here.
        monkeypatch.setattr(
            hosts,
            "_gather",
            lambda value, name=name: [
                value,
                {**value, name: "another"} if isinstance(value, dict) else value,
            ],
        )
        with pytest.raises(
            HostError, match=f"the data of host 1 is not that of host 0: {name} is 'another', not"
        ):
            resuming.check_same_on_hosts(small_run(), small_dataset())
