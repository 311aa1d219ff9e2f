"""Gradient statistics of a Vision Transformer by kind of layer: query, key, value, and so on."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.records.dynamics import GradientDynamics
from experiments.report import dynamics, intervals, names
from experiments.report.findings import SHOWN, UNTOLD, Finding, judge
from experiments.report.intervals import Interval
from experiments.report.markdown import markdown_table
from experiments.studies.trends import find_trend

# By the layer's name; in the order of the network.
PARTS = {
    "patch embedding": r"embedding/patches/kernel",
    "position": r"embedding/position",
    "query": r"encoder/(\d+)/attention/query/kernel",
    "key": r"encoder/(\d+)/attention/key/kernel",
    "value": r"encoder/(\d+)/attention/value/kernel",
    "output": r"encoder/(\d+)/attention/out/kernel",
    "MLP in": r"encoder/(\d+)/mlp_in/kernel",
    "MLP out": r"encoder/(\d+)/mlp_out/kernel",
    "head": r"to_logits/kernel",
}
Recorded = Mapping[str, Sequence[GradientDynamics]]
AFTER_WARMUP = "The global deviation falls after the warm-up"

PARTS_NOTES = f"""\
Last / first: standard deviation of the raw gradient in the last epoch over that in the first, geometric mean over
the layers of a kind, and over seeds with its 95 % Student t-interval (of the logarithm). The first epoch is the
warm-up. Rise, fall: layers that rise or fall in every run, by Kendall's rank correlation with the epochs (two-sided,
p < 0.05), of all layers of that kind; few epochs show few trends. Amplification: the factor
1/(sigma + {dynamics.ZNORM_EPS:g}) by which ZNorm multiplies a layer (or would, under another method), geometric mean
in the first and in the last epoch, and the largest of any step."""


def find_part(layer: str) -> tuple[str, int | None]:
    """Kind of a layer, and its block if it is in one.

    Raises:
      ValueError: it is no layer of a Vision Transformer.
    """
    for part, pattern in PARTS.items():
        if found := re.fullmatch(pattern, layer):
            return part, int(found[1]) if found.groups() else None
    raise ValueError(f"{layer!r} is no layer of a Vision Transformer")


def columns_of(recorded: GradientDynamics, part: str) -> list[int]:
    """Where the statistics of a kind of layer are, from the first block to the last."""
    return [i for i, layer in enumerate(recorded.layers) if find_part(layer)[0] == part]


def log_change(deviations: np.ndarray) -> float:
    """Logarithm of the last epoch's deviation over the first's, mean over the layers where both are positive."""
    if len(deviations) < 2:
        return math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        changes = np.log(deviations[-1].astype(np.float64)) - np.log(deviations[0].astype(np.float64))
    finite = changes[np.isfinite(changes)]
    return float(finite.mean()) if finite.size else math.nan


def change_interval(changes: Sequence[float]) -> Interval:
    """Mean over seeds of the logarithm of the changes."""
    return intervals.of_mean([change for change in changes if math.isfinite(change)])


def _format_change(changes: Sequence[float]) -> str:
    interval = change_interval(changes)
    if not interval.n:
        return "-"
    ends = f" [{math.exp(interval.low):.3g}, {math.exp(interval.high):.3g}]" if interval.is_known else ""
    return f"{math.exp(interval.mean):.3g}{ends}"


def global_changes(seeds: Sequence[GradientDynamics], start: int = 1) -> list[float]:
    """Logarithm of the global deviation's change since an epoch (from 1), of every seed."""
    return [log_change(recorded.global_std[start - 1 :, None]) for recorded in seeds]


def find_global(network: str, recorded: Recorded, *, own: bool = False) -> list[Finding]:
    """Says of every method whether the global standard deviation falls, as it does in convolutional networks.

    Args:
      network: its name for people.
      recorded: statistics of runs by method.
      own: by the rule of PROTOCOL.md, from the first epoch on, which is the warm-up; else from the second on.
    """
    found = []
    for method, seeds in recorded.items():
        first, second = (change_interval(global_changes(seeds, start)) for start in (1, 2))
        interval = first if own else second
        ratios = [_format_change(global_changes(seeds, start)) for start in (1, 2)]
        known = interval.is_known
        verdict = judge(interval.mean < 0 if interval.excludes_zero else None)
        on_warmup = verdict == SHOWN and not (second.excludes_zero and second.mean < 0)
        found.append(
            Finding(
                claim="The global deviation of the gradients falls"
                f"{'' if own else ' after the warm-up'}: {network}, {names.METHODS[method]}",
                source="Yun 2025, arXiv 2509.03677, of convolutional networks",
                measured=f"last / first epoch {ratios[0]}"
                if own
                else f"last / second epoch {ratios[1]}, last / first {ratios[0]}",
                interval=(math.exp(interval.low), math.exp(interval.high)) if known else None,
                verdict=verdict if interval.n else UNTOLD,
                note="the fall rests on the warm-up" if on_warmup else "",
                effect=math.exp(interval.mean) if interval.n else None,
                unit="ratio",
                detectable=100 * (math.exp(intervals.smallest_detectable(interval)) - 1) if known else None,
                group=network,
                label=names.METHODS[method],
                question="The global deviation falls from the first epoch to the last"
                if own
                else AFTER_WARMUP,
                headline=method == "baseline",
            )
        )
    return found


def describe_after_warmup(recorded: Recorded) -> str:
    """In how many methods the global deviation rises or falls behind the first epoch, in a sentence."""
    later = [change_interval(global_changes(seeds, 2)) for seeds in recorded.values()]
    known = [interval for interval in later if interval.excludes_zero]
    if not known:
        return ""
    ratios = [math.exp(interval.mean) for interval in known]
    counts = [sum(interval.mean * way > 0 for interval in known) for way in (1, -1)]
    return (
        f"The first epoch is the warm-up. From the second on the deviation rises in {counts[0]} and falls in "
        f"{counts[1]} of {len(later)} methods by intervals that exclude 1: x {min(ratios):.2f} to "
        f"x {max(ratios):.2f}. The protocol's question takes the first epoch in."
    )


def global_table(recorded: Recorded) -> str:
    """Change of the global standard deviation, from the first epoch and from the second, which has no warm-up."""
    table = [["method", "runs", "last / first", "last / second", "tau of each run"]]
    for method, seeds in recorded.items():
        taus = ", ".join(f"{find_trend(s.global_std.astype(np.float64)).tau:+.2f}" for s in seeds)
        changes = [_format_change(global_changes(seeds, start)) for start in (1, 2)]
        table.append([names.METHODS[method], str(len(seeds)), *changes, taus])
    return markdown_table(table, left=1)


def part_table(recorded: Recorded) -> str:
    """Change, trends and ZNorm's amplification of every kind of layer under every method."""
    headings = ["method", "kind", "last / first", "rise", "fall"]
    table = [[*headings, "amplification, first", "last", "largest"]]
    for method, seeds in recorded.items():
        for part in PARTS:
            columns = columns_of(seeds[0], part)
            changes = [log_change(s.std[:, columns]) for s in seeds]
            trends = [_directions(s, columns) for s in seeds]
            counts = [f"{_in_every(trends, way)} of {len(columns)}" for way in (1, -1)]
            ratio = _format_change(changes)
            table.append([names.METHODS[method], part, ratio, *counts, *_amplifications(seeds, columns)])
    return markdown_table(table, left=2)


def block_table(seeds: Sequence[GradientDynamics]) -> str:
    """Change of the deviation of every kind of layer, and ZNorm's factor in the end, from block to block.

    Nothing without runs.
    """
    if not seeds:
        return ""
    depth = 1 + max(find_part(layer)[1] or 0 for layer in seeds[0].layers)
    table = [["kind: last / first; amplification, last", *(f"block {i + 1}" for i in range(depth))]]
    for part in PARTS:
        columns = columns_of(seeds[0], part)
        if len(columns) == depth:
            changes = [change_interval([log_change(s.std[:, [i]]) for s in seeds]) for i in columns]
            last = [_amplifications(seeds, [i])[1] for i in columns]
            cells = [f"{math.exp(c.mean):.3g}; {factor}" for c, factor in zip(changes, last, strict=True)]
            table.append([part, *cells])
    return markdown_table(table)


def _directions(recorded: GradientDynamics, columns: Sequence[int]) -> list[int]:
    return [find_trend(recorded.std[:, i].astype(np.float64)).direction for i in columns]


def _in_every(trends: Sequence[Sequence[int]], direction: int) -> int:
    """How many layers have this direction in every run."""
    return sum(all(one == direction for one in layer) for layer in zip(*trends, strict=True))


def _amplifications(seeds: Sequence[GradientDynamics], columns: Sequence[int]) -> list[str]:
    """In the first and the last epoch, geometric mean, and the largest of any step."""
    factors = [dynamics.amplification(np.stack([s.std[epoch, columns] for s in seeds])) for epoch in (0, -1)]
    means = [np.exp(np.nanmean(np.log(f))) if np.isfinite(f).any() else math.nan for f in factors]
    largest = dynamics.amplification(np.concatenate([s.smallest_std[:, columns] for s in seeds]))
    means.append(np.nanmax(largest) if np.isfinite(largest).any() else math.nan)
    return [f"{mean:.3g}" for mean in means]
