"""When ZNorm helps, by the rules of the protocol of `steps_and_images`, on made-up effects."""

import random

import pytest

from experiments.records import EpochMetrics, RunRecord
from experiments.report.cells import make_cells, make_rows
from experiments.report.contrasts import ACCURACY, make_contrasts
from experiments.run import Run
from experiments.studies.steps_and_images.answer import (
    FEW_LONG,
    FEW_SHORT,
    MANY_LONG,
    MANY_SHORT,
    PAIRS,
    answer,
    compare_cells,
    dependences_table,
)


def effect(points, spread=0.05, method="znorm"):
    """A contrast of so many points against the baseline, over five seeds."""
    records = []
    for seed in range(5):
        chance = random.Random(seed)
        for name, mean in (("baseline", 0.5), (method, 0.5 + points / 100)):
            accuracy = mean + chance.gauss(0, spread / 100)
            run = Run("cifar10", "resnet8", name, "sgdm", 0.1, 1, 50, seed)
            records.append(
                RunRecord(run, "finished", epochs=(EpochMetrics(1, 1.0, 0.5, 1.0, accuracy, 0, 1.0),))
            )
    rows = make_rows(make_cells([r.run for r in records], records).values(), ["method"])
    (contrast,) = make_contrasts(rows, ACCURACY)
    return contrast


def effects(few_short, few_long, many_short, many_long, spread=0.05, **further):
    points = {FEW_SHORT: few_short, FEW_LONG: few_long, MANY_SHORT: many_short, MANY_LONG: many_long}
    return {cell: effect(value, spread) for cell, value in points.items()} | {
        (50_000, int(steps.removeprefix("e"))): effect(value, spread) for steps, value in further.items()
    }


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ((3, 0, 3, 0), "helps in short training**"),
        (
            (3, 3, 1, 0),
            "helps in short training and with few images**",
        ),  # larger in one pair, smaller in none
        ((3, 4, 3, 0), "helps with few images**"),  # smaller in one of the pairs of steps
        ((3, 3, 3, 4), "what makes it help cannot be told**"),  # smaller in one pair of each
        ((3, 3, 0, 0), "helps with few images**"),
        ((5, 3, 3, 0), "helps in short training and with few images**"),
        ((3, 0, 0, 0), "helps with few steps and few images together alone**"),
        (
            (3, 0, 0, -2),
            "helps with few steps and few images together alone; it harms with 50,000 images and 1,950",
        ),
        ((0, 0, 0, 0), "helps nowhere that was tried**"),
        ((0, 0, 0, -2), "helps nowhere that was tried; it harms with 50,000 images and 1,950 steps**"),
        ((0, 3, 0, 0), "helps with 2,000 images and 1,950 steps; what makes it help cannot be told**"),
        ((3, 3, 3, 3), "what makes it help cannot be told**"),
    ],
)
def test_the_answer_follows_from_the_words(points, words):
    assert words in answer(effects(*points))


def test_a_cell_between_the_corners_alone_is_named():
    text = answer(effects(0, 0, 0, 0, e195=3))
    assert "helps with 50,000 images and 195 steps; what makes it help cannot be told" in text


def test_a_cell_between_the_corners_is_named_beside_the_one_that_is_alone():
    text = answer(effects(3, 0, 0, 0, e195=3))
    assert "few images together alone; it helps with 50,000 images and 195 steps too**" in text
    assert "too" not in answer(effects(3, 0, 3, 0, e195=3))


def test_help_within_a_point_says_so():
    assert "helps by less than a point in short training**" in answer(effects(0.5, 0, 0.5, 0))
    assert "less than" not in answer(effects(3, 0, 0.5, 0))


def test_a_dependence_within_a_point_says_so():
    table = dependences_table({"znorm": effects(0.5, 0, 3, 0)})
    few, many = table.splitlines()[2:4]
    assert "larger; by less than a point" in few
    assert "less than a point" not in many


def test_nothing_is_answered_before_the_four_cells_have_ended():
    some = effects(3, 0, 3, 0)
    del some[FEW_LONG]
    assert answer(some) == ""
    assert dependences_table({"znorm": some}) == ""


def test_differences_of_effects_are_welchs_with_holm_over_the_four():
    found = compare_cells(effects(3, 0, 3, -1))
    assert [(d.first, d.second) for d in found] == list(PAIRS)
    assert [round(100 * d.interval.mean, 6) for d in found] == [
        3,
        4,
        0,
        1,
    ]  # seeds have the same noise everywhere
    assert [d.word for d in found] == ["larger", "larger", "no difference that counts", "larger"]
    told = sorted(d.interval.p for d in found)
    assert min(d.p for d in found) == pytest.approx(4 * told[0])
    assert next(d.word for d in compare_cells(effects(0, 3, 0, 0))) == "smaller"
    assert {d.word for d in compare_cells(effects(1, 0, 1, 0, spread=2))} == {"cannot be told"}


def test_the_table_has_both_methods():
    table = dependences_table({"znorm": effects(3, 0, 3, 0), "centralization": effects(1, 1, 1, 1)})
    rows = table.splitlines()[2:]
    assert len(rows) == 8
    assert sum("centralization" in row for row in rows) == 4
    assert "| ZNorm          | 2,000 images and 390 steps" in table
