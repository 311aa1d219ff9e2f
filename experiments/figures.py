"""What all figures share: one look, and files that are the same whenever the numbers are."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.records import write_whole

if TYPE_CHECKING:  # imported where something is drawn: most commands draw nothing
    from matplotlib.figure import Figure

# The salt makes the names inside an SVG the same every time.
STYLE: dict[Any, Any] = {"svg.hashsalt": "experiments", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}

# Of masks: vermilion and green, of the palette of Okabe and Ito (2008).
PREDICTED, TRUE = (213, 94, 0), (0, 158, 115)
TINT = 0.4


def tint(rgb: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """The picture, uint8 [height, width, 3], with a share of the colour where the mask is."""
    tinted = rgb.copy()
    tinted[mask] = np.rint((1 - TINT) * rgb[mask] + TINT * np.array(color)).astype(np.uint8)
    return tinted


def label_narrow_log_axis(axis: Any) -> None:
    """Marks an axis of less than two powers of ten, where these alone are too few marks, by plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    if high < 100 * low:
        even = MaxNLocator(5, steps=[1, 2, 5, 10])
        axis.set_major_locator(even if high < 10 * low else LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())


def save(figure: "Figure", path: Path) -> None:
    """Writes a figure as PATH.png and PATH.svg, and makes their folder.

    Args:
      figure: drawn, as it is saved, within `matplotlib.rc_context(STYLE)`.
      path: without suffix; a dot in its name is part of the name.

    Raises:
      RecordError: a file cannot be written; an older one is left as it was.
    """
    import matplotlib as mpl

    def write(suffix: str, metadata: dict[str, None]) -> None:
        write_whole(
            path.with_name(path.name + suffix),
            lambda file: figure.savefig(file, format=suffix[1:], metadata=metadata),
        )

    # Of the style, the salt alone is read when saving, and drawings without the style need it too.
    with mpl.rc_context({"svg.hashsalt": STYLE["svg.hashsalt"]}):
        # Neither a date nor a version in the files.
        write(".png", {"Software": None})
        write(".svg", {"Date": None})
