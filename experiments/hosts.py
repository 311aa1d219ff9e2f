"""Several hosts: one process on each trains its part of every batch, and the first alone writes.

What one host finds out, all must act on: a host that left training while the others go on would leave them
waiting. So what is read from disk, and what goes wrong, is told to all by `on_first` and `in_turn`.
"""

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import pickle
import platform
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from experiments.arguments import OptionalInt, OptionalStr
from experiments.files import first_line

# A host that has not been heard of for so long is given up; JAX's own limit is 100 seconds.
HEARTBEAT_SECONDS = 60
# How long a start waits for the other hosts, and when it says so.
START_SECONDS = 300
PATIENCE_SECONDS = 30
LOST = (
    "training ended, because another host did or cannot be reached; "
    "the same command on every host goes on after the last checkpoint"
)

Result = TypeVar("Result")


class HostError(Exception):
    """The hosts do not find each other, or not the same files; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices that train a run, here or on several hosts.

    Attributes:
      devices: devices that share each batch; by default one, on several hosts all of them.
      shard_params: parameters and optimizer state are divided among the devices; by default each has all.
      distributed: this command is started once on each of several hosts, which find each other: on a TPU pod,
        under SLURM or Open MPI.
      coordinator: HOST:PORT of process 0, where hosts are started by hand.
      num_processes: with a coordinator, how many processes there are.
      process_id: with a coordinator, which of them this is, from 0.
    """

    devices: OptionalInt = None
    shard_params: bool = False
    distributed: bool = False
    coordinator: OptionalStr = None
    num_processes: OptionalInt = None
    process_id: OptionalInt = None

    @property
    def count(self) -> int:
        """Devices that share each batch, once the hosts have found each other."""
        if self.devices is None and count() > 1:
            import jax

            return jax.device_count()
        return 1 if self.devices is None else self.devices


class _Here:
    """What this process is among the hosts: alone until `join`. To ask JAX would start its backend."""

    count = 1
    index = 0
    log: Path | None = None


def count() -> int:
    """How many hosts there are."""
    return _Here.count


def is_first() -> bool:
    """Whether this host writes the files and shows the progress."""
    return _Here.index == 0


def join(chosen: Devices, out: Path) -> None:
    """Waits for the other hosts, where there are some; must come before JAX starts its backend.

    Args:
      chosen: says whether there are other hosts, and how to find them.
      out: folder that all hosts must see.

    Raises:
      HostError: the arguments do not go together, the hosts do not find each other, or one does not see `out`.
    """
    by_hand = (chosen.coordinator, chosen.num_processes, chosen.process_id)
    if by_hand != (None, None, None):
        _check_by_hand(*by_hand)
    elif not chosen.distributed:
        if chosen.shard_params and chosen.count == 1:
            raise HostError("--shard-params needs --devices of at least 2, or several hosts")
        return
    _Here.log = out / "logs" / f"{platform.node()}-{os.getpid()}.log"
    _send_native_messages(_Here.log)
    import jax

    waiting = threading.Timer(PATIENCE_SECONDS, _say_waiting)
    waiting.start()
    try:
        jax.distributed.initialize(
            *by_hand,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        remedy = "" if chosen.coordinator else "; give --coordinator, --num-processes and --process-id"
        raise HostError(f"the hosts do not find each other: {first_line(error)}{remedy}") from error
    finally:
        waiting.cancel()
    # JAX waits for SIGTERM to save what is left; here a checkpoint of every epoch is enough, and the end is wanted.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _Here.count, _Here.index = jax.process_count(), jax.process_index()
    if chosen.devices not in (None, jax.device_count()):
        raise HostError(
            f"--devices must be all {jax.device_count()} devices of the hosts, or omitted, got {chosen.devices}"
        )
    _check_shared(out)


def _check_by_hand(coordinator: str | None, processes: int | None, process: int | None) -> None:
    if coordinator is None or processes is None or process is None:
        raise HostError("--coordinator, --num-processes and --process-id go together")
    host, separator, port = coordinator.rpartition(":")
    if not (host and separator and port.isdecimal()):
        raise HostError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
    if not 0 <= process < processes:
        raise HostError(f"--process-id must be from 0 to {processes - 1}, got {process}")
    if process == 0:
        # JAX would end the process from within, without a word.
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after a start that has just ended
            try:
                server.bind(("", int(port)))
            except (OSError, OverflowError) as error:
                reason = getattr(error, "strerror", None) or error
                raise HostError(f"--coordinator: host 0 cannot listen on port {port}: {reason}") from None


def _say_waiting() -> None:
    print(f"waiting for the other hosts, for {START_SECONDS} seconds at most", file=sys.stderr)


def _send_native_messages(log: Path) -> None:
    """Sends what JAX's own code writes to a log: Python's messages alone reach the terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1, errors="replace")
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="replace")
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.basicConfig(stream=os.fdopen(2, "w", closefd=False))


def _check_shared(out: Path) -> None:
    """A checkpoint has a part of every host, so all must see one folder."""
    with contextlib.ExitStack() as stack:
        made = Path(on_first(lambda: stack.enter_context(tempfile.NamedTemporaryFile(dir=out)).name))
        seen = _gather((out / made.name).exists())
    if not all(seen):
        raise HostError(
            f"--out: host {seen.index(False)} does not see {made.parent} of host 0: all must share it"
        )


def check_same(what: str, value: Any) -> None:
    """Every host has the same, of what each has from its own files or command line.

    Raises:
      HostError: one has another; on every host.
    """
    if count() > 1:
        values = _gather(value)
        for index, other in enumerate(values):
            if other != values[0]:
                raise HostError(f"{what} of host {index} is not that of host 0: {other!r}, not {values[0]!r}")


def leave() -> None:
    """Waits until every host has come here: from now on each is alone."""
    if count() > 1:
        import jax

        jax.distributed.shutdown()
        _Here.count = 1


def on_first(function: Callable[..., Result], *arguments) -> Result:
    """Calls a function on the first host alone; what it returns or raises, it does on every host."""
    if count() == 1:
        return function(*arguments)
    outcome = _gather(_try(function, *arguments) if is_first() else None)[0]
    return _unpack(outcome)


def in_turn(function: Callable[..., Result], *arguments) -> Result:
    """Calls a function on the first host, then on the others, which may read what it wrote.

    What it raises on one host, it raises on all; each has its own result.
    """
    if count() == 1:
        return function(*arguments)
    outcome = _try(function, *arguments) if is_first() else None
    _unpack(_gather((None, outcome[1]) if outcome else None)[0])
    if outcome is None:
        outcome = _try(function, *arguments)
    for result in _gather((None, outcome[1])):
        _unpack(result)
    return _unpack(outcome)


def _try(function: Callable[..., Result], *arguments) -> tuple[Result | None, Exception | None]:
    try:
        return function(*arguments), None
    except Exception as error:
        return None, error


def _unpack(outcome: tuple[Any, Exception | None]) -> Any:
    result, error = outcome
    if error is not None:
        raise error
    return result


def _gather(value: Any) -> list[Any]:
    """A value of every host, on every host."""
    from jax.experimental import multihost_utils

    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.array(len(data), np.int32)))
    padded = np.pad(data, (0, sizes.max() - len(data)))
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def asked_for(arguments: list[str]) -> bool:
    """Whether a command line is one of several hosts'."""
    names = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    return bool(names & {"--distributed", "--coordinator"})


def supervise(main: Callable[[], None]) -> None:
    """Runs a command in a child process, so that its end, however it comes, is told in one line.

    Where another host is lost, JAX ends its process from within, past all that Python could catch.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run_supervised, args=(main, sender))
    child.start()
    sender.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the child too, which says so.
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    reason = _received(receiver)
    child.join()
    code = child.exitcode or 0
    if reason or code < 0:
        print(f"error: {reason or _describe_signal(-code)}", file=sys.stderr)
    sys.exit(code if code >= 0 else 1)


def _describe_signal(number: int) -> str:
    """Why the child was ended; by itself it aborts when JAX has lost another host."""
    if number == signal.SIGABRT:
        return LOST
    name = signal.Signals(number).name
    return f"killed by {name}; the same command on every host goes on after the last checkpoint"


def _received(receiver: Connection) -> str:
    try:
        return receiver.recv()
    except EOFError:  # It ended without a word.
        return ""


def _run_supervised(main: Callable[[], None], sender: Connection) -> None:
    """The child process: ends at once if anything is wrong, because at its exit JAX would wait for the others."""
    from experiments import machine

    threading.Thread(target=machine.exit_with_parent, daemon=True).start()
    code, reason = 0, ""
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except Exception as error:
        os.write(2, traceback.format_exc().encode())
        code, reason = 1, _describe(error)
    if reason:
        sender.send(reason)
    elif _Here.log is not None:
        _Here.log.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # The last one out removes the folder.
            _Here.log.parent.rmdir()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _describe(error: Exception) -> str:
    """One line: the connections of several backends say in these words that another host has gone."""
    text = str(error)
    if any(word in text for word in ("Gloo", "NCCL", "UNAVAILABLE", "coordination", "closed by peer")):
        return LOST
    return f"{type(error).__name__}: {first_line(error)}; the same command goes on after the last checkpoint"
