"""Trains networks with and without gradient normalization, and reports what it changes.

Start with `compare`, which needs no download and takes one to three minutes. `list` shows the studies, of which
`reproduce` makes the tables.
"""

import functools
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console, RenderableType

from experiments import hosts, supervision
from experiments.options import DEFAULTS, OptionalFloat, OptionalInt, OptionalPath, OptionalStr, Options
from experiments.preflight import (
    UsageError,
    as_options,
    check_data,
    check_machine,
    check_model,
    check_names,
    check_out,
    check_same_command,
    check_seeds,
    find_study,
    resolve_dataset,
)
from experiments.run import METHODS, OPTIMIZERS
from experiments.studies import NAMES, load_studies

RUNS = Path("runs")  # working files, unknown to git
RESULTS = Path("experiments/results")  # what was published
# An unknown name ends with one line of ours, not with the parser's box.
StudyName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar=f"{{{','.join(NAMES)}}}")]

ReportedName = Annotated[
    str, tyro.conf.Positional, tyro.conf.arg(metavar=f"{{{','.join((*NAMES, 'compare'))}}}")
]

# Its options stand beside those of the command.
TrainingOptions = Annotated[Options, tyro.conf.arg(name="")]


def compare(
    dataset: str = "digits",
    model: str = "resnet8",
    methods: tuple[str, ...] = ("baseline", "centralization", "clipping", "znorm", "gan"),
    optimizers: tuple[str, ...] = ("sgdm", "adam"),
    seeds: tuple[int, ...] = (0, 1, 2),
    epochs: int = 10,
    batch_size: int = 64,
    learning_rate: OptionalFloat = None,
    train_examples: OptionalInt = None,
    out: Path = RUNS / "compare",
    options: TrainingOptions = DEFAULTS,
) -> None:
    """Trains one model with every method and optimizer, and prints their accuracies side by side.

    The same command goes on where it was interrupted.

    Args:
      dataset: digits (real 8x8 images, no download), cifar10, cifar100, patch_camelyon, pcam32,
        stream:NAME for a set too large for memory, jpeg:NAME or jpeg:NAME:SIZE for JPEGs of any size, or
        arrays:PATH.npz for your own.
      model: network, such as resnet8, resnet20, resnet56, plain20 (without skip connections), vgg16_bn or
        vit96_small; or one with any normalizer, such as cnn10w16:layer_norm or resnet20w16:group_norm:size=8.
      methods: what is done to the gradients before the optimizer: any of baseline, centralization, clipping
        (global norm 0.1), clipping_1 (global norm 1), clipping_value (each element, 0.1), znorm and gan.
      optimizers: any of sgdm (momentum 0.9), adam, adamw, rmsprop, lars and lamb.
      seeds: of initialisation and shuffling; one run of every method and optimizer per seed.
      epochs: passes over the training images.
      batch_size: images per step.
      learning_rate: for all runs; by default one per optimizer, the same for every method.
      train_examples: take only so many training images, equally many of each class.
      out: folder of the records (records/NAME.json), the report (report.md) and the figure (learning_curves.svg).
      options: how runs are made.
    """
    from experiments.reproduce import reproduce
    from experiments.studies.compare import make_study, make_table_rows, terminal_remarks, terminal_table

    check_out(out)
    hosts.join(options.devices, out)
    check_machine(options)
    check_model(model)
    check_names("--methods", methods, METHODS)
    check_names("--optimizers", optimizers, OPTIMIZERS)
    check_seeds(seeds)
    with as_options():
        study = make_study(
            resolve_dataset(dataset),
            model,
            methods,
            optimizers,
            seeds,
            epochs,
            batch_size,
            learning_rate,
            train_examples,
        )
    runs = study.runs("", [])
    check_same_command(runs, options)
    check_data(runs, options)
    records, _ = reproduce(study, "", out, options)
    if not hosts.is_first():
        return
    rows = make_table_rows(runs, records)
    _print(terminal_table(rows))
    for line in terminal_remarks(rows):
        print(line)
    print(f"Report: {out / 'report.md'}, figure: {out / 'learning_curves.svg'}, records: {out / 'records'}")
    _exit_if_failed(records)


def reproduce(
    study: StudyName,
    preset: Literal["smoke", "cpu", "full"] = "smoke",
    out: OptionalPath = None,
    options: TrainingOptions = DEFAULTS,
) -> None:
    """Trains what a table of a paper needs, and renders the report. The same command goes on after a stop.

    Args:
      study: which one; `list` says what each is.
      preset: smoke (minutes, shows that it works), cpu (reduced, up to hours), or full (full size:
        the paper's protocol as far as it is stated; for an accelerator).
      out: of working files and report, STUDY/PRESET is made in it; by default runs, where what was published
        counts as made. Another folder starts anew.
      options: how runs are made.
    """
    from experiments.records import take_published
    from experiments.reproduce import reproduce

    chosen = find_study(study)
    folder = (out or RUNS) / study / preset
    check_out(folder)
    runs = chosen.runs(preset, [])
    hosts.join(options.devices, folder)
    check_same_command(runs, options)
    check_machine(options)
    check_data(runs, options)
    if out is None:
        hosts.on_first(take_published, RESULTS / study / preset, folder)
    records, failures = reproduce(chosen, preset, folder, options)
    if not hosts.is_first():
        return
    print(f"Report: {folder / 'report.md'}, records: {folder / 'records'}")
    _exit_if_failed(records, failures)


def publish(
    study: ReportedName,
    preset: Literal["smoke", "cpu", "full"] = "cpu",
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
    out: Path = RESULTS,
) -> None:
    """Merges the runs that have ended into the files that git holds: one line per run, the same bytes each time.

    Runs that have not ended are excluded; the same command takes them when they have. `report` renders the result.

    Args:
      study: which one; `list` says what each is. compare has no presets: its runs are published as cpu.
      preset: which one.
      source: working folder, which holds records or measurements; by default runs/STUDY/PRESET, of compare
        runs/compare.
      out: of what is published; STUDY/PRESET is made in it.
    """
    from experiments.jobs.lock import FolderLock
    from experiments.records import publish

    chosen = find_study(study, with_compare=True)
    target = out / study / preset
    check = functools.partial(chosen.check_records, preset)
    source = source or (RUNS / study if study == "compare" else RUNS / study / preset)
    with FolderLock(target):  # two at once would each write what it read, without the other's lines
        count = publish(source, target, check)
    waiting = f"; {count.unfinished} more have not ended" if count.unfinished else ""
    print(f"Published: {target}, {count.runs} runs and {count.measurements} measurements{waiting}")


def report(
    study: ReportedName,
    preset: Literal["smoke", "cpu", "full"] | None = None,
    out: OptionalPath = None,
) -> None:
    """Renders a study's tables and figures from the records there are; trains nothing.

    Args:
      study: which one; `list` says what each is.
      preset: which one; by default every preset that has records.
      out: what `reproduce` was given; by default what was published, and of presets that were not, the working
        files in runs.
    """
    from experiments.records import exists, read_records
    from experiments.reproduce import render
    from experiments.studies.study import PRESETS

    chosen = find_study(study, with_compare=True)
    presets = [preset] if preset else PRESETS
    folders = {p: folder for p in presets if (folder := _find_folder(out, study, p))}
    if not folders:
        where = (out or RUNS) / study / (preset or "PRESET") / "records"
        command = "compare" if study == "compare" else f"reproduce {study}"
        raise UsageError(f"there are no records in {where}; make them with `python -m experiments {command}`")
    for p, folder in folders.items():
        check_out(folder)
        records = read_records(folder / "records") if exists(folder / "records") else []
        if not records and not exists(folder / "measurements"):
            raise UsageError(f"there are no records in {folder / 'records'}")
        chosen.check_records(p, records)
        render(chosen, p, records, folder)
        print(f"Report: {folder / 'report.md'}")


def findings(out: Path = RESULTS, readme: Path = Path("README.md"), docs: Path = Path("docs")) -> None:
    """Writes what all studies found: the README's answer with its figure, docs/findings.md and the forest plot.

    Args:
      out: what `publish` was given.
      readme: page with the markers `<!-- findings: begin -->` and `<!-- findings: end -->`.
      docs: folder of the page and the plot.
    """
    from experiments.report.summary import collect, write_summary

    studies = load_studies()
    everything = collect(out, NAMES)
    found = {name: some for name, some in everything.items() if not studies[name].undecided}
    if not found:
        raise UsageError(f"no findings below {out}; make them with `python -m experiments report STUDY`")
    titles = {name: study.title for name, study in studies.items()}
    undecided = {name: studies[name].undecided for name in everything if name not in found}
    try:
        written = write_summary(found, readme, docs, out, titles, undecided)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write the findings into {readme}: {error}") from error
    print(f"Findings of {len(found)} studies: {', '.join(map(str, written))}")


def _find_folder(out: Path | None, study: str, preset: str) -> Path | None:
    """Where records or measurements of a preset lie: what was published, else the working files."""
    from experiments.records import exists

    for root in (RESULTS, RUNS) if out is None else (out,):
        folder = root / study / preset
        if exists(folder / "records") or exists(folder / "measurements"):
            return folder
    return None


def list_studies(out: OptionalPath = None) -> None:
    """Shows every study: what it asks, the data it needs, and the minutes that its records took.

    Minutes are those of one core, training and compilation added up over all records.

    Args:
      out: what `reproduce` was given; by default what was published, and else the working files in runs.
    """
    from experiments.studies.overview import overview_table

    _print(overview_table(lambda study, preset: _find_folder(out, study, preset)))


def _print(table: RenderableType) -> None:
    """Prints a table as wide as the terminal; by `print`, as a console ends with code 1 if the reader has gone."""
    console = Console()
    with console.capture() as capture:
        console.print(table)
    print(capture.get(), end="")


def predict(
    run: Annotated[str, tyro.conf.Positional],
    image: Annotated[Path, tyro.conf.Positional],
    out: Path,
    records: OptionalPath = None,
    fit: Literal["resize", "as-is"] | None = None,
) -> None:
    """Applies a trained network to an image of your own: writes the mask, or the class with its probability.

    A picture of the answer is written beside it, as STEM_overlay.png. The run must have kept its checkpoint:
    see `--keep-checkpoints` of compare and reproduce.

    Args:
      run: a run's record, such as runs/compare/records/NAME.json, or with --records the NAME alone.
      image: a file of any format that Pillow reads.
      out: what to write, FILE.png for a mask, FILE.json for a class.
      records: folder of the records.
      fit: for an image of another size than the training images: resize scales it to theirs, and the mask
        back; as-is takes it as it is, which networks without a fixed size can.
    """
    from experiments.predict import predict
    from experiments.records import find_record

    folder, record = find_record(run, records)
    try:
        answer = predict(record, folder, image, out, fit)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(json.dumps(answer))


def prepare(
    name: Annotated[str, tyro.conf.Positional],
    folder: Annotated[Path | None, tyro.conf.Positional] = None,
    archive: OptionalPath = None,
    save_as: OptionalStr = None,
    data_dir: OptionalPath = None,
) -> None:
    """Lays a data set out for training, once.

    Args:
      name: cifar10, cifar100 or patch_camelyon (downloaded), imagenet2012, folder, or cifar10_jpeg (of cifar10).
      folder: of `prepare folder`: holds CLASS/NAME.jpg, or train/CLASS/NAME.jpg and test/CLASS/NAME.jpg.
      archive: of `prepare imagenet2012`: folder of ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.
      save_as: of `prepare folder`: name of the set, to be trained on as jpeg:NAME; by default the folder's.
      data_dir: where to; by default the variable GRADNORM_DATA_DIR, or ~/tensorflow_datasets.
    """
    from experiments import data

    try:
        found = data.prepare(name, data_dir, archive=archive, source=folder, save_as=save_as)
        saved_as = found.parent.name
        is_jpeg = name in ("folder", "imagenet2012", "cifar10_jpeg")
        use = f"; train on it as jpeg:{saved_as}" if is_jpeg else ""
        print(f"{saved_as} lies in {found}: {data.describe(found)}{use}")
    except ValueError as error:
        raise UsageError(str(error)) from error


def _exit_if_failed(records: Sequence, measurements: Mapping[str, str] | None = None) -> None:
    failed = {record.run.name: record.message for record in records if record.status == "failed"}
    failed |= measurements or {}
    for name, message in failed.items():
        print(f"failed: {name}: {message}", file=sys.stderr)
    if failed:
        print(
            f"{len(failed)} failed; the same command tries again, once what a message asks for is done",
            file=sys.stderr,
        )
        sys.exit(1)


COMMANDS = {
    "compare": compare,
    "list": list_studies,
    "reproduce": reproduce,
    "publish": publish,
    "report": report,
    "findings": findings,
    "predict": predict,
    "prepare": prepare,
}


def main() -> None:
    """Runs the command line. Exit codes: 1 if runs failed, 2 for what cannot be, 130 after Ctrl-C."""
    from experiments.files import FileError

    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows only ASCII shows question marks instead of a traceback.
        stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        if sys.argv[1:] and not sys.argv[1].startswith("-"):
            check_names("command", sys.argv[1:2], COMMANDS)
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m experiments", description=__doc__)
        sys.stdout.flush()
    except (UsageError, FileError, hosts.HostError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The reader has gone, as `head` does; flushing the rest at exit would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        print(
            "\nInterrupted. What was trained is kept; the same command goes on from there.", file=sys.stderr
        )
        sys.exit(130)


if __name__ == "__main__":
    if supervision.asked_for(sys.argv[1:]):
        from experiments.__main__ import main as importable

        supervision.supervise(importable)
    main()
