"""All of a study, in order: its runs, its measurements, its report."""

import dataclasses
import traceback
from collections.abc import Sequence
from pathlib import Path

from experiments import hosts
from experiments.files import FileError, first_line
from experiments.jobs.lock import FolderLock
from experiments.jobs.measure import Context, find_missing, measure
from experiments.jobs.progress import Progress
from experiments.jobs.sweep import sweep
from experiments.options import Options
from experiments.records import RunRecord
from experiments.report.dynamics import write_page
from experiments.studies.study import Study

PACKAGE = Path(__file__).resolve().parent


class ReportError(FileError):
    """A report cannot be rendered or written. The message is one line and says how to try again."""


def reproduce(
    study: Study, preset: str, folder: Path, options: Options
) -> tuple[list[RunRecord], dict[str, str]]:
    """Makes what is left of a study and renders its report; of several hosts all call it, and the first reports.

    Args:
      folder: working folder: `records`, `measurements`, report and figures.

    Returns:
      The records of all runs, and why measurements failed, by name.

    Raises:
      FileError: another command works in the folder.
      RecordError: what was published or measured before is damaged; nothing is trained.
      ReportError: the report cannot be rendered; all records are kept.
    """
    with FolderLock(folder):
        return _reproduce(study, preset, folder, options)


def _reproduce(
    study: Study, preset: str, folder: Path, options: Options
) -> tuple[list[RunRecord], dict[str, str]]:
    out, measured = folder / "records", folder / "measurements"
    measurements = study.measurements(preset)
    # Asked before anything is trained: it also finds what is damaged.
    is_something_missing = hosts.on_first(lambda: bool(find_missing(measurements, measured)))
    needs_networks = study.keep_checkpoints and is_something_missing
    keeping = dataclasses.replace(options, keep_checkpoints=options.keep_checkpoints or needs_networks)
    records: list[RunRecord] = []
    made: set[str] = set()
    runs = study.runs(preset, [])
    with Progress(f"{study.name} {preset}".strip()) as progress:
        # Later runs may depend on earlier ones' records, as the tuned ones do.
        while new := [run for run in runs if run.name not in made]:
            new = [dataclasses.replace(run, dynamics=True) for run in new] if options.dynamics else new
            progress.add(new)
            on_event = progress if hosts.is_first() else None
            records += sweep(new, out, keeping, on_event)
            made.update(run.name for run in runs)
            runs = study.runs(preset, records)
    hosts.leave()
    if not hosts.is_first():
        return records, {}
    failures = measure(
        measurements, out=measured, context=Context(options.data_dir, out), workers=options.workers
    )
    render(study, preset, records, folder)
    return records, failures


def render(study: Study, preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes a study's report and, where gradients were recorded, the page that shows them.

    Raises:
      ReportError: it cannot be rendered or written, whatever the reason; records are as they were.
    """
    try:
        study.report(preset, records, folder)
        page = write_page(folder, folder / "records", records)
    except Exception as error:
        raise ReportError(
            f"the report in {folder} was not written: {_describe(error)}; "
            "all records are kept, and the same command renders it again"
        ) from error
    if page:
        print(f"Gradient dynamics: {page}")


def _describe(error: Exception) -> str:
    """One line; of what nobody foresaw also where it happened."""
    if isinstance(error, FileError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    where = f"{Path(ours[-1].filename).relative_to(PACKAGE.parent)}, line {ours[-1].lineno}"
    return f"{type(error).__name__}: {first_line(error)} ({where})"
