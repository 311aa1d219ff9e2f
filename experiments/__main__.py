"""Trains networks with and without gradient normalization, and reports what it changes.

Start with `compare`, which needs no download and takes about a minute. `list` shows the studies, of which
`reproduce` makes the tables.
"""

import dataclasses
import json
import math
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from experiments import hosts
from experiments.preflight import (
    UsageError,
    check_at_least,
    check_data,
    check_machine,
    check_model,
    check_names,
    check_out,
    check_seeds,
    find_study,
    resolve_dataset,
)
from experiments.run import METHODS
from experiments.studies import NAMES

RESULTS = Path("experiments/results")
# Its options stand beside those of the command.
DevicesOption = Annotated[hosts.Devices, tyro.conf.arg(name="")]
DEFAULT_DEVICES = hosts.Devices()
# A name that is not among them ends with one line, in place of the parser's box.
StudyName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar=f"{{{','.join(NAMES)}}}")]


def compare(
    dataset: str = "digits",
    model: str = "resnet8",
    methods: tuple[str, ...] = ("baseline", "centralization", "clipping", "znorm", "gan"),
    optimizers: tuple[str, ...] = ("sgdm", "adam"),
    seeds: tuple[int, ...] = (0, 1, 2),
    epochs: int = 10,
    batch_size: int = 64,
    learning_rate: float | None = None,
    train_examples: int | None = None,
    dynamics: bool = False,
    out: Path = Path("runs"),
    data_dir: Path | None = None,
    workers: int | None = None,
    devices: DevicesOption = DEFAULT_DEVICES,
    keep_checkpoints: bool = False,
) -> None:
    """Trains one model with every method behind every optimizer, and prints their accuracies side by side.

    The same command goes on where it was interrupted.

    Args:
      dataset: digits (real 8x8 images, no download), cifar10, cifar100, patch_camelyon, pcam32,
        stream:NAME for a set too large for memory, or arrays:PATH.npz for your own.
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
      dynamics: also record and draw what the raw gradients do, per layer and epoch (dynamics.md).
      out: folder of the records, the report (report.md) and the figure (learning_curves.png).
      data_dir: folder of the prepared data sets; by default the variable GRADNORM_DATA_DIR, or
        ~/tensorflow_datasets.
      workers: worker processes on a CPU; by default one per core.
      devices: the devices, here or on several hosts.
      keep_checkpoints: keep the trained networks, for `predict`.
    """
    from experiments.jobs.progress import Progress
    from experiments.studies.compare import (
        LEARNING_RATES,
        Comparison,
        terminal_remarks,
        terminal_table,
        write,
    )

    check_out(out)
    hosts.join(devices, out)
    check_machine(workers, devices.count, [batch_size])
    check_at_least("--epochs", epochs, 1)
    check_at_least("--batch-size", batch_size, 1)
    if train_examples is not None:
        check_at_least("--train-examples", train_examples, 1)
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise UsageError(f"--learning-rate must be a number above 0, got {learning_rate:g}")
    check_model(model)
    check_names("--methods", methods, METHODS)
    check_names("--optimizers", optimizers, LEARNING_RATES)
    check_seeds(seeds)
    comparison = Comparison(
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
    check_data(comparison.runs, data_dir)

    runs = [dataclasses.replace(run, dynamics=dynamics) for run in comparison.runs]
    with Progress("compare") as progress:
        records = _sweep(progress, runs, out, data_dir, workers, devices, keep_checkpoints)
    hosts.leave()
    if not hosts.is_first():
        return
    rows = write(comparison, records, out)
    _write_dynamics(out, out, records)
    Console().print(terminal_table(rows))
    for line in terminal_remarks(rows):
        print(line)
    print(f"Report: {out / 'report.md'}, figure: {out / 'learning_curves.png'}, records: {out}/*.json")
    _exit_if_failed(records)


def reproduce(
    study: StudyName,
    preset: Literal["smoke", "cpu", "full"] = "smoke",
    dynamics: bool = False,
    data_dir: Path | None = None,
    out: Path = RESULTS,
    workers: int | None = None,
    devices: DevicesOption = DEFAULT_DEVICES,
    keep_checkpoints: bool = False,
) -> None:
    """Trains what a table of a paper needs, and renders the report. The same command goes on after a stop.

    Args:
      study: which one; `list` says what each is.
      preset: smoke (minutes, shows that it works), cpu (reduced, up to hours), or full (full size:
        the paper's protocol as far as it is stated; for an accelerator).
      dynamics: also record and draw what the raw gradients do, per layer and epoch (dynamics.md).
      data_dir: folder of the prepared data sets; by default the variable GRADNORM_DATA_DIR, or
        ~/tensorflow_datasets.
      out: one folder per study and preset is made in it.
      workers: worker processes on a CPU; by default one per core.
      devices: the devices, here or on several hosts.
      keep_checkpoints: keep the trained networks, for `predict`.
    """
    from experiments.jobs.measure import Context, find_missing, measure
    from experiments.jobs.progress import Progress

    chosen = find_study(study)
    folder = out / study / preset
    check_out(folder)
    runs = chosen.runs(preset, [])
    hosts.join(devices, folder)
    check_machine(workers, devices.count, [run.batch_size for run in runs])
    check_data(runs, data_dir)

    records_folder, measurements_folder = folder / "records", folder / "measurements"
    measurements = chosen.measurements(preset)
    missing = hosts.on_first(find_missing, measurements, measurements_folder)
    needs_networks = chosen.keep_checkpoints and bool(missing)
    keep_checkpoints = keep_checkpoints or needs_networks
    records, made = [], set()
    with Progress(f"{study} {preset}") as progress:
        # Later runs may depend on earlier ones' records, as the tuned ones do.
        while new := [run for run in runs if run.name not in made]:
            new = [dataclasses.replace(run, dynamics=True) for run in new] if dynamics else new
            records += _sweep(progress, new, records_folder, data_dir, workers, devices, keep_checkpoints)
            made.update(run.name for run in runs)
            runs = chosen.runs(preset, records)
    hosts.leave()
    if not hosts.is_first():
        return
    context = Context(data_dir, records_folder)
    failures = measure(measurements, out=measurements_folder, context=context, workers=workers)
    chosen.report(preset, records, folder)
    _write_dynamics(folder, records_folder, records)
    print(f"Report: {folder / 'report.md'}, records: {records_folder}")
    _exit_if_failed(records, failures)


def report(
    study: StudyName,
    preset: Literal["smoke", "cpu", "full"] | None = None,
    out: Path = RESULTS,
) -> None:
    """Renders a study's tables and figures from the records there are; trains nothing.

    Args:
      study: which one; `list` says what each is.
      preset: which one; by default every preset that has records.
      out: what `reproduce` was given.
    """
    from experiments.records import read_records
    from experiments.studies.study import PRESETS

    chosen = find_study(study)
    folders = {p: out / study / p for p in ([preset] if preset else PRESETS)}
    found = {}
    for p, folder in folders.items():
        if (folder / "records").is_dir():
            found[p] = read_records(folder / "records")
        elif (folder / "measurements").is_dir():
            found[p] = []
    if not found:
        where = out / study / (preset or "PRESET") / "records"
        raise UsageError(
            f"there are no records in {where}; make them with `python -m experiments reproduce {study}`"
        )
    for p, records in found.items():
        check_out(folders[p])
        chosen.report(p, records, folders[p])
        _write_dynamics(folders[p], folders[p] / "records", records)
        print(f"Report: {folders[p] / 'report.md'}")


def list_studies(out: Path = RESULTS) -> None:
    """Shows every study: what it asks, the data it needs, and the minutes that its records took.

    Minutes are those of one core, training and compilation added up over all records; with four cores a
    study takes about a quarter of them.

    Args:
      out: what `reproduce` was given.
    """
    from rich.table import Table

    from experiments.studies import load_studies
    from experiments.studies.study import PRESETS

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("study", "what", "data"):
        table.add_column(heading, overflow="fold")
    table.add_column("core-minutes", justify="right")
    for name, study in load_studies().items():
        data = sorted({run.data_name for run in study.runs("cpu", [])})
        minutes = [f"{preset} {m:,.0f}" for preset in PRESETS if (m := _core_minutes(out / name / preset))]
        table.add_row(name, study.title, ", ".join(data), "\n".join(minutes) or "not run")
    Console().print(table)


def _core_minutes(folder: Path) -> float:
    from experiments.records import read_measurements, read_records

    records = read_records(folder / "records") if (folder / "records").is_dir() else []
    seconds = sum(r.compile_seconds + sum(epoch.seconds for epoch in r.epochs) for r in records)
    if (folder / "measurements").is_dir():
        seconds += sum(m.seconds for m in read_measurements(folder / "measurements").values())
    return seconds / 60


def predict(
    run: Annotated[str, tyro.conf.Positional],
    image: Annotated[Path, tyro.conf.Positional],
    out: Path,
    records: Path | None = None,
    fit: Literal["resize", "as-is"] | None = None,
) -> None:
    """Applies a trained network to an image of your own: writes the mask, or the class with its probability.

    A picture of the answer is written beside it, as STEM_overlay.png. The run must have kept its checkpoint:
    see `--keep-checkpoints` of compare and reproduce.

    Args:
      run: a run's record, such as runs/NAME.json, or with --records the NAME alone.
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


def prepare(name: Annotated[str, tyro.conf.Positional], data_dir: Path | None = None) -> None:
    """Downloads a data set and lays it out for training, once.

    Args:
      name: cifar10, cifar100 or patch_camelyon.
      data_dir: where to; by default the variable GRADNORM_DATA_DIR, or ~/tensorflow_datasets.
    """
    from experiments import data

    try:
        print(f"{name} lies in {data.prepare(name, data_dir)}")
    except ValueError as error:
        raise UsageError(str(error)) from error


def _sweep(
    progress,
    runs: Sequence,
    out: Path,
    data_dir: Path | None,
    workers: int | None,
    devices: hosts.Devices,
    keep_checkpoints: bool,
) -> list:
    from experiments.jobs.sweep import sweep

    progress.add(runs)
    return sweep(
        runs,
        out=out,
        data_dir=data_dir,
        workers=workers,
        devices=devices.count,
        shard_params=devices.shard_params,
        keep_checkpoints=keep_checkpoints,
        on_event=progress if hosts.is_first() else None,
    )


def _write_dynamics(folder: Path, records_folder: Path, records: Sequence) -> None:
    from experiments.report.dynamics import write_page

    if page := write_page(folder, records_folder, records):
        print(f"Gradient dynamics: {page}")


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
    "report": report,
    "predict": predict,
    "prepare": prepare,
}


def main() -> None:
    """Runs the command line. Exit codes: 1 if runs failed, 2 for what cannot be, 130 after Ctrl-C."""
    from experiments.files import FileError

    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows ASCII alone shows question marks, and no traceback.
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
        # The reader has gone, as `head` does; what is still buffered would raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        print(
            "\nInterrupted. What was trained is kept; the same command goes on from there.", file=sys.stderr
        )
        sys.exit(130)


if __name__ == "__main__":
    if hosts.asked_for(sys.argv[1:]):
        from experiments.__main__ import main as importable

        hosts.supervise(importable)
    main()
