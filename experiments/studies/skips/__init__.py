"""What do skip connections have to do with ZNorm? Fixed before its runs.

    python -m experiments reproduce skips --preset cpu

The preset `cpu` trains on 7 million images, 2 million of which are those of `steps_and_images`: its published records
of ResNet-20 count here too, once they are copied into this study's folder.

`experiments/results/skips/PROTOCOL.md` holds the questions, the contrasts and the rules. In short: the setting of
`steps_and_images`, part a, all images, in three networks: ResNet-20, its twin without skip connections, and ResNet-20
with the gradients that leave its shortcuts multiplied by 1.5, which is how Yun 2024, arXiv 2410.21564, simulates
gradient overlap. Each network and method has its own tuned rate.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report.cells import Cell, make_cells
from experiments.report.contrasts import ACCURACY
from experiments.report.findings import Finding
from experiments.report.pages import COMPARED, describe_protocol, describe_waiting, write_report
from experiments.run import Run
from experiments.studies.comparison import Question, compare_methods, describe_resolution
from experiments.studies.grid import ZNORM_ALONE
from experiments.studies.skips.answer import (
    Effects,
    answer,
    compare_networks,
    differences_table,
    judge_claims,
)
from experiments.studies.steps_and_images import plan
from experiments.studies.study import Study, settings_table
from experiments.studies.tuning import TUNING_SEEDS, Tuning

AXES = ("steps", "model", "method")


@dataclasses.dataclass(frozen=True)
class Size(plan.Size):
    """That of `steps_and_images`, whose network is the first of three.

    Attributes:
      plain_twin: the network without skip connections.
      overlap_twin: the network with the gradients that leave its shortcuts multiplied by 1.5.
    """

    plain_twin: str
    overlap_twin: str

    @property
    def models(self) -> tuple[str, str, str]:
        """In the order of `Effects`."""
        return self.model, self.plain_twin, self.overlap_twin


SIZES = {
    preset: Size(
        **dataclasses.asdict(size),
        plain_twin=size.model.replace("resnet", "plain"),
        overlap_twin=f"{size.model}_overlap",
    )
    for preset, size in plan.SIZES.items()
}
# The cell of `steps_and_images` that has few steps and all images; ResNet-20's runs are the same ones.
PARTS = {
    preset: dataclasses.replace(parts[0], images=(SIZES[preset].all_images,), methods=ZNORM_ALONE)
    for preset, parts in plan.PARTS.items()
}
QUESTION = Question(setting="CIFAR-10, SGDM, tuned rates", axes=AXES, forest=("znorm",), one_family=True)


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """The tuning, and the reported runs of every network and method whose tuning has ended."""
    return [*make_tuning(preset).runs(records), *reported_runs(preset, records)]


def make_tuning(preset: str) -> Tuning:
    """As in `steps_and_images`, network by network."""
    return plan.make_tuning(preset, PARTS[preset], SIZES[preset].models, AXES)


def reported_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """As far as the tuning has ended."""
    return make_tuning(preset).reported(records, PARTS[preset].seeds)


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and findings.json; nothing is compared before all runs have ended."""
    tuning = make_tuning(preset)
    tried = tuning.cells(records)
    cells = list(make_cells(reported_runs(preset, records), records).values())
    text, findings = "", []
    waiting = describe_waiting([*tried, *cells])
    results = [waiting]
    if not waiting:
        text, findings, results = _compare(preset, cells, tuning, records)
    write_report(
        folder,
        "What do skip connections have to do with ZNorm?",
        [*tried, *cells],
        findings,
        answer=text,
        settings=settings_table(preset, SIZES, of_paper=False),
        results=results,
        method=[
            "- Questions, endpoints and analysis were fixed before the runs: [PROTOCOL.md](../PROTOCOL.md).",
            "Tuning: validation accuracy of every learning rate, in percent, seeds "
            f"{', '.join(map(str, TUNING_SEEDS))} ({describe_protocol(tried[0].run)}).",
            tuning.table(records),
        ],
        compared=(*COMPARED, "model"),
    )


def _compare(
    preset: str, cells: Sequence[Cell], tuning: Tuning, records: Sequence[RunRecord]
) -> tuple[str, list[Finding], list[str]]:
    """The answer, findings and Markdown of the results."""
    answers = compare_methods(cells, QUESTION)
    by_model = {contrast.row.cell.run.model: contrast for contrast in answers.contrasts[ACCURACY.score]}
    effects = Effects(*(by_model[model] for model in SIZES[preset].models))
    differences = compare_networks(effects)
    resolved = {
        **{", ".join(c.row.labels): (c.interval.mean, c.cells) for c in by_model.values()},
        **{d.name: (d.interval.mean, d.cells) for d in differences},
    }
    results = [
        f"All runs: {describe_protocol(cells[0].run)}.",
        *answers.tables(),
        "### From network to network",
        differences_table(differences),
        describe_resolution(resolved, tuning, records),
    ]
    return answer(effects), [*judge_claims(effects), *answers.findings], results


STUDY = Study(
    name="skips",
    title="What do skip connections have to do with ZNorm? Fixed before its runs (see its PROTOCOL.md)",
    runs=make_runs,
    report=make_report,
)
