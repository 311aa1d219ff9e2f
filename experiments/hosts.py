"""Several hosts: one process on each trains its part of every batch, and the first alone writes.

What one host finds out, all must act on: a host that left training while the others go on would leave them
waiting. So what is read from disk, and what goes wrong, is told to all by `on_first` and `in_turn`.
"""

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from experiments import coordinator, messages, sources, supervision
from experiments.coordinator import HostError
from experiments.files import first_line
from experiments.options import Devices

# A host that has not been heard of for so long is given up; JAX's own limit is 100 seconds.
HEARTBEAT_SECONDS = 60

Result = TypeVar("Result")


class _Here:
    """What this process is among the hosts: alone until `join`. To ask JAX would start its backend."""

    count = 1
    index = 0


def count() -> int:
    """How many hosts there are."""
    return _Here.count


def device_count(chosen: Devices) -> int:
    """Devices that share each batch, once the hosts have found each other."""
    if chosen.devices is None and count() > 1:
        import jax

        return jax.device_count()
    return 1 if chosen.devices is None else chosen.devices


def is_first() -> bool:
    """Whether this host writes the files and shows the progress."""
    return _Here.index == 0


def join(chosen: Devices, out: Path) -> None:
    """Waits for the other hosts, where there are some; must come before JAX starts its backend.

    Args:
      chosen: says whether there are other hosts, and how to find them.
      out: folder that all hosts must see.

    Raises:
      HostError: the arguments do not go together, the hosts do not find each other, one does not see `out`, or one
        runs other code.
    """
    by_hand = (chosen.coordinator, chosen.num_processes, chosen.process_id)
    if by_hand != (None, None, None):
        coordinator.check(*by_hand)
    elif not chosen.distributed:
        if chosen.shard_params and device_count(chosen) == 1:
            raise HostError("--shard-params needs --devices of at least 2, or several hosts")
        return
    supervision.log_native_messages(out / "logs")
    _initialize(chosen)
    check_same("--num-processes", chosen.num_processes)
    check_same("the software", sources.versions())
    check_same("the code", sources.digests())
    _check_devices(chosen.devices)
    _check_shared(out)


def _initialize(chosen: Devices) -> None:
    """Lets JAX find the other hosts."""
    import jax

    count = chosen.num_processes
    others = f"all {count} hosts" if count else "all hosts"
    seconds = coordinator.START_SECONDS
    supervision.tell(
        waits=f"{others} did not come within {seconds} seconds, or were not told one --num-processes; "
        "start the same command on every host"
    )
    try:
        with coordinator.saying_so(others, seconds):
            jax.distributed.initialize(
                chosen.coordinator,
                count,
                chosen.process_id,
                initialization_timeout=seconds,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                # By default JAX listens on every network that this machine is on.
                coordinator_bind_address=os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", chosen.coordinator),
            )
    except (RuntimeError, ValueError) as error:
        remedy = "" if chosen.coordinator else "; give --coordinator, --num-processes and --process-id"
        raise HostError(f"the hosts do not find each other: {first_line(error)}{remedy}") from error
    supervision.tell(waits="")
    # JAX waits for SIGTERM to save what is left; here a checkpoint of every epoch is enough, and the end is wanted.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _Here.count, _Here.index = jax.process_count(), jax.process_index()


def _check_devices(devices: int | None) -> None:
    import jax

    if devices not in (None, jax.device_count()):
        raise HostError(
            f"--devices must be all {jax.device_count()} devices of the hosts, or omitted, got {devices}"
        )


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

    Args:
      what: the value's name, for the message.
      value: what JSON can hold; of dictionaries the message names the keys that differ.

    Raises:
      HostError: one has another; on every host.
    """
    if count() == 1:
        return
    first, *others = _gather(value)
    for index, other in enumerate(others, 1):
        if other != first:
            raise HostError(f"{what} of host {index} is not that of host 0: {_differences(other, first)}")


def _differences(other: Any, first: Any) -> str:
    if not (isinstance(other, dict) and isinstance(first, dict)):
        return f"{other!r}, not {first!r}"
    names = [name for name in first | other if first.get(name) != other.get(name)]
    shown = [f"{name} is {other.get(name)!r}, not {first.get(name)!r}" for name in names[:3]]
    return "; ".join([*shown, f"and {len(names) - 3} more"] if len(names) > 3 else shown)


def leave() -> None:
    """Waits until every host has come here: from now on each is alone."""
    if count() > 1:
        import jax

        jax.distributed.shutdown()
        _Here.count = 1


def on_first(function: Callable[..., Result], *arguments) -> Result:
    """Calls a function on the first host alone; what it returns or raises, it does on every host.

    It returns what `messages` can send.
    """
    if count() == 1:
        return function(*arguments)
    outcome = _try(function, *arguments) if is_first() else None
    told = _gather(outcome)[0]
    return _unpack(outcome or told)


def in_turn(function: Callable[..., Result], *arguments) -> Result:
    """Calls a function on the first host, then on the others, which may read what it wrote.

    What it raises on one host ends it on all; each has its own result.
    """
    if count() == 1:
        return function(*arguments)
    outcome = _try(function, *arguments) if is_first() else None
    told = _gather(outcome and outcome[1:])[0]
    _unpack(outcome or told)
    outcome = outcome or _try(function, *arguments)
    told = _gather(outcome[1:])
    result = _unpack(outcome)
    for other in told:
        _unpack(other)
    return result


def _try(function: Callable[..., Result], *arguments) -> tuple[Result | None, Exception | None]:
    try:
        return function(*arguments), None
    except Exception as error:
        return None, error


def _unpack(outcome: Any) -> Any:
    """The result of what `_try` gave, of which another host may have sent the error alone."""
    match outcome:
        case [*_, Exception() as error]:
            raise error
        case [*result, None]:
            return result[0] if result else None
    raise HostError("what another host sent says neither that something worked nor that it did not")


def _gather(value: Any) -> list[Any]:
    """A value of every host, on every host.

    Raises:
      HostError: one sent what is no message of this program; on every host.
    """
    from jax.experimental import multihost_utils

    data = np.frombuffer(messages.encode(value), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.array(len(data), np.int32)))
    wrong = [index for index, size in enumerate(sizes) if not 0 < size <= messages.LONGEST]
    if wrong:
        raise HostError(
            f"host {wrong[0]} announced {sizes[wrong[0]]} bytes, which no message of this program has"
        )
    # One of few lengths, because each is compiled for.
    padded = np.pad(data, (0, (1 << int(sizes.max() - 1).bit_length()) - len(data)))
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [
        _decode(index, row[:size].tobytes())
        for index, (row, size) in enumerate(zip(rows, sizes, strict=True))
    ]


def _decode(index: int, message: bytes) -> Any:
    try:
        return messages.decode(message)
    except messages.MessageError as error:
        raise HostError(
            f"host {index} sent what is no message of this program ({error}): whose process is it?"
        ) from error
