"""Publishing: ended runs and measurements of a working folder become lines of the files that git holds."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.files import write_whole
from experiments.records import lines, working
from experiments.records.schema import ENDED, RecordError, RunRecord


@dataclasses.dataclass(frozen=True)
class Published:
    """What there is after publishing: how many lines, and how many runs of the working folder have not ended."""

    runs: int
    measurements: int
    unfinished: int


def publish(source: Path, target: Path, check: Callable[[list[RunRecord]], None]) -> Published:
    """Merges what has ended in a working folder into the published files.

    What both have is taken from the working folder. A run that has no end yet is excluded, however often this is
    called before it has. Files whose bytes would be the same are not touched.

    Args:
      source: the working folder, which holds `records` or `measurements` or both.
      target: the folder of the published files, made if missing.
      check: gets all records that would stand in the file, and raises if they do not belong together.

    Returns:
      What there is now.

    Raises:
      RecordError: the working folder holds nothing that has ended, or a file or a line is damaged.
      FileError: a file cannot be written; older ones are left as they were.
    """
    records, measurements = source / "records", source / "measurements"
    if not records.is_dir() and not measurements.is_dir():
        raise RecordError(
            f"there is nothing to publish in {source}: no folder records, and none measurements"
        )
    found = working.read_working_records(records)
    ended = {record.run.name: record for record in found if record.status in ENDED}
    fresh = working.read_working_measurements(measurements)
    if not ended and not fresh:
        raise RecordError(f"there is nothing to publish in {source} yet: {_describe_waiting(found)}")
    runs = lines.read_runs(target / "records") | ended
    check(list(runs.values()))
    measured = lines.read_measurements(target / "measurements") | fresh
    dynamics = lines.read_dynamics(target / "records")
    for name, record in ended.items():
        statistics = working.read_dynamics(records, record) if record.run.dynamics else None
        if statistics is not None and len(statistics.std):
            dynamics[name] = statistics
    if dynamics:
        lines.write_dynamics(target / "records", dynamics)
    if measured:
        lines.write_measurements(target / "measurements", measured)
    if runs:
        lines.write_runs(target / "records", runs)
    return Published(len(runs), len(measured), len(found) - len(ended))


def _describe_waiting(found: Sequence[RunRecord]) -> str:
    statuses = collections.Counter(record.status for record in found)
    told = ", ".join(f"{count} {status}" for status, count in statuses.items())
    return f"none of its {len(found)} runs has ended ({told})" if found else "it holds no records"


def take_published(source: Path, folder: Path) -> None:
    """Copies published files beside a working folder's own, so that what they hold counts as made there.

    Args:
      source: the folder of the published files; what it lacks is removed from the working folder.

    Raises:
      FileError: a file cannot be written.
    """
    records, measurements = Path("records"), Path("measurements")
    for name in (
        lines.runs_file(records),
        lines.dynamics_file(records),
        lines.measurements_file(measurements),
    ):
        try:
            content = (source / name).read_bytes()
        except FileNotFoundError:
            (folder / name).unlink(missing_ok=True)
        else:
            write_whole(folder / name, lambda file, content=content: file.write(content))
