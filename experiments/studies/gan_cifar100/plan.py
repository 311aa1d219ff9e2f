"""What `gan_cifar100` trains: the compared methods, and networks whose gradients ZNorm would amplify."""

from collections.abc import Sequence

from experiments.records import RunRecord
from experiments.report.cells import make_cells, paired_difference
from experiments.report.contrasts import ACCURACY
from experiments.run import Run
from experiments.studies.grid import ZNORM_ALONE, Size, grid

METHODS = ("baseline", "layer_centralization", "znorm", "gan")
FIRST_SEEDS = 3  # then the others too, unless these are precise enough
HALF_WIDTH = 0.006  # of the accuracy's interval, GAN against the baseline
SCHEDULES = {
    "cosine": {"schedule": "cosine", "warmup_epochs": 1.0},
    # The author's public code.
    "step": {"schedule": "step", "warmup_epochs": 5.0, "step_epochs": 30, "step_factor": 0.75},
}
SIZES = {
    "cpu": Size(
        models=("resnet20",),
        methods=METHODS,
        epochs=15,
        batch_sizes=(128,),
        seeds=(0, 1, 2, 3, 4),
        schedules=("cosine",),
    ),
    "full": Size(
        models=("resnet56", "vgg16_bn", "resnet20"),
        methods=METHODS,
        epochs=300,
        batch_sizes=(256,),
        seeds=(0, 1, 2),
        schedules=("step",),
    ),
}
SIZES["smoke"] = SIZES["cpu"].small(methods=("baseline", "layer_centralization", "gan"), epochs=3)
# Equal images and steps for all networks.
AMPLIFICATION = {
    "cpu": Size(
        models=("resnet20", "resnet56", "vgg16_bn"),
        methods=ZNORM_ALONE,
        epochs=10,
        batch_sizes=(50,),
        seeds=(0, 1, 2, 3, 4),
        train_examples=1_000,
        schedules=("cosine",),
    ),
    "full": Size(
        models=SIZES["full"].models,
        methods=ZNORM_ALONE,
        epochs=300,
        batch_sizes=(256,),
        seeds=(0, 1, 2),
        schedules=("step",),
    ),
}
AMPLIFICATION["smoke"] = AMPLIFICATION["cpu"].small(
    models=("resnet8",), epochs=3, seeds=(0,), train_examples=100
)


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """The compared methods, as many seeds as it takes; when these have ended, the amplified networks too."""
    compared = compared_runs(preset, records)
    if any(cell.missing for cell in make_cells(compared, records).values()):
        return compared
    return list(dict.fromkeys([*compared, *amplified_runs(preset)]))


def named_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """All runs of the protocol, of which `make_runs` names those whose turn has come."""
    del records
    return [*_of_size(SIZES[preset], SIZES[preset].seeds), *amplified_runs(preset)]


def compared_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """Every network and method: the first seeds, and the others where the protocol's precision asks for them."""
    size = SIZES[preset]
    first = _of_size(size, size.seeds[:FIRST_SEEDS])
    if size.seeds[FIRST_SEEDS:] and _is_wide(first, records):
        return _of_size(size, size.seeds)
    return first


def amplified_runs(preset: str) -> list[Run]:
    """Every network, with and without ZNorm."""
    size = AMPLIFICATION[preset]
    return _of_size(size, size.seeds)


def _is_wide(runs: Sequence[Run], records: Sequence[RunRecord]) -> bool:
    """Whether all runs have ended, and the interval of GAN against the baseline is wider than wanted."""
    cells = make_cells(runs, records)
    if any(cell.missing for cell in cells.values()):
        return False
    by_method = {cell.run.method: cell for cell in cells.values()}
    interval = paired_difference(by_method["gan"], by_method["baseline"], ACCURACY.score)
    return not interval.is_known or interval.high - interval.low > 2 * HALF_WIDTH


def _of_size(size: Size, seeds: Sequence[int]) -> list[Run]:
    (schedule,) = size.schedules
    base = size.run(
        "cifar100",
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=5e-5,
        augment="crop_flip",
        dynamics=True,
        evaluated_epochs=1,
        **SCHEDULES[schedule],
    )
    return grid(base, seed=seeds, model=size.models, method=size.methods)
