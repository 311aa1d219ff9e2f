"""A command of several hosts runs in a child process, so that its end, however it comes, is told in one line.

Where another host is lost, JAX ends its process from within, past all that Python could catch, and says why in pages.
These go to a log, which is read for who was lost.
"""

import contextlib
import logging
import multiprocessing
import os
import platform
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from experiments.files import first_line

GO_ON = "the same command on every host goes on after the last checkpoint"
LOST = "training ended, because {who} did or cannot be reached; " + GO_ON
# What JAX's own code, of several versions, says of a host that is gone.
_STRANGER = re.compile(r"(?:task:)?(\d+) unexpectedly tried to connect with a different incarnation")
_SILENT = re.compile(r"unhealthy \(stopped sending heartbeats\):\s+(?:\S*task:)?(\d+)\b")
_FIRST_GONE = re.compile(r"Failed to send RPC to coordination service")
_PEER = re.compile(r"\[([0-9a-fA-F.:]+)\]:\d+")


class _Child:
    """What the child process keeps: the way to its parent, and where JAX's own messages go."""

    sender: Connection | None = None
    log: Path | None = None


def asked_for(arguments: list[str]) -> bool:
    """Whether a command line is one of several hosts'."""
    names = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    return bool(names & {"--distributed", "--coordinator"})


def supervise(main: Callable[[], None]) -> None:
    """Runs a command in a child process and ends with its exit code; an end without a word is told in one line."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(main, sender))
    child.start()
    sender.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the child too, which says so.
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    told: dict[str, str] = {}
    with contextlib.suppress(EOFError):
        while True:
            told |= receiver.recv()
    child.join()
    code = child.exitcode or 0
    if reason := _why_it_ended(code, told):
        print(f"error: {reason}", file=sys.stderr)
    sys.exit(code if code >= 0 else 1)


def _why_it_ended(code: int, told: Mapping[str, str]) -> str:
    """What is still to be said of the child's end: when another host is lost, JAX aborts it or exits with code 1."""
    by_jax = code in (-signal.SIGABRT, 1) and "ended" not in told
    if "lost" in told or by_jax:
        return _who_left(_read_end(told.get("log")) + told.get("lost", ""), told.get("waits", ""))
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; {GO_ON}"
    return told.get("reason", "")


def _who_left(messages: str, waits: str) -> str:
    """One line of what JAX's own code said, or of what this host was waiting for."""
    if stranger := _STRANGER.search(messages):
        who = f"another process joined as host {stranger[1]}, which was there already"
        return f"the hosts ended, because {who}; {GO_ON}"
    if waits:
        return waits
    if silent := _SILENT.search(messages):
        who = f"host {silent[1]}"
    elif _FIRST_GONE.search(messages):
        who = "host 0"
    elif peer := _PEER.search(messages):
        who = f"the host at {peer[1]}"
    else:
        who = "another host"
    return LOST.format(who=who)


def _read_end(log: str | None) -> str:
    """The last of a log: what was said when something went wrong."""
    try:
        return Path(log or "").read_bytes()[-(2**20) :].decode(errors="replace")
    except OSError:
        return ""


def tell(**news: str) -> None:
    """Tells the parent process what it will need if this one ends without a word.

    Args:
      **news: 'log', the file of JAX's messages; 'reason', why this process ends; 'lost', what was raised when another
        host had gone; 'waits', what it means if JAX ends this process now, or '' where that means a lost host;
        'ended', that it is not JAX that ends it.
    """
    if _Child.sender is not None:
        _Child.sender.send(news)


def log_native_messages(folder: Path) -> None:
    """Sends what JAX and Orbax write to a file of this host: the command alone writes to the terminal."""
    folder.mkdir(parents=True, exist_ok=True)
    _Child.log = folder / f"{platform.node()}-{os.getpid()}.log"
    tell(log=str(_Child.log))
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1, errors="replace")
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="replace")
    with _Child.log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.basicConfig(stream=os.fdopen(2, "w", closefd=False))
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # The log may lie on a full disk.
    threading.excepthook = lambda ended: _log(ended.exc_value)
    sys.unraisablehook = lambda unraisable: _log(unraisable.exc_value)


def _log(error: BaseException | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, "".join(traceback.format_exception(error)).encode())


def _run(main: Callable[[], None], sender: Connection) -> None:
    """The child process: ends at once if anything is wrong, because at its exit JAX would wait for the others."""
    from experiments import machine

    threading.Thread(target=machine.exit_with_parent, daemon=True).start()
    _Child.sender = sender
    code, said = 0, True
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except Exception as error:
        code, said = 1, False
        _log(error)
        tell(**_describe(error))
    tell(ended="by itself")
    if said and _Child.log is not None:
        with contextlib.suppress(OSError):
            _Child.log.unlink()
            _Child.log.parent.rmdir()  # The last one out removes the folder.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _describe(error: Exception) -> dict[str, str]:
    """The connections of several backends say in these words that another host has gone."""
    text = str(error)
    if any(word in text for word in ("Gloo", "NCCL", "UNAVAILABLE", "coordination", "closed by peer")):
        return {"lost": text}
    return {"reason": f"{type(error).__name__}: {first_line(error)}; {GO_ON}"}
