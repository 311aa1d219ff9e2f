"""Grids of runs: every combination once, in the order of nested loops."""

import itertools

import pytest

from experiments.run import DEFAULT_LEARNING_RATES, OPTIMIZERS
from experiments.studies.compare import make_study
from experiments.studies.grid import Size, default_learning_rate, grid, with_seeds

SIZE = Size(
    models=("resnet8", "plain8"),
    methods=("baseline", "znorm", "gan"),
    epochs=2,
    batch_sizes=(50, 100),
    seeds=(3, 1),
    train_examples=500,
)


def test_a_grid_has_every_combination_in_the_order_of_nested_loops():
    runs = grid(SIZE.run("digits"), seed=SIZE.seeds, model=SIZE.models, method=SIZE.methods)
    combinations = itertools.product(SIZE.seeds, SIZE.models, SIZE.methods)
    assert [(run.seed, run.model, run.method) for run in runs] == list(combinations)
    assert {(run.dataset, run.epochs, run.batch_size, run.train_examples) for run in runs} == {
        ("digits", 2, 50, 500)
    }
    reordered = grid(SIZE.run("digits"), method=SIZE.methods, model=SIZE.models, seed=SIZE.seeds)
    assert set(reordered) == set(runs)
    by_seed = with_seeds(grid(SIZE.run("digits"), model=SIZE.models, method=SIZE.methods), SIZE.seeds)
    assert [(run.model, run.method, run.seed) for run in by_seed] == list(
        itertools.product(SIZE.models, SIZE.methods, SIZE.seeds)
    )


def test_a_field_follows_from_those_before_it():
    runs = grid(
        SIZE.run("digits"),
        batch_size=SIZE.batch_sizes,
        optimizer=OPTIMIZERS,
        learning_rate=lambda run: default_learning_rate(run) * run.batch_size,
        method=SIZE.methods,
    )
    assert len(set(runs)) == 2 * len(OPTIMIZERS) * 3
    for run in runs:
        assert run.learning_rate == DEFAULT_LEARNING_RATES[run.optimizer] * run.batch_size
    with pytest.raises(ValueError, match="unknown method 'zscore'"):
        grid(SIZE.run("digits"), method=("zscore",))


@pytest.mark.parametrize(("rate", "expected"), [(None, {"sgdm": 0.01, "lars": 1.0}), (0.3, {})])
def test_compare_is_a_study_of_its_arguments(rate, expected):
    optimizers = ("sgdm", "lars")
    study = make_study("digits", "resnet8", ("baseline", "gan"), optimizers, (0, 1), 3, 64, rate, 200)
    runs = study.runs("", [])
    assert [(run.seed, run.optimizer, run.method) for run in runs] == list(
        itertools.product((0, 1), optimizers, ("baseline", "gan"))
    )
    for run in runs:
        assert run.learning_rate == expected.get(run.optimizer, rate)
        assert (run.epochs, run.batch_size, run.train_examples, run.test_examples) == (3, 64, 200, None)
