"""The training loops that `benchmarks.training` times, and the worker process that runs one of them."""

import dataclasses
import os
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np

IMAGE_SHAPE = (32, 32, 3)
NUM_CLASSES = 10
WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class Loop:
    """A training loop to time.

    Attributes:
      kind: 'epoch scan', 'per-step loop', 'pytorch', or 'update alone': the optimizer without the network.
      depth: of the CIFAR ResNet.
      method: of gradient normalization; PyTorch has the baseline alone.
      batch_size: images per step.
      steps: per epoch, the unit that is timed.
      dynamics: also tracks the statistics of the gradients.
      copy: tells apart processes that run the same loop at the same time, and are not pinned to a core.
    """

    kind: str
    depth: int
    method: str
    batch_size: int
    steps: int
    dynamics: bool = False
    copy: int = 0

    @property
    def images(self) -> int:
        return self.batch_size * self.steps


def work(connection: Connection, loop: Loop, core: int | None) -> None:
    """Builds a loop in a fresh process, warms it up, then runs an epoch per request.

    Args:
      connection: gets the number of parameters when the loop is ready, then the loss of an epoch for every
        True it sends; False ends the process.
      loop: what to run.
      core: to be pinned to; None leaves all cores.
    """
    if core is not None:  # before any library starts its threads
        os.sched_setaffinity(0, {core})
        os.environ["OMP_NUM_THREADS"] = "1"
    epoch, parameters = _make_epoch(loop)
    for _ in range(WARM_UP):
        epoch()
    connection.send(parameters)
    while connection.recv():
        connection.send(epoch())


def _make_epoch(loop: Loop) -> tuple[Callable[[], float], int]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (loop.images, *IMAGE_SHAPE), np.uint8)
    labels = generator.integers(0, NUM_CLASSES, loop.images, np.int32)
    if loop.kind == "pytorch":
        from benchmarks import torch_resnet

        return torch_resnet.make_epoch(loop.depth, images, labels, loop.batch_size)
    return _make_jax_epoch(loop, images, labels)


def _make_jax_epoch(loop: Loop, images: np.ndarray, labels: np.ndarray) -> tuple[Callable[[], float], int]:
    import jax

    from experiments.data.dataset import make_dataset
    from experiments.run import Run
    from experiments.training.epoch import make_train_epoch
    from experiments.training.layout import set_up

    run = Run(
        dataset="random",
        model=f"resnet{loop.depth}",
        method=loop.method,
        optimizer="sgdm",
        learning_rate=0.01,
        epochs=1,
        batch_size=loop.batch_size,
        seed=0,
        dynamics=loop.dynamics,
    )
    dataset = make_dataset("random", images, labels, images[:1], labels[:1], NUM_CLASSES)
    setup, state = set_up(run, dataset)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    if loop.kind == "per-step loop":
        return _make_per_step_epoch(setup, state), parameters
    if loop.kind == "update alone":
        return _make_update_epoch(loop.steps, setup.optimizer, state), parameters

    train_epoch = make_train_epoch(setup)
    replicated = jax.sharding.NamedSharding(setup.mesh, jax.sharding.PartitionSpec())
    data = jax.device_put((dataset.train_images, dataset.train_labels), replicated)

    def epoch() -> float:
        nonlocal state
        state, measurements = train_epoch(state, *data, np.uint32(0), np.int32(0))
        return float(measurements["train_loss"])

    return epoch, parameters


def _make_per_step_epoch(setup, state) -> Callable[[], float]:
    """The loop one writes oneself: a jitted step, fed with batches from the host."""
    import jax
    import optax
    from flax import nnx

    from experiments.data.augment import normalize
    from experiments.training.state import TrainState

    run, dataset, graphdef, optimizer = setup[:4]

    def loss_and_stats(params, batch_stats, images, labels):
        model = nnx.merge(graphdef, params, batch_stats)
        logits = model(normalize(images, dataset.mean, dataset.std), train=True)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def step(state, images, labels):
        (loss, batch_stats), gradients = jax.value_and_grad(loss_and_stats, has_aux=True)(
            state.params, state.batch_stats, images, labels
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), batch_stats, opt_state), loss

    step = jax.jit(step, donate_argnums=0)
    generator = np.random.default_rng(0)

    def epoch() -> float:
        nonlocal state
        losses = []
        for indices in generator.permutation(len(dataset.train_images)).reshape(-1, run.batch_size):
            state, loss = step(state, dataset.train_images[indices], dataset.train_labels[indices])
            losses.append(loss)
        return float(np.mean(jax.device_get(losses)))

    return epoch


def _make_update_epoch(steps: int, optimizer, state) -> Callable[[], float]:
    """The optimizer's updates with random gradients."""
    import jax
    import optax

    generator = np.random.default_rng(0)
    gradients = jax.tree.map(
        lambda p: jax.device_put(generator.normal(0, 1e-3, p.shape).astype(p.dtype)), state.params
    )

    def step(gradients, params, opt_state):  # gradients as an argument: no constant to fold
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    step = jax.jit(step, donate_argnums=(1, 2))
    params, opt_state = state.params, state.opt_state

    def epoch() -> float:
        nonlocal params, opt_state
        for _ in range(steps):
            params, opt_state = step(gradients, params, opt_state)
        return float(optax.global_norm(params))

    return epoch
