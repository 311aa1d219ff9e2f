"""What studies share that compare methods: their contrasts, findings and report."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report import names
from experiments.report.cells import Cell, Row, make_cells, make_rows
from experiments.report.contrasts import (
    ACCURACY,
    FINAL_LOSS,
    SPEED,
    Contrast,
    Endpoint,
    make_contrasts,
    make_findings,
)
from experiments.report.curves import add_learning_curves
from experiments.report.findings import Finding
from experiments.report.pages import describe_protocol, describe_rates, write_report
from experiments.report.sentences import describe
from experiments.report.tables import certainty_table, results_table, scores_table, training_table
from experiments.run import Run
from experiments.studies.tuning import Tuning

Paper = Callable[[Run], float | None]  # what it printed for a run's row


@dataclasses.dataclass(frozen=True)
class Question:
    """What a study of methods wants to know, beside what its runs are.

    Attributes:
      setting: what all rows have in common, such as 'CIFAR-10'.
      axes: the fields in which the rows differ, the method last.
      sources: by method, who claims something of it; what has none is a question of ours.
      paper: accuracy that the paper printed.
      paper_loss: training loss that it printed.
      paper_effect: difference of the accuracies to the baseline that it printed.
      smallest: smallest difference of accuracies of interest of a run's row; by default one point.
      smallest_speed: smallest difference of interest of the mean log training loss; by default that of 5 %.
      headline: what the fields of the runs are whose accuracy the README may name; None names none.
      forest: methods that the forest plot of all studies draws.
      scores: further endpoints, such as the area under a curve; a summary names them as well.
      described: methods that are compared without being a part of the family.
      versus: the method that the others are compared with.
      by_protocol: whether the study's own report uses the words that a PROTOCOL.md fixed before the runs.
      one_family: whether all rows are one family; by default those of each setting are.
    """

    setting: str
    axes: Sequence[str] = ("model", "optimizer", "method")
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    paper: Paper | None = None
    paper_loss: Paper | None = None
    paper_effect: Paper | None = None
    smallest: Callable[[Run], float] | None = None
    smallest_speed: float = SPEED.smallest
    headline: Mapping[str, str] | None = None
    forest: Collection[str] = ()
    scores: Sequence[Endpoint] = ()
    described: Collection[str] = ()
    versus: str = "baseline"
    by_protocol: bool = False
    one_family: bool = False


@dataclasses.dataclass(frozen=True)
class Answers:
    """What was found.

    Attributes:
      headings: of the rows' labels.
      rows: one per cell.
      contrasts: of every endpoint, by its score.
      findings: of the accuracy, the other scores and the speed of training.
      own_findings: the same in the words of the study's own report.
    """

    headings: Sequence[str]
    rows: Sequence[Row]
    contrasts: Mapping[str, Sequence[Contrast]]
    findings: Sequence[Finding]
    own_findings: Sequence[Finding]

    def tables(self, *, best_epoch: bool = False) -> list[str]:
        """Markdown: accuracies, other scores, training losses, and what is behind the verdicts."""
        accuracy = self.contrasts[ACCURACY.score]
        others = [c for score, c in self.contrasts.items() if score not in _OF_ALL_STUDIES and c]
        # Runs of one epoch have one training loss.
        several = any(row.cell.run.epochs > 1 for row in self.rows)
        losses = [
            self.contrasts[endpoint.score] for endpoint in (FINAL_LOSS, SPEED) if several or endpoint is SPEED
        ]
        certainty = certainty_table(self.headings, accuracy)
        return [
            results_table(self.headings, self.rows, accuracy, best_epoch=best_epoch),
            scores_table(self.headings, self.rows, others) if others else "",
            "Training. A ratio below 1: the loss is lower than the baseline's; its logarithm is averaged over seeds. "
            "Where the rates differ, it compares these too.",
            training_table(self.headings, self.rows, losses),
            "Behind the verdicts on the accuracy:" if certainty else "",
            certainty,
        ]


_OF_ALL_STUDIES = (ACCURACY.score, FINAL_LOSS.score, SPEED.score)


def compare_methods(cells: Iterable[Cell], question: Question) -> Answers:
    """Contrasts and findings of methods against one of them, from the runs that have ended."""

    def printed(run: Run) -> tuple[float | None, float | None]:
        accuracy, loss = question.paper, question.paper_loss
        return accuracy and accuracy(run), loss and loss(run)

    rows = make_rows(cells, question.axes, printed, question.versus)
    contrasts: dict[str, Sequence[Contrast]] = {}
    findings, own_findings = [], []
    speed = dataclasses.replace(SPEED, smallest=question.smallest_speed)
    for endpoint in (ACCURACY, *question.scores, speed, FINAL_LOSS):
        of_accuracy = endpoint is ACCURACY
        found = make_contrasts(
            rows,
            endpoint,
            paper=question.paper_effect if of_accuracy else None,
            smallest=question.smallest if of_accuracy else None,
            described=question.described,
            by_protocol=question.by_protocol,
            one_family=question.one_family,
        )
        contrasts[endpoint.score] = found
        if endpoint is not FINAL_LOSS:
            for words, own in ((findings, False), (own_findings, True)):
                words += make_findings(
                    found,
                    setting=question.setting,
                    sources=question.sources,
                    headline=question.headline if of_accuracy else None,
                    forest=question.forest if of_accuracy else (),
                    versus=question.versus,
                    own=own,
                )
    return Answers(names.headings(question.axes), rows, contrasts, findings, own_findings)


def describe_resolution(
    differences: Mapping[str, tuple[float, Sequence[Cell]]], tuning: Tuning, records: Sequence[RunRecord]
) -> str:
    """Which differences are smaller than what a quarter of a decade of the learning rate makes, in words.

    Args:
      differences: of accuracies, by name, and the cells whose they are.
      tuning: which chose the cells' learning rates.
    """
    drops = {names.labels(setting, tuning.axes): drop for setting, drop in tuning.drops(records).items()}
    words = [
        f"{name}: {ACCURACY.write(difference)}"
        for name, (difference, cells) in differences.items()
        if abs(difference) < max(drops[names.labels(cell.run, tuning.axes)] for cell in cells)
    ]
    if not words:
        return ""
    return (
        "Smaller than the fall of the validation accuracy from one of the best rates that they rest on to a "
        f"neighbour a quarter of a decade away: {'; '.join(words)} points."
    )


def write_grid_report(
    folder: Path,
    title: str,
    runs: Sequence[Run],
    records: Sequence[RunRecord],
    *,
    question: Question,
    settings: str,
    notes: str,
    tuning: Tuning | None = None,
    figures: str = "model",
    panels: str = "optimizer",
) -> None:
    """Writes report.md and findings.json: accuracies, other scores if there are any, and learning curves.

    Args:
      settings: table of what is set here and in the paper.
      tuning: which chose the learning rates, if one did.
      figures: the field of the runs that has a figure of learning curves for each value.
      panels: the field that has a panel of these figures for each value.
    """
    cells = make_cells(runs, records)
    answers = compare_methods(cells.values(), question)
    by_figure: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells.values():
        of_figure = by_figure.setdefault(getattr(cell.run, figures), {})
        of_figure.setdefault(names.label(cell.run, panels), []).append(cell)
    results = [
        *answers.tables(),
        *(
            add_learning_curves(folder, f"curves_{name}", _title(question, by_panel, panels), by_panel)
            for name, by_panel in by_figure.items()
        ),
    ]
    protocols = dict.fromkeys(describe_protocol(run) for run in runs)
    answer = describe(answers.findings)
    method = ["\n".join(f"- Protocol: {protocol}." for protocol in protocols), notes]
    tried = tuning.cells(records) if tuning else []
    if tuning:
        protocol = describe_protocol(tried[0].run)
        answer = "\n\n".join(filter(None, [answer, describe_rates(answers.rows, tried)]))
        method += [f"Tuning: score of every learning rate, in percent ({protocol}).", tuning.table(records)]
    write_report(
        folder,
        title,
        [*tried, *cells.values()],
        answers.findings,
        answer=answer,
        settings=settings,
        results=results,
        method=method,
    )


def _title(question: Question, panels: Mapping[str, Sequence[Cell]], field: str) -> str:
    """A figure's: the setting, what its panels and lines have in common, and the number of seeds."""
    cell = next(iter(panels.values()))[0]
    common = [axis for axis in question.axes if axis not in (field, "method")]
    seeds = len(cell.ended) + cell.missing
    return ", ".join([question.setting, *names.labels(cell.run, common), f"{seeds} seeds"])
