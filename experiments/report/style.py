"""What all figures share: one palette, one look, and files that are the same whenever the numbers are."""

import io
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.files import write_whole

if TYPE_CHECKING:  # imported where something is drawn: most commands draw nothing
    from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}

# The colour-blind-safe palette of Okabe and Ito (2008).
BLACK = "#000000"
ORANGE = "#E69F00"
SKY_BLUE = "#56B4E9"
GREEN = "#009E73"
BLUE = "#0072B2"
VERMILION = "#D55E00"
PURPLE = "#CC79A7"
GRAY = "#555555"  # what has no colour of its own

# Every method keeps its colour and line in all figures.
METHOD_STYLES = {
    "baseline": (BLACK, "--"),
    "centralization": (SKY_BLUE, "-"),
    "layer_centralization": (GREEN, "--"),
    "clipping": (ORANGE, "-"),
    "clipping_1": (GREEN, "-"),
    "clipping_value": (PURPLE, "-"),
    "znorm": (BLUE, "-"),
    "gan": (VERMILION, "-"),
}
NORMALIZER_COLORS = {
    "instance_norm": VERMILION,
    "batch_norm": BLUE,
    "group_norm": GREEN,
    "layer_norm": PURPLE,
    "weight_norm": ORANGE,
    "scaled_ws": SKY_BLUE,
}
# Masks in photographs: vermilion and green as red, green and blue.
PREDICTED, TRUE = (213, 94, 0), (0, 158, 115)
TINT = 0.4


def tint(rgb: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """The picture, uint8 [height, width, 3], with a share of the colour where the mask is."""
    tinted = rgb.copy()
    tinted[mask] = np.rint((1 - TINT) * rgb[mask] + TINT * np.array(color)).astype(np.uint8)
    return tinted


def plain(text: str) -> str:
    """A text from a record as one line of a figure, where dollars would begin a formula."""
    return "".join(c if c.isprintable() else "?" for c in text).replace("$", r"\$")


def label_narrow_log_axis(axis: Any) -> None:
    """Marks an axis of less than two powers of ten, where these alone are too few marks, by plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    if high < 100 * low:
        for locator in (LogLocator(subs=(1, 2, 5)), LogLocator(subs=range(1, 10)), MaxNLocator(5)):
            if sum(low <= mark <= high for mark in locator.tick_values(low, high)) >= 3:
                break
        axis.set_major_locator(locator)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())


# In an SVG: what is no coordinate, or a number; and the names that Matplotlib makes of a digest of coordinates.
_NUMBERS = re.compile(r"(?:scale|matrix)\([^)]*\)|-?\d+\.\d{3,}")
_DIGESTS = re.compile(r'(?<=["#])(image|[A-Z]\d+_[0-9a-f]+_|[a-z])[0-9a-f]{10}(?=["\)])')
_NAMES = {"p": "clip", "m": "marker", "h": "hatch", "image": "image"}
_HUNDREDTH = Decimal("0.01")  # of a point: less than can be seen


def settle(svg: str) -> str:
    """An SVG without the last digits of its coordinates, in which kinds of processors differ.

    Coordinates are rounded to a hundredth of a point. What is named by a digest of coordinates is numbered instead.
    """
    numbers: dict[str, str] = {}

    def number(found: re.Match[str]) -> str:
        kind = found[1]
        return numbers.setdefault(found[0], f"{_NAMES.get(kind, kind)}{len(numbers) + 1}")

    return _DIGESTS.sub(number, _NUMBERS.sub(_round, svg))


def _round(found: re.Match[str]) -> str:
    text = found[0]
    if text.endswith(")"):
        return text
    # The decimals are rounded and not the float: Matplotlib prints six digits, so that a half stays one.
    return f"{Decimal(text).quantize(_HUNDREDTH) + 0:f}".rstrip("0").rstrip(".")


def _settle_places(figure: "Figure") -> None:
    """Lays a figure out, and rounds the places of its axes, which decide the pixels that pictures cover."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(side, 6) for side in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))  # in units of the figure
        if axes.images:  # else the place is computed again from the picture's shape, which it has now
            axes.set_aspect("auto")


def save(figure: "Figure", path: Path) -> None:
    """Writes a figure as SVG or PNG, the same bytes on every kind of processor, and makes its folder.

    Args:
      figure: drawn within `matplotlib.rc_context(STYLE)`.
      path: ends with .svg or, for pictures of many points, .png.

    Raises:
      FileError: the file cannot be written; an older one is left as it was.
    """
    import matplotlib as mpl

    kind = path.suffix.removeprefix(".")
    # Neither a date nor a version in the file.
    metadata = {"svg": {"Date": None}, "png": {"Software": None}}[kind]
    if kind == "png":
        _settle_places(figure)
    drawn = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "experiments"}):  # else names are drawn at random
        figure.savefig(drawn, format=kind, metadata=metadata)
    data = settle(drawn.getvalue().decode()).encode() if kind == "svg" else drawn.getvalue()
    write_whole(path, lambda file: file.write(data))
