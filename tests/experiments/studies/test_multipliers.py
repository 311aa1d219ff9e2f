"""How GAN's multipliers change along deviations made by hand."""

import math

import numpy as np
import pytest

from experiments.records.dynamics import GradientDynamics
from experiments.studies.multipliers import SHAPES, changes_along, multipliers_matter


def deviations(*seeds):
    layers = np.ones((len(seeds[0]), 1), np.float32)
    return [
        GradientDynamics(("conv",), np.array([9]), layers, layers, layers, np.float32(global_std))
        for global_std in seeds
    ]


def test_multipliers_change_as_their_formulas_say():
    recorded = {("resnet20", "gan"): deviations([0.4, 0.2, 0.1]), ("resnet20", "znorm"): deviations([1.0])}
    changes = changes_along(recorded, epochs_in_memory=1)["resnet20"]
    power = 1 / (1 - math.log(0.4 / 1.4))
    powers = {shape: 1 / (1 - math.log(f(0.4))) for shape, f in SHAPES.items()}
    assert powers["s / (1 + s)"] == power
    expected = {
        (shape, exponent): [f(s) ** (powers[shape] if exponent else 1) for s in (0.4, 0.2, 0.1)]
        for shape, f in SHAPES.items()
        for exponent in (True, False)
    }
    assert changes.keys() == expected.keys()
    for name, (first, second, last) in expected.items():
        change = changes[name]
        assert [change.first, change.last] == pytest.approx([first, last], rel=1e-5)
        # Adam remembers one epoch: of the three values, neighbours alone count.
        assert change.within == pytest.approx(max(first / second, second / last), rel=1e-5)
    # Without the exponent all change about twofold, with it by less: more than a tenth apart.
    shape, exponent = multipliers_matter({"resnet20": changes})
    assert [f.verdict for f in (shape, exponent)] == ["shown", "contradicted"]
    on, off = ([changes[s, e].within for s in SHAPES] for e in (True, False))
    assert f"x {min(on):.2f} to x {max(on):.2f} within 1,000 steps with it" in exponent.measured
    assert exponent.measured.endswith(f"by x {min(off):.2f} to x {max(off):.2f} without")


def test_shapes_that_change_otherwise_would_contradict_that_they_matter_little():
    """Where deviations pass 1, the shapes bend at other places: 1 - exp(-s) is all but 1 where s / (1 + s) is 0.8."""
    changes = changes_along({("resnet20", "gan"): deviations([4.0, 0.2, 0.1])}, epochs_in_memory=1)
    shape, _ = multipliers_matter(changes)
    assert shape.verdict == "contradicted"


def test_multipliers_of_gradients_that_stay_the_same_are_all_alike():
    recorded = {("resnet20", "gan"): deviations([0.3] * 5, [0.2] * 5)}
    changes = changes_along(recorded, epochs_in_memory=25)
    assert {round(change.within, 6) for change in changes["resnet20"].values()} == {1.0}
    assert {finding.verdict for finding in multipliers_matter(changes)} == {"shown"}
    # A gradient that vanished has no multiplier whose change could be told.
    assert not changes_along({("resnet20", "gan"): deviations([0.3, 0.0])}, 1)


@pytest.mark.parametrize("last", [math.inf, math.nan])
def test_a_deviation_that_is_not_finite_tells_nothing_of_multipliers(last):
    broken = deviations([0.4, 0.2, last])
    assert not changes_along({("resnet20", "gan"): broken}, 1)
    sound = deviations([0.4, 0.2, 0.1])
    assert changes_along({("resnet20", "gan"): [*sound, *broken]}, 1) == changes_along(
        {("resnet20", "gan"): sound}, 1
    )
