"""Segmentation of brain tumours (lower-grade glioma) with a U-Net: every method, learning rates tuned.

After Yun, "ZNorm: Z-Score Gradient Normalization", 2024, arXiv 2408.01215, which reports that ZNorm improves F1,
Tversky index and Hausdorff distance on these slices. Its numbers, and its learning rate, batch size, epochs, loss,
width, initialisation and seeds did not reach us: this protocol is our own. Cross-entropy + Dice, flips and quarter
turns, constant learning rate. Every method gets the same grid of learning rates; one seed that is not reported
chooses by the F1 of held-out training patients, and the test patients are used for the reported seeds alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import report
from experiments.config import Run
from experiments.measure import Measurement
from experiments.records import MeasurementRecord, RunRecord, read_measurements
from experiments.report import Row
from experiments.studies import Study, make_heading
from experiments.studies._tuning import choose_learning_rates, tuning_table
from experiments.studies.lgg_unet_masks import draw_masks, measure_masks, measure_slices

METHODS = ("baseline", "centralization", "clipping", "znorm", "gan")
TUNING_SEED = 100


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a preset is.

    Attributes:
      dataset: slices as they are stored, or resized.
      model: U-Net by its width.
      methods: what is done to the gradients.
      optimizers: behind each method.
      epochs: passes over the training slices.
      batch_size: slices per step.
      seeds: of the reported runs.
      train_examples: slices of the first patients in a random order; None takes all.
      test_examples: the same of the test patients.
      tuning_epochs: of the runs that choose a learning rate.
      validation_examples: about how many training slices these runs hold out, of whole patients.
    """

    dataset: str = "lgg"
    model: str = "unet32"
    methods: tuple[str, ...] = METHODS
    optimizers: tuple[str, ...] = ("adam", "sgdm")
    epochs: int = 100
    batch_size: int = 16
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    train_examples: int | None = None
    test_examples: int | None = None
    tuning_epochs: int = 50
    validation_examples: int = 120


SIZES = {
    "smoke": Size(
        dataset="lgg:32",
        model="unet8",
        methods=("baseline", "znorm"),
        optimizers=("adam",),
        epochs=30,
        batch_size=8,
        seeds=(0, 1),
        train_examples=160,
        test_examples=40,
        tuning_epochs=10,
        validation_examples=30,
    ),
    "cpu": Size(
        dataset="lgg:64",
        model="unet8",
        optimizers=("adam",),
        epochs=24,
        seeds=(0, 1, 2, 3, 4),
        tuning_epochs=12,
    ),
    "full": Size(),
}
GRID = {
    "adam": (0.0003, 0.001, 0.003, 0.01),
    "sgdm": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
}
GRIDS = {"smoke": {"adam": (0.003, 0.01)}, "cpu": GRID, "full": GRID}

# Columns of the tables, and whether more is better.
SCORES = {
    "F1": ("f1", True),
    "Dice": ("dice", True),
    "IoU": ("iou", True),
    "Tversky": ("tversky", True),
    "Hausdorff": ("hausdorff", False),
    "Hausdorff 95 %": ("hausdorff95", False),
    "one empty": ("one_empty", False),
}
CLAIMED = ("F1", "Tversky", "Hausdorff")

NOTES = """\
All scores are of the test patients' slices after the last epoch; a pixel is tumour where its probability is above
0.5. F1 is that of all pixels of all slices together; the others are means over slices. Dice is a slice's F1, IoU its
intersection over union, Tversky TP / (TP + 0.3 FP + 0.7 FN): 1 where both masks are empty. Hausdorff is the distance
of the masks' outlines in pixels of the resized slice, and its 95th percentile: 0 where both masks are empty and the
slice's diagonal where one is, which happens in the share "one empty" of the slices. A diverged run has no scores."""

PAPER = """\
The summary of Yun 2024, arXiv 2408.01215, that reached us says that ZNorm improves F1, Tversky index and Hausdorff
distance on LGG MRI over the baseline, and prints no numbers for them. Its 0.812 is the test accuracy of ResNet-56 on
CIFAR-10 (see the studies `znorm_architectures` and `overlap_table1`) and its 0.917 that of ResNet-101 on
PatchCamelyon (see `pcam`): other tasks and other metrics, which no column above can stand beside."""


def _run(size: Size, optimizer: str, method: str, learning_rate: float, seed: int) -> Run:
    return Run(
        dataset=size.dataset,
        model=size.model,
        method=method,
        optimizer=optimizer,
        learning_rate=learning_rate,
        epochs=size.epochs,
        batch_size=size.batch_size,
        seed=seed,
        augment="flip_rotate",
        train_examples=size.train_examples,
        test_examples=size.test_examples,
        loss="bce_dice",
    )


def _setting(run: Run) -> tuple[str, str]:
    return run.optimizer, run.method


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """The tuning runs, and the reported runs whose tuning has ended."""
    return [*_tuning_runs(preset), *_reported_runs(preset, records)]


def _tuning_runs(preset: str) -> list[Run]:
    size = SIZES[preset]
    runs = [
        _run(size, optimizer, method, learning_rate, TUNING_SEED)
        for optimizer in size.optimizers
        for method in size.methods
        for learning_rate in GRIDS[preset][optimizer]
    ]
    # Validation patients take the place of the test patients.
    changes = {"epochs": size.tuning_epochs, "validation_examples": size.validation_examples}
    return [dataclasses.replace(run, **changes) for run in runs]


def _reported_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    size = SIZES[preset]
    cells = report.make_cells(_tuning_runs(preset), records).values()
    chosen = choose_learning_rates(cells, _setting, score="f1")
    return [
        _run(size, optimizer, method, learning_rate, seed)
        for seed in size.seeds
        for (optimizer, method), learning_rate in chosen.items()
    ]


def make_measurements(preset: str) -> list[Measurement]:
    """The slices of the figure, and what the networks of the first seed predict for them."""
    size = SIZES[preset]
    measurements = []
    for optimizer in size.optimizers:
        for method in size.methods:
            run = dataclasses.asdict(_run(size, optimizer, method, 1.0, size.seeds[0]))
            # The learning rate is known only when the tuning has ended; dynamics change no network.
            del run["learning_rate"], run["dynamics"]
            measurements.append(Measurement(f"masks-{optimizer}-{method}", measure_masks, {"run": run}))
    any_run = dataclasses.asdict(_run(size, "adam", "baseline", 1.0, size.seeds[0]))
    return [Measurement("slices", measure_slices, {"run": any_run}), *measurements]


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md, the learning curves and the figure of the masks."""
    size = SIZES[preset]
    tuning = report.make_cells(_tuning_runs(preset), records)
    cells = report.make_cells(_reported_runs(preset, records), records)
    baselines = {cell.run.optimizer: cell for cell in cells.values() if cell.run.method == "baseline"}
    rows = [
        Row(_setting(c.run), c, None if c.run.method == "baseline" else baselines.get(c.run.optimizer))
        for c in cells.values()
    ]
    tuning_run, reported_run = _tuning_runs(preset)[0], _run(size, "adam", "baseline", 1.0, 0)
    sections = [
        f"- Protocol: {report.describe_protocol(reported_run)}.\n"
        f"- Learning rates: of one seed that is not reported, by F1 ({report.describe_protocol(tuning_run)}).",
        "## What was found",
        describe(rows),
        "## Scores",
        NOTES,
        _scores_table(rows),
        "Difference to the baseline, paired by seed, with its 95 % Student t-interval:",
        _differences_table(rows),
        "## Beside the paper",
        PAPER,
        "## Masks",
        _figure(preset, read_measurements(folder / "measurements"), folder),
        "## Training",
        _training_table(rows),
        "## Tuning: F1 of the held-out patients for every learning rate",
        tuning_table(("optimizer", "method"), tuning.values(), _setting, score="f1"),
    ]
    heading = make_heading("LGG MRI segmentation with a U-Net", preset, size, SIZES["full"])
    report.write_report(folder, heading, [*tuning.values(), *cells.values()], sections)


def describe(rows: Sequence[Row]) -> str:
    """Whether ZNorm improves what the paper says it does, and which other differences there are."""
    lines = []
    for row in rows:
        if row.baseline is None:
            continue
        words = {heading: _verdict(row, heading) for heading in SCORES}
        optimizer, method = row.labels
        if method == "znorm":
            claimed = "; ".join(f"{heading} {words[heading]}" for heading in CLAIMED)
            lines.append(f"- The paper's claim, ZNorm behind {optimizer}: {claimed}.")
        elif told := [f"{h} {w}" for h, w in words.items() if w in ("better", "worse")]:
            lines.append(f"- {method} behind {optimizer}: {'; '.join(told)}; the others show no difference.")
        else:
            lines.append(f"- {method} behind {optimizer}: no score shows a difference.")
    if not lines:
        return "Nothing has been trained yet."
    count = len(lines) * len(SCORES)
    lines.append(
        f"- These are {count} intervals of 95 %: about {count / 20:.1f} of them would leave out 0 by chance alone."
    )
    return "\n".join(lines)


def _verdict(row: Row, heading: str) -> str:
    """'better' or 'worse' where the interval of the difference to the baseline leaves out 0."""
    score, more_is_better = SCORES[heading]
    assert row.baseline is not None
    mean, half, n = report.paired_difference(row.cell, row.baseline, score)
    if n < 2:
        return "cannot be told from fewer than two seeds"
    if abs(mean) <= half:
        return "shows no difference"
    return "better" if (mean > 0) == more_is_better else "worse"


def _scores_table(rows: Sequence[Row]) -> str:
    table = [["optimizer", "method", "learning rate", "seeds", *SCORES, "remarks"]]
    for row in rows:
        values = [report.format_score(row.cell, score) for score, _ in SCORES.values()]
        rate = f"{row.cell.run.learning_rate:g}"
        table.append([*row.labels, rate, str(len(row.cell.ended)), *values, report.remarks(row.cell)])
    return report.markdown_table(table, left=2)


def _differences_table(rows: Sequence[Row]) -> str:
    table = [["optimizer", "method", *SCORES]]
    for row in rows:
        if row.baseline is not None:
            table.append(
                [*row.labels, *(report.format_difference(row, score) for score, _ in SCORES.values())]
            )
    return report.markdown_table(table, left=2)


def _training_table(rows: Sequence[Row]) -> str:
    table = [["optimizer", "method", "training loss", "s/epoch", "non-finite steps"]]
    for row in rows:
        loss, seconds = report.mean_and_std(row.cell.losses)[0], row.cell.seconds_per_epoch
        table.append(
            [
                *row.labels,
                report.format_number(loss, ".4f"),
                report.format_number(seconds, ".2f"),
                str(row.cell.nonfinite_steps),
            ]
        )
    return report.markdown_table(table, left=2)


def _figure(preset: str, measured: Mapping[str, MeasurementRecord], folder: Path) -> str:
    size = SIZES[preset]
    names = {f"masks-{o}-{m}": (o, m) for o in size.optimizers for m in size.methods}
    several = len(size.optimizers) > 1
    predictions = {
        f"{method}\n{optimizer}" if several else method: measured[name].values
        for name, (optimizer, method) in names.items()
        if name in measured
    }
    if "slices" not in measured or not predictions:
        return "No masks were measured yet."
    draw_masks(folder / "masks", measured["slices"].values, predictions)
    return (
        "![Slices, true masks, and what every method's network predicts](masks.svg)\n\n"
        "FLAIR channel of test slices, chosen by their true masks alone: small to large tumours, and one slice\n"
        f"without. Green: the true mask, and its outline; vermilion: predicted by the network of seed "
        f"{size.seeds[0]}.\nSlices of Buda, Saha and Mazurowski 2019, from The Cancer Imaging Archive (TCGA-LGG)."
    )


STUDY = Study(
    name="lgg_unet",
    title="Brain tumour segmentation with a U-Net and every method (Yun 2024, arXiv 2408.01215)",
    runs=make_runs,
    report=make_report,
    measurements=make_measurements,
    keep_checkpoints=True,
)
