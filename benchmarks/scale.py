"""What gradient transformations cost at scale, from compiled programs: nothing is run, and no array is made.

`python -m benchmarks.scale` compiles one update of every transformation for a transformer of 10^9 parameters on
meshes (data, fsdp, tensor) of 8 to 512 devices of the host, counts the collectives that XLA emits, and writes
benchmarks/results/scale.json. Gradients are float32, divided over fsdp and tensor, and summed over data already:
what is counted is what a transformation adds to the step. Programs are those of accelerators, without the faster
branch for float32 on CPU, but compiled by XLA for CPU, which joins collectives and fuses reads in its own way.
"""

import argparse
import contextlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_gradnorm
from experiments import machine
from optax_gradnorm import _moments

RESULTS = Path(__file__).parent / "results"
WIDTH, VOCABULARY, BLOCKS = 2048, 50_304, 18
MESHES = {8: (2, 2, 2), 64: (8, 4, 2), 512: (16, 8, 4)}
OURS = ("znorm", "gan", "centralize", "track_gradient_dynamics")
BYTES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1, "f64": 8, "s64": 8}
COLLECTIVE = re.compile(
    r"= (?P<type>\(.*?\)|\S+) "
    r"(?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?P<start>-start)?\("
)
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One collective of a compiled program; XLA may have joined several sums into it.

    Attributes:
      kind: 'all-reduce' and the like.
      arrays: how many it takes together.
      bytes: of its results, on each device.
    """

    kind: str
    arrays: int
    bytes: int


def collectives(program: str) -> list[Collective]:
    """The collectives of a compiled program's text."""
    found = []
    for match in COLLECTIVE.finditer(program):
        arrays = ARRAY.findall(match["type"])
        if match["start"] and match["kind"] != "all-reduce":
            arrays = arrays[len(arrays) // 2 :]  # The first half are what it takes.
        sizes = [
            BYTES[dtype] * math.prod(map(int, filter(None, shape.split(",")))) for dtype, shape in arrays
        ]
        found.append(Collective(match["kind"], len(arrays), sum(sizes)))
    return found


def transformer(
    mesh: Mesh, blocks: int = BLOCKS, *, stacked: bool = False, width: int = WIDTH
) -> dict[str, Any]:
    """Gradients of a transformer, shapes and shardings alone: eight leaves a block, or eight for all if stacked."""

    def leaf(shape, *spec, lead=()):
        sharding = NamedSharding(mesh, P(*[None] * len(lead), *spec))
        return jax.ShapeDtypeStruct((*lead, *shape), jnp.float32, sharding=sharding)

    def block(lead=()):
        into, out = ("fsdp", "tensor"), ("tensor", "fsdp")
        square = (width, width)
        return {
            **{name: leaf(square, *into, lead=lead) for name in ("query", "key", "value")},
            "output": leaf(square, *out, lead=lead),
            "up": leaf((width, 4 * width), *into, lead=lead),
            "down": leaf((4 * width, width), *out, lead=lead),
            "attention_norm": leaf((width,), lead=lead),
            "mlp_norm": leaf((width,), lead=lead),
        }

    embedding = leaf((VOCABULARY, width), "tensor", "fsdp")
    if stacked:
        return {"embedding": embedding, "blocks": block((blocks,))}
    return {"embedding": embedding, **{f"block{i}": block() for i in range(blocks)}}


def _stacked_axes(tree: Any) -> Any:
    names = optax_gradnorm.layer_names(tree)
    return jax.tree.unflatten(jax.tree.structure(tree), [int(name.startswith("blocks/")) for name in names])


def make_transform(name: str, *, stacked: bool = False) -> optax.GradientTransformation:
    """A transformation of this package, or the peer, for leaves that are one layer each or stacked blocks."""
    if name == "clip_by_global_norm":
        return optax.clip_by_global_norm(1.0)
    return getattr(optax_gradnorm, name)(stacked_axes=_stacked_axes if stacked else None)


@contextlib.contextmanager
def as_on_accelerators() -> Iterator[None]:
    """Leaves out the branch that float32 gradients of many elements take on CPU alone."""
    many = _moments.MANY
    _moments.MANY = sys.maxsize
    jax.clear_caches()
    try:
        yield
    finally:
        _moments.MANY = many
        jax.clear_caches()


def make_mesh(devices: int) -> Mesh:
    """Mesh (data, fsdp, tensor) of so many devices."""
    shape = MESHES[devices]
    return jax.make_mesh(
        shape, ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=jax.devices()[:devices]
    )


def compile_update(transform: optax.GradientTransformation, gradients: Any, mesh: Mesh):
    """Compiles one update, whose result lies as the gradients do; the state is whole on every device."""
    replicated = NamedSharding(mesh, P())
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
        jax.eval_shape(transform.init, gradients),
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, gradients)
    update = jax.jit(transform.update, out_shardings=(shardings, replicated), donate_argnums=(0, 1))
    return update.lower(gradients, state).compile()


def measure(devices: int, blocks: int, *, stacked: bool) -> list[dict[str, Any]]:
    """One entry for every transformation."""
    mesh = make_mesh(devices)
    gradients = transformer(mesh, blocks, stacked=stacked)
    leaves = jax.tree.leaves(gradients)
    held = sum(4 * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
    entries = []
    for name in ("clip_by_global_norm", *OURS):
        with as_on_accelerators():
            compiled = compile_update(make_transform(name, stacked=stacked), gradients, mesh)
        found = collectives(compiled.as_text() or "")
        entries.append(
            {
                "transform": name,
                "devices": devices,
                "mesh": list(mesh.devices.shape),
                "stacked": stacked,
                "leaves": len(leaves),
                "parameters": sum(math.prod(leaf.shape) for leaf in leaves),
                "gradient_bytes_per_device": held,
                "collectives": len(found),
                "kinds": sorted({c.kind for c in found}),
                "arrays": sum(c.arrays for c in found),
                "bytes": sum(c.bytes for c in found),
                "bytes_accessed": int(_bytes_accessed(compiled)),
            }
        )
    return entries


def _bytes_accessed(compiled) -> float:
    """Bytes that XLA counts as read and written on one device, by its own cost analysis."""
    return compiled.cost_analysis()["bytes accessed"]


def main() -> None:
    """Compiles everything, each number of devices in a process of its own, and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, choices=MESHES, help="compile for so many here, and print it")
    devices = parser.parse_args().devices
    if devices:
        cases = [(BLOCKS, True), (BLOCKS, False), *([(2, False), (6, False)] if devices == 8 else [])]
        print(
            json.dumps(
                [entry for blocks, stacked in cases for entry in measure(devices, blocks, stacked=stacked)]
            )
        )
        return
    results = []
    for devices in MESHES:
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        command = [sys.executable, "-m", "benchmarks.scale", "--devices", str(devices)]
        results += json.loads(
            subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
        )
        print(f"{devices} devices done", flush=True)
    record = {"environment": machine.describe_environment(), "results": results}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scale.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
