"""What the two studies of medical images share, after Yun 2024, "ZNorm: Z-Score Gradient Normalization"."""

from collections.abc import Mapping, Sequence

from experiments.report.cells import FEWEST_SEEDS, Row, leaves_out_zero, paired_difference
from experiments.report.tables import describe_chance

METHODS = ("baseline", "centralization", "clipping", "znorm", "gan")
VERDICTS = BETTER, WORSE, SAME, TOO_FEW = (
    "better in",
    "worse in",
    "no difference seen in",
    f"fewer than {FEWEST_SEEDS} seeds for",
)

SEEDS_ALONE = """\
The intervals are over seeds alone: the initialisation, the order of the images and their flips differ, the patients
never do. How much other patients would change is a further uncertainty, which nothing here measures."""

PAPER = """\
What reached us of Yun 2024, arXiv 2408.01215, has two numbers, and of neither the whole protocol:

| paper | what it is | data | network | epochs, batch, learning rate, augmentation, initialisation, seeds |
|-------|------------|------|---------|-------------------------------------------------------------------|
| 0.917 | test accuracy with ZNorm | PatchCamelyon | ResNet-101 | not stated |
| 0.812 | test accuracy with ZNorm | CIFAR-10 | ResNet-56 | not stated |

Nor is its optimizer stated with certainty: Adam is the only one that is named."""


def describe(rows: Sequence[Row], scores: Mapping[str, tuple[str, bool]], claimed: Sequence[str] = ()) -> str:
    """Which scores of which methods differ from the baseline's, and how many would by chance.

    Args:
      rows: of the table; the last two labels are optimizer and method.
      scores: names for `Cell.values`, and whether more is better, by heading.
      claimed: headings of what the paper says that ZNorm improves.
    """
    compared = [row for row in rows if row.baseline is not None]
    if not compared:
        return "Nothing has been trained yet that could be compared."
    if all(len(row.cell.ended) < FEWEST_SEEDS for row in compared):
        return f"With fewer than {FEWEST_SEEDS} seeds this size shows only that the study works."
    lines = []
    for row in compared:
        *_, optimizer, method = row.labels
        claim = f" (the paper: better in {', '.join(claimed)})" if method == "znorm" and claimed else ""
        verdicts = {heading: _verdict(row, *score) for heading, score in scores.items()}
        told = [
            f"{verdict} {', '.join(heading for heading, found in verdicts.items() if found == verdict)}"
            for verdict in VERDICTS
            if verdict in verdicts.values()
        ]
        lines.append(f"- {method} behind {optimizer}{claim}: {'; '.join(told)}.")
    chance = describe_chance(compared, [score for score, _ in scores.values()])
    return "\n".join([*lines, f"- {chance}"])


def _verdict(row: Row, score: str, more_is_better: bool) -> str:
    """One of VERDICTS; better and worse is where the interval of the difference to the baseline leaves out 0."""
    assert row.baseline is not None
    differs = leaves_out_zero(row, score)
    if differs is None:
        return TOO_FEW
    if not differs:
        return SAME
    mean, _, _ = paired_difference(row.cell, row.baseline, score)
    return BETTER if (mean > 0) == more_is_better else WORSE
