"""Beyond BatchNorm: four claims about normalizers at initialisation, and what gradient normalization adds.

Lubana, Dick and Tanaka, "Beyond BatchNorm: Towards a Unified Understanding of Normalization in Deep Learning", 2021,
arXiv 2106.05956. CIFAR-100 without augmentation at initialisation; trainings with SGD, momentum 0.9 and flips, 60
epochs of batch 256, learning rate 0.1 (0.01 for 20 plain layers), divided by 10 after 80 % of the epochs.

Preset cpu takes 1.98 core-hours by its records, about 30 minutes on four cores, and up to 3.3 GB of memory for each.
`plan` says what is measured and trained, `measures` measures it with the `probes`, `results` reads it; `claims`,
`further` and `trainings` compute the numbers. `sections` is the report as data: every claim with what decides it,
from `verdicts`, among its texts, `tables` and `figures`.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.records import RunRecord, read_measurements
from experiments.report.cells import make_cells
from experiments.report.findings import claims_table
from experiments.report.pages import write_report
from experiments.studies.beyond_batchnorm.plan import SIZES, make_measurements, make_runs
from experiments.studies.beyond_batchnorm.results import Results
from experiments.studies.beyond_batchnorm.sections import SECTIONS
from experiments.studies.study import Study, settings_table


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and a figure for each claim."""
    size = SIZES[preset]
    results = Results(size, read_measurements(folder / "measurements"), records)
    cells = make_cells(make_runs(preset, records), records)
    findings = [
        finding for section in SECTIONS for claim in section.claims for finding in claim.findings(results)
    ]
    write_report(
        folder,
        "Beyond BatchNorm: four claims about normalizers",
        list(cells.values()),
        findings,
        settings=settings_table(preset, SIZES),
        results=[claims_table(findings), *(section.describe(results, folder) for section in SECTIONS)],
        method=[_protocol(results, preset)],
    )


def _protocol(results: Results, preset: str) -> str:
    wanted = make_measurements(preset)
    made = [results.measurements[m.name] for m in wanted if m.name in results.measurements]
    hours = sum(record.seconds for record in made) / 3600
    missing = len(wanted) - len(made)
    size = results.size
    return (
        f"{len(made)} measurements, {hours:.2f} hours added up"
        + (f"; **{missing} are missing**" if missing else "")
        + f". At initialisation every number is a mean over {len(size.seeds)} seeds, each with its own weights and "
        f"{size.batches * size.batch_size:,} training images of CIFAR-100 without augmentation in batches of "
        f"{size.batch_size} (in batches of 16: {16 * size.small_batches:,}), normalised with mean and deviation 0.5, "
        "in training mode. Quantities given as logarithms are averaged as logarithms. Trainings normalise by the "
        "data set's own mean and deviation; weight decay 0.001 does not pass through the momentum (in the paper "
        "0.0001, which does)."
    )


STUDY = Study(
    name="beyond_batchnorm",
    title="Four claims about normalizers at initialisation (Lubana et al. 2021, arXiv 2106.05956)",
    runs=make_runs,
    report=make_report,
    measurements=make_measurements,
)
