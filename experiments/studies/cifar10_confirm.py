"""Does ZNorm, GAN or centralization help on CIFAR-10? A study whose questions were fixed before its runs.

    python -m experiments reproduce cifar10_confirm --preset cpu

Expected, from a pilot: test accuracy about 0.80 where tuned; about 1,750 core-minutes (tuning 350, tuned runs
820, the paper's regime 570) under Python 3.13 and JAX 0.12, with one core for each run.

`experiments/results/cifar10_confirm/PROTOCOL.md` holds the contrasts, the endpoints and the analysis. In short:

- Tuned: every method behind SGDM and Adam gets a grid of learning rates of the same length, on seeds that are not
  reported, by accuracy on training images that are held out; where the best rate is the last of its grid, the grid
  grows. The reported runs then train on all training images, with a warm-up and a rate that falls to 0.
- The paper's regime: constant learning rates, the same for every method, and many epochs on few images, so that
  the training loss runs towards 0 as it does in Yun, arXiv 2410.21564, Table 1.

Both on images that are not augmented, without weight decay, with all test images.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report.cells import Cell, make_cells, make_rows
from experiments.report.curves import add_learning_curves
from experiments.report.pages import describe_protocol, write_report
from experiments.report.tables import describe_chance, results_table
from experiments.run import Run
from experiments.studies.overlap_table1 import PAPER, SHARED_LEARNING_RATES
from experiments.studies.study import Size, Study, make_heading
from experiments.studies.tuning import extend_grids, make_tuning_runs, tune, tuning_table

METHODS = ("baseline", "centralization", "clipping", "znorm", "gan")
IN_THE_PAPER = ("baseline", "centralization", "clipping", "znorm")
TUNING_SEEDS = (100, 101)  # none of them is reported
WARMUP_EPOCHS = 0.5


@dataclasses.dataclass(frozen=True)
class ConfirmSize(Size):
    """How large a preset is.

    Attributes:
      schedules: of the tuned runs, each with learning rates of its own.
      tuning_examples: training images of the runs that choose a learning rate; None takes all that are left.
      regime_examples: training images in the paper's regime; None takes all.
      regime_epochs: passes over them.
      regime_seeds: of these runs.
    """

    schedules: tuple[str, ...] = ("cosine",)
    tuning_examples: int | None = None
    regime_examples: int | None = None
    regime_epochs: int = 0
    regime_seeds: tuple[int, ...] = ()


SIZES = {
    "smoke": ConfirmSize(
        models=("resnet8",),
        methods=("baseline", "znorm"),
        epochs=2,
        batch_sizes=(50,),
        seeds=(0, 1),
        train_examples=500,
        test_examples=200,
        tuning_epochs=1,
        validation_examples=100,
        tuning_examples=200,
        regime_examples=200,
        regime_epochs=3,
        regime_seeds=(0, 1),
    ),
    "cpu": ConfirmSize(
        models=("resnet20",),
        methods=METHODS,
        epochs=5,
        batch_sizes=(128,),
        seeds=(0, 1, 2, 3, 4),
        tuning_epochs=4,
        validation_examples=5_000,
        tuning_examples=12_500,
        regime_examples=10_000,
        regime_epochs=30,
        regime_seeds=(0, 1, 2),
    ),
    "full": ConfirmSize(
        models=("resnet56",),
        methods=METHODS,
        epochs=100,
        batch_sizes=(256,),
        seeds=(0, 1, 2, 3, 4),
        tuning_epochs=20,
        validation_examples=5_000,
        schedules=("cosine", "constant"),
        regime_epochs=100,
        regime_seeds=(0, 1, 2, 3, 4),
    ),
}
# Half decades; ZNorm makes gradients larger and clipping smaller, which Adam does not see and SGDM does.
GRID = {
    "sgdm": (0.01, 0.03, 0.1, 0.3),
    "clipping sgdm": (0.3, 1.0, 3.0, 10.0),
    "znorm sgdm": (3e-5, 1e-4, 3e-4, 1e-3),
    "gan sgdm": (0.03, 0.1, 0.3, 1.0),
    "adam": (0.001, 0.003, 0.01, 0.03),
}
SMOKE_GRID = {"sgdm": (0.01, 0.03, 0.1), "znorm sgdm": (1e-4, 3e-4, 1e-3), "adam": (0.001, 0.003, 0.01)}
GRIDS = {"smoke": SMOKE_GRID, "cpu": GRID, "full": GRID}


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """The tuning; when all of it has ended the tuned runs too; and when these have, those in the paper's regime."""
    size = SIZES[preset]
    tuning, tuned = _tuning_runs(preset, records), _tuned_runs(preset, records)
    if len(tuned) < len(_settings(preset)) * len(size.seeds):
        return tuning
    if any(cell.missing for cell in make_cells(tuned, records).values()):
        return [*tuning, *tuned]
    return [*tuning, *tuned, *_regime_runs(preset)]


def _settings(preset: str) -> list[Run]:
    """One run of every schedule, model, optimizer and method, with a learning rate that is to be tuned."""
    size = SIZES[preset]
    return [
        Run(
            dataset="cifar10",
            model=model,
            method=method,
            optimizer=optimizer,
            learning_rate=1.0,
            epochs=size.epochs,
            batch_size=size.batch_sizes[0],
            seed=size.seeds[0],
            schedule=schedule,
            warmup_epochs=WARMUP_EPOCHS,
            train_examples=size.train_examples,
            test_examples=size.test_examples,
        )
        for schedule in size.schedules
        for model in size.models
        for optimizer in SHARED_LEARNING_RATES
        for method in size.methods
    ]


def _tuning_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    size = SIZES[preset]
    runs = make_tuning_runs(
        _settings(preset),
        GRIDS[preset],
        TUNING_SEEDS,
        epochs=size.tuning_epochs,
        train_examples=size.tuning_examples,
        # Validation images take the place of the test images.
        validation_examples=size.validation_examples,
        test_examples=None,
    )
    return extend_grids(runs, records, _setting)


def _tuned_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    tuned = tune(_settings(preset), _tuning_runs(preset, records), records, _setting)
    return [dataclasses.replace(run, seed=seed) for run in tuned for seed in SIZES[preset].seeds]


def _regime_runs(preset: str) -> list[Run]:
    size = SIZES[preset]
    return [
        Run(
            dataset="cifar10",
            model=model,
            method=method,
            optimizer=optimizer,
            learning_rate=rate,
            epochs=size.regime_epochs,
            batch_size=size.batch_sizes[0],
            seed=seed,
            train_examples=size.regime_examples,
            test_examples=size.test_examples,
        )
        for model in size.models
        for optimizer, rate in SHARED_LEARNING_RATES.items()
        for method in size.methods
        if method in IN_THE_PAPER
        for seed in size.regime_seeds
    ]


def _setting(run: Run) -> tuple[str, str, str, str]:
    return run.schedule, run.model, run.optimizer, run.method


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and the learning curves of both parts."""
    named = set(make_runs(preset, records))
    tuning = make_cells(_tuning_runs(preset, records), records)
    parts = {
        "Tuned": make_cells(filter(named.__contains__, _tuned_runs(preset, records)), records),
        "The paper's regime": make_cells(filter(named.__contains__, _regime_runs(preset)), records),
    }
    headings = ("schedule", "model", "optimizer", "method")
    sections = [
        """\
- Questions, endpoints and analysis were fixed before the runs: [PROTOCOL.md](../PROTOCOL.md).
- **Paper** columns: Yun 2024, arXiv 2410.21564, Table 1, ResNet-56: un-augmented CIFAR-10, 100 epochs, batch 256."""
    ]
    for part, cells in parts.items():
        sections.append(f"## {part}")
        if not cells:
            sections.append(
                "These runs have not begun: the tuning comes first, then the tuned runs, then the others."
            )
            continue
        protocols = dict.fromkeys(describe_protocol(cell.run) for cell in cells.values())
        sections.append("\n".join(f"- Protocol: {protocol}." for protocol in protocols))
        rows = make_rows(cells.values(), _setting, _paper)
        sections += [results_table(headings, rows), describe_chance(rows)]
        for (schedule, model), panels in _figures(cells.values()).items():
            name = f"curves_{'tuned' if part == 'Tuned' else 'regime'}_{schedule}_{model}"
            sections.append(add_learning_curves(folder, name, f"{part}: {model}, {schedule} rate", panels))
    sections += [
        "## Tuning: validation accuracy of every learning rate",
        f"Protocol: {describe_protocol(next(iter(tuning)))}; seeds {', '.join(map(str, TUNING_SEEDS))}.",
        tuning_table(headings, tuning.values(), _setting),
    ]
    heading = make_heading("Confirmatory CIFAR-10", preset, SIZES[preset], SIZES["full"])
    everything = [*tuning.values(), *(cell for cells in parts.values() for cell in cells.values())]
    write_report(folder, heading, everything, sections)


def _figures(cells) -> dict[tuple[str, str], dict[str, list[Cell]]]:
    """Cells by optimizer for every schedule and model."""
    figures: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    for cell in cells:
        panels = figures.setdefault((cell.run.schedule, cell.run.model), {})
        panels.setdefault(cell.run.optimizer, []).append(cell)
    return figures


def _paper(run: Run) -> tuple[float | None, float | None]:
    """Accuracy and loss in the paper's table."""
    if run.method not in IN_THE_PAPER:
        return None, None
    return PAPER["resnet56", run.method][list(SHARED_LEARNING_RATES).index(run.optimizer)]


STUDY = Study(
    name="cifar10_confirm",
    title="does ZNorm, GAN or centralization help on CIFAR-10? Fixed before the runs (see its PROTOCOL.md)",
    runs=make_runs,
    report=make_report,
)
