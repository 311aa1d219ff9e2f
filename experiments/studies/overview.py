"""All studies at a glance: what each asks, its data, and the minutes that its records took."""

from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from experiments.records import exists, read_measurements, read_records
from experiments.studies import load_studies
from experiments.studies.study import PRESETS


def overview_table(find_folder: Callable[[str, str], Path | None]) -> Table:
    """The table for the terminal.

    Args:
      find_folder: from a study and a preset to where its records lie.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("study", "what", "data"):
        table.add_column(heading, overflow="fold")
    table.add_column("core-minutes", justify="right")
    for name, study in load_studies().items():
        data = sorted({run.data_name for run in study.runs("cpu", [])})
        folders = {preset: find_folder(name, preset) for preset in PRESETS}
        minutes = [f"{preset} {_core_minutes(folder):,.0f}" for preset, folder in folders.items() if folder]
        table.add_row(name, study.title, ", ".join(data), "\n".join(minutes) or "not run")
    return table


def _core_minutes(folder: Path) -> float:
    records = read_records(folder / "records") if exists(folder / "records") else []
    seconds = sum(r.compile_seconds + sum(epoch.seconds for epoch in r.epochs) for r in records)
    seconds += sum(m.seconds for m in read_measurements(folder / "measurements").values())
    return seconds / 60
