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

from benchmarks.programs.compiling import (
    CHAINS,
    LAYOUTS,
    compile_update,
    gradients,
    make_mesh,
    prepare_environment,
)
from benchmarks.programs.reading import collectives, copies, instructions, kernels, parameters, traffic
from benchmarks.programs.targets import TARGETS
from benchmarks.transforms import TREES
from experiments import machine

RESULTS = Path(__file__).parents[1] / "results"
COMPILERS = ("libtpu", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12")
# Trees and layouts for one device and for several.
CASES = {
    "one": [("large", "replicated"), ("large", "stacked"), ("resnet56", "replicated")],
    "few": [("large", "replicated"), ("large", "fsdp"), ("large", "stacked"), ("resnet56", "fsdp")],
    "many": [("large", "fsdp"), ("large", "stacked")],
}


def cases(devices: int) -> list[tuple[str, str]]:
    return CASES["one" if devices == 1 else "few" if devices <= 16 else "many"]


def measure(target: str, tree: str, layout: str, chain: str) -> dict[str, Any]:
    """Compiles one chain, and counts."""
    grads = gradients(TREES[tree](), make_mesh(TARGETS[target]), layout)
    compiled = compile_update(chain, grads, layout)
    program = instructions(compiled.program.as_text())
    of_gradients = parameters(program, "gradients")
    held = sum(parameter.results[0].padded_bytes for parameter in of_gradients)
    moved, reads, found = traffic(program), traffic(program, of_gradients).read, collectives(program)
    cost = compiled.program.cost_analysis() if target.startswith("v5e") else {}
    return {
        "tree": tree,
        "layout": layout,
        "chain": chain,
        "leaves": len(grads),
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


def table(title: str, results: list[dict[str, Any]]) -> str:
    """One block for each tree and layout."""
    lines = []
    for tree, layout in dict.fromkeys((row["tree"], row["layout"]) for row in results):
        rows = [row for row in results if (row["tree"], row["layout"]) == (tree, layout)]
        lines += [
            f"{title}: {tree}, {layout}, {rows[0]['leaves']} leaves",
            f"{'in front of adam':<21}{'traffic':>8}{'reads':>7}{'kernels':>9}{'collectives':>13}"
            f"{'bytes':>9}{'temporary MB':>14}{'compile s':>11}",
        ]
        lines += [
            f"{r['chain']:<21}{r['traffic']:>8.2f}{r['gradient_reads']:>7.2f}{r['kernels']:>9}"
            f"{r['collectives']:>13}{r['collective_bytes']:>9,}{r['temporary_bytes'] / 1e6:>14.2f}"
            f"{r['compile_seconds']:>11.0f}"
            for r in rows
        ]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: all")
    parser.add_argument("--trees", nargs="+", choices=["large", "resnet56"], help="default: all")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, help="default: those that make sense")
    parser.add_argument("--chains", nargs="+", choices=CHAINS, default=list(CHAINS), help="default: all")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    arguments = parser.parse_args()

    prepare_environment()
    for name in arguments.targets:
        target, results = TARGETS[name], []
        for tree, layout in cases(target.devices):
            if tree in (arguments.trees or [tree]) and layout in (arguments.layouts or [layout]):
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
