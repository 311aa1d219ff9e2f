"""When does ZNorm help: in short trainings, with few images, or neither? Fixed before its runs.

    python -m experiments reproduce steps_and_images --preset cpu

The preset `cpu` trains on 45 million images, about 50 core-hours; on a CPU core a run of 390 steps takes four
minutes, one of 1,950 steps twenty.

`experiments/results/steps_and_images/PROTOCOL.md` holds the questions, the contrasts and the rules. In short:
ResNet-20 on CIFAR-10 without augmentation, batch 128, a warm-up over a tenth of the steps and a cosine to 0. In each
cell, which is a number of steps, a number of images and an optimizer, every method's rate is tuned by itself: half
decades that grow at their edges, then a quarter decade on either side of the best, by two unreported seeds.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report.cells import make_cells
from experiments.report.pages import describe_protocol, write_report
from experiments.studies.steps_and_images.plan import (
    PARTS,
    make_runs,
    named_runs,
    reported_runs,
    setting,
    tuning_runs,
)
from experiments.studies.study import Study
from experiments.studies.tuning import tuning_table

HEADINGS = ("images", "steps", "optimizer", "method")


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md: validation accuracy over rates, and test accuracy."""
    results, everything = [], []
    for part in PARTS[preset]:
        tuning = make_cells(tuning_runs(preset, part, records), records)
        reported = make_cells(reported_runs(preset, part, records), records)
        everything += [*tuning.values(), *reported.values()]
        for title, cells in (("Tuning", tuning), ("Test accuracy", reported)):
            if cells:
                results += [
                    f"### Part {part.name}: {title.lower()}",
                    "\n".join(f"- {words}." for words in dict.fromkeys(map(describe_protocol, cells))),
                    tuning_table(HEADINGS, cells.values(), setting),
                ]
    write_report(folder, "When does ZNorm help?", everything, [], results=results)


STUDY = Study(
    name="steps_and_images",
    title="When does ZNorm help: few steps, few images? Fixed before its runs (see its PROTOCOL.md)",
    runs=make_runs,
    report=make_report,
    named=named_runs,
)
