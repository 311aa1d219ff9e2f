"""Content of a file, checked against the types and ranges that its dataclass states.

A dataclass is its own schema: `decode` reads the types of its fields, whatever they are, so that a field added there
is checked here. What does not fit is a ValueError of one line that says where in the content it stands.
"""

import dataclasses
import functools
import json
import math
import reprlib
import sys
import types
from collections.abc import Mapping
from typing import Annotated, Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

MOST_NESTED = 20  # published files have five levels
LARGEST_INTEGER = 2**63 - 1
NOT_FINITE = ("nan", "inf", "-inf")  # JSON has no such numbers


@dataclasses.dataclass(frozen=True)
class Limits:
    """The range of a number, stated as `Annotated[float, Limits(0, 1)]`.

    Attributes:
      low: smallest value.
      high: largest value.
      finite: whether NaN and infinities are refused.
    """

    low: float = -math.inf
    high: float = math.inf
    finite: bool = True

    def __str__(self) -> str:
        return f"at least {self.low:g}" if self.high == math.inf else f"from {self.low:g} to {self.high:g}"


def parse(text: bytes) -> Any:
    """The content of JSON.

    Raises:
      ValueError: it is no JSON, empty, or nested more than `MOST_NESTED` deep.
    """
    if not text.strip():
        raise ValueError("it is empty")
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"{error.msg} ({line}column {error.colno})") from error
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    _check_depth(content, MOST_NESTED)
    return content


def decode(kind: Any, content: Any, place: str = "") -> Any:
    """Makes a value of a type from what `parse` gives.

    Args:
      kind: a dataclass, TypedDict, str, bool, int, float, Any, or made of these: `X | None`, `tuple`, `Mapping` with
        names, `Annotated` with `Limits`. Further keys are refused in a dataclass, and kept in a TypedDict.
      content: of a file.
      place: where in the file it stands, such as 'epochs[2]'.

    Raises:
      ValueError: it is of another type or beyond its limits, has a field too few or too many, or the dataclass
        itself refuses it.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        limits = next((extra for extra in arguments[1:] if isinstance(extra, Limits)), Limits())
        return _number(arguments[0], content, place, limits)
    if origin is NotRequired:
        return decode(arguments[0], content, place)
    if origin in (Union, types.UnionType):
        if content is None and type(None) in arguments:
            return None
        (kind,) = [argument for argument in arguments if argument is not type(None)]
        return decode(kind, content, place)
    if dataclasses.is_dataclass(kind) or is_typeddict(kind):
        return _fields(kind, content, place)
    if origin is tuple:
        return _tuple(arguments, content, place)
    if origin is Mapping:
        _expect(isinstance(content, dict), "an object with names", content, place)
        return {name: decode(arguments[1], item, _join(place, name)) for name, item in content.items()}
    if kind in (int, float):
        return _number(kind, content, place, Limits())
    _expect(kind is Any or isinstance(content, kind), _NAMES.get(kind, str(kind)), content, place)
    return content


def _fields(kind: Any, content: Any, place: str) -> Any:
    """A dataclass or a TypedDict."""
    _expect(isinstance(content, dict), "an object with names", content, place)
    hints = _hints(kind)
    if is_typeddict(kind):
        required, further = kind.__required_keys__, True
    else:
        fields = dataclasses.fields(kind)
        missing = dataclasses.MISSING
        required = {f.name for f in fields if f.default is missing and f.default_factory is missing}
        further = False
    its = place or "it"
    for name in hints:
        if name in required and name not in content:
            raise ValueError(f"{its} has no {name!r}")
    if not further and (surplus := [name for name in content if name not in hints]):
        raise ValueError(f"{its} has {_show(surplus[0])}, which this version does not know")
    decoded = {name: decode(hints.get(name, Any), item, _join(place, name)) for name, item in content.items()}
    try:
        return kind(**decoded)
    except ValueError as error:
        raise ValueError(f"{place}: {error}" if place else str(error)) from error


@functools.cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _tuple(kinds: tuple[Any, ...], content: Any, place: str) -> tuple:
    _expect(isinstance(content, list), "a list", content, place)
    if kinds[-1] is ...:
        kinds = kinds[:1] * len(content)
    _expect(len(kinds) == len(content), f"a list of {len(kinds)}", content, place)
    return tuple(
        decode(kind, item, f"{place}[{i}]") for i, (kind, item) in enumerate(zip(kinds, content, strict=True))
    )


def _number(kind: type, content: Any, place: str, limits: Limits) -> Any:
    """A whole number or a float; NaN and infinities stand as words."""
    if kind is float and not limits.finite and content in NOT_FINITE:
        return float(content)
    if kind is int:
        is_number = isinstance(content, int) and abs(content) <= LARGEST_INTEGER
    else:
        is_number = isinstance(content, int | float) and abs(content) <= sys.float_info.max
    _expect(is_number and not isinstance(content, bool), _NAMES[kind], content, place)
    _expect(limits.low <= content <= limits.high, str(limits), content, place)
    return kind(content)


def _expect(holds: bool, what: str, content: Any, place: str) -> None:
    if not holds:
        raise ValueError(f"{place or 'it'} must be {what}, got {_show(content)}")


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _show(content: Any) -> str:
    """A value in a few words, whatever its size."""
    return reprlib.repr(content)


def _check_depth(content: Any, left: int) -> None:
    if isinstance(content, dict | list):
        if not left:
            raise ValueError(_TOO_DEEP)
        for item in content.values() if isinstance(content, dict) else content:
            _check_depth(item, left - 1)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


_TOO_DEEP = f"it is nested more than {MOST_NESTED} deep"
_NAMES = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}
