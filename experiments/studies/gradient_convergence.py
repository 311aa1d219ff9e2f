"""What gradients do as the training loss goes to 0, and whether ZNorm becomes unstable there.

    python -m experiments reproduce gradient_convergence --preset cpu

`experiments/results/gradient_convergence/PROTOCOL.md` holds the questions and the analysis, fixed before the runs:
few images that are not augmented, many epochs at a constant learning rate, and the raw gradients recorded.

After Yun, "Insights from Gradient Dynamics: Gradient Autoscaled Normalization", 2025, arXiv 2509.03677 (layers rise
and fall, the global standard deviation falls), and Yun, 2024, arXiv 2408.01215 (ZNorm is unstable near convergence).
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report import names
from experiments.report.contrasts import SMOOTHNESS
from experiments.run import Run
from experiments.studies.grid import Question, write_grid_report
from experiments.studies.study import Size, Study, grid, settings_table

METHODS = ("baseline", "znorm", "gan")

SIZES = {
    "smoke": Size(
        models=("resnet8",),
        methods=METHODS,
        epochs=6,
        batch_sizes=(50,),
        seeds=(0, 1),
        train_examples=100,
        test_examples=100,
    ),
    "cpu": Size(
        models=("resnet20",),
        methods=METHODS,
        epochs=100,
        batch_sizes=(50,),
        seeds=(0, 1, 2),
        train_examples=2_000,
        test_examples=500,
    ),
    "full": Size(
        models=("resnet20", "resnet56", "vgg16_bn"),
        methods=METHODS,
        epochs=300,
        batch_sizes=(256,),
        seeds=(0, 1, 2),
    ),
}
NOTES = "Questions, endpoints and analysis were fixed before the runs: [PROTOCOL.md](../PROTOCOL.md)."
QUESTION = Question(setting="CIFAR-100, AdamW, to convergence", scores=(SMOOTHNESS,))


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """Every model, method and seed."""
    del records
    size = SIZES[preset]
    base = size.run("cifar100", optimizer="adamw", learning_rate=1e-3, weight_decay=5e-5, dynamics=True)
    return grid(base, seed=size.seeds, model=size.models, method=size.methods)


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and one figure of learning curves."""
    write_grid_report(
        folder,
        "What gradients do as the training loss goes to 0",
        make_runs(preset, records),
        records,
        settings=settings_table(preset, SIZES[preset], SIZES["full"], of_paper=False),
        question=QUESTION,
        headings=("network", "method"),
        labels=lambda run: (names.model(run.model), names.METHODS[run.method]),
        figure=lambda run: ("adamw", f"CIFAR-100, AdamW, {len(SIZES[preset].seeds)} seeds"),
        panel=lambda run: names.model(run.model),
        notes=NOTES,
    )


STUDY = Study(
    name="gradient_convergence",
    title="What gradients do as the training loss goes to 0",
    runs=make_runs,
    report=make_report,
)
