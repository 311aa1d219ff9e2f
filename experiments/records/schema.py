"""What a record holds, and how it stands in a file: as JSON in which every number keeps its bits."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np

from experiments.files import FileError
from experiments.records import typed
from experiments.records.dynamics import EPOCH_STATISTICS, GradientDynamics
from experiments.records.typed import Limits
from experiments.run import Run

SCHEMA = 1
STATUSES = ("running", "finished", "diverged", "failed")
ENDED = ("finished", "diverged")  # nothing is left to train


LARGEST_FLOAT32 = 3.4028235e38
Count = Annotated[int, Limits(0)]
Share = Annotated[float, Limits(0, 1 + 1e-6)]  # a mean in float32 may round to more than 1
Seconds = Annotated[float, Limits(0, 1e9)]
# As losses are computed in float32, and rounded to less than 0; one of a run that diverged may be NaN or infinite.
Loss = Annotated[float, Limits(-1e-3, LARGEST_FLOAT32, finite=False)]
# Distances are no shares; NaN where nothing could be scored.
Score = Annotated[float, Limits(0, LARGEST_FLOAT32, finite=False)]


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
      test_loss: mean over the test images of the loss, without label smoothing, after the epoch; `None` where
        the run does not evaluate this epoch. A loss of masks is here that of each image alone, while in training its
        overlap is that of a batch.
      test_accuracy: share of the test images, or of the masks' pixels, classified rightly after the epoch; `None`
        likewise.
      nonfinite_steps: steps whose loss or gradient had a NaN or an infinity.
      seconds: wall time of training and evaluation, without compilation and without writing files.
    """

    epoch: Annotated[int, Limits(1)]
    train_loss: Loss
    train_accuracy: Share
    test_loss: Loss | None
    test_accuracy: Share | None
    nonfinite_steps: Count
    seconds: Seconds


class DataDescription(TypedDict):
    """What a record says of the data; more may stand beside it. See `RunRecord.data`."""

    train_images: Count
    test_images: Count
    image_shape: tuple[Count, Count, Count]
    num_classes: Count
    mean: tuple[float, ...]
    std: tuple[float, ...]
    damaged: NotRequired[Count]
    labels_checksum: NotRequired[Count]
    images_checksum: NotRequired[Count]


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
    parameters: Count = 0
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    resumed: tuple[Mapping[str, Any], ...] = ()
    compile_seconds: Seconds = 0.0
    epochs: tuple[EpochMetrics, ...] = ()
    scores: Mapping[str, Score] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.status not in STATUSES:
            raise ValueError(f"unknown status {self.status!r}; choose from {', '.join(STATUSES)}")


@dataclasses.dataclass(frozen=True)
class DynamicsFields:
    """What a line holds of `GradientDynamics`, and the name of the run."""

    name: str
    layers: tuple[str, ...]
    sizes: tuple[Count, ...]
    std: tuple[tuple[Score, ...], ...]
    smallest_std: tuple[tuple[Score, ...], ...]
    mean: tuple[tuple[Score, ...], ...]
    global_std: tuple[Score, ...]


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
    seconds: Seconds


def run_to_fields(record: RunRecord) -> dict[str, Any]:
    """What a file holds of a run."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    epochs = [dataclasses.asdict(epoch) for epoch in record.epochs]
    return {"schema": SCHEMA, **fields, "run": dataclasses.asdict(record.run), "epochs": epochs}


def run_from_fields(content: Any) -> RunRecord:
    """The record of what a file holds, every value checked.

    Raises:
      ValueError: something is missing, of another type or impossible; one line says what and where.
    """
    record: RunRecord = typed.decode(RunRecord, without_schema(content))
    if record.data:  # a run that failed at once has none
        _check_data(record.data)
    _check_epochs(record)
    for name, score in record.scores.items():
        if not name.startswith("hausdorff") and not math.isnan(score):
            typed.decode(Share, score, f"scores.{name}")
    return record


def _check_data(data: Mapping[str, Any]) -> None:
    found: DataDescription = typed.decode(DataDescription, data, "data")
    channels = found["image_shape"][2]
    for name in ("mean", "std"):
        if len(found[name]) != channels:
            raise ValueError(f"data.{name} must have one number for each of the {channels} channels")


def _check_epochs(record: RunRecord) -> None:
    """The epochs are the first of the run; only a run that broke off ends with a loss that is not finite."""
    numbers, most = [epoch.epoch for epoch in record.epochs], record.run.epochs
    if numbers != list(range(1, len(numbers) + 1)) or len(numbers) > most:
        raise ValueError(f"its epochs are not 1, 2, 3, ... up to {most} at most")
    least = {"finished": most, "diverged": 1}.get(record.status, 0)
    if len(numbers) < least:
        raise ValueError(f"it is {record.status}, but has {len(numbers)} of {most} epochs")
    for epoch in record.epochs:
        if None in (epoch.test_loss, epoch.test_accuracy) and record.run.evaluates(epoch.epoch):
            raise ValueError(f"its epoch {epoch.epoch} has no test_loss or no test_accuracy")
    broke_off = record.status in ("diverged", "failed")
    for epoch in record.epochs[: -1 if broke_off else None]:
        for name in ("train_loss", "test_loss"):
            loss = getattr(epoch, name)
            if loss is not None and not math.isfinite(loss):
                raise ValueError(f"{name} of epoch {epoch.epoch} is {loss}, but the run did not end there")


def dynamics_to_fields(name: str, dynamics: GradientDynamics) -> dict[str, Any]:
    """What a file holds of the statistics of a run's gradients."""
    arrays = {field.name: getattr(dynamics, field.name) for field in dataclasses.fields(dynamics)}
    return {"schema": SCHEMA, "name": name, **{key: _to_list(value) for key, value in arrays.items()}}


def dynamics_from_fields(content: Any) -> GradientDynamics:
    """The statistics of what a file holds.

    Raises:
      ValueError: something is missing, of another type or impossible; one line says what and where.
    """
    fields: DynamicsFields = typed.decode(DynamicsFields, without_schema(content))
    # By way of float64, the shortest number of a float32 gives its bits back.
    statistics = {n: np.array(getattr(fields, n), np.float64).astype(np.float32) for n in EPOCH_STATISTICS}
    layers, sizes = np.array(fields.layers, np.str_), np.array(fields.sizes, np.int64)
    return dynamics_from_arrays({"layers": layers, "sizes": sizes, **statistics})


def dynamics_from_arrays(arrays: Mapping[str, np.ndarray]) -> GradientDynamics:
    """The statistics of arrays by name, 'layers' of strings.

    Raises:
      ValueError: an array is missing, of another shape or dtype, or has impossible values.
    """
    kinds = {"layers": "U", "sizes": "i", **dict.fromkeys(EPOCH_STATISTICS, "f")}
    for name, kind in kinds.items():
        if arrays[name].dtype.kind != kind:
            raise ValueError(f"its {name} are of dtype {arrays[name].dtype}")
    if surplus := arrays.keys() - kinds.keys():
        raise ValueError(f"it has {min(surplus)!r}, which this version does not know")
    if arrays["layers"].ndim != 1:
        raise ValueError(f"its layers have the shape {arrays['layers'].shape}")
    layers = tuple(arrays["layers"].tolist())
    dynamics = GradientDynamics(layers=layers, **{name: arrays[name] for name in kinds if name != "layers"})
    if len(set(layers)) < len(layers) or not all(layers):
        raise ValueError("its layers must have different names")
    if (dynamics.sizes < 1).any():
        raise ValueError("its sizes must be at least 1")
    for name in EPOCH_STATISTICS:
        if (arrays[name] < 0).any():  # NaN is not below 0
            raise ValueError(f"its {name} must be at least 0")
    return dynamics


def _to_list(array: np.ndarray | tuple[str, ...]) -> list:
    """Nested lists; a float32 as the shortest number that gives its bits back."""
    if isinstance(array, tuple):
        return list(array)
    if array.dtype == np.float32:
        array = np.array([float(str(value)) for value in array.ravel()]).reshape(array.shape)
    return array.tolist()


def measurement_to_fields(record: MeasurementRecord) -> dict[str, Any]:
    """What a file holds of a measurement."""
    return {"schema": SCHEMA, **dataclasses.asdict(record)}


def measurement_from_fields(content: Any) -> MeasurementRecord:
    """The measurement of what a file holds.

    Raises:
      ValueError: something is missing, of another type or impossible; one line says what and where.
    """
    return typed.decode(MeasurementRecord, without_schema(content))


def without_schema(content: Any) -> dict[str, Any]:
    """What a file of this version holds, without the version."""
    content = typed.decode(Mapping[str, Any], content)
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
    except OSError as error:
        raise RecordError(f"cannot read {what}: {error.strerror or error}; {remedy}") from error
    except ValueError as error:
        raise RecordError(f"cannot read {what}: {error}; {remedy}") from error


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value
