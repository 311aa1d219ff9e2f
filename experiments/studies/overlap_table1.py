"""Table 1 of the gradient overlap paper: four methods with SGDM and Adam on CIFAR-10.

    python -m experiments reproduce overlap_table1 --preset cpu

Expected: test accuracy of the baseline about 0.36, on 2,000 training images; 296 core-minutes by the records.

Yun, "Mitigating Gradient Overlap in Deep Residual Networks with Gradient Normalization for Improved
Non-Convex Optimization", 2024, arXiv 2410.21564.

Un-augmented CIFAR-10, 100 epochs, batch 256, no schedule and no weight decay (the paper names none). The
paper states no learning rates, so there are two protocols:

- shared: SGDM 0.01 and Adam 0.001 for every method;
- tuned: every method gets the same grid of learning rates. One seed that is not reported chooses by accuracy
  on held-out training images; the reported seeds then train on all training images, and the test images are
  used for them alone.

The rows for GAN and for clipping by value are not in the paper.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report import names
from experiments.report.cells import Cell, make_cells
from experiments.report.curves import add_learning_curves
from experiments.report.findings import Finding
from experiments.report.pages import describe_protocol, write_report
from experiments.run import DEFAULT_LEARNING_RATES, Run
from experiments.studies.comparison import Question, compare_methods
from experiments.studies.grid import ZNORM_ALONE, Size, default_learning_rate, grid, rates_of, with_seeds
from experiments.studies.study import Study, settings_table
from experiments.studies.tuning import Tuning

METHODS = ("baseline", "centralization", "clipping", "clipping_value", "znorm", "gan")
OPTIMIZERS = ("sgdm", "adam")

SIZES = {
    "cpu": Size(
        models=("resnet20",),
        methods=METHODS,
        epochs=8,
        batch_sizes=(50,),
        seeds=(0, 1, 2, 3, 4),
        train_examples=2_000,
        test_examples=1_000,
        tuning_epochs=6,
        validation_examples=500,
    ),
    "full": Size(
        models=("resnet152", "resnet110", "resnet56"),
        methods=METHODS,
        epochs=100,
        batch_sizes=(256,),
        seeds=(0, 1, 2),
        tuning_epochs=100,
        validation_examples=5_000,
    ),
}
SIZES["smoke"] = SIZES["cpu"].small(methods=ZNORM_ALONE)
GRID = {
    "sgdm": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "adam": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03),
}

PAPER_MODEL = "resnet56"  # stands beside networks that the paper does not have
# Table 1: top-1 test accuracy and training loss with SGDM, then with Adam.
PAPER = {
    ("resnet56", "baseline"): ((0.7742, 5.2e-05), (0.8037, 2.0e-03)),
    ("resnet56", "centralization"): ((0.7814, 6.2e-05), (0.8129, 1.4e-02)),
    ("resnet56", "clipping"): ((0.8033, 4.2e-05), (0.8054, 1.2e-02)),
    ("resnet56", "znorm"): ((0.8331, 3.6e-02), (0.8136, 2.7e-02)),
    ("resnet110", "baseline"): ((0.7802, 2.0e-04), (0.8131, 1.7e-02)),
    ("resnet110", "centralization"): ((0.7774, 7.0e-05), (0.8274, 1.2e-02)),
    ("resnet110", "clipping"): ((0.7983, 1.5e-03), (0.8149, 2.6e-02)),
    ("resnet110", "znorm"): ((0.8342, 4.2e-02), (0.8280, 2.1e-02)),
    ("resnet152", "baseline"): ((0.7386, 4.0e-04), (0.8004, 1.0e-02)),
    ("resnet152", "centralization"): ((0.7422, 5.0e-04), (0.8077, 2.6e-02)),
    ("resnet152", "clipping"): ((0.7860, 1.3e-04), (0.8116, 1.6e-02)),
    ("resnet152", "znorm"): ((0.8111, 3.6e-03), (0.8267, 2.5e-02)),
}


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """The shared protocol's runs, the tuning runs, and the tuned runs whose tuning has ended."""
    return [*_shared_runs(preset), *_tuning(preset).runs(), *_tuned_runs(preset, records)]


def _settings(preset: str) -> list[Run]:
    """One run of every model, optimizer and method, with the shared learning rate."""
    size = SIZES[preset]
    return grid(
        size.run("cifar10"),
        model=size.models,
        optimizer=OPTIMIZERS,
        learning_rate=default_learning_rate,
        method=size.methods,
    )


def _tuning(preset: str) -> Tuning:
    size = SIZES[preset]
    return Tuning(
        _settings(preset),
        rates_of(preset, GRID),
        # Validation images take the place of the test images.
        changes={"epochs": size.tuning_epochs, "validation_examples": size.validation_examples},
    )


def _shared_runs(preset: str) -> list[Run]:
    return with_seeds(_settings(preset), SIZES[preset].seeds)


def _tuned_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    return _tuning(preset).reported(records, SIZES[preset].seeds)


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md, findings.json and the learning curves of both protocols."""
    tuning = _tuning(preset)
    protocols = {
        "tuned": make_cells(_tuned_runs(preset, records), records),
        "shared": make_cells(_shared_runs(preset), records),
    }
    results: list[str] = []
    findings: list[Finding] = []
    for protocol, cells in protocols.items():
        results.append(f"### Rates {protocol}")
        if not cells:
            results.append("No tuning has ended yet.")
            continue
        answers = compare_methods(cells.values(), _question(protocol))
        findings += answers.findings
        results += answers.tables(best_epoch=True)
        for model in SIZES[preset].models:
            panels: dict[str, list[Cell]] = {}
            for cell in cells.values():
                if cell.run.model == model:
                    panels.setdefault(names.OPTIMIZERS[cell.run.optimizer], []).append(cell)
            title = f"CIFAR-10, {names.model(model)}, {len(SIZES[preset].seeds)} seeds, rates {protocol}"
            results.append(add_learning_curves(folder, f"curves_{protocol}_{model}", title, panels))
    tried = tuning.cells(records)
    write_report(
        folder,
        "Table 1 of the gradient overlap paper",
        [*protocols["shared"].values(), *tried, *protocols["tuned"].values()],
        sorted(findings, key=lambda finding: finding.question),
        settings=settings_table(preset, SIZES),
        results=results,
        method=[
            _describe_protocols(preset),
            "Tuning: validation accuracy of every learning rate, in percent.",
            tuning.table(records),
        ],
    )


def _question(protocol: str) -> Question:
    return Question(
        setting=f"CIFAR-10, rates {protocol}",
        sources={method: "Yun 2024, arXiv 2410.21564, Table 1" for _, method in PAPER},
        paper=paper_accuracy,
        paper_loss=paper_loss,
        paper_effect=paper_effect,
        forest=("znorm", "gan", "centralization") if protocol == "tuned" else (),
    )


def paper_effect(run: Run, versus: str = "baseline") -> float | None:
    """By how much the paper's accuracy of a method exceeds that of another; of ResNet-56 for other networks."""
    ours, theirs = paper_accuracy(run), paper_accuracy(dataclasses.replace(run, method=versus))
    return None if ours is None or theirs is None else ours - theirs


def paper_accuracy(run: Run) -> float | None:
    """The accuracy in the paper's table; of ResNet-56 for networks that it does not have."""
    return _paper(run)[0]


def paper_loss(run: Run) -> float | None:
    """The training loss in the paper's table; of ResNet-56 for networks that it does not have."""
    return _paper(run)[1]


def _describe_protocols(preset: str) -> str:
    shared, tuning = _settings(preset)[0], _tuning(preset).runs()[0]
    rates = " and ".join(f"{optimizer} {DEFAULT_LEARNING_RATES[optimizer]:g}" for optimizer in OPTIMIZERS)
    text = f"""\
- Protocol **shared**: {describe_protocol(shared)}; {rates} for every method.
- Protocol **tuned**: the same, but with the learning rate that one seed of its own (not among the reported ones)
  found best on held-out training images ({describe_protocol(tuning)}). Every method got the same grid.
- **The paper**: Yun 2024, arXiv 2410.21564, Table 1: un-augmented CIFAR-10, 100 epochs, batch 256; learning
  rate, schedule, weight decay, initialisation and number of seeds are not stated. It has no row for GAN and none
  for clipping by value; whether its clipping is by norm or by value is not stated."""
    stand_ins = [model for model in SIZES[preset].models if (model, "baseline") not in PAPER]
    if stand_ins:
        text += (
            f"\n- The paper has no {', '.join(stand_ins)}: beside it stand the paper's numbers for ResNet-56, "
            "with other images and epochs."
        )
    return text


def _paper(run: Run) -> tuple[float | None, float | None]:
    """Accuracy and loss in the paper's table."""
    if run.optimizer not in OPTIMIZERS:
        return None, None
    model = run.model if (run.model, "baseline") in PAPER else PAPER_MODEL
    column = OPTIMIZERS.index(run.optimizer)
    return PAPER.get((model, run.method), ((None, None),) * 2)[column]


STUDY = Study(
    name="overlap_table1",
    title="ResNets on CIFAR-10, every method under SGDM and Adam (Yun 2024, Table 1)",
    runs=make_runs,
    report=make_report,
)
