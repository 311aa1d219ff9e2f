"""A run's name and its checks."""

import dataclasses
import json
import random

import numpy as np
import pytest

from experiments import run as names
from experiments.run import CROSS_ENTROPY, Run
from experiments.training import losses, methods

RUN = Run("digits", "resnet8", "znorm", "adam", 0.001, 10, 64, 0)


def test_name_depends_on_every_field_and_on_no_order():
    others = {
        "dataset": "cifar10",
        "model": "resnet20",
        "method": "gan",
        "optimizer": "sgdm",
        "learning_rate": 0.0010001,
        "epochs": 11,
        "batch_size": 32,
        "seed": 1,
        "schedule": "cosine",
        "warmup_epochs": 1.0,
        "step_epochs": 20,
        "step_factor": 0.5,
        "weight_decay": 1e-4,
        "label_smoothing": 0.1,
        "augment": "crop_flip",
        "train_examples": 100,
        "test_examples": 100,
        "validation_examples": 10,
        "validation_seed": 1,
        "dtype": "bfloat16",
        "dynamics": True,
        "loss": "tversky",
        "steps": 100,
        "evaluated_epochs": 2,
    }
    assert set(others) == {field.name for field in dataclasses.fields(Run)}
    names = {RUN.name} | {dataclasses.replace(RUN, **{field: value}).name for field, value in others.items()}
    assert len(names) == len(others) + 1

    shuffled = list(dataclasses.asdict(RUN).items())
    random.Random(0).shuffle(shuffled)
    assert Run(**dict(shuffled)).name == RUN.name


def test_name_outlives_a_field_added_later():
    @dataclasses.dataclass(frozen=True)
    class LaterRun(Run):
        ema_decay: float = 0.0

    fields = dataclasses.asdict(RUN)
    assert LaterRun(**fields).name == RUN.name
    assert LaterRun(**fields, ema_decay=0.9).name != RUN.name


def test_names_of_records_already_written_stay():
    assert RUN.name == "digits-resnet8-znorm-adam-lr0.001-s0-8a3c30a7"


def test_equal_runs_have_equal_names():
    run = dataclasses.replace(RUN, learning_rate=1)
    same = dataclasses.replace(RUN, learning_rate=np.float64(1.0), epochs=np.int64(10), seed=np.uint8(0))
    assert run == same
    assert run.name == same.name
    assert json.loads(json.dumps(dataclasses.asdict(same))) == dataclasses.asdict(run)


def test_name_is_one_file_name_for_a_data_set_given_by_path():
    name = dataclasses.replace(RUN, dataset="arrays:some/folder/mine.npz").name
    assert "/" not in name
    assert name != dataclasses.replace(RUN, dataset="arrays:another/mine.npz").name


@pytest.mark.parametrize(
    ("field", "value", "choices"),
    [
        (
            "method",
            "zscore",
            "baseline, centralization, layer_centralization, clipping, clipping_1, clipping_value, znorm, gan",
        ),
        ("optimizer", "sgd", "sgdm, adam, adamw, rmsprop, lars, lamb"),
        ("schedule", "linear", "constant, cosine, step"),
        ("augment", "mirror", "none, flip, crop_flip"),
        ("dtype", "float16", "float32, bfloat16"),
        ("dataset", "", "a name"),
        ("model", 20, "a name"),
        ("learning_rate", 0.0, "greater than 0"),
        ("learning_rate", -1e-3, "greater than 0"),
        ("learning_rate", float("nan"), "finite"),
        ("learning_rate", float("inf"), "finite"),
        ("learning_rate", "0.1", "a finite number"),
        ("epochs", 0, "at least 1"),
        ("epochs", 2.5, "an integer"),
        ("epochs", True, "an integer"),
        ("batch_size", 0, "at least 1"),
        ("seed", -1, "from 0"),
        ("seed", 2**32, "2**32 - 1"),
        ("warmup_epochs", 10.0, "less than epochs"),
        ("warmup_epochs", -0.5, "from 0"),
        ("step_epochs", 0, "at least 1"),
        ("step_factor", 0.0, "greater than 0"),
        ("step_factor", 1.5, "at most 1"),
        ("weight_decay", -1e-4, "at least 0"),
        ("label_smoothing", 1.0, "less than 1"),
        ("train_examples", 0, "at least 1"),
        ("test_examples", 0, "at least 1"),
        ("validation_examples", -1, "at least 0"),
        ("validation_seed", -1, "from 0"),
        ("steps", 9, "at least as many as epochs"),
        ("evaluated_epochs", 0, "from 1 to epochs"),
        ("evaluated_epochs", 11, "from 1 to epochs"),
    ],
)
def test_wrong_values_are_named(field, value, choices):
    with pytest.raises(ValueError, match=field) as error:
        dataclasses.replace(RUN, **{field: value})
    message = str(error.value)
    assert repr(value) in message
    assert choices in message
    assert "\n" not in message


def test_every_name_a_run_may_have_is_known_where_it_is_used():
    assert set(names.METHODS) == set(methods.METHODS)
    assert set(names.OPTIMIZERS) == set(methods.OPTIMIZERS)
    assert set(names.SCHEDULES) == set(methods.SCHEDULES)
    assert set(names.LOSSES) == {CROSS_ENTROPY, *losses.LOSSES}
