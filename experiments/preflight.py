"""What was asked is possible: checked before anything is trained, so that no worker starts in vain."""

import contextlib
import difflib
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import hosts, machine
from experiments.options import DEFAULTS, Options
from experiments.run import Run

# Imported where they are used: most checks need neither JAX nor data, and return at once.
if TYPE_CHECKING:
    from experiments.data import Dataset
    from experiments.studies.study import Study


class UsageError(Exception):
    """The command line asks for something that cannot be; the message is one line."""


def find_study(name: str, with_compare: bool = False) -> "Study":
    """The study of a name, or that of records of `compare`, which can be published and reported like others."""
    from experiments.studies import NAMES, load_study

    check_names("study", [name], (*NAMES, "compare") if with_compare else NAMES)
    if name == "compare":
        from experiments.studies.compare import study_of_records

        return study_of_records()
    return load_study(name)


def check_names(option: str, names: Sequence[str], choices: Collection[str]) -> None:
    """Every name is one of the choices, and none is there twice."""
    if not names:
        raise UsageError(f"{option} needs at least one of {', '.join(choices)}")
    for name in names:
        if name not in choices:
            similar = difflib.get_close_matches(name, choices, 1)
            guess = f", did you mean {similar[0]!r}?" if similar else ";"
            raise UsageError(f"unknown {option} {name!r}{guess} choose from {', '.join(choices)}")
    if len(set(names)) < len(names):
        raise UsageError(f"{option} names {next(n for n in names if names.count(n) > 1)!r} twice")


def check_model(name: str) -> None:
    """The model is known, unless its name has a normalizer, which `check_data` reads."""
    from experiments.models import MODELS

    if ":" not in name:
        check_names("--model", [name], MODELS)


def resolve_dataset(name: str) -> str:
    """The data set's name, with the whole path of a file: however it is spelt, it is one data set."""
    source, separator, path = name.partition(":")
    return f"arrays:{Path(path).expanduser().resolve()}" if source == "arrays" and separator else name


def check_seeds(seeds: Sequence[int]) -> None:
    """There are seeds, and none is there twice."""
    if not seeds:
        raise UsageError("--seeds needs at least one number")
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds has a seed twice: {' '.join(map(str, seeds))}")


def check_at_least(option: str, value: int, least: int) -> None:
    """A number is not too small."""
    if value < least:
        raise UsageError(f"{option} must be at least {least}, got {value}")


def check_same_command(runs: Sequence[Run], options: Options) -> None:
    """Every host was given the same command: one that trains something else would wait for the others for ever."""
    hosts.check_same("--shard-params", options.devices.shard_params)
    hosts.check_same("--keep-checkpoints", options.keep_checkpoints)
    hosts.check_same("--dynamics", options.dynamics)
    hosts.check_same("the number of runs", len(runs))
    for run in runs:
        hosts.check_same("the run", run.name)


def check_machine(options: Options) -> None:
    """There are so many workers and devices."""
    if options.workers is not None:
        check_at_least("--workers", options.workers, 1)
        if options.workers > 1:
            machine.share_accelerator()
    devices = hosts.device_count(options.devices)
    check_at_least("--devices", devices, 1)
    if devices > 1:
        import jax

        if devices > jax.device_count():
            raise UsageError(f"--devices is {devices}, but there are only {jax.device_count()}")


@contextlib.contextmanager
def as_options() -> Iterator[None]:
    """What a `Run` cannot be is a usage error, which names the option in place of the field."""
    try:
        yield
    except ValueError as error:
        field, space, rest = str(error).partition(" ")
        option = "--seeds" if field == "seed" else f"--{field.replace('_', '-')}"
        raise UsageError(f"{option}{space}{rest}") from error


def check_data(runs: Sequence[Run], options: Options = DEFAULTS) -> None:
    """Takes every subset of every data set, lays out every model and builds every optimizer once.

    Where damaged images are excluded, one line on standard error says how many they are.
    """
    from experiments import data
    from experiments.training.layout import check_fits
    from experiments.training.methods import make_optimizer

    reading, devices = options.reading, hosts.device_count(options.devices)
    if reading.input_workers is not None:
        check_at_least("--input-workers", reading.input_workers, 0)
    try:
        for name in dict.fromkeys(run.dataset for run in runs):
            dataset = hosts.in_turn(data.load, name, options.data_dir, reading)
            if dataset.damaged and hosts.is_first():
                print(f"{name}: {dataset.damaged} damaged images are excluded", file=sys.stderr)
            on_it = [run for run in runs if run.dataset == name]
            for run in _one_of_each(on_it, "model", "loss"):
                _check_fit(run, dataset)
            for run in _one_of_each(on_it, "model", "optimizer"):
                make_optimizer(run, steps_per_epoch=1)
            sizes = (
                "train_examples",
                "test_examples",
                "validation_examples",
                "validation_seed",
                "batch_size",
                "steps",
                "epochs",
            )
            for run in _one_of_each(on_it, *sizes):
                check_fits(run, data.select(dataset, run), devices)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _one_of_each(runs: Sequence[Run], *fields: str) -> list[Run]:
    """One run for every combination of these fields' values."""
    return list({tuple(getattr(run, field) for field in fields): run for run in runs}.values())


def _check_fit(run: Run, dataset: "Dataset") -> None:
    """Model, loss and data set go together."""
    import jax
    from flax import nnx

    from experiments import models
    from experiments.training import tasks

    tasks.make_task(run, dataset)
    height, _, channels = dataset.train_images.shape[1:]
    options = {"num_classes": dataset.num_classes, "channels": channels, "image_size": height}

    def logits(images):
        return models.create(run.model, rngs=nnx.Rngs(0), **options)(images, train=False)

    images = jax.ShapeDtypeStruct((1, *dataset.train_images.shape[1:]), "float32")
    tasks.check_logits(nnx.eval_shape(logits, images).shape, dataset, run.model)


def check_out(out: Path) -> None:
    """The folder can be written to, and its records, report and figures too; it is made if missing."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for folder in (out, out / "records", out / "measurements"):
            if folder.exists():
                with tempfile.TemporaryFile(dir=folder):
                    pass
        for path in out.iterdir():
            if path.suffix in (".md", ".svg", ".png", ".json", ".jsonl") and path.is_dir():
                raise UsageError(f"--out: {path} is a folder, where a file has to be written")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--out: cannot write to {out}: {reason}") from error
