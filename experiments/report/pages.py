"""Pages: what all reports say of their runs, in words, and the files they are written to."""

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from experiments.files import write_whole
from experiments.report import findings as findings_module
from experiments.report import names, sentences
from experiments.report.cells import Cell, Row, processor
from experiments.report.findings import Finding
from experiments.report.markdown import escape, remove_tags
from experiments.run import CROSS_ENTROPY, Run

EXPERIMENTS = Path(__file__).resolve().parents[1]
REPORT = "report.md"
COMPARED = ("method", "learning_rate", "dynamics")  # in what runs of one seed differ that are compared


def describe_protocol(run: Run) -> str:
    """All of a run's settings but model, method, learning rate and seed, in words of Markdown."""
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
    if run.evaluated_epochs:
        evaluated += f" after the last {_every(run.evaluated_epochs).removeprefix('1 ')}"
    schedule = {
        "constant": "constant learning rate",
        "cosine": "cosine schedule",
        "step": f"learning rate x {run.step_factor:g} every " + _every(run.step_epochs),
    }[run.schedule]
    parts = [
        f"{escape(names.dataset(run.data_name))}, {images} training images, {evaluated}",
        {
            "none": "no augmentation",
            "flip": "random flips",
            "crop_flip": "random crops and flips",
            "flip_rotate": "random flips and quarter turns",
            "resized_crop": "random-resized crops and flips",
        }[run.augment],
        _count(run.epochs, "epoch") if run.steps is None else f"{run.steps:,} steps",
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


def _every(epochs: int) -> str:
    return "epoch" if epochs == 1 else _count(epochs, "epoch")


def _count(number: float, noun: str) -> str:
    return f"{round(number, 2):g} {noun}" + ("" if number == 1 else "s")


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
    settings = [
        f"{escape(names.model(c.run.model))}, {names.OPTIMIZERS[c.run.optimizer]} {c.run.learning_rate:g}, "
        f"{names.METHODS[c.run.method]} ({c.missing})"
        for c in cells
        if c.missing
    ]
    more = len(settings) - 4
    listed = "; ".join(settings[:4]) + (f" and {more} more settings" if more > 0 else "")
    return f"**{missing} of {ended + missing} runs are missing**: {listed}."


def describe_waiting(cells: Collection[Cell], unnamed: int = 0) -> str:
    """Why nothing is compared yet, where a protocol compares no part of its runs; empty when all have ended.

    Args:
      unnamed: how many runs have no cell yet, as their learning rates are still tuned.
    """
    ended, missing = sum(len(cell.ended) for cell in cells), sum(cell.missing for cell in cells) + unnamed
    if not missing:
        return ""
    return f"{ended} of {ended + missing} runs have ended. Nothing is compared before all have."


def describe_diverged(cells: Iterable[Cell], axes: Sequence[str]) -> str:
    """Which cells have runs that diverged, in words; empty where none did.

    Args:
      axes: the fields of a run that name its cell.
    """
    named = [
        f"{', '.join(names.labels(cell.run, axes))} ({cell.diverged} of {len(cell.ended)})"
        for cell in cells
        if cell.diverged
    ]
    return f"With diverged runs: {escape('; '.join(named))}." if named else ""


def describe_processors(cells: Iterable[Cell], compared: Collection[str] = COMPARED) -> str:
    """Which runs that are compared seed by seed were made on several kinds of processor; empty where none were.

    Args:
      compared: the fields of a run in which they may differ.
    """
    same = [field.name for field in dataclasses.fields(Run) if field.name not in compared]
    shown = [axis for axis in ("model", "optimizer", "train_examples", "steps") if axis in same]
    kinds: dict[tuple, tuple[str, int, set[str]]] = {}
    for cell in cells:
        where = ", ".join(names.labels(cell.run, shown))
        for record in cell.ended.values():
            key = tuple(getattr(record.run, field) for field in same)
            kinds.setdefault(key, (where, record.run.seed, set()))[2].add(processor(record))
    seeds: dict[tuple[str, str], list[str]] = {}
    for where, seed, some in kinds.values():
        if len(some) > 1:
            seeds.setdefault((where, "; ".join(sorted(some))), []).append(str(seed))
    named = [
        f"{where}: seed{'s' * (len(some) > 1)} {', '.join(some)} ({words})"
        for (where, words), some in seeds.items()
    ]
    if not named:
        return ""
    return (
        f"**Runs of one seed are of several kinds of processor**: {escape('. '.join(named))}. What is told of these "
        "compares the processors too."
    )


def describe_rates(rows: Iterable[Row], tuning: Iterable[Cell]) -> str:
    """Which methods were given another learning rate than the baseline, in words; empty where none was.

    Args:
      rows: of the table, whose last label is the method.
      tuning: cells of the runs that chose the rates.
    """
    rates: dict[str, list[str]] = {}
    for row in rows:
        ours, theirs = row.cell.run, row.baseline and row.baseline.run
        if theirs is not None and ours.learning_rate != theirs.learning_rate:
            setting = f"{', '.join(row.labels[:-1])}, not {theirs.learning_rate:g}"
            rates.setdefault(setting, []).append(f"{row.labels[-1]} {ours.learning_rate:g}")
    if not rates:
        return ""
    seeds = len({seed for cell in tuning for seed in cell.ended})
    told = "; ".join(f"{setting}: {', '.join(words)}" for setting, words in rates.items())
    return (
        f"Not at the baseline's learning rate, by {_count(seeds, 'tuning seed')}: {told}. What is told of these "
        "compares method and rate together: a lower training loss can be the rate's."
    )


def describe_origin(cells: Iterable[Cell]) -> str:
    """Where the runs were made and how long they took, from their records."""
    records = list({r.run.name: r for cell in cells for r in cell.ended.values()}.values())
    if not records:
        return "No run has ended yet."
    keys = {
        "versions": lambda e: ", ".join(
            f"{package} {e[package]}"
            for package in ("python", "jax", "flax", "optax", "optax_gradnorm")
            if package in e
        ),
        "commit": lambda e: f"{str(e.get('commit'))[:12]}{' with local changes' if e.get('dirty') else ''}",
    }
    devices = {f"{r.environment.get('device_count', 1)} x {processor(r)}" for r in records}
    parts = [f"device: {escape('; '.join(sorted(devices)))}"]
    for key, describe in keys.items():
        values = sorted({describe(record.environment) for record in records})
        parts.append(f"{key}: {escape('; '.join(values))}")
    hours = sum(r.compile_seconds + sum(e.seconds for e in r.epochs) for r in records) / 3600
    return (
        f"{len(records)} runs, {hours:.2f} hours of training and compilation added up; "
        + "; ".join(parts)
        + "."
    )


def write_report(
    folder: Path,
    title: str,
    cells: Sequence[Cell],
    findings: Sequence[Finding],
    *,
    settings: str = "",
    results: Sequence[str],
    method: Sequence[str] = (),
    answer: str = "",
    own_findings: Sequence[Finding] | None = None,
    keep_findings: bool = True,
    compared: Collection[str] = COMPARED,
) -> None:
    """Writes report.md and findings.json.

    Args:
      findings: the answers, from which its head is made.
      settings: a table of what is set here and in the paper.
      method: Markdown of how they came about; where the runs were made follows.
      answer: of the study in two sentences; by default made of the findings.
      own_findings: the answers in the words that a protocol fixed for this report; by default the findings.
      keep_findings: writes findings.json too, which has no place among records.
      compared: the fields in which runs of one seed differ that are compared.
    """
    link = f"{folder.parent.name}/{folder.name}/{REPORT}"
    findings = [dataclasses.replace(finding, link=link) for finding in findings]
    if keep_findings:
        findings_module.write_findings(folder, findings)
    completeness = describe_completeness(cells)
    is_whole = not any(cell.missing for cell in cells)
    findings = findings if own_findings is None else own_findings
    counts = sentences.answers_table(findings)
    parts = [
        f"# {escape(title)}",
        answer or sentences.describe(findings),
        sentences.describe_detectable(findings),
        describe_processors(cells, compared),
        "" if is_whole else completeness,
        settings,
        "## Results",
        counts if len(findings) > 1 else "",
        *results,
        "## Method",
        *method,
        completeness if is_whole else "",
        describe_origin(cells),
        _how_to_read(folder),
    ]
    write_page(folder / REPORT, parts)


def _how_to_read(folder: Path) -> str:
    if folder.resolve().parent.parent == EXPERIMENTS / "results":
        return "[How to read this report](../../../README.md#how-to-read-a-report)."
    return "How to read this report: experiments/README.md."


def write_page(path: Path, parts: Iterable[str]) -> None:
    """Writes paragraphs, but for empty ones, as a Markdown page, in place of an older one.

    Raises:
      FileError: the page cannot be written; an older one is left as it was.
    """
    text = remove_tags("\n\n".join(part for part in parts if part)) + "\n"
    write_whole(path, lambda file: file.write(text.encode(errors="replace")))
