"""What studies share that compare methods: their contrasts, findings and report."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments.records import RunRecord
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


@dataclasses.dataclass(frozen=True)
class Question:
    """What a study of methods wants to know, beside what its runs are.

    Attributes:
      setting: what all rows have in common, such as 'CIFAR-10'.
      source: who claims something of a run's method; empty for a question of ours.
      paper: difference of the accuracies to the baseline that the paper printed for a run's row.
      smallest: smallest difference of accuracies of interest; by default one point.
      smallest_speed: smallest difference of interest of the mean log training loss; by default that of 5 %.
      headline: whether the table of all studies in the README names a run's accuracy.
      forest: whether the forest plot of all studies draws it.
      scores: further endpoints, such as the area under a curve; whether a summary names them as well.
      described: methods that are compared without being a part of the family.
      versus: what the rows are compared with, where that is not the baseline.
      by_protocol: whether the study's own report uses the words that a PROTOCOL.md fixed before the runs.
    """

    setting: str
    source: Callable[[Run], str] = lambda run: ""
    paper: Callable[[Run], float | None] = lambda run: None
    smallest: Callable[[Run], float] | None = None
    smallest_speed: float = SPEED.smallest
    headline: Callable[[Run], bool] = lambda run: False
    forest: Callable[[Run], bool] = lambda run: False
    scores: Sequence[Endpoint] = ()
    described: Sequence[str] = ()
    versus: str = ""
    by_protocol: bool = False


@dataclasses.dataclass(frozen=True)
class Answers:
    """What was found.

    Attributes:
      rows: one per cell.
      contrasts: of every endpoint, by its score.
      findings: of the accuracy, the other scores and the speed of training.
      own_findings: the same in the words of the study's own report.
    """

    rows: Sequence[Row]
    contrasts: Mapping[str, Sequence[Contrast]]
    findings: Sequence[Finding]
    own_findings: Sequence[Finding]

    def tables(self, headings: Sequence[str], *, best_epoch: bool = False) -> list[str]:
        """Markdown: accuracies, other scores, training losses, and what is behind the verdicts."""
        accuracy = self.contrasts[ACCURACY.score]
        others = [c for score, c in self.contrasts.items() if score not in _OF_ALL_STUDIES and c]
        losses = [self.contrasts[FINAL_LOSS.score], self.contrasts[SPEED.score]]
        certainty = certainty_table(headings, accuracy)
        return [
            results_table(headings, self.rows, accuracy, best_epoch=best_epoch),
            scores_table(headings, self.rows, others) if others else "",
            "Training. A ratio below 1: the loss is lower than the baseline's; its logarithm is averaged over seeds. "
            "Where the rates differ, it compares these too.",
            training_table(headings, self.rows, losses),
            "Behind the verdicts on the accuracy:" if certainty else "",
            certainty,
        ]


_OF_ALL_STUDIES = (ACCURACY.score, FINAL_LOSS.score, SPEED.score)


def compare_methods(rows: Sequence[Row], question: Question) -> Answers:
    """Contrasts and findings of methods against the baseline, from the runs that have ended.

    Args:
      rows: of the table, whose last label is the method.
      question: what is asked.
    """
    contrasts: dict[str, Sequence[Contrast]] = {}
    findings, own_findings = [], []
    speed = dataclasses.replace(SPEED, smallest=question.smallest_speed)
    for endpoint in (ACCURACY, *question.scores, speed, FINAL_LOSS):
        of_accuracy = endpoint is ACCURACY
        found = make_contrasts(
            rows,
            endpoint,
            paper=question.paper if of_accuracy else lambda run: None,
            smallest=question.smallest if of_accuracy else None,
            described=question.described,
            by_protocol=question.by_protocol,
        )
        contrasts[endpoint.score] = found
        if endpoint is not FINAL_LOSS:
            for words, own in ((findings, False), (own_findings, True)):
                words += make_findings(
                    found,
                    setting=question.setting,
                    source=question.source,
                    headline=question.headline if of_accuracy else lambda run: False,
                    forest=question.forest if of_accuracy else lambda run: False,
                    versus=question.versus,
                    own=own,
                )
    return Answers(rows, contrasts, findings, own_findings)


def write_grid_report(
    folder: Path,
    title: str,
    runs: Sequence[Run],
    records: Sequence[RunRecord],
    *,
    settings: str,
    question: Question,
    headings: Sequence[str],
    labels: Callable[[Run], tuple[str, ...]],
    figure: Callable[[Run], tuple[str, str]],
    panel: Callable[[Run], str],
    notes: str,
    paper_accuracy: Callable[[Run], float | None] = lambda run: None,
    tuning: Sequence[Cell] = (),
    tuning_table: str = "",
) -> None:
    """Writes report.md and findings.json: accuracies, other scores if there are any, and learning curves.

    Args:
      folder: where to.
      title: of the report.
      runs: all runs of the study.
      records: what was made.
      settings: table of what is set here and in the paper.
      question: what is asked.
      headings: of the columns that `labels` gives.
      labels: of a run's row; the last one is the method.
      figure: name and title of the figure that a run belongs to.
      panel: title of the panel of that figure.
      notes: Markdown on the method.
      paper_accuracy: what the paper printed for a run's row, if anything.
      tuning: cells of the runs that chose the learning rates, if there are any.
      tuning_table: Markdown of what they chose.
    """
    cells = make_cells(runs, records)
    rows = make_rows(cells.values(), labels, lambda run: (paper_accuracy(run), None))
    answers = compare_methods(rows, question)
    figures: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    for cell in cells.values():
        figures.setdefault(figure(cell.run), {}).setdefault(panel(cell.run), []).append(cell)
    protocols = dict.fromkeys(describe_protocol(run) for run in runs)
    results = [
        *answers.tables(headings),
        *(
            add_learning_curves(folder, f"curves_{n}", words, panels)
            for (n, words), panels in figures.items()
        ),
    ]
    answer = describe(answers.findings)
    method = ["\n".join(f"- Protocol: {protocol}." for protocol in protocols), notes]
    if tuning:
        protocol = describe_protocol(tuning[0].run)
        answer = "\n\n".join(filter(None, [answer, describe_rates(rows, tuning)]))
        method += [f"Tuning: score of every learning rate, in percent ({protocol}).", tuning_table]
    write_report(
        folder,
        title,
        [*tuning, *cells.values()],
        answers.findings,
        answer=answer,
        settings=settings,
        results=results,
        method=method,
    )
