"""What a record holds, and how it stands in a file: as JSON in which every number keeps its bits."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.files import FileError
from experiments.run import Run

SCHEMA = 1
STATUSES = ("running", "finished", "diverged", "failed")
ENDED = ("finished", "diverged")  # nothing is left to train


class RecordError(FileError):
    """A record or a checkpoint cannot be read or written. The message is one line and names the file."""


@dataclasses.dataclass(frozen=True)
class EpochMetrics:
    """What one epoch measured.

    Attributes:
      epoch: its number, from 1.
      train_loss: mean of the training objective (label smoothing included) over the epoch's steps.
      train_accuracy: share of the epoch's training images, as augmented, that were classified rightly
        before the step they took part in; for masks, of their pixels.
      test_loss: mean over the test images of the loss, without label smoothing, after the epoch. A loss of
        masks is here that of each image alone, while in training its overlap is that of a batch.
      test_accuracy: share of the test images, or of the masks' pixels, classified rightly after the epoch.
      nonfinite_steps: steps whose loss or gradient had a NaN or an infinity.
      seconds: wall time of training and evaluation, without compilation and without writing files.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    nonfinite_steps: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What is known of one run.

    Attributes:
      run: its configuration.
      status: 'running' (also: was killed, and will go on), 'finished', 'diverged' (the loss or a parameter
        became NaN or infinite, and the run ended there) or 'failed'.
      message: why it failed.
      parameters: number of trained parameters.
      data: 'train_images' and 'test_images' (how many), 'image_shape' [height, width, channels],
        'num_classes', and 'mean' and 'std' per channel where 255 counts as 1; 'damaged', how many images
        of both splits were excluded, if any; 'labels_checksum' and 'images_checksum', CRC-32 of the labels and of
        the images of both splits, training before test: the bytes in memory, of streamed sets a sample of the
        images (`StreamedImages.checksum`). Older records have no 'images_checksum'.
      environment: as `machine.describe_environment` gives it where the run started.
      resumed: one entry per restart: 'after_epoch', and what had changed in the environment.
      compile_seconds: time to compile the training epoch and the evaluation, in the last start.
      epochs: one entry per finished epoch.
      scores: of the finished run's network on the test images, from `experiments.training.metrics`: with two classes
        'accuracy', 'roc_auc' and 'f1'; with masks 'dice', 'iou', 'tversky', 'hausdorff' and more; with more than
        five classes of JPEGs 'top_1' and 'top_5'; else none.
    """

    run: Run
    status: str = "running"
    message: str = ""
    parameters: int = 0
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    resumed: tuple[Mapping[str, Any], ...] = ()
    compile_seconds: float = 0.0
    epochs: tuple[EpochMetrics, ...] = ()
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.status not in STATUSES:
            raise ValueError(f"unknown status {self.status!r}; choose from {', '.join(STATUSES)}")


@dataclasses.dataclass(frozen=True)
class MeasurementRecord:
    """What was measured once, other than by training.

    Attributes:
      name: unique in its folder.
      arguments: of the measuring function.
      values: what it returned: nested mappings and sequences of numbers and strings.
      environment: as `machine.describe_environment` gives it.
      seconds: wall time.
    """

    name: str
    arguments: Mapping[str, Any]
    values: Mapping[str, Any]
    environment: Mapping[str, Any]
    seconds: float


def run_to_fields(record: RunRecord) -> dict[str, Any]:
    """What a file holds of a run."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    epochs = [dataclasses.asdict(epoch) for epoch in record.epochs]
    return {"schema": SCHEMA, **fields, "run": dataclasses.asdict(record.run), "epochs": epochs}


def run_from_fields(content: dict[str, Any]) -> RunRecord:
    """The record of what a file holds."""
    content = without_schema(content)
    content["run"] = Run(**content["run"])
    content["epochs"] = tuple(_decode_epoch(**epoch) for epoch in content["epochs"])
    content["resumed"] = tuple(content["resumed"])
    # Records of before there were scores have none.
    content["scores"] = {name: float(score) for name, score in content.get("scores", {}).items()}
    record = RunRecord(**content)
    if [epoch.epoch for epoch in record.epochs] != list(range(1, len(record.epochs) + 1)):
        raise ValueError("its epochs are not 1, 2, 3, ...")
    return record


def measurement_to_fields(record: MeasurementRecord) -> dict[str, Any]:
    """What a file holds of a measurement."""
    return {"schema": SCHEMA, **dataclasses.asdict(record)}


def measurement_from_fields(content: dict[str, Any]) -> MeasurementRecord:
    """The measurement of what a file holds."""
    return MeasurementRecord(**without_schema(content))


def without_schema(content: dict[str, Any]) -> dict[str, Any]:
    """What a file of this version holds, without the version."""
    content = dict(content)
    schema = content.pop("schema")
    if schema != SCHEMA:
        raise ValueError(f"its schema is {schema!r}, this version reads {SCHEMA}")
    return content


def to_json(value: Any, sort_keys: bool = False) -> str:
    """One line; JSON has no NaN and no infinity: they become 'nan', 'inf' and '-inf', which `float` reads."""
    return json.dumps(_encode(value), allow_nan=False, sort_keys=sort_keys)


@contextlib.contextmanager
def naming(what: object, remedy: str) -> Iterator[None]:
    """Makes a `RecordError` of whatever damaged or foreign content raises."""
    try:
        yield
    except FileNotFoundError:
        raise
    except KeyError as error:
        raise RecordError(f"cannot read {what}: it has no {error}; {remedy}") from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RecordError(f"cannot read {what}: {error}; {remedy}") from error


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value


def _decode_epoch(*, epoch: int, nonfinite_steps: int, **floats: float | str) -> EpochMetrics:
    metrics = {name: float(value) for name, value in floats.items()}
    return EpochMetrics(epoch=int(epoch), nonfinite_steps=int(nonfinite_steps), **metrics)
