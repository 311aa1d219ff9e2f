"""Whole training epochs compile for a TPU v5e and fit its memory, without a TPU."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.programs.compiling import make_mesh
from benchmarks.programs.targets import TARGETS
from experiments.data.dataset import make_dataset
from experiments.run import Run
from experiments.training.epoch import make_train_epoch
from experiments.training.layout import Setup
from experiments.training.methods import make_optimizer
from experiments.training.state import TrainState, create_model, split_model

pytestmark = [pytest.mark.usefixtures("compilers"), pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
MEMORY = 16e9


@pytest.fixture(autouse=True)
def optimize_little():
    """Five times as fast to compile."""
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", "O0")
    yield
    jax.config.update("jax_optimization_level", before)


def assert_fits(compiled):
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert 0 < needed + memory.temp_size_in_bytes < MEMORY


def random_dataset(image_shape, count, *, masks):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, *image_shape), np.uint8)
    labels = generator.integers(0, 2, (count, *image_shape[:2]), np.uint8) if masks else np.arange(count) % 10
    return make_dataset("random", images, labels, images[:1], labels[:1], 1 if masks else 10)


@pytest.mark.parametrize(
    ("model", "image_shape", "count", "options"),
    [
        ("resnet20", (32, 32, 3), 50_000, {"method": "gan", "dtype": "bfloat16", "dynamics": True}),
        ("vit96_small_stacked", (32, 32, 3), 50_000, {"method": "znorm", "optimizer": "adamw"}),
        ("unet16", (256, 256, 3), 2_000, {"method": "centralization", "loss": "bce_dice", "batch_size": 32}),
    ],
)
def test_an_epoch_compiles_and_fits(model, image_shape, count, options, monkeypatch):
    # Models ask it how to write convolutions; the test runs on a CPU and compiles for a TPU.
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    mesh = Mesh(make_mesh(TARGETS["v5e"]).devices, ("batch",))
    fields = {"optimizer": "sgdm", "batch_size": 128, "learning_rate": 0.1, "augment": "flip"} | options
    run = Run(dataset="random", model=model, epochs=1, seed=0, **fields)
    dataset = random_dataset(image_shape, 64, masks="loss" in options)
    optimizer = make_optimizer(run, count // run.batch_size)
    graphdef, params, batch_stats = split_model(
        jax.eval_shape(lambda: create_model(run, image_shape, dataset.num_classes))
    )
    state = TrainState(params, batch_stats, jax.eval_shape(optimizer.init, params))
    images = jax.ShapeDtypeStruct((count, *image_shape), np.uint8)
    labels = jax.ShapeDtypeStruct((count, *dataset.train_labels.shape[1:]), dataset.train_labels.dtype)
    scalars = jax.ShapeDtypeStruct((), np.uint32), jax.ShapeDtypeStruct((), np.int32)
    arguments = placed((state, images, labels, *scalars), mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, arguments[0])
    train_epoch = make_train_epoch(Setup(run, dataset, graphdef, optimizer, mesh, shardings))
    assert_fits(train_epoch.lower(*arguments).compile())


def placed(tree, mesh):
    whole = NamedSharding(mesh, P())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), tree)


def test_the_quickstarts_training_compiles():
    """Its cells up to the function that trains, as they stand."""
    source = (ROOT / "notebooks/quickstart.py").read_text()
    cells = source[: source.index("# ## Comparison")]
    assert "def train(" in cells
    names = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(cells, "quickstart", "exec"), names)
        mesh = make_mesh(TARGETS["v5e"])
        rate, seed = placed((jax.ShapeDtypeStruct((), np.float32), jax.ShapeDtypeStruct((), np.int32)), mesh)
        assert_fits(names["train"].lower("ZNorm", rate, seed).compile())
