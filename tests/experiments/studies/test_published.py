"""What is published can be checked: reports render to their bytes, and their intervals follow from the records."""

import importlib.metadata
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from matplotlib.axes import Axes

from experiments.records import exists, read_records
from experiments.report import front, pages, steps, summary
from experiments.reproduce import render
from experiments.studies import compare, deciding_studies, load_studies

ROOT = pathlib.Path(__file__).parents[3]
RESULTS = ROOT / "experiments/results"
PUBLISHED = sorted(path.parent.name for path in RESULTS.glob("*/cpu"))
# 97.5 % quantiles of Student's t by degrees of freedom, from a printed table.
QUANTILES = {2: 4.302653, 4: 2.776445}


def read_runs(study: str) -> list[dict]:
    lines = (RESULTS / study / "cpu/records.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["status"] == "finished"]


def accuracy(epochs: list[dict]) -> float:
    return 100 * epochs[-1]["test_accuracy"]


def mean_accuracy(epochs: list[dict]) -> float:
    return 100 * np.mean([epoch["test_accuracy"] for epoch in epochs[-3:]])


def mean_log_loss(epochs: list[dict]) -> float:
    return float(np.mean(np.log([epoch["train_loss"] for epoch in epochs])))


def test_the_quantiles_of_the_table_are_where_the_density_has_2_5_percent_above():
    """By the trapezoidal rule on u = arctan(t / sqrt(n)), where the density is cos(u) ** (n - 1), up to a factor."""
    for freedom, quantile in QUANTILES.items():
        u = np.linspace(-np.pi / 2, np.pi / 2, 2_000_001)
        density = np.cos(u) ** (freedom - 1)
        above = density[u >= np.arctan(quantile / np.sqrt(freedom))].sum() / density.sum()
        assert above == pytest.approx(0.025, abs=2e-6)


@pytest.mark.parametrize(
    ("study", "where", "method", "endpoint", "claim"),
    [
        ("cifar10_confirm", {"optimizer": "sgdm", "schedule": "cosine"}, "znorm", accuracy, "rates tuned"),
        ("cifar10_confirm", {"optimizer": "sgdm", "schedule": "constant"}, "znorm", mean_accuracy, "regime"),
        ("gradient_convergence", {}, "znorm", mean_accuracy, "raises test accuracy"),
        ("gradient_convergence", {}, "znorm", mean_log_loss, "lowers (trains faster)"),
        ("vit_dynamics", {}, "gan", accuracy, "raises test accuracy"),
        ("vit_dynamics", {}, "znorm", mean_log_loss, "lowers (trains faster)"),
    ],
)
def test_an_interval_follows_from_the_records_by_numpy_alone(study, where, method, endpoint, claim):
    """Paired by seed: mean of the differences, plus and minus the quantile times their standard error."""
    values: dict[tuple[str, int], float] = {}
    for row in read_runs(study):
        run = row["run"]
        if not run["validation_examples"] and where.items() <= run.items():
            assert (run["method"], run["seed"]) not in values
            values[run["method"], run["seed"]] = endpoint(row["epochs"])
    seeds = sorted(seed for name, seed in values if name == method)
    differences = np.array([values[method, seed] - values["baseline", seed] for seed in seeds])
    half = QUANTILES[len(seeds) - 1] * differences.std(ddof=1) / np.sqrt(len(seeds))
    expected = differences.mean() + np.array([-half, half])
    if endpoint is mean_log_loss:
        expected = np.exp(expected)

    (found,) = (
        row
        for row in json.loads((RESULTS / study / "cpu/findings.json").read_text())
        if row["label"] == {"znorm": "ZNorm", "gan": "GAN"}[method]
        and row["question"].endswith("against the baseline")
        and claim in row["claim"]
        and ("SGDM" in row["claim"] or "optimizer" not in where)
        and ("test accuracy" in row["claim"]) == (endpoint is not mean_log_loss)
    )
    np.testing.assert_allclose(found["interval"], expected, rtol=1e-5)


@pytest.mark.parametrize("study", PUBLISHED)
def test_a_report_renders_to_the_committed_bytes_though_last_digits_differ(study, tmp_path, monkeypatch):
    """Places in a figure are off by a relative 1e-13, as where another processor computes them."""
    place = Axes._set_position

    def place_off(axes, position, which="both"):
        # Computed places: those of the layout, and of pictures that keep their shape.
        computed = which == "original" or (which == "active" and axes.get_aspect() != "auto")
        place(axes, shifted(position) if computed else position, which)

    monkeypatch.setattr(Axes, "_set_position", place_off)
    monkeypatch.setattr(pages, "EXPERIMENTS", tmp_path)
    committed, folder = RESULTS / study / "cpu", tmp_path / "results" / study / "cpu"
    folder.mkdir(parents=True)
    for path in committed.glob("*.jsonl"):
        shutil.copy(path, folder)
    known = {"compare": compare.study_of_records(), **load_studies()}
    records = read_records(folder / "records") if exists(folder / "records") else []
    render(known[study], "cpu", records, folder)
    for figure in (front.FIGURE, steps.FIGURE):
        if (RESULTS / figure).parent == committed:  # beside the report, but of all findings
            front.draw_all(tmp_path / "all", summary.collect(RESULTS, deciding_studies()))
            if (tmp_path / "all" / figure).exists():
                shutil.copy(tmp_path / "all" / figure, folder)

    rendered = {path.name for path in folder.iterdir()}
    assert rendered == {path.name for path in committed.iterdir()}
    pinned = re.search(r"^matplotlib==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned
    drawn_alike = importlib.metadata.version("matplotlib") == pinned[1]
    for name in sorted(rendered):
        if drawn_alike or not name.endswith((".svg", ".png")):  # each version draws a little otherwise
            assert (folder / name).read_bytes() == (committed / name).read_bytes(), name


def shifted(position):
    from matplotlib.transforms import Bbox

    left, bottom, width, height = position.bounds if hasattr(position, "bounds") else position
    return Bbox.from_bounds(*(side * (1 + 1e-13) for side in (left, bottom, width, height)))
