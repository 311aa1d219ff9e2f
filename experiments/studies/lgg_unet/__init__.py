"""Segmentation of brain tumours (lower-grade glioma) with a U-Net: every method, learning rates tuned.

    python -m experiments reproduce lgg_unet --preset cpu

Expected: test accuracy of the baseline 0.99 of the pixels; 104 core-minutes by the records.

After Yun, "ZNorm: Z-Score Gradient Normalization", 2024, arXiv 2408.01215, which reports that ZNorm improves F1,
Tversky index and Hausdorff distance on these slices. Its numbers, and its learning rate, batch size, epochs, loss,
width, initialisation and seeds did not reach us: this protocol is our own. Cross-entropy + Dice, flips and quarter
turns, constant learning rate. Every method gets the same grid of learning rates; one seed that is not reported
chooses by the F1 of held-out training patients, and the test patients are used for the reported seeds alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.jobs.measure import Measurement
from experiments.records import MeasurementRecord, RunRecord, read_measurements
from experiments.report import names
from experiments.report.cells import Cell, Row, make_cells, make_rows
from experiments.report.contrasts import ONE_POINT, SPEED, Contrast, Endpoint, make_contrasts, make_findings
from experiments.report.curves import add_learning_curves
from experiments.report.findings import Finding
from experiments.report.pages import describe_images, describe_protocol, describe_rates, write_report
from experiments.report.sentences import describe
from experiments.report.tables import (
    certainty_table,
    column,
    format_score,
    remarks,
    row_table,
    training_table,
)
from experiments.run import Run
from experiments.studies import medical
from experiments.studies.grid import METHODS, ZNORM_ALONE, Size, grid, rates_of
from experiments.studies.lgg_unet.masks import draw_masks, measure_masks, measure_slices
from experiments.studies.medical import SEEDS_ALONE
from experiments.studies.study import Study, settings_table
from experiments.studies.tuning import Tuning

SIZES = {
    "cpu": Size(
        dataset="lgg:64",
        models=("unet8",),
        methods=METHODS,
        optimizers=("adam",),
        epochs=24,
        batch_sizes=(16,),
        seeds=(0, 1, 2, 3, 4),
        tuning_epochs=12,
        validation_examples=120,
    ),
    "full": Size(
        dataset="lgg",
        models=("unet32",),
        methods=METHODS,
        optimizers=("adam", "sgdm"),
        epochs=100,
        batch_sizes=(16,),
        seeds=(0, 1, 2, 3, 4),
        tuning_epochs=50,
        validation_examples=120,
    ),
}
SIZES["smoke"] = SIZES["cpu"].small(
    dataset="lgg:32",
    methods=ZNORM_ALONE,
    epochs=30,
    batch_sizes=(8,),
    train_examples=160,
    test_examples=40,
    tuning_epochs=10,
    validation_examples=30,
)
GRID = {
    "adam": (0.0003, 0.001, 0.003, 0.01),
    "sgdm": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
}
AXES = ("optimizer", "method")
HEADINGS = names.headings(AXES)

# One point, and one pixel of the resized slice, are our own choice: the paper prints no effect.
SCORES = (
    Endpoint("f1", "F1", "points", ONE_POINT),
    Endpoint("dice", "Dice", "points", ONE_POINT),
    Endpoint("iou", "IoU", "points", ONE_POINT),
    Endpoint("tversky", "Tversky", "points", ONE_POINT),
    Endpoint("hausdorff", "Hausdorff", "pixels", 1.0, more_is_better=False, verb="lowers"),
    Endpoint("hausdorff95", "Hausdorff 95 %", "pixels", 1.0, more_is_better=False, verb="lowers"),
    Endpoint("one_empty", "one empty", "points", ONE_POINT, more_is_better=False, verb="lowers"),
)
CLAIMED = ("F1", "Tversky", "Hausdorff")

NOTES = """\
All scores are of the test patients' slices after the last epoch; a pixel is tumour where its probability is above
0.5. F1 is that of all pixels of all slices together; the others are means over slices. Dice is a slice's F1, IoU its
intersection over union, Tversky TP / (TP + 0.3 FP + 0.7 FN): 1 where both masks are empty. Hausdorff is the distance
of the masks' outlines in pixels of the resized slice, and its 95th percentile: 0 where both masks are empty and the
slice's diagonal where one is, which happens in the share "one empty" of the slices. A diverged run has no scores."""

PAPER = f"""\
{medical.PAPER}

For the U-Net on LGG MRI it says that ZNorm improves F1, Tversky index and Hausdorff distance over the baseline,
without numbers and without a protocol. The two numbers are accuracies of other tasks, beside which no score of this
page can stand: for 0.917 see the study `pcam`, for 0.812 `znorm_architectures` and `overlap_table1`."""

LOSSES = """\
The overlap in the training loss is that of a batch, in the test loss that of every slice alone, so the two curves are
not of one scale."""

DATA = """\
The published set has 3,929 slices of 256 x 256 pixels of 110 patients; `lgg:64` stands for slices resized to 64 x 64.
Whole patients are for training, for choosing the learning rate or for testing. The records that come with this
project are of 765 of these slices, stored at 128 x 128 pixels: 611 of 88 patients to train on and 154 of 22 other
patients to test on, of which smoke takes fewer."""


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """The tuning runs, and the reported runs whose tuning has ended."""
    return [*make_tuning(preset).runs(), *_reported_runs(preset, records)]


def make_tuning(preset: str) -> Tuning:
    size = SIZES[preset]
    base = size.run(learning_rate=1.0, augment="flip_rotate", loss="bce_dice")
    return Tuning(
        grid(base, optimizer=size.optimizers, method=size.methods),
        rates_of(preset, GRID),
        AXES,
        # Validation patients take the place of the test patients.
        changes={"epochs": size.tuning_epochs, "validation_examples": size.validation_examples},
        score="f1",
    )


def _reported_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    return make_tuning(preset).reported(records, SIZES[preset].seeds)


def make_measurements(preset: str) -> list[Measurement]:
    """The slices of the figure, and what the networks of the first seed predict for them."""
    tuning = make_tuning(preset)
    first = dataclasses.asdict(tuning.settings[0])
    measurements = [Measurement("slices", measure_slices, {"run": first})]
    for setting in tuning.settings:
        run = dataclasses.asdict(setting)
        # The learning rate is known only when the tuning has ended; dynamics change no network.
        del run["learning_rate"], run["dynamics"]
        own = dataclasses.replace(tuning, settings=[setting]).runs()
        arguments = {"run": run, "tuning": [dataclasses.asdict(tried) for tried in own]}
        measurements.append(Measurement(_masks_name(setting), measure_masks, arguments))
    return measurements


def _masks_name(run: Run) -> str:
    return f"masks-{run.optimizer}-{run.method}"


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md, findings.json, the learning curves and the figure of the masks."""
    size = SIZES[preset]
    tuning = make_tuning(preset)
    tried = tuning.cells(records)
    cells = make_cells(_reported_runs(preset, records), records)
    rows = make_rows(cells.values(), AXES)
    contrasts = {endpoint: make_contrasts(rows, endpoint) for endpoint in (*SCORES, SPEED)}
    panels: dict[str, list[Cell]] = {}
    for cell in cells.values():
        panels.setdefault(names.OPTIMIZERS[cell.run.optimizer], []).append(cell)
    title = f"LGG MRI, {names.model(size.models[0])}, {len(size.seeds)} seeds, tuned rates"
    certainty = certainty_table(HEADINGS, contrasts[SCORES[0]])
    results = [
        _scores_table(rows),
        "Differences to the baseline, paired by seed, with their 95 % intervals (points; Hausdorff in pixels):",
        _differences_table(rows, contrasts),
        "Behind the verdicts on F1:" if certainty else "",
        certainty,
        "### Masks",
        _figure(preset, rows, read_measurements(folder / "measurements"), folder),
        "### Training",
        training_table(HEADINGS, rows, [contrasts[SPEED]]),
        *(
            [add_learning_curves(folder, "curves", title, panels, above="test_loss"), LOSSES]
            if panels
            else []
        ),
    ]
    method = [
        f"- Data: {describe_images(cells.values(), 'slices')}.\n"
        f"- Protocol: {describe_protocol(tuning.settings[0])}.\n"
        f"- Learning rates: of one seed that is not reported, by F1 ({describe_protocol(tried[0].run)}).",
        DATA,
        NOTES,
        SEEDS_ALONE,
        PAPER,
        "Tuning: F1 of the held-out patients for every learning rate, in percent.",
        tuning.table(records),
    ]
    findings = _lgg_findings(contrasts)
    write_report(
        folder,
        "LGG MRI segmentation with a U-Net",
        [*tried, *cells.values()],
        findings,
        answer="\n\n".join(filter(None, [describe(findings), describe_rates(rows, tried)])),
        settings=settings_table(preset, SIZES, of_paper=False),
        results=results,
        method=method,
    )


def _lgg_findings(contrasts: Mapping[Endpoint, Sequence[Contrast]]) -> list[Finding]:
    """What the paper claims of ZNorm, and the speed of training."""
    found = []
    for endpoint, some in contrasts.items():
        claimed, primary = endpoint.title in CLAIMED, endpoint.title == "F1"
        if claimed or endpoint is SPEED:
            found += make_findings(
                some,
                setting="LGG MRI, tuned rates",
                sources={"znorm": "Yun 2024, arXiv 2408.01215"} if claimed else {},
                headline={"method": "znorm"} if primary else None,
                forest=("znorm", "gan", "centralization") if primary else (),
            )
    return found


def _scores_table(rows: Sequence[Row]) -> str:
    columns = {
        "rate": lambda row: f"{row.cell.run.learning_rate:g}",
        "seeds": lambda row: str(len(row.cell.ended)),
        **{
            f"{e.title}{', %' if e.unit == 'points' else ''}": lambda row, e=e: format_score(
                row.cell, e.score
            )
            for e in SCORES
        },
        "remarks": lambda row: remarks(row.cell),
    }
    return row_table(HEADINGS, rows, columns, text=("remarks",), tell=True, keep=tuple(columns)[2:-1])


def _differences_table(rows: Sequence[Row], contrasts: Mapping[Endpoint, Sequence[Contrast]]) -> str:
    columns = {
        endpoint.title: column(
            contrasts[endpoint],
            lambda c: f"{c.endpoint.write_interval(c.interval)} {c.word}",
            missing=lambda row: "-",
        )
        for endpoint in SCORES
    }
    compared = [row for row in rows if row.baseline is not None]
    return row_table(HEADINGS, compared, columns, keep=tuple(columns))


def _figure(preset: str, rows: Sequence[Row], measured: Mapping[str, MeasurementRecord], folder: Path) -> str:
    size = SIZES[preset]
    predictions, missing = {}, []
    for row in rows:
        run, name = row.cell.run, _masks_name(row.cell.run)
        if name not in measured:
            missing.append(f"{run.method} with {run.optimizer}, not measured yet")
            continue
        values = measured[name].values
        if (rate := values.get("learning_rate", run.learning_rate)) != run.learning_rate:
            missing.append(
                f"{run.method} with {run.optimizer}, measured at learning rate {rate:g} and not at the chosen "
                f"{run.learning_rate:g} (remove measurements/{name}.json to measure it again)"
            )
            continue
        method, optimizer = names.METHODS[run.method], names.OPTIMIZERS[run.optimizer]
        title = f"{method}\n{optimizer}" if len(size.optimizers) > 1 else method
        predictions[title] = values
    absent = f"\n\nMissing: {'; '.join(missing)}." if missing else ""
    if "slices" not in measured or not predictions:
        return f"No masks were measured yet.{absent}"
    draw_masks(folder / "masks.png", measured["slices"].values, predictions)
    return (
        "![Slices, true masks, and what the network of every method predicts](masks.png)\n\n"
        "FLAIR channel of test slices, chosen by their true masks alone: small to large tumours, and one slice\n"
        "without. Green: the true mask, and its outline; vermilion: predicted by the network of seed "
        f"{size.seeds[0]}.\nThe darkest and the brightest pixels of each slice are shown as black and white.\n"
        f"Slices of Buda, Saha and Mazurowski 2019, from The Cancer Imaging Archive (TCGA-LGG).{absent}"
    )


STUDY = Study(
    name="lgg_unet",
    title="Brain tumour segmentation with a U-Net and every method (Yun 2024, arXiv 2408.01215)",
    runs=make_runs,
    report=make_report,
    measurements=make_measurements,
    keep_checkpoints=True,
    undecided=(
        "765 of 3,929 slices, rates by one tuning seed, which gave the baseline another one than all methods; all "
        "slices and two tuning seeds would tell"
    ),
)
