"""What was seen after the runs: no questions of the protocol, so no verdicts."""

import math
from collections.abc import Sequence
from itertools import accumulate

from experiments.records import RunRecord
from experiments.report import intervals, names
from experiments.report.cells import Cell

SPIKE = 10  # times the lowest training loss of the epochs before
LATE = 0.3  # of the epochs: what comes after them is late


def describe_leads(cells: Sequence[Cell]) -> str:
    """Where the training loss leaps up, and how low and how high it gets, method by method."""
    parts = [
        "Seen in the figure after the runs: leads, not questions of the protocol, and no verdicts.",
        describe_spikes(cells),
        describe_floor(cells),
    ]
    return " ".join(part for part in parts if part)


def describe_spikes(cells: Sequence[Cell]) -> str:
    """In how many runs of each method the training loss leapt up, and what that does to the last epoch."""
    return (
        f"{count_spikes(cells)} Where it does, the last epoch's loss and gradients depend on when the training "
        "stops, which widens their intervals."
    )


def count_spikes(cells: Sequence[Cell]) -> str:
    """In how many runs of each method the training loss leapt up."""
    counts = []
    for cell in cells:
        spiking = sum(map(_leaps, cell.ended.values()))
        counts.append(f"{_name(cell, cells)} {spiking} of {len(cell.ended)}")
    return (
        f"The training loss rises to more than {SPIKE} times its lowest value before. Runs in which it does: "
        f"{'; '.join(counts)}."
    )


def describe_floor(cells: Sequence[Cell]) -> str:
    """The lowest training loss of any epoch beside the baseline's, and the highest late one."""
    parts = []
    for cell in cells:
        if not cell.ended:
            continue
        baseline = next(
            (c for c in cells if (c.run.model, c.run.method) == (cell.run.model, "baseline")), None
        )
        lowest = {seed: min(_losses(record)) for seed, record in cell.ended.items()}
        late = [max(_losses(record)[round(LATE * len(record.epochs)) :]) for record in cell.ended.values()]
        ratio = ""
        if baseline is not None and baseline is not cell:
            theirs = {seed: min(_losses(record)) for seed, record in baseline.ended.items()}
            seeds = [seed for seed in lowest if seed in theirs and min(lowest[seed], theirs[seed]) > 0]
            found = intervals.of_mean([math.log(lowest[seed] / theirs[seed]) for seed in seeds])
            mean, low, high = (math.exp(x) for x in (found.mean, found.low, found.high))
            ratio = f", x {mean:.3g} [{low:.3g}, {high:.3g}] of the baseline's" if found.is_known else ""
        parts.append(
            f"{_name(cell, cells)} {_range(list(lowest.values()))}{ratio}, then, after {LATE:.0%} of the epochs, "
            f"highest {_range(late)}"
        )
    return f"Lowest training loss of any epoch: {'; '.join(parts)}." if parts else ""


def _losses(record: RunRecord) -> list[float]:
    return [epoch.train_loss for epoch in record.epochs]


def _leaps(record: RunRecord) -> bool:
    losses = _losses(record)
    return any(loss > SPIKE * low for loss, low in zip(losses, accumulate(losses, min), strict=True))


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2g} to {max(values):.2g}"


def _name(cell: Cell, cells: Sequence[Cell]) -> str:
    several = len({cell.run.model for cell in cells}) > 1
    return f"{names.model(cell.run.model)}, " * several + names.METHODS[cell.run.method]
