"""Figures of the gradient statistics that runs recorded: deviation per layer, globally, and ZNorm's amplification."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

import optax_gradnorm
from experiments import records
from experiments.records import RunRecord
from experiments.report import names, pages, style
from experiments.report.cells import without_seed
from experiments.report.pages import describe_protocol
from experiments.run import Run
from experiments.statistics import GradientDynamics

ZNORM_EPS = inspect.signature(optax_gradnorm.znorm).parameters["eps"].default

HOW_TO_READ = f"""\
Raw gradients, before the method. Heat map: standard deviation within each layer, mean over the steps of the
epoch, geometric mean over seeds; white where a gradient vanished or was not finite. Below it: standard
deviation of all layers together, one thin line per seed and their geometric mean. On the right: the factor
1/(sigma + {ZNORM_EPS:g}) by which ZNorm multiplies a layer (or would, under another method), in the first and the
last epoch, and the largest of any step."""


def amplification(std: np.ndarray) -> np.ndarray:
    """ZNorm's factor 1/(std + eps), float64; NaN where nothing is amplified: the deviation is 0 or not finite."""
    std = np.asarray(std, np.float64)
    return 1 / (np.where(np.isfinite(std) & (std > 0), std, np.nan) + ZNORM_EPS)


def read_all(folder: Path, ended: Iterable[RunRecord]) -> list[GradientDynamics]:
    """The statistics of those runs that have them.

    Args:
      folder: of the records.
      ended: records of runs.
    """
    found = [records.read_dynamics(folder, record) for record in ended]
    return [dynamics for dynamics in found if dynamics is not None and len(dynamics.std)]


def write_page(folder: Path, records_folder: Path, run_records: Sequence[RunRecord]) -> Path | None:
    """Writes dynamics.md, with a figure for every setting of which runs have statistics.

    Args:
      folder: where to.
      records_folder: of the records.
      run_records: those to draw; the ones without statistics are left out.

    Returns:
      The page, or `None` if there is nothing to draw.
    """
    settings: dict[Run, list[GradientDynamics]] = {}
    for record in run_records:
        if record.run.dynamics and record.status in ("finished", "diverged"):
            settings.setdefault(without_seed(record.run), []).extend(read_all(records_folder, [record]))
    settings = {setting: seeds for setting, seeds in settings.items() if seeds}
    if not settings:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    sections = ["# Gradient dynamics", HOW_TO_READ]
    taken: dict[str, int] = {}
    for setting, seeds in settings.items():
        title = (
            f"{names.model(setting.model)}, {names.METHODS[setting.method]}, "
            f"{names.OPTIMIZERS[setting.optimizer]} {setting.learning_rate:g}, {len(seeds)} seeds"
        )
        sections.append(f"- {title}: {describe_protocol(setting)}.")
        figure = f"dynamics_{setting.model}_{setting.method}_{setting.optimizer}".replace(":", "_")
        taken[figure] = taken.get(figure, 0) + 1
        figure += f"_{taken[figure]}" if taken[figure] > 1 else ""
        sections.append(add_figure(folder, figure, title, seeds))
    page = folder / "dynamics.md"
    pages.write_page(page, sections)
    return page


def add_figure(folder: Path, name: str, title: str, seeds: Sequence[GradientDynamics]) -> str:
    """Draws one setting as NAME.svg; returns the Markdown that shows them."""
    draw(folder / f"{name}.svg", title, seeds)
    return f"![{title}: standard deviation of the gradients per layer and epoch]({name}.svg)"


def draw(path: Path, title: str, seeds: Sequence[GradientDynamics]) -> None:
    """Draws a heat map layers x epochs, the global curve below it and the amplification beside it.

    Args:
      path: of the figure, which ends with .svg.
      title: above the figure.
      seeds: statistics of runs that differ in the seed alone.
    """
    import matplotlib as mpl
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    layers = seeds[0].layers
    deviation = geometric_mean([dynamics.std for dynamics in seeds])
    epochs = np.arange(1, len(deviation) + 1)
    rows = np.arange(len(layers))
    with mpl.rc_context({**style.STYLE, "axes.grid": False}):
        figure = Figure(
            figsize=(9, max(5.0, 3.3 + 0.11 * min(len(layers), 60))), dpi=120, layout="constrained"
        )
        figure.suptitle(title)
        # The label of the colour bar keeps clear of the panel to its right.
        grid = figure.add_gridspec(
            2, 2, wspace=0.12, width_ratios=(1.5, 1), height_ratios=(max(3, len(layers) / 12), 1.3)
        )
        heat = figure.add_subplot(grid[0, 0])
        factors = figure.add_subplot(grid[0, 1], sharey=heat)
        total = figure.add_subplot(grid[1, 0], sharex=heat)

        if deviation.count():
            scale = LogNorm(deviation.min(), deviation.max())
            # One picture in the SVG: thousands of rectangles would make it large and show seams.
            image = heat.pcolormesh(epochs, rows, deviation.T, norm=scale, cmap="cividis", rasterized=True)
            figure.colorbar(
                image, ax=heat, pad=0.02, aspect=30, label="standard deviation of the raw gradient"
            )
        heat.set(
            title="standard deviation per layer",
            xlabel="epoch",
            ylabel=r"output $\longleftarrow$ input",
            ylim=(len(layers) - 0.5, -0.5),
        )
        shown = rows[:: max(1, round(len(layers) / 20))]
        heat.set_yticks(shown, [short_name(layers[row]) for row in shown], fontsize=7)

        # Different markers and lines: to be told apart without colour too.
        for label, color, line, epoch in (
            ("first epoch", style.BLACK, "--", 0),
            ("last epoch", style.BLUE, "-", -1),
        ):
            factor = np.ma.masked_invalid(amplification(deviation[epoch].filled(0)))
            factors.plot(factor, rows, line, color=color, label=label, linewidth=1.2)
        largest = np.ma.masked_invalid(_largest_amplification(seeds))
        factors.plot(largest, rows, "x", color=style.VERMILION, label="largest, any step")
        factors.set(title="ZNorm's amplification", xscale="log", xlabel=r"1 / ($\sigma$ + $\epsilon$)")
        factors.tick_params(labelleft=False)
        factors.tick_params(axis="x", labelsize=7)
        style.label_narrow_log_axis(factors.xaxis)

        for dynamics in seeds:
            curve = np.ma.masked_less_equal(np.ma.masked_invalid(dynamics.global_std), 0)
            total.plot(
                epochs[: len(curve)], curve, color=style.BLUE, linewidth=0.6, alpha=0.6, label="one seed"
            )
        curve = geometric_mean([dynamics.global_std for dynamics in seeds])
        total.plot(epochs, curve, color=style.BLACK, linewidth=1.6, label="geometric mean")
        total.set(title="standard deviation of all layers together", xlabel="epoch")
        if curve.count():
            total.set_yscale("log")
            style.label_narrow_log_axis(total.yaxis)
        total.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in (factors, total):
            axes.grid(alpha=0.3)

        legend = figure.add_subplot(grid[1, 1])
        legend.axis("off")
        handles, labels = factors.get_legend_handles_labels()
        entries = {label: handle for handle, label in zip(*total.get_legend_handles_labels(), strict=True)}
        handles += entries.values()
        labels += [f"all layers: {label}" for label in entries]
        legend.legend(handles, labels, loc="upper left", frameon=False, fontsize=8)
        style.save(figure, path)


def draw_global(
    path: Path, title: str, panels: Mapping[str, Mapping[str, Sequence[GradientDynamics]]]
) -> None:
    """Draws the global standard deviation over epochs: one column per panel; per method the mean and a band.

    Args:
      path: of the figure, which ends with .svg.
      title: above the figure.
      panels: statistics of the seeds by method, by title of the panel.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context({**style.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(max(3.4 * len(panels), 5), 3.4), dpi=120, layout="constrained")
        figure.suptitle(title)
        lines = {}
        columns = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (name, methods) in zip(columns, panels.items(), strict=True):
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
            figure.legend(list(lines.values()), labels, loc="outside lower center", ncols=5, frameon=False)
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
