"""Tables and sentences from the records of `python -m benchmarks.programs`."""

from collections.abc import Callable
from typing import Any


def table(title: str, results: list[dict[str, Any]]) -> str:
    """One block for each tree and layout."""
    lines = []
    for tree, layout in dict.fromkeys((row["tree"], row["layout"]) for row in results):
        rows = [row for row in results if (row["tree"], row["layout"]) == (tree, layout)]
        lines += [
            f"{title}: {tree}, {layout}, {rows[0]['leaves']} leaves",
            f"{'in front of adam':<21}{'traffic':>8}{'reads':>7}{'kernels':>9}{'collectives':>13}"
            f"{'bytes':>12}{'temporary MB':>14}{'compile s':>11}",
        ]
        lines += [
            f"{r['chain']:<21}{r['traffic']:>8.2f}{r['gradient_reads']:>7.2f}{r['kernels']:>9}"
            f"{r['collectives']:>13}{r['collective_bytes']:>12,}{r['temporary_bytes'] / 1e6:>14.2f}"
            f"{r['compile_seconds']:>11.0f}"
            for r in rows
        ]
        lines.append("")
    return "\n".join(lines)


def summary(records: dict[str, Any]) -> str:
    """What README.md says of accelerators, from the records of 'v5e', 'v5e-16' and 'h100'."""

    def of(target: str, tree: str, layout: str, key: str) -> dict[str, float]:
        rows = records[target]["results"]
        return {row["chain"]: row[key] for row in rows if (row["tree"], row["layout"]) == (tree, layout)}

    def beside(target: str, tree: str, layout: str, key: str, digits: int) -> str:
        """Ours, and in brackets clipping and Adam alone."""
        value = of(target, tree, layout, key)
        ours = sorted({f"{value[chain]:.{digits}f}" for chain in ("znorm", "gan")})
        peers = [f"{value[chain]:.{digits}f}" for chain in ("clip_by_global_norm", "adam alone")]
        return f"{' to '.join(ours)} ({', '.join(peers)})"

    return (
        "At 100 million parameters `znorm` or `gan` before Adam (clipping, Adam alone) moves "
        f"{beside('v5e', 'large', 'replicated', 'traffic', 1)} times the gradients' bytes on a TPU v5e; on an H100 "
        f"{beside('h100', 'large', 'replicated', 'traffic', 1)}, in "
        f"{beside('h100', 'large', 'replicated', 'kernels', 0)} kernels; "
        f"{beside('v5e-16', 'large', 'fsdp', 'collectives', 0)} collectives on 16 TPUs."
    )


NAMES = {"large": "100 million parameters", "resnet56": "ResNet-56", "transformer": "transformer"}


def kernels_table(record: dict[str, Any]) -> str:
    """Kernels of every chain on one GPU, as docs/scale.md shows them."""
    return _markdown([record], lambda row: row["layout"] == "replicated", lambda row: f"{row['kernels']}")


def collectives_table(records: list[dict[str, Any]]) -> str:
    """Collectives of every chain and the bytes of their results, as docs/scale.md shows them."""
    return _markdown(
        records, lambda row: True, lambda row: f"{row['collectives']} ({row['collective_bytes']:,} bytes)"
    )


def _markdown(
    records: list[dict[str, Any]],
    is_wanted: Callable[[dict[str, Any]], bool],
    cell: Callable[[dict[str, Any]], str],
) -> str:
    """A line for each tree and layout, a column for each chain."""
    lines = []
    for record in records:
        rows = [row for row in record["results"] if is_wanted(row)]
        for tree, layout in dict.fromkeys((row["tree"], row["layout"]) for row in rows):
            own = [row for row in rows if (row["tree"], row["layout"]) == (tree, layout)]
            where = "" if layout == "replicated" else f", {layout}"
            title = f"{record['target']['title']}: {NAMES[tree]}, {own[0]['leaves']} leaves{where}"
            if not lines:
                chains = [f"`{row['chain']}`" if "_" in row["chain"] else row["chain"] for row in own]
                lines += [f"| | {' | '.join(chains)} |", "|---|" + "--:|" * len(own)]
            lines.append(f"| {title} | {' | '.join(cell(row) for row in own)} |")
    return "\n".join(lines) + "\n"
