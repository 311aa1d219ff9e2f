"""Compiles updates for accelerators that are not there, and reads off what they cost.

`python -m benchmarks.programs` (or `make programs`) compiles Adam with every transformation and its peers in front
for TPUs and NVIDIA GPUs, prints a table for each target, and writes benchmarks/results/programs-TARGET.json.
Gradients are summed over the devices already: what is counted is what a transformation adds to the step. Counts do
not depend on the machine that compiles; seconds do.
"""

import argparse
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import jax

from benchmarks.programs.compiling import CHAINS, compile_update, make_mesh, prepare_environment
from benchmarks.programs.reading import collectives, copies, instructions, kernels, parameters, traffic
from benchmarks.programs.tables import table
from benchmarks.programs.targets import TARGETS
from benchmarks.programs.trees import gradients, stacked_blocks, transformer
from benchmarks.transforms import TREES
from experiments import machine

RESULTS = Path(__file__).parents[1] / "results"
COMPILERS = ("libtpu", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12")
# Trees and layouts for one device and for several. On more devices, replicated leaves give the program of one.
CASES = {
    "v5e": [("large", "replicated"), ("large", "stacked"), ("resnet56", "replicated")],
    "v5e-16": [
        ("large", "fsdp"),
        ("large", "stacked"),
        ("transformer", "mesh"),
        ("transformer", "stacked mesh"),
    ],
    "v5e-256": [("large", "fsdp"), ("transformer", "mesh")],
    "h100": [("large", "replicated"), ("large", "stacked"), ("resnet56", "replicated")],
    "h100-8": [("large", "fsdp"), ("resnet56", "fsdp")],
}
MESHES = {"v5e-16": (2, 4, 2), "v5e-256": (16, 8, 2)}


def measure(target: str, tree: str, layout: str, chain: str) -> dict[str, Any]:
    """Compiles one chain, and counts."""
    if tree == "transformer":
        mesh = make_mesh(TARGETS[target], MESHES[target], ("data", "fsdp", "tensor"))
        grads = transformer(mesh, stacked=layout == "stacked mesh")
        stacked_axes = stacked_blocks if layout == "stacked mesh" else None
    else:
        grads = gradients(TREES[tree](), make_mesh(TARGETS[target]), layout)
        stacked_axes = int(layout == "stacked")
    compiled = compile_update(chain, grads, stacked_axes)
    program = instructions(compiled.program.as_text())
    of_gradients = parameters(program, "gradients")
    held = sum(parameter.results[0].padded_bytes for parameter in of_gradients)
    moved, reads, found = traffic(program), traffic(program, of_gradients).read, collectives(program)
    cost = compiled.program.cost_analysis() if target.startswith("v5e") else {}
    return {
        "tree": tree,
        "layout": layout,
        "chain": chain,
        "leaves": len(jax.tree.leaves(grads)),
        "gradient_bytes": held,
        "traffic": round(sum(moved) / held, 3),
        "gradient_reads": round(reads / held, 3),
        "xla_bytes": round(cost["bytes accessed"] / held, 1) if cost else None,
        "kernels": kernels(program),
        "copies": copies(program),
        "collectives": len(found),
        "collective_kinds": sorted({c.kind for c in found}),
        "collective_bytes": sum(c.bytes for c in found),
        "temporary_bytes": compiled.program.memory_analysis().temp_size_in_bytes,
        "compile_seconds": round(compiled.seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: all")
    parser.add_argument("--chains", nargs="+", choices=CHAINS, default=list(CHAINS), help="default: all")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    arguments = parser.parse_args()

    prepare_environment()
    for name in arguments.targets:
        target, results = TARGETS[name], []
        for tree, layout in CASES[name]:
            rows = [measure(name, tree, layout, chain) for chain in arguments.chains]
            print(table(target.title, rows), flush=True)
            results += rows
        record = {
            "target": target._asdict(),
            "environment": machine.describe_environment(),
            "compilers": {package: importlib.metadata.version(package) for package in COMPILERS},
            "results": results,
        }
        (arguments.out / f"programs-{name}.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
