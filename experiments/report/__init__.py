"""Tables and figures, from records only: nothing here trains."""

import collections
import dataclasses
import math
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from experiments.files import write_whole
from experiments.records import RunRecord
from experiments.report import style
from experiments.run import CROSS_ENTROPY, Run

HOW_TO_READ = (
    'Every run counts with its {score} after the last epoch, never with its best epoch. "mean ± s": mean and '
    'sample standard deviation over seeds. "vs baseline": mean difference to the baseline of the same protocol, '
    "model and optimizer, paired by seed, with its 95 % Student t-interval; an interval that contains 0 does not "
    "show a difference, nor do seeds that agree to the last digit, which give no interval. Intervals speak of the "
    "seeds alone, neither of other images nor of the choice of a learning rate. A run whose loss or parameters "
    "stopped being finite is ended there and called diverged: "
    "{diverged} Seconds per epoch are the median, without compilation. Non-finite steps are summed over the seeds."
)
DIVERGED = {
    "accuracy": "its network is evaluated as it is (chance level, once a parameter is NaN) and counts with that "
    "accuracy; its loss does not count.",
    "scores": "it has no scores, and its loss does not count.",
}
WIDTH = 110
# With fewer, an interval tells how a network came out, not how a method does.
FEWEST_SEEDS = 3
# Differences of equal accuracies come out unequal in their last digits.
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is known of the runs that differ in the seed alone.

    Attributes:
      run: one of them.
      ended: records of the finished and the diverged ones, by seed.
      missing: how many have not ended.
      messages: why runs failed.
    """

    run: Run
    ended: Mapping[int, RunRecord]
    missing: int = 0
    messages: tuple[str, ...] = ()

    @property
    def accuracies(self) -> dict[int, float]:
        """Accuracy after the last epoch, by seed."""
        return {seed: record.epochs[-1].test_accuracy for seed, record in self.ended.items()}

    def values(self, score: str) -> dict[int, float]:
        """'accuracy', or a score of the finished runs (a diverged run has none), by seed."""
        if score == "accuracy":
            return self.accuracies
        return {seed: record.scores[score] for seed, record in self.ended.items() if score in record.scores}

    @property
    def losses(self) -> list[float]:
        """Training loss of the last epoch of the runs that did not diverge."""
        return [record.epochs[-1].train_loss for record in self.ended.values() if record.status == "finished"]

    @property
    def diverged(self) -> int:
        """How many runs' loss or parameters stopped being finite."""
        return sum(record.status == "diverged" for record in self.ended.values())

    @property
    def seconds_per_epoch(self) -> float:
        """Median over all epochs of all runs."""
        seconds = [epoch.seconds for record in self.ended.values() for epoch in record.epochs]
        return statistics.median(seconds) if seconds else math.nan

    @property
    def nonfinite_steps(self) -> int:
        """Steps with a non-finite loss or gradient, summed over all runs."""
        return sum(epoch.nonfinite_steps for record in self.ended.values() for epoch in record.epochs)


def make_cells(runs: Iterable[Run], records: Iterable[RunRecord]) -> dict[Run, Cell]:
    """Groups runs that differ in the seed alone.

    Args:
      runs: all that belong into the report, made or not.
      records: what was made; records of other runs are ignored.

    Returns:
      One cell per setting, by the run with `setting` applied, in the order of `runs`.
    """
    # Recording the gradients changes no metric, so that a run with and one without it are the same here.
    ended_last = sorted(records, key=lambda record: record.status in ("finished", "diverged"))
    made = {dataclasses.replace(record.run, dynamics=False): record for record in ended_last}
    groups: dict[Run, list[Run]] = collections.defaultdict(list)
    for run in dict.fromkeys(runs):
        groups[setting(run)].append(run)
    cells = {}
    for key, members in groups.items():
        stripped = [dataclasses.replace(run, dynamics=False) for run in members]
        found = [made[run] for run in stripped if run in made]
        ended = {r.run.seed: r for r in found if r.status in ("finished", "diverged") and r.epochs}
        messages = tuple(r.message for r in found if r.status == "failed")
        cells[key] = Cell(members[0], ended, len(members) - len(ended), messages)
    return cells


def setting(run: Run) -> Run:
    """The run without its seed."""
    return dataclasses.replace(run, seed=0)


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; NaN where there are too few values."""
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else math.nan


def paired_difference(cell: Cell, baseline: Cell, score: str = "accuracy") -> tuple[float, float, int]:
    """Mean difference of the accuracies or another score, paired by seed, and its 95 % t-interval.

    Args:
      cell: the method's runs.
      baseline: the baseline's runs.
      score: see `Cell.values`.

    Returns:
      The mean difference, half the width of its interval (NaN with fewer than two seeds), and the number
      of seeds that both have.
    """
    ours, theirs = cell.values(score), baseline.values(score)
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    return *t_interval(differences), len(differences)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % Student t-interval; NaN where there are too few values."""
    from scipy import stats

    mean, std = mean_and_std(values)
    n = len(values)
    return mean, float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n) if n > 1 else math.nan


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
      labels: the first columns.
      cell: what was measured.
      baseline: what it is compared to; `None` for the baseline itself, and where it is missing.
      paper_accuracy: what the paper printed.
      paper_loss: what the paper printed.
    """

    labels: tuple[str, ...]
    cell: Cell
    baseline: Cell | None = None
    paper_accuracy: float | None = None
    paper_loss: float | None = None


def make_rows(
    cells: Iterable[Cell],
    labels: Callable[[Run], tuple[str, ...]],
    paper: Callable[[Run], tuple[float | None, float | None]] = lambda run: (None, None),
) -> list[Row]:
    """One row per cell, beside the baseline whose labels are the same but for the method.

    Args:
      cells: of all methods.
      labels: of a run's row; the last one is the method.
      paper: accuracy and loss that the paper printed, where it did.
    """
    cells = list(cells)
    baselines = {labels(c.run)[:-1]: c for c in cells if c.run.method == "baseline"}
    rows = []
    for cell in cells:
        own = labels(cell.run)
        baseline = None if cell.run.method == "baseline" else baselines.get(own[:-1])
        rows.append(Row(own, cell, baseline, *paper(cell.run)))
    return rows


def results_table(headings: Sequence[str], rows: Sequence[Row]) -> str:
    """A Markdown table of accuracies, losses and speed, beside the paper's numbers if there are any.

    Args:
      headings: of the rows' labels.
      rows: one per cell.
    """
    columns = {
        "learning rate": lambda row: f"{row.cell.run.learning_rate:g}",
        "seeds": lambda row: str(len(row.cell.ended)),
        "test accuracy": lambda row: format_score(row.cell),
        "paper accuracy": lambda row: format_number(row.paper_accuracy, ".4f"),
        "vs baseline [95 % interval]": format_difference,
        "training loss": lambda row: format_number(mean_and_std(row.cell.losses)[0], ".2e"),
        "paper loss": lambda row: format_number(row.paper_loss, ".1e"),
        "s/epoch": lambda row: format_number(row.cell.seconds_per_epoch, ".2f"),
        "non-finite steps": lambda row: str(row.cell.nonfinite_steps),
        "remarks": lambda row: remarks(row.cell),
    }
    if all(row.paper_accuracy is None for row in rows):
        del columns["paper accuracy"]
    if all(row.paper_loss is None for row in rows):
        del columns["paper loss"]
    lines = [[*row.labels, *(column(row) for column in columns.values())] for row in rows]
    return markdown_table([[*headings, *columns], *lines], left=len(headings))


def scores_table(headings: Sequence[str], rows: Sequence[Row], scores: Mapping[str, str]) -> str:
    """A Markdown table of the finished networks' scores, each with its difference to the baseline.

    Args:
      headings: of the rows' labels.
      rows: one per cell.
      scores: headings of the columns, and names in `RunRecord.scores`.
    """
    columns = [column for heading in scores for column in (heading, "vs baseline [95 % interval]")]
    lines = [[*headings, *columns]]
    for row in rows:
        cells = [
            text
            for score in scores.values()
            for text in (format_score(row.cell, score), format_difference(row, score))
        ]
        lines.append([*row.labels, *cells])
    return markdown_table(lines, left=len(headings))


def format_score(cell: Cell, score: str = "accuracy") -> str:
    """Mean ± standard deviation, or the mean alone of a single seed."""
    mean, std = mean_and_std(list(cell.values(score).values()))
    if math.isnan(mean):
        return "-"
    return f"{mean:.4f}" if math.isnan(std) else f"{mean:.4f} ± {std:.4f}"


def format_difference(row: Row, score: str = "accuracy") -> str:
    """Mean difference to the baseline with its interval."""
    if row.cell.run.method == "baseline":
        return ""
    if row.baseline is None:
        return "-"
    mean, half, n = paired_difference(row.cell, row.baseline, score)
    if n == 0:
        return "-"
    if math.isnan(half):
        return f"{mean:+.4f} [one seed]"
    pairs = "" if n == len(row.cell.values(score)) else f" ({n} seeds)"
    interval = "seeds agree" if half < ROUNDING else f"{mean - half:+.4f}, {mean + half:+.4f}"
    return f"{mean:+.4f} [{interval}]{pairs}"


def leaves_out_zero(row: Row, score: str = "accuracy") -> bool | None:
    """Whether the interval of the difference to the baseline leaves out 0; `None` with too few seeds."""
    if row.baseline is None:
        return None
    mean, half, n = paired_difference(row.cell, row.baseline, score)
    return None if n < FEWEST_SEEDS else half >= ROUNDING and abs(mean) > half


def describe_chance(rows: Iterable[Row], scores: Sequence[str] = ("accuracy",)) -> str:
    """How many intervals leave out 0, and how many would by chance; nothing where no seeds suffice."""
    rows = list(rows)
    found = [leaves_out_zero(row, score) for row in rows for score in scores]
    told = [answer for answer in found if answer is not None]
    if not told:
        return ""
    return (
        f"Intervals of 95 % that leave out 0: {sum(told)} of {len(told)}. If no method changed anything, about "
        f"{len(told) / 20:.1f} would by chance alone."
    )


def format_number(value: float | None, spec: str) -> str:
    """The number, or a dash where there is none."""
    return "-" if value is None or math.isnan(value) else format(value, spec)


def remarks(cell: Cell) -> str:
    """What the numbers alone do not say: diverged, missing and failed runs."""
    parts = []
    if cell.diverged:
        parts.append(f"{cell.diverged} of {len(cell.ended)} diverged")
    if cell.missing:
        parts.append(f"{cell.missing} missing")
    parts += [f"failed: {message}" for message in dict.fromkeys(cell.messages)]
    return "; ".join(parts).replace("|", "/")


def markdown_table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lays out a Markdown table, readable as plain text too.

    Args:
      rows: the headings and then the rows.
      left: how many columns are aligned to the left; the others are aligned to the right.
    """
    widths = [max(3, *(len(cell) for cell in column)) for column in zip(*rows, strict=True)]
    lines = [
        "| "
        + " | ".join(
            f"{cell:{'<' if i < left else '>'}{w}}"
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    rule = (
        "|" + "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])


def describe_protocol(run: Run) -> str:
    """All of a run's settings but model, method, learning rate and seed, in words."""
    images = "all" if run.train_examples is None else f"{run.train_examples:,}"
    tests = "all" if run.test_examples is None else f"{run.test_examples:,}"
    if run.validation_examples:
        # A subset is taken from what is left; and patients are held out whole, as far as they fit.
        whose = "of them" if run.train_examples is None else "others"
        at_most = "" if run.loss == CROSS_ENTROPY else "at most "
        evaluated = f"{at_most}{run.validation_examples:,} {whose} held out for validation"
    else:
        part = "validation" if run.data_name.endswith(":validation") else "test"
        evaluated = f"{tests} {part} images"
    schedule = {
        "constant": "constant learning rate",
        "cosine": "cosine schedule",
        "step": f"learning rate x {run.step_factor:g} every {_count(run.step_epochs, 'epoch')}",
    }[run.schedule]
    parts = [
        f"{run.data_name}, {images} training images, {evaluated}",
        {
            "none": "no augmentation",
            "flip": "random flips",
            "crop_flip": "random crops and flips",
            "flip_rotate": "random flips and quarter turns",
        }[run.augment],
        _count(run.epochs, "epoch"),
        f"batch {run.batch_size}",
        schedule,
    ]
    if run.warmup_epochs:
        parts.append(_count(run.warmup_epochs, "warm-up epoch"))
    parts.append(f"weight decay {run.weight_decay:g}")
    if run.loss != CROSS_ENTROPY:
        parts.append(f"{run.loss} loss")
    if run.label_smoothing:
        parts.append(f"label smoothing {run.label_smoothing:g}")
    if run.dtype != "float32":
        parts.append(f"computed in {run.dtype}")
    return ", ".join(parts)


def _count(number: float, noun: str) -> str:
    return f"{number:.4g} {noun}" + ("" if number == 1 else "s")


def describe_images(cells: Iterable[Cell], noun: str) -> str:
    """How many images of which size the records say there were, in words; `noun` says what they show."""
    found = {
        (data["train_images"], data["test_images"], *data["image_shape"][:2])
        for cell in cells
        for data in (record.data for record in cell.ended.values())
        if data
    }
    words = [
        f"{train:,} training and {test:,} test {noun} of {height} x {width} pixels"
        for train, test, height, width in sorted(found)
    ]
    return "; ".join(words) or "no run has ended yet"


def describe_completeness(cells: Iterable[Cell]) -> str:
    """One line that says how many runs there are and how many are missing."""
    cells = list(cells)
    ended = len({record.run.name for cell in cells for record in cell.ended.values()})
    missing = sum(cell.missing for cell in cells)
    if not missing:
        return f"All {ended} runs have ended."
    names = [f"{c.run.model} {c.run.method} {c.run.optimizer} ({c.missing})" for c in cells if c.missing]
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more settings" if len(names) > 8 else "")
    return f"**{missing} of {ended + missing} runs are missing**: {listed}."


def describe_environment(cells: Iterable[Cell]) -> str:
    """Where the runs were made and how long they took, from their records."""
    records = list({r.run.name: r for cell in cells for r in cell.ended.values()}.values())
    if not records:
        return "No run has ended yet."
    keys = {
        "device": lambda e: f"{e.get('device_count', 1)} x {e.get('device_kind')} ({e.get('backend')})",
        "versions": lambda e: ", ".join(
            f"{package} {e[package]}"
            for package in ("python", "jax", "flax", "optax", "optax_gradnorm")
            if package in e
        ),
        "commit": lambda e: f"{str(e.get('commit'))[:12]}{' with local changes' if e.get('dirty') else ''}",
    }
    parts = []
    for key, describe in keys.items():
        values = sorted({describe(record.environment) for record in records})
        parts.append(f"{key}: {'; '.join(values)}")
    hours = sum(r.compile_seconds + sum(e.seconds for e in r.epochs) for r in records) / 3600
    return (
        f"{len(records)} runs, {hours:.2f} hours of training and compilation added up; "
        + "; ".join(parts)
        + "."
    )


def write_report(
    folder: Path,
    heading: str,
    cells: Sequence[Cell],
    sections: Sequence[str],
    score: Literal["accuracy", "scores"] = "accuracy",
) -> None:
    """Writes report.md.

    Args:
      folder: where to.
      heading: first line; says what was reduced.
      cells: everything that the report is about.
      sections: Markdown, after what all reports have in common.
      score: what runs are judged by: their accuracy, or the other scores alone.
    """
    parts = [
        f"# {heading}",
        describe_completeness(cells),
        describe_environment(cells),
        textwrap.fill(HOW_TO_READ.format(score=score, diverged=DIVERGED[score]), WIDTH),
        *sections,
    ]
    write_page(folder / "report.md", parts)


def write_page(path: Path, parts: Iterable[str]) -> None:
    """Writes paragraphs, but for empty ones, as a Markdown page, in place of an older one.

    Raises:
      FileError: the page cannot be written; an older one is left as it was.
    """
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


Curve = Literal["test_accuracy", "test_loss"]


def add_figure(
    folder: Path,
    name: str,
    title: str,
    panels: Mapping[str, Sequence[Cell]],
    above: Curve = "test_accuracy",
) -> str:
    """Draws learning curves as NAME.png and NAME.svg; returns the Markdown that shows them."""
    draw_learning_curves(folder / name, title, panels, above)
    return (
        f"![{title}: {above.replace('_', ' ')} and training loss over epochs]({name}.svg)\n\n"
        "Line: mean over seeds; band: lowest to highest seed; cross: a run diverged."
    )


def draw_learning_curves(
    path: Path, title: str, panels: Mapping[str, Sequence[Cell]], above: Curve = "test_accuracy"
) -> None:
    """Draws a metric of the test images (above) and training loss (below) over epochs, one column per panel.

    A line is the mean over seeds, its band goes from the lowest to the highest seed, a cross marks the
    epoch in which a run diverged.

    Args:
      path: of the figure without suffix; writes .png and .svg.
      title: above the figure.
      panels: the cells of each column, by the column's title.
      above: the metric, a field of `EpochMetrics`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(style.STYLE):
        figure = Figure(figsize=(max(3.6 * len(panels), 5.4), 5.4), dpi=150, layout="constrained")
        axes = figure.subplots(2, len(panels), sharex="col", sharey="row", squeeze=False)
        lines = {}
        for column, (name, cells) in enumerate(panels.items()):
            upper, lower = axes[:, column]
            upper.set_title(name)
            lower.set_yscale("log")
            lower.set_xlabel("epoch")
            lower.xaxis.get_major_locator().set_params(integer=True)
            for cell in cells:
                if cell.ended:
                    lines[cell.run.method] = _draw_cell(upper, cell, above)
                    _draw_cell(lower, cell, "train_loss")
        style.label_narrow_log_axis(axes[1, 0].yaxis)
        axes[0, 0].set_ylabel(above.replace("_", " "))
        axes[1, 0].set_ylabel("training loss")
        figure.suptitle(title)
        methods = [method for method in style.METHOD_STYLES if method in lines]
        if methods:
            figure.legend(
                [lines[method] for method in methods],
                methods,
                loc="outside lower center",
                ncols=min(len(methods), 6),
            )
        style.save(figure, path)


def _draw_cell(axes, cell: Cell, metric: str):
    color, dashes = style.METHOD_STYLES[cell.run.method]
    records = list(cell.ended.values())
    values = np.full((len(records), max(len(record.epochs) for record in records)), np.nan)
    for row, record in zip(values, records, strict=True):
        row[: len(record.epochs)] = [getattr(epoch, metric) for epoch in record.epochs]
    values = np.ma.masked_invalid(values)
    epochs = np.arange(1, values.shape[1] + 1)
    if len(records) > 1:
        axes.fill_between(
            epochs, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0
        )
    (line,) = axes.plot(epochs, values.mean(axis=0), dashes, color=color, linewidth=1.4)
    for record in records:
        if record.status == "diverged":
            last = next((e for e in reversed(record.epochs) if math.isfinite(getattr(e, metric))), None)
            if last is not None:
                axes.plot(last.epoch, getattr(last, metric), "x", color=color, markersize=7)
    return line
