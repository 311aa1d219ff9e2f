"""Figures are the same to the byte though processors differ in the last digits of what they compute."""

import re

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.report import style


def draw(path, error):
    """A figure of all that reports draw; values and places are off by a relative error, as on another processor."""
    x = np.arange(1, 31)
    off = 1 + error
    with mpl.rc_context(style.STYLE):
        figure = Figure(figsize=(6.4, 4.8), dpi=120, layout="constrained")
        curves, heat = figure.subplots(1, 2)
        curves.fill_between(x, np.exp(-x / 7) * 0.9 * off, np.exp(-x / 7) * 1.1, alpha=0.1, linewidth=0)
        curves.plot(x, np.exp(-x / 7) * off, "--", label=r"$\sigma$ of all")
        curves.plot(x, off / x, "x", markersize=4, label="largest")
        curves.scatter(x, off * x**-0.5)
        curves.axvline(12.5 * off)
        curves.set(xlabel="epoch", yscale="log", title="losses")
        curves.legend()
        picture = heat.pcolormesh(x, x[:9], np.outer(off / x[:9], x), cmap="cividis", rasterized=True)
        figure.colorbar(picture, ax=heat)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axes in figure.axes:
            axes.set_position([side * off for side in axes.get_position().bounds])
        style.save(figure, path)
    return path.read_bytes()


@pytest.mark.parametrize("error", [1e-15, -3e-14, 1e-12])
def test_last_digits_change_no_byte(tmp_path, error):
    assert draw(tmp_path / "exact.svg", 0.0) == draw(tmp_path / "other.svg", error)


def draw_pictures(path, error):
    """Photographs side by side, whose places are off by a relative error, as on another processor."""
    rng = np.random.default_rng(0)
    with mpl.rc_context(style.STYLE):
        figure = Figure(figsize=(6.3, 3.7), dpi=110, layout="constrained")
        for axes in figure.subplots(2, 4).ravel():
            axes.imshow(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8))
            axes.set(xticks=[], yticks=[], title="ZNorm")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axes in figure.axes:
            axes.set_position([side * (1 + error) for side in axes.get_position().bounds])
        style.save(figure, path)
    return path.read_bytes()


@pytest.mark.parametrize("error", [1e-15, -3e-14, 1e-12])
def test_last_digits_change_no_pixel(tmp_path, error):
    assert draw_pictures(tmp_path / "exact.png", 0.0) == draw_pictures(tmp_path / "other.png", error)


def test_a_shift_that_can_be_seen_changes_the_file(tmp_path):
    assert draw(tmp_path / "exact.svg", 0.0) != draw(tmp_path / "other.svg", 1e-3)


def test_names_inside_a_figure_are_defined_once_and_found(tmp_path):
    text = draw(tmp_path / "figure.svg", 0.0).decode()
    defined = re.findall(r' id="([^"]+)"', text)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    assert len(defined) == len(set(defined))
    assert used <= set(defined)
    assert any(name.startswith("clip") for name in used)


def test_rounding_moves_nothing_that_can_be_seen(tmp_path):
    """Points move by half a hundredth at most; the scale of glyphs of 64 units, 0.015625, stays whole."""
    line = (
        '<g transform="translate(12.345678 9.87) scale(0.015625)"/><path d="M 0.004999 1.125 L -0.001 100"/>'
    )
    settled = '<g transform="translate(12.35 9.87) scale(0.015625)"/><path d="M 0 1.12 L 0 100"/>'
    assert style.settle(line) == settled
