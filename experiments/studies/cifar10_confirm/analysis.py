"""The analysis that `results/cifar10_confirm/PROTOCOL.md` fixed before the runs, and its report."""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report import names
from experiments.report.cells import Cell, Row, epochs_until, make_cells
from experiments.report.contrasts import ACCURACY, FINAL_LOSS, SPEED, Contrast
from experiments.report.curves import add_learning_curves
from experiments.report.pages import describe_diverged, describe_protocol, describe_waiting, write_report
from experiments.report.sentences import describe
from experiments.report.tables import (
    certainty_table,
    column,
    contrasts_table,
    results_table,
    row_table,
    training_table,
)
from experiments.run import Run
from experiments.studies.cifar10_confirm import figure
from experiments.studies.cifar10_confirm.claims import REGIME, TUNED, Arm, claims_table, read_together
from experiments.studies.cifar10_confirm.plan import (
    AXES,
    IN_THE_PAPER,
    REGIMES,
    SIZES,
    make_runs,
    make_tuning,
    regime_runs,
    tuned_runs,
)
from experiments.studies.comparison import Answers, Question, compare_methods
from experiments.studies.overlap_table1 import paper_accuracy, paper_effect, paper_loss
from experiments.studies.study import settings_table
from experiments.studies.tuning import TUNING_SEEDS, Peak

SOURCE = "Yun 2024, arXiv 2410.21564, Table 1"
PAPER_MODEL = "resnet56"
HEADINGS = names.headings(AXES)
PROTOCOL = "[PROTOCOL.md](../PROTOCOL.md)"
DEVIATIONS = "[DEVIATIONS.md](../DEVIATIONS.md)"


def named_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """All runs of the protocol, of which `make_runs` names those whose turn has come."""
    return [*make_tuning(preset).runs(records), *tuned_runs(preset, records), *regime_runs(preset)]


def smallest_effect(run: Run) -> float:
    """What the paper printed for ZNorm in ResNet-56: the smallest effect of interest of every method."""
    effect = paper_effect(dataclasses.replace(run, model=PAPER_MODEL, method="znorm"))
    assert effect is not None
    return effect


def analyse(preset: str, records: Sequence[RunRecord]) -> list[Arm]:
    """Both arms, as far as they have begun; an arm is compared when all of its runs have ended."""
    begun = set(make_runs(preset, records))
    arms = []
    for name, runs in ((TUNED, tuned_runs(preset, records)), (REGIME, regime_runs(preset))):
        cells = list(make_cells([run for run in runs if run in begun], records).values())
        # In arm A clipping is described; in arm B it is one of the contrasts.
        others = ("baseline", "clipping", "centralization") if name == TUNED else ("baseline",)
        described: dict[str, tuple[str, ...]] = {}
        if name == TUNED:
            described = {"baseline": ("clipping",), "centralization": tuple(names.METHODS)}
        comparisons = {
            versus: compare_methods(cells, _question(preset, name, versus, described.get(versus, ())))
            for versus in others
        }
        arms.append(Arm(name, cells, {} if describe_waiting(cells) else comparisons))
    return arms


def _question(preset: str, arm: str, versus: str, described: Sequence[str]) -> Question:
    against_baseline = versus == "baseline"
    # The preset full tunes a constant rate too.
    schedule = ("schedule",) if arm == TUNED and len(SIZES[preset].schedules) > 1 else ()
    return Question(
        setting=f"CIFAR-10, {arm}",
        axes=(*schedule, *AXES),
        sources=dict.fromkeys(IN_THE_PAPER, SOURCE),
        paper=paper_accuracy,
        paper_loss=paper_loss,
        paper_effect=functools.partial(_effect, versus=versus),
        smallest=smallest_effect,
        headline={"method": "znorm"} if against_baseline else None,
        forest=("centralization", "znorm", "gan") if against_baseline else (),
        described=described,
        versus=versus,
        by_protocol=True,
    )


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md, findings.json and the learning curves of both arms."""
    tuning = make_tuning(preset)
    tried = tuning.cells(records)
    arms = analyse(preset, records)
    findings = [f for arm in arms for a in _in_families(arm) for f in a.findings]
    own_findings = [f for arm in arms for a in _in_families(arm) for f in a.own_findings]
    primary = [f for f in own_findings if f.question.startswith("Test accuracy")]
    answer = [*read_together(arms), describe_grid(tuning.peaks(records)), describe(primary)]
    if diverged := describe_diverged((cell for arm in arms for cell in arm.cells), AXES):
        answer.append(diverged)
    results = [_add_figure(arms, folder), "### The protocol's claims", claims_table(arms[0])]
    for arm in arms:
        results += [f"### {arm.name[0].upper()}{arm.name[1:]}", *_describe_arm(arm, folder)]
    write_report(
        folder,
        "Does ZNorm, GAN or centralization help on CIFAR-10?",
        [*tried, *(cell for arm in arms for cell in arm.cells)],
        findings,
        own_findings=own_findings,
        answer="\n\n".join(answer),
        settings="\n\n".join(
            [
                settings_table(preset, SIZES, of_paper=False),
                "In the paper's regime:",
                settings_table(preset, REGIMES, of_paper=False),
            ]
        ),
        results=results,
        method=[
            f"- Questions, endpoints and analysis were fixed before the runs: {PROTOCOL}. What was done otherwise, "
            f"and why: {DEVIATIONS}.\n"
            f"- The paper: {SOURCE}, ResNet-56: un-augmented CIFAR-10, 100 epochs, batch 256.\n"
            "- Holm's adjustment is over the contrasts of one optimizer, for each endpoint by itself; what is only "
            "described (clipping against the baseline where tuned, all against centralization) is not adjusted.",
            "Tuning: validation accuracy of every learning rate, in percent "
            f"({describe_protocol(tried[0].run)}; seeds {', '.join(map(str, TUNING_SEEDS))}).",
            tuning.table(records),
        ],
    )


def describe_grid(peaks: Mapping[Run, Peak]) -> str:
    """How coarse ZNorm's and the baseline's grids of learning rates are beside the differences, in a sentence."""
    words = []
    for run, peak in peaks.items():
        shown = run.schedule, run.model
        if run.method in ("baseline", "znorm") and shown == ("cosine", SIZES["cpu"].models[0]):
            name = f"{names.METHODS[run.method]} with {names.OPTIMIZERS[run.optimizer]}"
            words.append(
                f"{name} {100 * peak.gain:+.1f} points at {peak.rate:.2g} instead of the chosen {peak.chosen:g}"
            )
    if not words:
        return ""
    return (
        "The grids of learning rates are half decades, and a difference that a finer grid could make is none between "
        "methods. A parabola through the best rate's validation accuracy and its two neighbours' promises "
        f"{'; '.join(words)} (two seeds; a lead)."
    )


def _add_figure(arms: Sequence[Arm], folder: Path) -> str:
    """Draws what has been compared as answer.svg; returns the Markdown that shows it."""
    compared = [arm for arm in arms if arm.cells and arm.comparisons]
    if not compared:
        return ""
    panels = {_title(arm): arm.comparisons["baseline"].contrasts for arm in compared}
    figure.draw(folder / "answer.svg", panels, _by_optimizer(arms[0].cells))
    return "![Accuracy and speed of every method against the baseline, and learning curves](answer.svg)"


def _title(arm: Arm) -> str:
    run = arm.cells[0].run
    rates = "Rates tuned for every method" if arm.name == TUNED else "The paper's regime, one rate"
    images = "all" if run.train_examples is None else f"{run.train_examples:,}"
    seeds = len({seed for cell in arm.cells for seed in cell.ended})
    return f"{rates}: {images} training images, {run.epochs} epochs, {seeds} seeds"


def _by_optimizer(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    panels: dict[str, list[Cell]] = {}
    for cell in cells:
        panels.setdefault(names.OPTIMIZERS[cell.run.optimizer], []).append(cell)
    return panels


def _in_families(arm: Arm) -> list[Answers]:
    """The comparisons that the protocol has families of; against centralization is only described."""
    return [answers for versus, answers in arm.comparisons.items() if versus != "centralization"]


def _describe_arm(arm: Arm, folder: Path) -> list[str]:
    if not arm.cells:
        return ["These runs have not begun: the tuning comes first, then the tuned runs, then the others."]
    parts = [f"- {p}." for p in dict.fromkeys(describe_protocol(cell.run) for cell in arm.cells)]
    sections = ["\n".join(parts)]
    if waiting := describe_waiting(arm.cells):
        return [*sections, waiting]
    for versus, answers in arm.comparisons.items():
        other = names.METHODS[versus]
        contrasts = answers.contrasts
        if versus == "baseline":
            sections.append(results_table(HEADINGS, answers.rows, contrasts[ACCURACY.score]))
        else:
            sections.append(f"Against {other}{' (described)' if versus == 'centralization' else ''}:")
            sections.append(_differences_table(contrasts[ACCURACY.score]))
        sections.append(certainty_table(HEADINGS, contrasts[ACCURACY.score]))
        if versus != "centralization":
            losses = [contrasts[FINAL_LOSS.score], contrasts[SPEED.score]]
            sections += [
                f"Speed of training, against {other}:",
                training_table(HEADINGS, answers.rows, losses, other),
            ]
            sections.append(_certainty_of_losses(losses))
            sections.append(epochs_table([c.row for c in contrasts[ACCURACY.score]]))
    sections.append(processors_table(arm.comparisons["baseline"].contrasts[ACCURACY.score]))
    figures: dict[tuple[str, str], list[Cell]] = {}
    for cell in arm.cells:
        figures.setdefault((cell.run.schedule, cell.run.model), []).append(cell)
    for (schedule, model), cells in figures.items():
        seeds = len({seed for cell in arm.cells for seed in cell.ended})
        title = f"CIFAR-10, {names.model(model)}, {schedule} rate, {arm.name}, {seeds} seeds"
        file = f"curves_{'tuned' if arm.name == TUNED else 'regime'}_{schedule}_{model}"
        sections.append(add_learning_curves(folder, file, title, _by_optimizer(cells)))
    return sections


def _differences_table(contrasts: Sequence[Contrast]) -> str:
    columns = {
        "difference, points [95 %]": lambda c: ACCURACY.write_interval(c.interval),
        "verdict": lambda c: c.word,
    }
    return contrasts_table(HEADINGS, contrasts, columns, text=("verdict",))


def _certainty_of_losses(losses: Sequence[Sequence[Contrast]]) -> str:
    """Adjusted p-values of the secondary endpoints."""
    told = [some for some in losses if some]
    if not told:
        return ""
    columns = {
        f"{some[0].endpoint.title}: p (Holm)": column(some, lambda contrast: f"{contrast.p:.2g}")
        for some in told
    }
    return row_table(HEADINGS, [contrast.row for contrast in told[0]], columns)


def processors_table(contrasts: Sequence[Contrast]) -> str:
    """The mean difference on each kind of processor, where there are several; a seed's runs are all on one."""
    kinds = dict.fromkeys(kind for contrast in contrasts for kind in contrast.row.cell.processors)
    if len(kinds) < 2:
        return ""

    def write(kind: str) -> Callable[[Row], str]:
        def of(row: Row) -> str:
            assert row.baseline is not None
            ours, theirs = (cell.values(ACCURACY.score) for cell in (row.cell, row.baseline))
            seeds = [s for s in row.cell.processors.get(kind, ()) if s in ours and s in theirs]
            if not seeds:
                return "-"
            return ACCURACY.write(statistics.fmean(ours[seed] - theirs[seed] for seed in seeds))

        return of

    columns = {}
    for kind in kinds:
        seeds = sorted({seed for c in contrasts for seed in c.row.cell.processors.get(kind, ())})
        columns[f"{kind}: seeds {', '.join(map(str, seeds))}"] = write(kind)
    table = row_table(HEADINGS, [contrast.row for contrast in contrasts], columns)
    return f"Difference to the baseline on each kind of processor, points:\n\n{table}"


def epochs_table(rows: Sequence[Row]) -> str:
    """Seed by seed, the first epoch whose training loss is at most the comparison's final one."""

    def write(row: Row) -> str:
        assert row.baseline is not None
        found = []
        for seed in sorted(row.cell.ended.keys() & row.baseline.ended.keys()):
            target = row.baseline.ended[seed].epochs[-1].train_loss
            found.append(str(epochs_until(row.cell.ended[seed], target) or "never"))
        return ", ".join(found) or "-"

    heading = "first epoch with at most the comparison's final training loss, seed by seed"
    return row_table(HEADINGS, rows, {heading: write}, text=(heading,)) if rows else ""


def _effect(run: Run, versus: str) -> float | None:
    """The effects of the protocol's table: of ZNorm and centralization against the baseline and clipping."""
    if run.method not in ("znorm", "centralization") or versus == "centralization":
        return None
    return paper_effect(run, versus)
