"""All of a study, in order: its runs, its measurements, its report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments import hosts
from experiments.jobs.measure import Context, find_missing, measure
from experiments.jobs.progress import Progress
from experiments.jobs.sweep import sweep
from experiments.options import Options
from experiments.records import RunRecord
from experiments.report.dynamics import write_page
from experiments.studies.study import Study


def reproduce(
    study: Study, preset: str, folder: Path, options: Options
) -> tuple[list[RunRecord], dict[str, str]]:
    """Makes what is left of a study and renders its report; of several hosts all call it, and the first reports.

    Args:
      study: what to train and measure.
      preset: its name.
      folder: working folder: `records`, `measurements`, report and figures.
      options: how runs are made.

    Returns:
      The records of all runs, and why measurements failed, by name.
    """
    out, measured = folder / "records", folder / "measurements"
    measurements = study.measurements(preset)
    needs_networks = study.keep_checkpoints and hosts.on_first(
        lambda: bool(find_missing(measurements, measured))
    )
    records: list[RunRecord] = []
    made: set[str] = set()
    runs = study.runs(preset, [])
    with Progress(f"{study.name} {preset}".strip()) as progress:
        # Later runs may depend on earlier ones' records, as the tuned ones do.
        while new := [run for run in runs if run.name not in made]:
            new = [dataclasses.replace(run, dynamics=True) for run in new] if options.dynamics else new
            progress.add(new)
            records += sweep(
                new,
                out=out,
                data_dir=options.data_dir,
                workers=options.workers,
                devices=options.devices.count,
                shard_params=options.devices.shard_params,
                keep_checkpoints=options.keep_checkpoints or needs_networks,
                reading=options.reading,
                on_event=progress if hosts.is_first() else None,
            )
            made.update(run.name for run in runs)
            runs = study.runs(preset, records)
    hosts.leave()
    if not hosts.is_first():
        return records, {}
    failures = measure(
        measurements, out=measured, context=Context(options.data_dir, out), workers=options.workers
    )
    write_report(study, preset, records, folder)
    return records, failures


def write_report(study: Study, preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes a study's report and, where gradients were recorded, the page that shows them."""
    study.report(preset, records, folder)
    if page := write_page(folder, folder / "records", records):
        print(f"Gradient dynamics: {page}")
