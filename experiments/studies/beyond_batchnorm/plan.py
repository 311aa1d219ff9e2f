"""What `beyond_batchnorm` measures and trains, preset by preset."""

import dataclasses
from collections.abc import Sequence

from experiments.jobs.measure import Measurement
from experiments.models.signal_propagation.normalizers import DEFAULT_GROUPS, GROUPED
from experiments.records import RunRecord
from experiments.run import Run, file_name
from experiments.studies.beyond_batchnorm.measures import (
    GAUSSIAN,
    measure_first_steps,
    measure_initialization,
    measure_optimizer_input,
)
from experiments.studies.grid import NORMALIZERS

DATASET = "cifar100"
PAPER_WIDTHS = {"cnn10": 64, "cnn20": 64, "uniform30": 64, "resnet": 32}

ACTIVATION = (
    "batch_norm",
    "layer_norm",
    "instance_norm",
    "group_norm",
    "frn",
    "variance_norm",
    "evonorm_b0",
    "evonorm_s0",
)
PARAMETRIC = ("weight_norm", "scaled_ws")
# In the order in which claim 4 has their gradients explode.
COMPARED = ("instance_norm", "batch_norm", "group_norm", "layer_norm")
# The paper's third kind of block; in its code, skip_init stays on beside it. Both are measured.
RESIDUALS = ("", ":skip_init", ":nonlinearity_on_residual", ":skip_init:nonlinearity_on_residual")

# For batch 256, scaled in proportion to the batch as the paper does.
LEARNING_RATES = {"cnn10": 0.1, "cnn20": 0.01, "resnet": 0.1}
# ZNorm's gradients have unit size, so that it needs a smaller one: what tuning it with SGDM on
# CIFAR-10 found best (study overlap_table1, preset cpu). Not scaled.
ZNORM_LEARNING_RATE = 3e-4
# Here weight decay is not fed through the momentum, which would multiply the paper's 1e-4 by 10.
WEIGHT_DECAY = 1e-3


UNIFORM_WIDTH = 64  # of the network of claim 3's stable rank


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a preset is. Networks are named as in `models.signal_propagation.names`, with their width.

    Attributes:
      residual: residual network of claims 1, 2 and 4.
      plain: networks without skip connections of claim 4.
      deep: the one of them whose group size varies.
      normalizers: whose similarity is compared, and which are trained.
      activation_normalizers: of claim 1.
      seeds: of everything at initialisation.
      batch_size: at initialisation.
      batches: per seed at initialisation.
      small_batches: of 16 images, per seed.
      group_sizes: of the deep plain network and the uniform one.
      residual_group_sizes: of the residual network.
      gaussian_size: height and width of Gaussian images.
      first_steps: of training, in which gradients are followed.
      followed: the network of these steps.
      trained: networks whose training is compared with their similarity at initialisation.
      rescued: networks and the normalizers that fail in them.
      epochs: of trainings.
      training_batch_size: images per step.
      training_seeds: of trainings.
      train_examples: class-balanced subset of the training images; None takes all.
      residual_train_examples: the same for residual networks.
      test_examples: class-balanced subset of the test images; None takes all.
    """

    residual: str = "resnet56w32"
    plain: tuple[str, ...] = ("cnn10w64", "cnn20w64")
    deep: str = "cnn20w64"
    normalizers: tuple[str, ...] = (*ACTIVATION, *PARAMETRIC)
    activation_normalizers: tuple[str, ...] = ACTIVATION
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    batch_size: int = 256
    batches: int = 10
    small_batches: int = 160
    group_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    residual_group_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    gaussian_size: int = 32
    first_steps: int = 300
    followed: str = "cnn10w64"
    trained: tuple[str, ...] = ("cnn10w64", "cnn20w64", "resnet56w32")
    rescued: tuple[tuple[str, str], ...] = (("cnn20w64", "instance_norm"), ("resnet56w32", "weight_norm"))
    epochs: int = 60
    training_batch_size: int = 256
    training_seeds: tuple[int, ...] = (0, 1, 2)
    train_examples: int | None = None
    residual_train_examples: int | None = None
    test_examples: int | None = None

    @property
    def networks(self) -> tuple[str, ...]:
        """Those of claims 2 and 4, similarity and batch size."""
        return (*self.plain, self.residual)

    @property
    def grouped(self) -> tuple[str, ...]:
        """Networks whose group size varies."""
        return tuple(network for network in (self.deep, self.residual) if self.group_sizes_of(network))

    def group_sizes_of(self, network: str) -> tuple[int, ...]:
        """Channels in a group, of one of the networks whose group size varies."""
        return self.residual_group_sizes if network == self.residual else self.group_sizes


SIZES = {
    "cpu": Size(
        batches=1,
        small_batches=4,
        gaussian_size=16,
        first_steps=150,
        followed="cnn10w16",
        trained=("cnn10w16",),
        rescued=(("cnn20w16", "instance_norm"), ("resnet56w8", "weight_norm")),
        epochs=20,
        training_batch_size=50,
        train_examples=2_000,
        residual_train_examples=1_000,
        test_examples=500,
    ),
    "full": Size(),
}
# In seconds, for tests: the shallowest networks, a few channels wide.
SIZES["smoke"] = dataclasses.replace(
    SIZES["cpu"],
    residual="resnet20w4",
    plain=("cnn10w8",),
    deep="cnn10w8",
    normalizers=("batch_norm", "group_norm", "layer_norm"),
    activation_normalizers=("batch_norm", "layer_norm"),
    seeds=(0, 1),
    batch_size=32,
    small_batches=1,
    group_sizes=(1, 4, 8),
    residual_group_sizes=(),
    gaussian_size=8,
    first_steps=10,
    followed="cnn10w8",
    trained=("cnn10w8",),
    rescued=(("cnn10w8", "instance_norm"),),
    epochs=2,
    training_seeds=(0,),
    train_examples=200,
    test_examples=100,
)


def family(network: str) -> str:
    """'cnn10', 'cnn20', 'uniform30' or 'resnet': the network without its width, residual ones without depth."""
    base = network.split("w")[0]
    return "resnet" if base.startswith("resnet") else base


def model_name(network: str, normalizer: str, options: str = "") -> str:
    """A model's name; a narrower network than the paper's has as many channels in a group, in fewer groups."""
    if normalizer in GROUPED:
        width = int(network.split("w")[1])
        groups = DEFAULT_GROUPS * width // PAPER_WIDTHS[family(network)]
        normalizer = f"{normalizer}:groups={groups}" if groups != DEFAULT_GROUPS else normalizer
    return f"{network}:{normalizer}{options}"


def grouped_name(network: str, group_size: int) -> str:
    """A model with GroupNorm of one group size in all layers."""
    if group_size == 1:
        return f"{network}:instance_norm"
    return f"{network}:group_norm:size={group_size}"


def initialization_name(model: str, batch_size: int, dataset: str = DATASET) -> str:
    """Name of the measurement of a model at initialisation."""
    return f"init-{dataset}-{file_name(model)}-b{batch_size}"


def _at_initialization(
    size: Size, model: str, *, backward: bool = False, small: bool = False, dataset: str = DATASET
) -> Measurement:
    batch_size = 16 if small else size.batch_size
    arguments = {
        "model": model,
        "dataset": dataset,
        "batch_size": batch_size,
        "batches": size.small_batches if small else size.batches,
        "seeds": size.seeds,
        "backward": backward,
    }
    if dataset == GAUSSIAN:
        arguments["image_size"] = size.gaussian_size
    return Measurement(initialization_name(model, batch_size, dataset), measure_initialization, arguments)


def uniform_name(group_size: int) -> str:
    """The network of claim 3's stable rank."""
    return grouped_name(f"uniform30w{UNIFORM_WIDTH}", group_size)


def make_measurements(preset: str) -> list[Measurement]:
    """Everything at initialisation, the first steps of training and what the optimizer gets."""
    size = SIZES[preset]
    # Those with gradients come first: of several measurements with one name the first is made.
    found = [
        _at_initialization(size, model_name(network, normalizer), backward=True, small=small)
        for small in (False, True)
        for network in size.networks
        for normalizer in COMPARED
    ]
    found += [_at_initialization(size, grouped_name(size.deep, g), backward=True) for g in size.group_sizes]
    forward = [
        *(model_name(size.residual, normalizer) for normalizer in size.activation_normalizers),
        *(model_name(size.residual, norm, block) for norm in PARAMETRIC for block in RESIDUALS),
        *(model_name(network, norm) for network in size.plain for norm in size.normalizers),
        *(grouped_name(size.residual, g) for g in size.residual_group_sizes),
        *(model_name(network, normalizer) for network in size.trained for normalizer in size.normalizers),
    ]
    found += [_at_initialization(size, model) for model in forward]
    found += [_at_initialization(size, uniform_name(g), dataset=GAUSSIAN) for g in size.group_sizes]
    found.append(
        Measurement(
            "first-steps",
            measure_first_steps,
            {
                "model": model_name(size.followed, "batch_norm"),
                "dataset": DATASET,
                "batch_size": size.training_batch_size,
                "steps": size.first_steps,
                "learning_rate": _learning_rate(size, size.followed),
                "seeds": size.seeds,
            },
        )
    )
    found += [
        Measurement(
            optimizer_input_name(network, normalizer),
            measure_optimizer_input,
            {
                "model": model_name(network, normalizer),
                "dataset": DATASET,
                "batch_size": size.training_batch_size,
                "methods": NORMALIZERS,
                "seeds": size.seeds,
            },
        )
        for network, failing in size.rescued
        for normalizer in (failing, "batch_norm")
    ]
    by_name: dict[str, Measurement] = {}
    for measurement in found:
        by_name.setdefault(measurement.name, measurement)
    return list(by_name.values())


def optimizer_input_name(network: str, normalizer: str) -> str:
    """Name of the measurement of what the optimizer gets."""
    return f"optimizer-input-{file_name(model_name(network, normalizer))}"


def _learning_rate(size: Size, network: str) -> float:
    return LEARNING_RATES[family(network)] * size.training_batch_size / 256


def make_run(size: Size, network: str, normalizer: str, method: str, seed: int) -> Run:
    """One training."""
    znorm = method == "znorm"
    is_residual = family(network) == "resnet"
    return Run(
        dataset=DATASET,
        model=model_name(network, normalizer),
        method=method,
        optimizer="sgdm",
        learning_rate=ZNORM_LEARNING_RATE if znorm else _learning_rate(size, network),
        epochs=size.epochs,
        batch_size=size.training_batch_size,
        seed=seed,
        schedule="step",
        step_epochs=max(round(0.8 * size.epochs), 1),
        step_factor=0.1,
        weight_decay=WEIGHT_DECAY,
        augment="flip",
        train_examples=size.residual_train_examples if is_residual else size.train_examples,
        test_examples=size.test_examples,
    )


def speed_runs(size: Size) -> list[Run]:
    """Trainings whose speed is compared with the similarity at initialisation."""
    return [
        make_run(size, network, normalizer, "baseline", seed)
        for seed in size.training_seeds
        for network in size.trained
        for normalizer in size.normalizers
    ]


def rescue_runs(size: Size) -> list[Run]:
    """Trainings of the normalizers that fail, behind each method, and of BatchNorm for comparison."""
    return [
        make_run(size, network, normalizer, method, seed)
        for seed in size.training_seeds
        for network, failing in size.rescued
        for normalizer, methods in ((failing, NORMALIZERS), ("batch_norm", NORMALIZERS[:1]))
        for method in methods
    ]


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """All trainings."""
    del records
    size = SIZES[preset]
    return list(dict.fromkeys([*speed_runs(size), *rescue_runs(size)]))
