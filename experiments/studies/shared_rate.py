"""What makes ZNorm gain 8.9 points at a shared learning rate: the rate, or the method?

    python -m experiments reproduce shared_rate --preset cpu

Each run of the preset `cpu` trains on 300,000 images; on one core of an AMD EPYC of the third generation that is
20 to 30 minutes.

Arm B of `cifar10_confirm` gave all methods the rate 0.01 behind SGD with momentum, and ZNorm gained 8.9 points. Here
the baseline and ZNorm get other constant rates too, in the same setting. The contrasts and what would fail them were
fixed before the runs: `experiments/results/shared_rate/PROTOCOL.md`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report import names
from experiments.report.cells import Cell, Row
from experiments.report.contrasts import ACCURACY, FINAL_LOSS, SPEED, Contrast, make_contrasts
from experiments.report.findings import CONTRADICTED, HELPS, SHOWN, Finding, judge
from experiments.report.pages import describe_diverged, describe_protocol, describe_waiting, write_report
from experiments.report.tables import certainty_table, contrasts_table, differences, row_table
from experiments.run import Run
from experiments.studies.grid import ZNORM_ALONE, Size, grid
from experiments.studies.study import Study, settings_table
from experiments.studies.tuning import Tuning

LAST_EPOCHS = 10  # of a constant rate, whose single epochs are left to chance
SIZES = {
    "cpu": Size(
        models=("resnet20",),
        methods=ZNORM_ALONE,
        epochs=30,
        batch_sizes=(128,),
        seeds=(0, 1, 2),
        train_examples=10_000,
    ),
    "full": Size(
        models=("resnet56",),
        methods=ZNORM_ALONE,
        epochs=100,
        batch_sizes=(256,),
        seeds=(0, 1, 2, 3, 4),
    ),
}
SIZES["smoke"] = SIZES["cpu"].small(epochs=3, train_examples=200)
SHARED, HIGHER = 0.01, 0.1
HEADINGS = ("contrast",)
COLUMNS = {
    "difference, points [95 %]": lambda c: c.endpoint.write_interval(c.interval),
    "verdict": lambda c: c.word,
}
FIRST = {"baseline sgdm": (SHARED, HIGHER), "znorm sgdm": (SHARED,)}
ALL = {"baseline sgdm": (SHARED, 0.03, HIGHER, 0.3), "znorm sgdm": (0.001, 0.003, SHARED)}


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """The first rates, when they have ended the further ones, and then what an edge of the grid asks for."""
    return _begun(preset, records).runs(records)


def _begun(preset: str, records: Sequence[RunRecord]) -> Tuning:
    first = _rates(preset, FIRST)
    if any(cell.missing for cell in first.cells(records)):
        return first
    return _rates(preset, ALL, extend=True)


def _rates(preset: str, rates: dict[str, tuple[float, ...]], *, extend: bool = False) -> Tuning:
    """The best rate is chosen among the reported runs themselves, as the protocol says."""
    size = SIZES[preset]
    return Tuning(
        grid(size.run("cifar10", evaluated_epochs=min(LAST_EPOCHS, size.epochs)), method=size.methods),
        rates,
        ("method",),
        size.seeds,
        extend=extend,
        score=ACCURACY.score,
    )


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and findings.json: the protocol's contrasts, and every method's accuracy over its rates."""
    begun = _begun(preset, records)
    cells = begun.cells(records)
    contrasts, findings, losses, text = [], [], [], ""
    waiting = describe_waiting(cells)
    if not waiting:
        rows = _rows(cells, begun.best(records))
        contrasts = make_contrasts(rows, ACCURACY)
        findings = [_judge_cause(*contrasts[:2])]
        text = "\n\n".join(
            filter(None, [_answer(findings[0], contrasts[1]), _describe_detectable(contrasts)])
        )
        losses = _describe_losses(rows)
    write_report(
        folder,
        "What makes ZNorm gain at a shared learning rate?",
        cells,
        findings,
        answer="\n\n".join(filter(None, [text, describe_diverged(cells, ("method", "learning_rate"))])),
        settings=settings_table(preset, SIZES, of_paper=False),
        results=[
            waiting or contrasts_table(HEADINGS, contrasts, COLUMNS, text=("verdict",)),
            certainty_table(HEADINGS, contrasts),
            *losses,
            "Test accuracy of every rate, in percent:",
            begun.table(records),
        ],
        method=[
            "- Questions, endpoints and analysis were fixed before the runs: [PROTOCOL.md](../PROTOCOL.md).\n"
            f"- Protocol: {describe_protocol(cells[0].run)}."
        ],
    )


def _rows(cells: Sequence[Cell], chosen: Mapping[Run, Cell]) -> list[Row]:
    """The protocol's three contrasts, as rows of one family."""
    best = {setting.method: cell.run.learning_rate for setting, cell in chosen.items()}
    found = {(cell.run.method, cell.run.learning_rate): cell for cell in cells}
    pairs = {
        "at the best rates": (("znorm", best["znorm"]), ("baseline", best["baseline"])),
        "at the shared rate": (("znorm", SHARED), ("baseline", SHARED)),
        "the rate alone": (("baseline", HIGHER), ("baseline", SHARED)),
    }
    rows = []
    for name, (ours, theirs) in pairs.items():
        words = " minus ".join(f"{names.METHODS[method]} at {rate:g}" for method, rate in (ours, theirs))
        rows.append(Row((f"{name}: {words}",), found[ours], found[theirs]))
    return rows


def _judge_cause(at_best: Contrast, at_shared: Contrast) -> Finding:
    """By the protocol's rule: where the gain at the best rates lies beside half of that at the shared rate."""
    holds = None
    if at_shared.verdict == HELPS and at_best.interval.is_known:
        half = at_shared.interval.mean / 2
        if at_best.interval.high < half:
            holds = True
        elif at_best.interval.low > half:
            holds = False
    differences = [f"{c.endpoint.write_interval(c.interval)} points" for c in (at_shared, at_best)]
    return Finding(
        claim="ZNorm's gain at a shared rate behind SGDM is one of the rate: ResNet-20, 10,000 images",
        source="",
        measured=f"at the shared rate {differences[0]}, at the best rates {differences[1]}",
        interval=None,
        verdict=judge(holds),
        group="CIFAR-10, constant rates, ResNet-20, SGDM",
        label="ZNorm",
        question="The gain at a shared rate is one of the rate",
        headline=True,
    )


def _answer(cause: Finding, at_shared: Contrast) -> str:
    """What makes the gain, in the protocol's words."""
    if at_shared.verdict != HELPS:
        words = "The gain was not found again, and nothing is explained"
    else:
        unknown = "Whether the gain is one of the rate or of the method cannot be told"
        words = {SHOWN: "The gain is one of the rate", CONTRADICTED: "The gain is one of the method"}.get(
            cause.verdict, unknown
        )
    return f"**{words}**: ZNorm minus the baseline is {cause.measured}."


def _describe_detectable(contrasts: Sequence[Contrast]) -> str:
    """The smallest differences that 80 % of such studies would see; empty where the seeds agree."""
    sizes = [ACCURACY.convert_size(c.detectable) for c in contrasts if c.interval.is_known]
    if not sizes:
        return ""
    return (
        "Smallest detectable differences (80 % power, two-sided 5 %): "
        f"{min(sizes):.2g} to {max(sizes):.2g} points."
    )


def _describe_losses(rows: Sequence[Row]) -> list[str]:
    """The secondary endpoints, which decide nothing."""
    contrasts = [make_contrasts(rows, endpoint) for endpoint in (FINAL_LOSS, SPEED)]
    columns = {f"{some[0].endpoint.title}, ratio [95 %]": differences(some) for some in contrasts}
    return [
        "Training losses, the first over the second. A ratio below 1: the first one's is lower.",
        row_table(HEADINGS, rows, columns, keep=tuple(columns)),
    ]


STUDY = Study(
    name="shared_rate",
    title="Is ZNorm's gain at a shared learning rate one of the rate? Fixed before the runs",
    runs=make_runs,
    report=make_report,
)
