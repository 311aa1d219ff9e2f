"""Figures of the gradient statistics that runs recorded: deviation per layer, globally, and ZNorm's amplification."""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

import optax_gradnorm
from experiments import records
from experiments.records import RecordError, RunRecord
from experiments.records.dynamics import GradientDynamics
from experiments.report import names, pages, style
from experiments.report.cells import without_seed
from experiments.report.markdown import escape, picture
from experiments.report.pages import describe_protocol
from experiments.run import Run, file_name

ZNORM_EPS = inspect.signature(optax_gradnorm.znorm).parameters["eps"].default

HOW_TO_READ = f"""\
Raw gradients, before the method; a column for each method. Layers from the input (top) to the output; those of
stacked blocks by kind and block. Top: standard deviation within each layer, mean over the
steps of the epoch, geometric mean over seeds; white where a gradient vanished or was not finite. Middle: the factor
1/(sigma + {ZNORM_EPS:g}) by which ZNorm multiplies a layer (or would, under another method), in the first and the
last epoch, and the largest of any step. Bottom: standard deviation of all layers together, one thin line per seed and
their geometric mean."""


def amplification(std: np.ndarray) -> np.ndarray:
    """ZNorm's factor 1/(std + eps), float64; NaN where nothing is amplified: the deviation is 0 or not finite."""
    std = np.asarray(std, np.float64)
    return 1 / (np.where(np.isfinite(std) & (std > 0), std, np.nan) + ZNORM_EPS)


def read_all(folder: Path, ended: Iterable[RunRecord]) -> list[GradientDynamics]:
    """The statistics of those runs that have them.

    Args:
      ended: records of runs.

    Raises:
      RecordError: statistics are damaged, or two runs of one network have other layers.
    """
    return [dynamics for _, dynamics in _read_each(folder, ended)]


def _read_each(folder: Path, ended: Iterable[RunRecord]) -> list[tuple[RunRecord, GradientDynamics]]:
    """The records that have statistics, and these."""
    found = []
    first: dict[str, tuple[str, GradientDynamics]] = {}  # by network: a run that has one, and its statistics
    for record in ended:
        dynamics = records.read_dynamics(folder, record)
        if dynamics is None or not len(dynamics.std):
            continue
        name, other = first.setdefault(record.run.model, (record.run.name, dynamics))
        if other.layers != dynamics.layers:
            raise RecordError(
                f"the statistics in {folder} of {name} and of {record.run.name}, both of {record.run.model}, "
                f"have other layers: {_difference(other.layers, dynamics.layers)}; restore the one that was changed"
            )
        found.append((record, dynamics))
    return found


def _difference(before: Sequence[str], after: Sequence[str]) -> str:
    """Where two sequences part, in words."""
    if len(before) != len(after):
        return f"{len(before)} and {len(after)}"
    return next(f"{one!r} and {two!r}" for one, two in zip(before, after, strict=True) if one != two)


def write_page(folder: Path, records_folder: Path, run_records: Sequence[RunRecord]) -> Path | None:
    """Writes dynamics.md, with a figure for every group of runs with statistics that differ in the method alone.

    Args:
      run_records: those to draw; those without statistics are excluded.

    Returns:
      The page, or `None` if there is nothing to draw.
    """
    sheets: dict[Run, dict[Run, list[GradientDynamics]]] = {}
    ended = [r for r in run_records if r.run.dynamics and r.status in ("finished", "diverged")]
    for record, dynamics in _read_each(records_folder, ended):
        setting = without_seed(record.run)
        shared = dataclasses.replace(setting, method="baseline", learning_rate=1.0)
        sheets.setdefault(shared, {}).setdefault(setting, []).append(dynamics)
    if not sheets:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    sections = ["# Gradient dynamics", HOW_TO_READ]
    taken: dict[str, int] = {}
    for shared, settings in sheets.items():
        title = ", ".join(
            (names.dataset(shared.data_name), names.model(shared.model), names.OPTIMIZERS[shared.optimizer])
        )
        columns = {
            f"{names.METHODS[setting.method]}, rate {setting.learning_rate:g}, {len(seeds)} seeds": seeds
            for setting, seeds in sorted(
                settings.items(), key=lambda item: list(names.METHODS).index(item[0].method)
            )
        }
        protocols = dict.fromkeys(map(describe_protocol, settings))
        sections.append(f"- {escape(title)}: {'; '.join(protocols)}.")
        figure = f"dynamics_{file_name(shared.model)}_{shared.optimizer}"
        taken[figure] = taken.get(figure, 0) + 1
        figure += f"_{taken[figure]}" if taken[figure] > 1 else ""
        draw(folder / f"{figure}.svg", title, columns)
        words = f"{title}: standard deviation of the gradients per layer and epoch"
        sections.append(picture(words, f"{figure}.svg"))
    page = folder / "dynamics.md"
    pages.write_page(page, sections)
    return page


def draw(path: Path, title: str, columns: Mapping[str, Sequence[GradientDynamics]]) -> None:
    """Draws a heat map layers x epochs, ZNorm's amplification and the global deviation, one column per setting.

    Args:
      path: of the figure, which ends with .svg.
      columns: statistics of runs of one network that differ in the seed alone, by the column's title.
    """
    import matplotlib as mpl
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    layers = next(iter(columns.values()))[0].layers
    means = [geometric_mean([dynamics.std for dynamics in seeds]) for seeds in columns.values()]
    counted = np.concatenate([mean.compressed() for mean in means])
    # One scale of colours, so that methods can be compared.
    scale = LogNorm(counted.min(), counted.max()) if len(counted) else LogNorm()
    tall = 1.2 + 0.08 * min(len(layers), 60)
    with mpl.rc_context({**style.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(max(5, 1 + 3 * len(columns)), 2.6 + 2 * tall), dpi=120, layout="constrained")
        figure.suptitle(style.plain(title))
        grid = figure.subplots(
            3, len(columns), sharey="row", squeeze=False, gridspec_kw={"height_ratios": (tall, tall, 1.6)}
        )
        for (heat, factors, total), name, seeds, deviation in zip(
            grid.T, columns, columns.values(), means, strict=True
        ):
            heat.set(title=name, xlabel="epoch")
            _draw_deviation(heat, deviation, scale)
            _draw_amplification(factors, deviation, seeds)
            _draw_total(total, seeds)
        if len(counted):
            figure.colorbar(
                grid[0, 0].collections[0], ax=grid[0], pad=0.01, aspect=25, label="std of the raw gradient"
            )
        shown = np.arange(len(layers))[:: max(1, round(len(layers) / 20))]
        for axes in grid[:2, 0]:
            axes.set_ylabel("layer")
            axes.set_yticks(shown, [style.plain(short_name(layers[row])) for row in shown], fontsize=7)
            axes.set_ylim(len(layers) - 0.5, -0.5)
        grid[2, 0].set_ylabel("std, all layers")
        if any(line.get_ydata().count() for line in grid[2, 0].lines):
            grid[2, 0].set_yscale("log")
            style.label_narrow_log_axis(grid[2, 0].yaxis)
        entries = {}
        for axes in grid[1:, 0]:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                entries[label] = handle
        figure.legend(
            list(entries.values()), list(entries), loc="outside lower center", ncols=5, frameon=False
        )
        style.save(figure, path)


def _draw_deviation(axes, deviation: np.ma.MaskedArray, scale) -> None:
    """A heat map of the deviations [epochs, layers]."""
    epochs, rows = (np.arange(size) for size in deviation.shape)
    # One picture in the SVG: thousands of rectangles would make it large and show seams.
    axes.pcolormesh(epochs + 1, rows, deviation.T, norm=scale, cmap="cividis", rasterized=True)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _draw_amplification(axes, deviation: np.ma.MaskedArray, seeds: Sequence[GradientDynamics]) -> None:
    """ZNorm's factor for each layer, early, late and at its largest."""
    rows = np.arange(deviation.shape[1])
    # Different markers and lines: to be told apart without colour too.
    for label, color, line, epoch in (
        ("first epoch", style.BLACK, "--", 0),
        ("last epoch", style.BLUE, "-", -1),
    ):
        factor = np.ma.masked_invalid(amplification(deviation[epoch].filled(0)))
        axes.plot(factor, rows, line, color=color, label=label, linewidth=1.2)
    largest = np.ma.masked_invalid(_largest_amplification(seeds))
    axes.plot(largest, rows, "x", color=style.VERMILION, label="largest of any step", markersize=4)
    axes.set(xscale="log", xlabel=r"ZNorm's factor, 1 / ($\sigma$ + $\epsilon$)")
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(alpha=0.3)
    style.label_narrow_log_axis(axes.xaxis)


def _draw_total(axes, seeds: Sequence[GradientDynamics]) -> None:
    """The deviation of all layers together: each seed, and their geometric mean."""
    mean = geometric_mean([dynamics.global_std for dynamics in seeds])
    epochs = np.arange(1, len(mean) + 1)
    for dynamics in seeds:
        curve = np.ma.masked_less_equal(np.ma.masked_invalid(dynamics.global_std), 0)
        axes.plot(epochs[: len(curve)], curve, color=style.BLUE, linewidth=0.6, alpha=0.6, label="one seed")
    axes.plot(epochs, mean, color=style.BLACK, linewidth=1.6, label="geometric mean")
    axes.set(xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)


def draw_global(
    path: Path, title: str, panels: Mapping[str, Mapping[str, Sequence[GradientDynamics]]]
) -> None:
    """Draws the global standard deviation over epochs: one column per panel; per method the mean and a band.

    Args:
      path: of the figure, which ends with .svg.
      panels: statistics of the seeds by method, by title of the panel.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context({**style.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(max(3.4 * len(panels), 5), 3.4), dpi=120, layout="constrained")
        figure.suptitle(title)
        lines = {}
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (name, methods) in zip(row, panels.items(), strict=True):
            for method, seeds in methods.items():
                if not seeds:
                    continue
                color, dashes = style.METHOD_STYLES[method]
                stacked = _stack([dynamics.global_std for dynamics in seeds])
                epochs = np.arange(1, stacked.shape[1] + 1)
                axes.fill_between(
                    epochs, stacked.min(axis=0), stacked.max(axis=0), color=color, alpha=0.12, linewidth=0
                )
                curve = np.ma.exp(np.ma.log(stacked).mean(axis=0))
                (lines[method],) = axes.plot(epochs, curve, dashes, color=color, linewidth=1.6)
            axes.set(title=name, xlabel="epoch", yscale="log")
            style.label_narrow_log_axis(axes.yaxis)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
        if lines:
            labels = [names.METHODS[method] for method in lines]
            columns = 5 if len(panels) > 1 else 3
            figure.legend(
                list(lines.values()), labels, loc="outside lower center", ncols=columns, frameon=False
            )
        figure.axes[0].set_ylabel("global standard deviation")
        style.save(figure, path)


def geometric_mean(series: Sequence[np.ndarray]) -> np.ma.MaskedArray:
    """Mean over seeds of arrays [epochs, ...], on a logarithmic scale.

    Runs may have ended after different numbers of epochs; values that are not positive and finite do not count,
    and an entry without any is masked.
    """
    return np.ma.exp(np.ma.log(_stack(series)).mean(axis=0))


def _stack(series: Sequence[np.ndarray]) -> np.ma.MaskedArray:
    """One row per seed, masked where there is no positive, finite value."""
    longest = max(series, key=len)
    stacked = np.ma.masked_all((len(series), *longest.shape), float)
    for row, values in zip(stacked, series, strict=True):
        row[: len(values)] = np.ma.masked_where(~(np.isfinite(values) & (values > 0)), values)
    return stacked


def short_name(layer: str) -> str:
    """A layer's name without the word that all have in common."""
    return layer.removesuffix("/kernel")


def _largest_amplification(seeds: Sequence[GradientDynamics]) -> np.ndarray:
    """Largest factor of each layer, over seeds, epochs and steps; NaN where there is none."""
    factors = amplification(np.concatenate([dynamics.smallest_std for dynamics in seeds]))
    largest = np.where(np.isfinite(factors), factors, 0).max(axis=0)
    return np.where(largest > 0, largest, np.nan)
