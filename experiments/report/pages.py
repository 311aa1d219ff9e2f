"""Pages: what all reports say of their runs, in words, and the files they are written to."""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from experiments.files import write_whole
from experiments.report.cells import Cell
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
            "resized_crop": "random-resized crops and flips",
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


def describe_origin(cells: Iterable[Cell]) -> str:
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
        describe_origin(cells),
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
