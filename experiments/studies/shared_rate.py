"""What makes ZNorm gain 8.9 points at a shared learning rate: the rate, or the method?

    python -m experiments reproduce shared_rate --preset cpu

Each run of the preset `cpu` trains on 300,000 images; on one core of an AMD EPYC of the third generation that is
20 to 30 minutes.

Arm B of `cifar10_confirm` gave all methods the rate 0.01 behind SGD with momentum, and ZNorm gained 8.9 points. Here
the baseline and ZNorm get other constant rates too, in the same setting. The contrasts and what would fail them were
fixed before the runs: `experiments/results/shared_rate/PROTOCOL.md`.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report.cells import make_cells
from experiments.report.pages import describe_protocol, write_report
from experiments.run import Run
from experiments.studies.study import Size, Study, settings_table, with_seeds
from experiments.studies.tuning import extend_grids, tuning_table

METHODS = ("baseline", "znorm")
LAST_EPOCHS = 10  # of a constant rate, whose single epochs are left to chance
SIZES = {
    "smoke": Size(
        models=("resnet8",),
        methods=METHODS,
        epochs=3,
        batch_sizes=(50,),
        seeds=(0, 1),
        train_examples=200,
        test_examples=200,
    ),
    "cpu": Size(
        models=("resnet20",),
        methods=METHODS,
        epochs=30,
        batch_sizes=(128,),
        seeds=(0, 1, 2),
        train_examples=10_000,
    ),
    "full": Size(
        models=("resnet56",),
        methods=METHODS,
        epochs=100,
        batch_sizes=(256,),
        seeds=(0, 1, 2, 3, 4),
    ),
}
# The shared rate is the first of each.
FIRST = {"baseline": (0.01, 0.1), "znorm": (0.01,)}
FURTHER = {"baseline": (0.03, 0.3), "znorm": (0.003, 0.001)}


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """The first rates, when they have ended the further ones, and then what an edge of the grid asks for."""
    first = _runs(preset, FIRST)
    if any(cell.missing for cell in make_cells(first, records).values()):
        return first
    return extend_grids([*first, *_runs(preset, FURTHER)], records, _setting, "final_accuracy")


def _runs(preset: str, rates: dict[str, tuple[float, ...]]) -> list[Run]:
    size = SIZES[preset]
    settings = [
        size.run(
            "cifar10",
            method=method,
            learning_rate=rate,
            evaluated_epochs=min(LAST_EPOCHS, size.epochs),
        )
        for method in size.methods
        for rate in rates[method]
    ]
    return with_seeds(settings, size.seeds)


def _setting(run: Run) -> tuple[str]:
    return (run.method,)


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md: the accuracy of every method over its rates."""
    cells = list(make_cells(make_runs(preset, records), records).values())
    write_report(
        folder,
        "What makes ZNorm gain at a shared learning rate?",
        cells,
        [],
        settings=settings_table(preset, SIZES[preset], SIZES["full"], of_paper=False),
        results=[
            "Test accuracy of every rate:",
            tuning_table(("method",), cells, _setting, "final_accuracy"),
        ],
        method=[f"- Protocol: {describe_protocol(cells[0].run)}."],
    )


STUDY = Study(
    name="shared_rate",
    title="Is ZNorm's gain at a shared learning rate one of the rate? Fixed before the runs",
    runs=make_runs,
    report=make_report,
)
