"""What hosts tell each other: JSON, of which nothing is ever run, whoever sent it.

JSON itself holds numbers, texts, lists and dictionaries; records, statistics, paths and errors are written out here.
"""

import base64
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.files import FileError, first_line

LONGEST = 2**26  # bytes: far above the records of a study, far below what memory holds
_KIND = "__kind__"
# What is raised on one host is raised on all as the first of these that it is, else as a RuntimeError.
_ERRORS = {kind.__name__: kind for kind in (FileError, OSError, ValueError)}


class MessageError(Exception):
    """Bytes from another process are no message of this program; the message is one line."""


def encode(value: Any) -> bytes:
    """A value as bytes for `decode`: what JSON holds (tuples become lists), and what `_KINDS` lists.

    Raises:
      TypeError: it holds something else.
    """
    return json.dumps(value, default=_to_fields).encode()


def decode(message: bytes) -> Any:
    """The value of what `encode` gave.

    Raises:
      MessageError: these bytes are something else.
    """
    try:
        return json.loads(message, object_hook=_from_fields)
    except Exception as error:  # A stranger's bytes can be wrong in any way.
        raise MessageError(f"{type(error).__name__}: {first_line(error)[:200]}") from error


def _to_fields(value: Any) -> dict[str, Any]:
    for name, (kind, to_fields, _) in _kinds().items():
        if isinstance(value, kind):
            return {_KIND: name, **to_fields(value)}
    raise TypeError(f"hosts cannot tell each other a {type(value).__name__}")


def _from_fields(fields: dict[str, Any]) -> Any:
    if _KIND not in fields:
        return fields
    *_, from_fields = _kinds()[fields.pop(_KIND)]
    return from_fields(**fields)


def _kinds() -> dict[str, tuple[type, Callable[[Any], dict[str, Any]], Callable[..., Any]]]:
    """By name: what is sent beside JSON's own types, how it becomes fields, and how it is made of them again."""
    from experiments.records import RunRecord, schema
    from experiments.records.dynamics import GradientDynamics

    return {
        # As in its file, so that it is read and checked as from there.
        "record": (
            RunRecord,
            lambda record: {"text": schema.to_json(schema.run_to_fields(record))},
            lambda text: schema.run_from_fields(json.loads(text)),
        ),
        "dynamics": (GradientDynamics, _shallow, _to_dynamics),
        "array": (np.ndarray, _array_to_fields, _to_array),
        "path": (Path, lambda path: {"path": str(path)}, lambda path: Path(path)),
        "error": (Exception, _error_to_fields, _to_error),
    }


def _shallow(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _to_dynamics(layers: list[str], **arrays: np.ndarray) -> Any:
    from experiments.records.dynamics import GradientDynamics

    return GradientDynamics(tuple(layers), **arrays)


def _array_to_fields(array: np.ndarray) -> dict[str, Any]:
    if array.dtype.kind not in "biuf":
        raise TypeError(f"hosts cannot tell each other an array of {array.dtype}")
    data = base64.b64encode(array.tobytes()).decode()
    return {"dtype": array.dtype.str, "shape": array.shape, "data": data}


def _to_array(dtype: str, shape: list[int], data: str) -> np.ndarray:
    if np.dtype(dtype).kind not in "biuf":
        raise ValueError(f"an array of {dtype}")
    return np.frombuffer(base64.b64decode(data, validate=True), dtype).reshape(shape)


def _error_to_fields(error: Exception) -> dict[str, Any]:
    for name, kind in _ERRORS.items():
        if isinstance(error, kind):
            return {"kind": name, "message": str(error)}
    return {"kind": "", "message": f"{type(error).__name__}: {error}"}


def _to_error(kind: str, message: str) -> Exception:
    return _ERRORS.get(kind, RuntimeError)(message)
