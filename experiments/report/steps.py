"""The README's figure of `steps_and_images`: what a method changes, over the number of steps."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.report import sentences, style
from experiments.report.findings import HELPS, WITHIN, Finding

STUDY = "steps_and_images"
FIGURE = Path(STUDY) / "cpu/effect_of_steps.svg"  # in the folder of all results
CAPTION = "What ZNorm and centralization change of the test accuracy, over the number of steps"
ACCURACY = "Test accuracy against the baseline"
METHODS = ("ZNorm", "centralization")  # that have a panel
ALL_METHODS = ("centralization", "clipping by norm", "ZNorm", "GAN")
SMALLEST = 1.0  # points
_CELL = re.compile(r"CIFAR-10, ResNet-20, tuned rates, ([\d,]+) images, ([\d,]+) steps, SGDM")

Effects = Mapping[int, Mapping[int, Finding]]  # by images and steps


def find_effects(findings: Sequence[Finding], method: str) -> Effects:
    """Effects of a method on the accuracy behind SGDM, with tuned rates."""
    effects: dict[int, dict[int, Finding]] = {}
    for finding in findings:
        cell = _CELL.fullmatch(finding.group)
        if cell and (finding.question, finding.label) == (ACCURACY, method):
            images, steps = (int(number.replace(",", "")) for number in cell.groups())
            effects.setdefault(images, {})[steps] = finding
    return {images: dict(sorted(of_images.items())) for images, of_images in sorted(effects.items())}


def is_told(findings: Mapping[str, Sequence[Finding]]) -> bool:
    """Whether there are lines to draw: two numbers of images, each with two numbers of steps."""
    effects = find_effects(findings.get(STUDY, ()), METHODS[0])
    return sum(len(of_images) > 1 for of_images in effects.values()) > 1


def tell(findings: Sequence[Finding]) -> dict[str, str]:
    """What every method does in short training, by setting; and ZNorm over the steps, where there are several."""
    told = {
        f"SGD with momentum, {steps:,} steps on {images:,} images": sentences.compare(some, rest=len(some))
        for (images, steps), some in _short(findings).items()
    }
    effects = find_effects(findings, METHODS[0])
    if any(len(of_images) > 1 for of_images in effects.values()):
        words = [
            f"on {images:,} images "
            + ", ".join(f"{_measured(finding)} after {steps:,} steps" for steps, finding in of_images.items())
            for images, of_images in reversed(list(effects.items()))
        ]
        told["SGD with momentum, ZNorm by the length of training"] = "; ".join(words)
    return told


def helpful(findings: Mapping[str, Sequence[Finding]]) -> list[str]:
    """The methods that help in every cell of short training."""
    cells = list(_short(findings.get(STUDY, ())).values())
    helping = [{finding.label for finding in some if finding.verdict == HELPS} for some in cells]
    return [method for method in ALL_METHODS if helping and all(method in some for some in helping)]


def _short(findings: Sequence[Finding]) -> dict[tuple[int, int], list[Finding]]:
    """Findings of all methods, by images and steps, in the cells that have all: those of short training."""
    of_methods = [find_effects(findings, method) for method in ALL_METHODS]
    cells = {}
    for images, of_images in reversed(list(of_methods[0].items())):
        for steps in of_images:
            found = [effects.get(images, {}).get(steps) for effects in of_methods]
            some = [dataclasses.replace(finding, group="") for finding in found if finding]
            if len(some) == len(ALL_METHODS):
                cells[images, steps] = some
    return cells


def _measured(finding: Finding) -> str:
    small = ", by less than a point" if WITHIN in finding.note else ""
    return f"{finding.effect:+.1f} ({finding.verdict}{small})"


def draw(
    path: Path,
    findings: Mapping[str, Sequence[Finding]],
    shared: Sequence[tuple[str, int, Finding]],
) -> bool:
    """Draws a panel for each method, with a line for each number of images.

    Args:
      path: of the figure, which ends with .svg.
      findings: by study.
      shared: ZNorm's effects at one rate for all methods: a label, the number of steps and the finding.

    Returns:
      Whether it was drawn: see `is_told`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    if not is_told(findings):
        return False
    with mpl.rc_context(style.STYLE):
        figure = Figure(figsize=(7.2, 3.4), dpi=100, layout="constrained")
        panels = figure.subplots(1, len(METHODS), sharex=True, sharey=True)
        for axes, method in zip(panels, METHODS, strict=True):
            axes.set_title(method)
            axes.set_xscale("log")
            axes.set_xlabel("steps")
            axes.axhspan(
                -SMALLEST, SMALLEST, color=style.GRAY, alpha=0.12, linewidth=0, label="within 1 point"
            )
            axes.axhline(0, color=style.GRAY, linewidth=0.8)
            lines = zip(find_effects(findings[STUDY], method).items(), _LOOKS, strict=False)
            for (images, effects), (shift, look) in lines:
                # Beside each other, as intervals at equal steps would hide one another.
                aside = {steps * shift: finding for steps, finding in effects.items()}
                _draw_line(axes, aside, label=f"{images:,} images, rates tuned", **look)
        for place, (label, steps, finding) in enumerate(shared):
            words = "one rate (0.01) for both" if place == 0 else None
            _draw_line(panels[0], {steps: finding}, label=words, **_SHARED)
            side = "left" if place == 0 else "right"
            panels[0].annotate(
                f"  {label}  ", (steps, finding.effect), ha=side, va="center", fontsize=8, color=style.GRAY
            )
        panels[0].set_ylabel("points against the optimizer alone")
        style.label_narrow_log_axis(panels[0].xaxis)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        style.save(figure, path)
    return True


# The factor to the side, and the look of a line.
_LOOKS: tuple[tuple[float, dict[str, Any]], ...] = (
    (0.98, {"color": style.METHOD_STYLES["gan"][0], "linestyle": "--", "marker": "s"}),
    (1.02, {"color": style.METHOD_STYLES["znorm"][0], "linestyle": "-", "marker": "o"}),
)
_SHARED: dict[str, Any] = {
    "color": style.GRAY,
    "linestyle": "none",
    "marker": "o",
    "markerfacecolor": "white",
}


def _draw_line(axes: Any, effects: Mapping[float, Finding], **look: Any) -> None:
    """Effects over the steps, and the interval of each."""
    told = {steps: finding for steps, finding in effects.items() if finding.effect is not None}
    axes.plot(list(told), [finding.effect for finding in told.values()], markersize=5, **look)
    for steps, finding in told.items():
        if finding.interval is not None:
            axes.plot((steps, steps), finding.interval, color=look["color"], linewidth=1.2)
