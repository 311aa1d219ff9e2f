"""Is ZNorm unstable near convergence, or smoother with a floor? Fixed before its runs.

    python -m experiments reproduce near_convergence --preset cpu

The preset `cpu` trains on 2 million images behind AdamW and then on 7 million behind SGD with momentum, most of them
to tune its rates; each run makes 100 passes over 2,000 images.

`experiments/results/near_convergence/PROTOCOL.md` holds the questions, the endpoints and the rules. Yun 2024, arXiv
2408.01215, names instability near convergence as a limit of ZNorm; `gradient_convergence` could not tell it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report import intervals, names
from experiments.report.cells import Cell, Row, make_cells, make_rows
from experiments.report.contrasts import (
    ACCURACY,
    FINAL_LOSS,
    LATE_LOSS,
    LOWEST_LOSS,
    SMOOTHNESS,
    SPEED,
    Contrast,
    make_contrasts,
    make_findings,
)
from experiments.report.curves import add_learning_curves
from experiments.report.findings import HARMS, HELPS, UNTOLD, Finding, judge
from experiments.report.markdown import markdown_table
from experiments.report.pages import describe_protocol, describe_waiting, write_report
from experiments.report.sentences import describe
from experiments.report.tables import certainty_table, format_number, results_table, training_table
from experiments.run import Run
from experiments.studies.gradient_convergence.leads import count_spikes
from experiments.studies.grid import ZNORM_ALONE, Size, default_learning_rate, grid, rates_of, with_seeds
from experiments.studies.study import Study, settings_table
from experiments.studies.tuning import TUNING_SEEDS, Tuning

LAST_EPOCHS = 10  # of a constant rate, whose single epochs are left to chance
SIZES = {
    "cpu": Size(
        models=("resnet20",),
        methods=ZNORM_ALONE,
        epochs=100,
        batch_sizes=(50,),
        seeds=(3, 4, 5, 6, 7),  # `gradient_convergence` has the first three
        train_examples=2_000,
        tuning_epochs=100,
        validation_examples=5_000,
    ),
    "full": Size(
        models=("resnet56",),
        methods=ZNORM_ALONE,
        epochs=300,
        batch_sizes=(256,),
        seeds=(3, 4, 5, 6, 7),
        tuning_epochs=300,
        validation_examples=5_000,
    ),
}
SIZES["smoke"] = SIZES["cpu"].small(epochs=3, tuning_epochs=3, train_examples=100)
GRID = {"sgdm": (0.01, 0.03, 0.1, 0.3), "znorm sgdm": (3e-5, 1e-4, 3e-4, 1e-3)}
AXES = ("optimizer", "method")
SETTING = "CIFAR-100, constant rates, near convergence"
LOSSES = (SMOOTHNESS, LATE_LOSS, LOWEST_LOSS)  # one family, for each optimizer
SOURCE = "Yun 2024, arXiv 2408.01215"
UNSTABLE = "ZNorm is unstable near convergence"
FLOOR = "ZNorm leaves a floor that the training loss does not fall below"


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """Behind AdamW; when these have ended, the tuning behind SGDM, and then what it tuned."""
    first = adamw_runs(preset)
    if any(cell.missing for cell in make_cells(first, records).values()):
        return first
    return named_runs(preset, records)


def named_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """All runs of the protocol, of which `make_runs` names those whose turn has come."""
    tuning = make_tuning(preset)
    return [*adamw_runs(preset), *tuning.runs(records), *tuning.reported(records, SIZES[preset].seeds)]


def adamw_runs(preset: str) -> list[Run]:
    """Both methods at the optimizer's own rate."""
    return with_seeds(_settings(preset, "adamw"), SIZES[preset].seeds)


def make_tuning(preset: str) -> Tuning:
    """Both methods behind SGDM, each with its own grid."""
    size = SIZES[preset]
    # Validation images take the place of the test images.
    held_out = {"validation_examples": size.validation_examples, "test_examples": None}
    return Tuning(
        _settings(preset, "sgdm"),
        rates_of(preset, GRID),
        AXES,
        TUNING_SEEDS,
        changes=held_out,
        extend=True,
        refine=True,
        score=ACCURACY.score,
    )


def _settings(preset: str, optimizer: str) -> list[Run]:
    size = SIZES[preset]
    base = size.run(
        "cifar100",
        optimizer=optimizer,
        weight_decay=5e-5,
        evaluated_epochs=min(LAST_EPOCHS, size.epochs),
    )
    return grid(base, learning_rate=default_learning_rate, method=size.methods)


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md, findings.json and a figure of learning curves, optimizer by optimizer."""
    tuning = make_tuning(preset)
    begun = set(make_runs(preset, records))
    tried = tuning.cells(records) if begun.issuperset(tuning.runs()) else []
    parts = {
        "adamw": make_cells(adamw_runs(preset), records),
        "sgdm": make_cells(tuning.reported(records, SIZES[preset].seeds) if tried else [], records),
    }
    findings: list[Finding] = []
    results: list[str] = []
    drawn: dict[str, list[Cell]] = {}
    for optimizer, by_run in parts.items():
        cells, name = list(by_run.values()), names.OPTIMIZERS[optimizer]
        results.append(f"### {name}")
        if not cells:
            results.append("The tuning has not ended." if tried else "Its turn has not come.")
        elif waiting := describe_waiting([*(tried if optimizer == "sgdm" else ()), *cells]):
            results.append(waiting)
        else:
            found, sections = _report_part(cells)
            findings += found
            results += sections
            drawn[name] = cells
    if drawn:
        title = f"{SETTING}, {len(SIZES[preset].seeds)} seeds"
        results.append(add_learning_curves(folder, "curves", title, drawn))
    reported = [cell for part in parts.values() for cell in part.values()]
    protocols = dict.fromkeys(describe_protocol(cell.run) for cell in reported)
    method = [
        "- Questions, endpoints and analysis were fixed before the runs: [PROTOCOL.md](../PROTOCOL.md).\n"
        + "\n".join(f"- Protocol: {words}." for words in protocols)
    ]
    if tried:
        method += [
            "Tuning behind SGDM: validation accuracy of every learning rate, in percent, seeds "
            f"{', '.join(map(str, TUNING_SEEDS))}.",
            tuning.table(records),
        ]
    write_report(
        folder,
        "Is ZNorm unstable near convergence?",
        [*tried, *reported],
        findings,
        answer=" ".join(filter(None, [describe(findings), _describe_diverged(reported)])),
        settings=settings_table(preset, SIZES, of_paper=False),
        results=results,
        method=method,
    )


def _describe_diverged(cells: Sequence[Cell]) -> str:
    """Which reported runs diverged; empty where none did."""
    words = []
    for cell in cells:
        seeds = [str(seed) for seed, record in sorted(cell.ended.items()) if record.status == "diverged"]
        if seeds:
            method = f"{names.METHODS[cell.run.method]} behind {names.OPTIMIZERS[cell.run.optimizer]}"
            words.append(f"{method} (seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})")
    return f"Diverged, with losses that do not count: {'; '.join(words)}." if words else ""


def _report_part(cells: Sequence[Cell]) -> tuple[list[Finding], list[str]]:
    """Findings and Markdown of one optimizer, whose runs have all ended."""
    rows = make_rows(cells, AXES)
    headings = names.headings(AXES)
    accuracy = make_contrasts(rows, ACCURACY)
    losses = compare_losses(rows)
    findings = judge_claims(losses) + make_findings(
        accuracy, setting=SETTING, headline={"method": "znorm"}, forest=("znorm",)
    )
    return findings, [
        results_table(headings, rows, accuracy),
        certainty_table(headings, accuracy),
        _losses_table(losses),
        training_table(headings, rows, [make_contrasts(rows, endpoint) for endpoint in (FINAL_LOSS, SPEED)]),
        count_spikes(cells),
    ]


def compare_losses(rows: Sequence[Row]) -> dict[str, Contrast]:
    """ZNorm's contrast of every loss endpoint, by its score, adjusted as one family."""
    found = [contrast for endpoint in LOSSES for contrast in make_contrasts(rows, endpoint)]
    adjusted = intervals.holm([contrast.interval.p for contrast in found])
    return {
        contrast.endpoint.score: dataclasses.replace(contrast, p=p)
        for contrast, p in zip(found, adjusted, strict=True)
    }


def word(contrast: Contrast) -> str:
    """What the protocol calls a ratio: larger or smaller than the baseline's, for helps and harms."""
    return {HELPS: "smaller", HARMS: "larger"}.get(contrast.verdict, contrast.verdict)


def _losses_table(losses: Mapping[str, Contrast]) -> str:
    rows = [["training loss with ZNorm", "ratio to the baseline's [95 %]", "p (Holm)", "ZNorm's is"]]
    for c in losses.values():
        ratio = c.endpoint.write_interval(c.interval)
        rows.append([c.endpoint.title, ratio, format_number(c.p, ".2g"), word(c)])
    return markdown_table(rows, aligned_left=(True, False, False, True))


def judge_claims(losses: Mapping[str, Contrast]) -> list[Finding]:
    """The two claims that the protocol's rules decide, for one optimizer."""
    rough, *floor = losses.values()
    by_rule = {
        UNSTABLE: ([rough], {HARMS: True, UNTOLD: None}.get(rough.verdict, False)),
        FLOOR: (floor, _leaves_a_floor([contrast.verdict for contrast in floor])),
    }
    ours, theirs = rough.cells
    optimizer = names.OPTIMIZERS[ours.run.optimizer]
    rates = f"at its own rate {ours.run.learning_rate:g}, not {theirs.run.learning_rate:g}"
    # Where runs diverged, those that are left speak for a method that may have lost its worst ones.
    worse = {True: theirs.diverged, False: ours.diverged}
    return [
        Finding(
            claim=f"{claim}: {SETTING}, {optimizer}",
            source=SOURCE if claim == UNSTABLE else "",
            measured=", ".join(f"{c.endpoint.title} x {c.endpoint.write_interval(c.interval)}" for c in used),
            interval=None,
            verdict=judge(None if worse.get(holds) else holds),
            note=rates if rough.other_rate else "",
            other_rate=rough.other_rate,
            group=SETTING,
            label=optimizer,
            question=claim,
            headline=True,
        )
        for claim, (used, holds) in by_rule.items()
    ]


def _leaves_a_floor(verdicts: Sequence[str]) -> bool | None:
    """Both losses larger; contradicted by one that is smaller or makes no difference."""
    if any(verdict not in (HARMS, UNTOLD) for verdict in verdicts):
        return False
    return True if set(verdicts) == {HARMS} else None


STUDY = Study(
    name="near_convergence",
    title="Is ZNorm unstable near convergence? Fixed before its runs (see its PROTOCOL.md)",
    runs=make_runs,
    report=make_report,
    named=named_runs,
)
