"""The address at which hosts that are started by hand find each other: process 0 listens there."""

import contextlib
import errno
import socket
import sys
import threading
import time
from collections.abc import Iterator

# How long a host tries to reach process 0, how long process 0 waits for all, and when they say so.
ANSWER_SECONDS = 60
START_SECONDS = 300
PATIENCE_SECONDS = 20


class HostError(Exception):
    """The hosts do not find each other, or not the same files; the message is one line."""


def check(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """The arguments go together, and the address is one at which process 0 can listen, or answers.

    Raises:
      HostError: they do not, or it cannot or does not for `ANSWER_SECONDS`.
    """
    if coordinator is None or processes is None or process is None:
        raise HostError("--coordinator, --num-processes and --process-id go together")
    if processes < 1:
        raise HostError(f"--num-processes must be at least 1, got {processes}")
    if not 0 <= process < processes:
        raise HostError(f"--process-id must be from 0 to {processes - 1}, got {process}")
    addresses = _resolve(coordinator)
    if process == 0:
        _check_can_listen(coordinator, addresses)
    else:
        _wait_for_answer(coordinator, addresses)


@contextlib.contextmanager
def saying_so(what: str, seconds: int) -> Iterator[None]:
    """Says what it waits for, where that takes more than a moment."""

    def say() -> None:
        print(f"waiting for {what}, for {seconds} seconds at most", file=sys.stderr)

    timer = threading.Timer(PATIENCE_SECONDS, say)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _resolve(coordinator: str) -> list[tuple]:
    """What `socket.getaddrinfo` knows of HOST:PORT."""
    host, separator, port = coordinator.rpartition(":")
    if not (host and separator and port.isdecimal()):
        raise HostError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
    if not 1 <= int(port) <= 65535:
        raise HostError(f"--coordinator: the port must be from 1 to 65535, got {port}")
    try:
        return socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise HostError(f"--coordinator: unknown host {host!r}: {_reason(error)}") from error


def _check_can_listen(coordinator: str, addresses: list[tuple]) -> None:
    """JAX would end the process from within, without a word."""
    failures = []
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after a start that has just ended
            try:
                server.bind(address)
            except OSError as error:
                failures.append(error)
    # Some addresses of a name may not be this machine's, but none may be another program's.
    in_use = [error for error in failures if error.errno == errno.EADDRINUSE]
    if in_use or len(failures) == len(addresses):
        reason = _reason((in_use or failures)[0])
        raise HostError(f"--coordinator: host 0 cannot listen at {coordinator}: {reason}")


def _wait_for_answer(coordinator: str, addresses: list[tuple]) -> None:
    """JAX would wait without a word, and then end the process from within."""
    deadline = time.monotonic() + ANSWER_SECONDS
    reason = ""
    with saying_so(f"host 0 at {coordinator}", ANSWER_SECONDS):
        while time.monotonic() < deadline:
            for *_, address in addresses:
                try:
                    socket.create_connection(address[:2], timeout=5).close()
                    return
                except OSError as error:
                    reason = _reason(error)
            time.sleep(0.5)
    raise HostError(
        f"--coordinator: host 0 does not answer at {coordinator} within {ANSWER_SECONDS} seconds ({reason}); "
        "start the same command there with --process-id 0"
    )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
