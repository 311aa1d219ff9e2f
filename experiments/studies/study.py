"""What a study is: what to train for one table, how large each preset is, and how to report it."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.jobs.measure import Measurement
from experiments.records import RecordError, RunRecord
from experiments.report import names
from experiments.report.markdown import markdown_table
from experiments.run import Run

PRESETS = ("smoke", "cpu", "full")


def settings_table(preset: str, sizes: Mapping[str, Any], *, of_paper: bool = True) -> str:
    """A Markdown table: setting | here | full.

    Args:
      preset: its name.
      sizes: dataclasses, by preset.
      of_paper: whether 'full' is a paper's protocol, as far as it is stated; else it is our own.
    """
    size, full = sizes[preset], sizes["full"]
    full_size = "preset full" + (" (the paper's protocol where stated)" if of_paper else "")
    rows = [["setting", f"here (preset {preset})", full_size]]
    for field in dataclasses.fields(size):
        mine, theirs = getattr(size, field.name), getattr(full, field.name)
        if not {mine, theirs} <= {0, (), ""}:
            rows.append([field.name.replace("_", " "), _words(mine), _words(theirs)])
    return markdown_table(rows, left=3)


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_words, value)) or "none"
    if isinstance(value, str):
        if value.partition(":")[0] in (*names.DATASETS, "stream", "jpeg"):
            return names.dataset(value)
        return (
            names.METHODS.get(value)
            or names.OPTIMIZERS.get(value)
            or names.dataset(names.normalizer(names.model(value)))
        )
    return "all" if value is None else f"{value:,}"


@dataclasses.dataclass(frozen=True)
class Study:
    """What to train for one table, and how to report it.

    Attributes:
      name: on the command line.
      title: one line for people.
      runs: from a preset's name and the records so far to all runs that can be named already. Later runs
        may depend on earlier ones' records, as tuned runs do on the tuning; asked again when the named
        ones have ended, it names more, until there are no more.
      report: writes report.md and figures into a folder, from the records and the preset's name; what was
        measured lies in the folder's `measurements`.
      measurements: from a preset's name to what is measured beside the runs, after they have ended.
      keep_checkpoints: whether the measurements need the trained models.
      named: all runs that the protocol names, where `runs` excludes those whose turn has not come.
      undecided: why its published runs cannot decide what it asks, where they cannot; the summary of all studies says
        this in place of its findings.
    """

    name: str
    title: str
    runs: Callable[[str, Sequence[RunRecord]], list[Run]]
    report: Callable[[str, Sequence[RunRecord], Path], None]
    measurements: Callable[[str], Sequence[Measurement]] = lambda preset: ()
    keep_checkpoints: bool = False
    named: Callable[[str, Sequence[RunRecord]], Collection[Run]] | None = None
    undecided: str = ""

    def check_records(self, preset: str, records: Sequence[RunRecord]) -> None:
        """Every record is of a run that the protocol names: records of two protocols are not mixed.

        Raises:
          RecordError: one is not; the message names it.
        """
        runs = self.runs(preset, records) if self.named is None else self.named(preset, records)
        # Recording the gradients changes no metric.
        named = {dataclasses.replace(run, dynamics=False) for run in runs}
        for record in records:
            if dataclasses.replace(record.run, dynamics=False) not in named:
                raise RecordError(
                    f"the record {record.run.name} is of no run that the protocol of {self.name}, preset {preset}, "
                    "names; records of two protocols are not mixed: move it to another folder"
                )
