"""ZNorm and GAN with SGDM and LARS on ImageNet as the batch grows, which the ZNorm paper leaves open.

    python -m experiments prepare imagenet2012 --archive DIR
    python -m experiments reproduce imagenet --preset full

ResNet-50 in bfloat16 for 90 epochs, label smoothing 0.1, five epochs of warm-up and a cosine. Expected of the
baseline with SGDM: 76.3 % top-1 at a batch of 8,192 (23.74 ± 0.09 % error, Goyal et al., "Accurate, Large Minibatch
SGD: Training ImageNet in 1 Hour", 2017, arXiv 1706.02677, table 1, without label smoothing and cosine). Of ZNorm and
GAN nothing is known.

Decoding an epoch takes 0.95 core-hours (2.6 ms per image; see benchmarks/README.md), so that a run takes at least
5.4 hours on a host with 16 cores. If an accelerator trains on 2,500 images per second, as 7 cores can feed it, a run
takes 13 hours, and all 72 runs with their tuning, 7,920 epochs, take 1,171.

The preset full has not been run. The preset smoke trains a small network
on JPEGs made of CIFAR-10; prepare them once:

    python -m experiments prepare cifar10_jpeg
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report.contrasts import ONE_POINT, Endpoint
from experiments.run import RESIZED_CROP, Run
from experiments.studies.comparison import Question, write_grid_report
from experiments.studies.grid import NORMALIZERS, Size, grid, rates_of, with_seeds
from experiments.studies.study import Study, settings_table
from experiments.studies.tuning import TUNING_SEEDS, Tuning

# Behind momentum 0.9, decoupled decay is as strong as a tenth of it inside the gradient, the usual 5e-5. In LARS it
# is inside, where its trust ratio sees it.
WEIGHT_DECAYS = {"sgdm": 5e-4, "lars": 1e-4}

SIZES = {
    "cpu": Size(
        models=("resnet20",),
        methods=NORMALIZERS,
        epochs=10,
        batch_sizes=(250,),
        seeds=(0, 1, 2),
        train_examples=10_000,
        test_examples=5_000,
        tuning_epochs=4,
        validation_examples=5_000,
        dataset="jpeg:imagenet2012:64",
    ),
    "full": Size(
        models=("resnet50",),
        methods=NORMALIZERS,
        epochs=90,
        batch_sizes=(1_024, 2_048, 4_096, 8_192),
        seeds=(0, 1, 2),
        tuning_epochs=10,
        validation_examples=50_000,
        dataset="jpeg:imagenet2012:224",
    ),
}
SIZES["smoke"] = SIZES["cpu"].small(
    batch_sizes=(64,),
    train_examples=None,
    test_examples=None,
    validation_examples=40,
    dataset="jpeg:cifar10_jpeg:32",
)
# ZNorm gives every weight's gradient a standard deviation of 1, some hundred times what it was: its rates are lower.
GRID = {"sgdm": (0.3, 1.0, 3.0), "znorm sgdm": (0.0003, 0.001, 0.003), "lars": (3.0, 10.0, 30.0)}

NOTES = """\
No paper has numbers for this table. Every row gets learning rates of its own: as many for every method, and where
the best is the last of a grid, the grid grows by half a decade until it is not (but not in the preset smoke). Two
seeds that are not reported choose, by accuracy on training images that are held out. Top-5 is that of the network
after the last epoch, on centre crops, as is the accuracy; a run that diverged has none. Mean and standard deviation
that normalise the images are those of 1,000 training images. LARS rescales every layer's update, so that most of
what a normalizer does to its scale cancels."""


QUESTION = Question(
    setting="ImageNet, tuned rates",
    axes=("model", "optimizer", "batch_size", "method"),
    sources={"znorm": "Yun 2024, arXiv 2408.01215: left open"},
    scores=(Endpoint("top_5", "top-5 accuracy", "points", ONE_POINT),),
)


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """The tuning runs, and the reported runs whose tuning has ended."""
    return [*_tuning(preset).runs(records), *_reported_runs(preset, records)]


def _tuning(preset: str) -> Tuning:
    size = SIZES[preset]
    base = size.run(
        learning_rate=1.0,
        schedule="cosine",
        warmup_epochs=size.epochs / 18,
        label_smoothing=0.1,
        augment=RESIZED_CROP,
        dtype="float32" if preset == "cpu" else "bfloat16",
    )
    settings = grid(
        base,
        model=size.models,
        optimizer=WEIGHT_DECAYS,
        weight_decay=lambda run: WEIGHT_DECAYS[run.optimizer],
        batch_size=size.batch_sizes,
        method=size.methods,
    )
    return Tuning(
        settings,
        rates_of(preset, GRID),
        QUESTION.axes,
        TUNING_SEEDS,
        changes={
            "epochs": size.tuning_epochs,
            "warmup_epochs": size.tuning_epochs / 18,
            # Validation images take the place of the test images.
            "validation_examples": size.validation_examples,
            "test_examples": None,
        },
        extend=preset != "smoke",
    )


def _reported_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    tuned = _tuning(preset).tuned(records)
    # Seed by seed: what has ended when the time is over is whole.
    return [run for seed in SIZES[preset].seeds for run in with_seeds(tuned, [seed])]


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md, findings.json and one figure of learning curves per optimizer."""
    write_grid_report(
        folder,
        "ZNorm and GAN on ImageNet",
        _reported_runs(preset, records),
        records,
        question=QUESTION,
        settings=settings_table(preset, SIZES, of_paper=False),
        notes=NOTES,
        tuning=_tuning(preset),
        figures="optimizer",
        panels="batch_size",
    )


STUDY = Study(
    name="imagenet",
    title="ZNorm and GAN with SGDM and LARS on ImageNet as the batch grows",
    runs=make_runs,
    report=make_report,
)
