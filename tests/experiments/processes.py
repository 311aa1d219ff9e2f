"""The command line in processes of its own, and what they leave behind."""

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Commands of one test process compile a program once; a caller's own folder stays.
COMPILED = tempfile.mkdtemp()
atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
STARTED: list[subprocess.Popen] = []


def start(
    *arguments, devices: int = 1, environment: Mapping[str, str] | None = None, **options
) -> subprocess.Popen:
    environment = {"JAX_COMPILATION_CACHE_DIR": COMPILED, **os.environ, **(environment or {})}
    environment["JAX_NUM_CPU_DEVICES"] = str(devices)
    command = [sys.executable, "-m", "experiments", *map(str, arguments)]
    # A session of its own, so that it can be ended with all that it starts.
    defaults = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, **{**defaults, "start_new_session": True, **options})
    STARTED.append(process)
    return process


def run(
    *arguments, devices: int = 1, environment: Mapping[str, str] | None = None, timeout: float = 240
) -> tuple[int, str, str]:
    return finish(start(*arguments, devices=devices, environment=environment), timeout)


def finish(process: subprocess.Popen, timeout: float) -> tuple[int, str, str]:
    """Waits for the end of what `start` gave; one that takes too long is ended with all that it started."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        end(process)
    return process.returncode, out, err


def end(process: subprocess.Popen) -> None:
    """Ends what `start` gave, if it has not ended, with all that it started, and closes its pipes."""
    if process.returncode is None:  # else its number may be another's by now
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    with process:
        pass


def end_all() -> None:
    """Ends what a test started and did not wait for, as where it failed."""
    while STARTED:
        end(STARTED.pop())


def metrics(folder: Path) -> dict[str, list]:
    """Everything that training measured, but not how long it took."""
    records = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    return {
        name: [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in record["epochs"]]
        for name, record in records.items()
    }


def wait_for_epochs(folder: Path, count: int, process: subprocess.Popen) -> None:
    """Waits until the records hold so many epochs, all together."""
    deadline = time.monotonic() + 200
    while sum(map(len, metrics(folder).values())) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
