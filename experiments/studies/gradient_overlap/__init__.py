"""Gradient overlap in ResNets and their plain twins: the bounds, how tight they are, and whether gradients add up.

    python -m experiments reproduce gradient_overlap --preset cpu

Expected: test accuracy of the baseline 0.16 to 0.31, after few steps; 175 core-minutes by the records.

Yun, "Mitigating Gradient Overlap in Deep Residual Networks with Gradient Normalization for Improved
Non-Convex Optimization", 2024, arXiv 2410.21564, section 3. CIFAR-10 batches, at initialisation and after training
with Adam (learning rate 0.001, at which plain networks train too) with and without ZNorm in front.

Whether overlap harms training is the question of the study `skips`.

`measures` measures a network, `figures` draws, this module plans and reports.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.jobs.measure import Measurement
from experiments.records import MeasurementRecord, RunRecord, read_measurements
from experiments.report import names
from experiments.report.cells import make_cells, make_rows
from experiments.report.markdown import markdown_table
from experiments.report.pages import describe_protocol, write_report
from experiments.report.tables import results_table
from experiments.run import Run
from experiments.studies.gradient_overlap import figures
from experiments.studies.gradient_overlap.answers import describe, overlap_findings
from experiments.studies.gradient_overlap.measures import (
    Network,
    Networks,
    measure_initialization,
    measure_trained,
)
from experiments.studies.grid import ZNORM_ALONE, Size, grid
from experiments.studies.study import Study, settings_table

STATES = {
    "initialisation": "initialisation",
    "baseline": "trained, Adam",
    "znorm": "trained, ZNorm and Adam",
}
AXES = ("model", "method")
MODELS = ("resnet20", "plain20", "resnet56", "plain56", "resnet110", "plain110")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverlapSize(Size):
    """How large a preset is; `models` are the trained networks.

    Attributes:
      untrained_models: measured at initialisation; a residual network is followed by its plain twin.
      measured_images: in the batch on which each network is measured.
      iterations: of the power iteration for each operator norm.
    """

    untrained_models: tuple[str, ...]
    measured_images: int
    iterations: int


SIZES = {
    "cpu": OverlapSize(
        models=MODELS[:4],
        methods=ZNORM_ALONE,
        epochs=10,
        batch_sizes=(50,),
        seeds=(0, 1, 2),
        train_examples=1_000,
        test_examples=500,
        untrained_models=MODELS,
        measured_images=32,
        iterations=50,
    ),
    "full": OverlapSize(
        models=MODELS,
        methods=ZNORM_ALONE,
        epochs=100,
        batch_sizes=(256,),
        seeds=(0, 1, 2),
        untrained_models=MODELS,
        measured_images=128,
        iterations=100,
    ),
}
SIZES["smoke"] = SIZES["cpu"].small(
    epochs=1, untrained_models=("resnet8", "plain8"), measured_images=8, iterations=20
)

NOTES = """\
For every block: alpha, the operator norm of its branch's Jacobian (power iteration on products with the Jacobian
and its transpose, for the whole batch at once, since BatchNorm ties its images together); the shortcut's own
operator norm where it is a projection, 1 where it is the identity. "Growth" is ||dL/dx_0|| / ||dL/dy_N||, the
gradient at the input of the first block over that at the output of the last; its bound is the product over the
blocks of (shortcut + alpha) (Lemma 2.1), or of alpha in a plain network (Lemma 2.2, where the paper prints an
equality, but for operator norms only <= holds). The ReLU behind an addition only shrinks. Slack is the factor per
block by which the bound is larger than what was measured; 1 would be tight. Medians and [ranges] over blocks and
seeds for alpha, over seeds for the others."""

OVERLAP_NOTES = """\
Cosine: of the angle between the gradients that reach a block's input through shortcut and branch; near 1 where
they add up in length, the overlap that the paper describes; near 0 where the sum is about as long as that of two
independent gradients. Amplification: length of the sum over that of the shortcut's gradient alone; the paper's
simulation takes 1.5 with both in one direction. Beside it stands the bound on the growth through all blocks, which
allows far more than what is there. Medians and [ranges] over blocks and seeds."""


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """The trained networks, with and without ZNorm."""
    del records
    size = SIZES[preset]
    base = size.run("cifar10", optimizer="adam", learning_rate=0.001)
    return grid(base, seed=size.seeds, model=size.models, method=size.methods)


def make_measurements(preset: str) -> list[Measurement]:
    """One for every network: at initialisation, and after each of the study's runs."""
    size = SIZES[preset]
    options = {"batch_size": size.measured_images, "iterations": size.iterations}
    untrained = [
        Measurement(
            f"initialisation-{model}-s{seed}",
            measure_initialization,
            {"model": model, "seed": seed, **options},
        )
        for seed in size.seeds
        for model in size.untrained_models
    ]
    trained = [
        Measurement(
            f"{run.method}-{run.model}-s{run.seed}",
            measure_trained,
            {"run": dataclasses.asdict(run), **options},
        )
        for run in make_runs(preset, [])
    ]
    return [*untrained, *trained]


def find_networks(preset: str, measured: Mapping[str, MeasurementRecord]) -> Networks:
    """What was measured, by model and state; diverged networks are excluded."""
    size = SIZES[preset]
    networks = {}
    for model in size.untrained_models:
        for state in STATES:
            names = [f"{state}-{model}-s{seed}" for seed in size.seeds]
            found = [measured[name] for name in names if name in measured]
            found = [record for record in found if "blocks" in record.values]
            if found:
                networks[model, state] = Network(found)
    return networks


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and the figures."""
    size = SIZES[preset]
    measured = read_measurements(folder / "measurements")
    networks = find_networks(preset, measured)
    cells = make_cells(make_runs(preset, records), records)
    rows = make_rows(cells.values(), AXES)
    folder.mkdir(parents=True, exist_ok=True)
    figures.draw_magnitudes(folder / "figure1.png")
    figures.draw_directions(folder / "figure2.png")
    expected = len(make_measurements(preset))
    results = ["### Do the gradients of the two paths add up?", overlap_table(networks)]
    if networks:
        figures.draw_bounds(folder / "bounds.svg", networks, STATES)
        figures.draw_blocks(folder / "blocks.png", networks, STATES)
        results.append("![Alpha, cosine and amplification, block by block](blocks.png)")
    results += [
        "### Growth of the gradient and its bound",
        describe(networks, STATES),
        bounds_table(networks),
    ]
    if networks:
        results += [
            describe_errors(networks),
            "![Growth of the gradient and its bound, network by network](bounds.svg)",
        ]
    results += [
        "### Figures 1 and 2 of the paper",
        figures.describe_fields(),
        "![Length of the gradient: original, residual, ZNorm of residual, difference](figure1.png)",
        "![Direction of the gradient: original, residual, ZNorm of residual, difference](figure2.png)",
        "### Accuracy of the trained networks",
        results_table(names.headings(AXES), rows),
    ]
    write_report(
        folder,
        "Gradient overlap in ResNets and plain networks",
        list(cells.values()),
        overlap_findings(networks, STATES),
        settings=settings_table(preset, SIZES),
        results=results,
        method=[
            f"{len(measured)} of {expected} networks were measured, on batches of {size.measured_images} training "
            f"images. Trainings: {describe_protocol(make_runs(preset, [])[0])}; learning rate 0.001.",
            NOTES,
            OVERLAP_NOTES,
        ],
    )


def describe_errors(networks: Networks) -> str:
    """How far the operator norms of the branches may be from their true values."""
    errors = np.concatenate([n.blocks["alpha_error"].ravel() for n in networks.values()])
    return (
        f"Power iteration approaches an operator norm from below: every alpha is a lower estimate, and so bound and "
        f"slack are slightly too low. The estimated relative error of alpha is {np.median(errors):.2%} in the median "
        f"and at most {errors.max():.2%}, over all blocks of all networks."
    )


def bounds_table(networks: Networks) -> str:
    """Growth and bound of every network, decimal logarithms."""
    table = [["network", "state", "seeds", "blocks", "alpha", "log10 growth", "log10 bound", "slack"]]
    for (model, state), n in networks.items():
        table.append(
            [
                names.model(model),
                STATES[state],
                str(n.seeds),
                str(n.num_blocks),
                _median_and_range(n.blocks["alpha"], ".2f"),
                _median_and_range(n.growth, "+.2f"),
                _median_and_range(n.bound, "+.2f"),
                _median_and_range(n.slack, ".2f"),
            ]
        )
    return markdown_table(table, left=2)


def overlap_table(networks: Networks) -> str:
    """Cosine and amplification of every residual network's blocks."""
    table = [
        [
            "network",
            "state",
            "seeds",
            "cosine",
            "cosine > 0",
            "amplification",
            "amplification > 1",
            "bound, log10",
        ]
    ]
    for (model, state), n in networks.items():
        if not n.is_plain:
            cosine, amplification = n.blocks["cosine"], n.blocks["amplification"]
            table.append(
                [
                    names.model(model),
                    STATES[state],
                    str(n.seeds),
                    _median_and_range(cosine, "+.3f"),
                    f"{np.mean(cosine > 0):.0%}",
                    _median_and_range(amplification, ".2f"),
                    f"{np.mean(amplification > 1):.0%}",
                    _median_and_range(n.bound, "+.1f"),
                ]
            )
    return markdown_table(table, left=2)


def _median_and_range(values: np.ndarray, spec: str) -> str:
    return f"{np.median(values):{spec}} [{values.min():{spec}}, {values.max():{spec}}]"


STUDY = Study(
    name="gradient_overlap",
    title="Bounds and overlap of gradients in residual blocks (Yun 2024, section 3, Figures 1 and 2)",
    runs=make_runs,
    report=make_report,
    measurements=make_measurements,
    keep_checkpoints=True,
)
