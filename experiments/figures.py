"""What all figures share: one look, and files that are the same whenever the numbers are."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported where something is drawn: most commands draw nothing
    from matplotlib.figure import Figure

# The salt makes the names inside an SVG the same every time.
STYLE: dict[Any, Any] = {"svg.hashsalt": "experiments", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}


def save(figure: "Figure", path: Path) -> None:
    """Writes a figure as PATH.png and PATH.svg, and makes their folder.

    Args:
      figure: drawn, as it is saved, within `matplotlib.rc_context(STYLE)`.
      path: without suffix; a dot in its name is part of the name.
    """
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    # Neither a date nor a version in the files.
    figure.savefig(f"{path}.png", metadata={"Software": None})
    # Of the style, the salt alone is read when saving, and drawings without the style need it too.
    with mpl.rc_context({"svg.hashsalt": STYLE["svg.hashsalt"]}):
        figure.savefig(f"{path}.svg", metadata={"Date": None})
