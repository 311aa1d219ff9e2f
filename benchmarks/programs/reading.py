"""What a compiled program does, read from its text: kernels, memory traffic, collectives."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}
INSTRUCTION = re.compile(
    r"^  (?:ROOT )?%(?P<name>\S+) = (?P<type>\(.*?\)|\S+) (?P<kind>[a-z-]+)\((?P<rest>.*)$"
)
ARRAY = re.compile(
    r"\b(?P<dtype>[a-z]+\d*)\[(?P<shape>[\d,]*)\](?:\{(?P<order>[\d,]*)(?::(?P<place>[^}]*))?\})?"
)
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# They only give names; what a `-done` ends, its `-start` has counted.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")


class Array(NamedTuple):
    """An array as it lies on a device."""

    bytes: int
    padded_bytes: int  # with what its tiles pad
    is_in_main_memory: bool  # and not in a core's own fast one


class Instruction(NamedTuple):
    """One instruction of the main computation."""

    name: str
    kind: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    source: (
        str  # where in the traced function it comes from; of a parameter its name there, as 'gradients[0]'
    )


class Collective(NamedTuple):
    """One collective; XLA may have joined several sums into it."""

    kind: str
    arrays: int
    bytes: int  # of its results, on each device


class Traffic(NamedTuple):
    """Bytes between main memory and the cores, on one device."""

    read: int
    written: int


def instructions(program: str) -> list[Instruction]:
    """The instructions of a program's main computation, in the order in which they run."""
    main = program[program.index("\nENTRY ") :]
    found = []
    for line in main.splitlines():
        if match := INSTRUCTION.match(line):
            # Operands end at the first closing parenthesis.
            operands = re.findall(r"%([^\s,()]+)", match["rest"].partition(")")[0])
            source = re.search(r'op_name="([^"]*)"', match["rest"])
            results = tuple(_arrays(match["type"]))
            found.append(
                Instruction(
                    match["name"], match["kind"], results, tuple(operands), source[1] if source else ""
                )
            )
    return found


def _arrays(type: str) -> Iterator[Array]:
    for match in ARRAY.finditer(type):
        shape = [int(size) for size in match["shape"].split(",") if size]
        place = match["place"] or ""
        padded = list(shape)
        if tile := re.search(r"T\(([\d,]+)\)", place):
            # The fastest axes come first in a layout, and last in a tile.
            order = [int(axis) for axis in match["order"].split(",") if axis]
            for axis, size in zip(order, reversed([int(size) for size in tile[1].split(",")]), strict=False):
                padded[axis] = -(-padded[axis] // size) * size
        width, is_elsewhere = BYTES[match["dtype"]], re.search(r"S\(\d+\)", place)
        yield Array(width * math.prod(shape), width * math.prod(padded), not is_elsewhere)


def kernels(program: list[Instruction]) -> int:
    """How many kernels are started, without copies; scalar instructions of a TPU are none."""
    return sum(instruction.kind == "fusion" for instruction in program)


def copies(program: list[Instruction]) -> int:
    """How many copies are started."""
    return sum(instruction.kind in ("copy", "copy-start", "slice-start") for instruction in program)


def parameters(program: list[Instruction], of: str) -> list[Instruction]:
    """The parameters whose names start so."""
    return [i for i in program if i.kind == "parameter" and i.source.startswith(of)]


def traffic(program: list[Instruction], of: list[Instruction] | None = None) -> Traffic:
    """What is read from main memory and written to it; with `of`, only what is read of these parameters."""
    counted = None if of is None else {parameter.name for parameter in of}
    known: dict[str, tuple[str, tuple[Array, ...]]] = {}  # the first name of what a name stands for
    read = written = 0
    for name, kind, results, operands, _ in program:
        known[name] = name, results
        if kind == "bitcast" and operands:
            known[name] = known[operands[0]][0], results
        if kind in FREE or kind.endswith("-done"):
            continue
        for operand in dict.fromkeys(operands):
            first_name, arrays = known[operand]
            if counted is None or first_name in counted:
                size = sum(array.padded_bytes for array in arrays if array.is_in_main_memory)
                read += min(size, results[1].padded_bytes) if kind == "slice-start" else size
        if kind in ("copy-start", "slice-start"):
            results = results[:1] if kind == "copy-start" else results[1:2]
        written += sum(array.padded_bytes for array in results if array.is_in_main_memory)
    return Traffic(read, written)


def collectives(program: list[Instruction]) -> list[Collective]:
    """The collectives; those that start and end apart count once."""
    found = []
    for instruction in program:
        kind = instruction.kind.removesuffix("-start")
        if kind in COLLECTIVES:
            arrays = instruction.results
            if instruction.kind.endswith("-start") and kind != "all-reduce":
                arrays = arrays[len(arrays) // 2 :]  # The first half are what it takes.
            found.append(Collective(kind, len(arrays), sum(a.bytes for a in arrays)))
    return found
