"""Training of one run: a whole epoch is one compiled `lax.scan` with the data set on the device.

Of a streamed set, that does not fit, a few batches are on the device, and the same steps are scanned over them.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import optax_gradnorm
from experiments import models, records, resuming, tasks
from experiments.config import Run
from experiments.data import Dataset
from experiments.data.pipeline import augment_both, normalize
from experiments.data.streaming import read_batches
from experiments.methods import make_optimizer
from experiments.records import EpochMetrics, GradientDynamics, RecordError, RunRecord

EVALUATION_BATCH = 500
# Of all images of a batch: the activations of a U-Net have the size of its images.
EVALUATION_PIXELS = 500 * 96 * 96
# At most so many batches of a streamed set are put on the devices at once.
CHUNK_STEPS = 8


class TrainState(NamedTuple):
    """All that changes in training.

    Attributes:
      params: nested dictionaries of float32 arrays.
      batch_stats: running statistics of the normalizers, as the parameters.
      opt_state: of the chain that `make_optimizer` gives.
    """

    params: optax.Params
    batch_stats: optax.Params
    opt_state: optax.OptState


def train(
    run: Run,
    dataset: Dataset,
    *,
    out: str | Path,
    on_epoch: Callable[[RunRecord], None] | None = None,
    devices: int = 1,
    keep_checkpoint: bool = False,
) -> RunRecord:
    """Makes a run, or what is left of it.

    After every epoch the record and then a checkpoint are written, and with `run.dynamics`, before them,
    the statistics of the gradients. A run that was killed goes on after its last checkpoint; a run that has
    ended is not made again. Equal runs give equal metrics, on CPU bit for bit, however often they were
    interrupted.

    Args:
      run: what to train.
      dataset: the images to train on and to evaluate on, as `experiments.data.select` gives them.
      out: folder of the records.
      on_epoch: called after each epoch with the record so far.
      devices: number of devices that share each batch.
      keep_checkpoint: leaves the finished run's checkpoint, for `load_model`.

    Returns:
      The run's record, with status 'finished', or 'diverged' if a loss or a parameter became NaN or infinite.

    Raises:
      ValueError: the run does not fit the data or the devices.
      FileError: a record or a checkpoint cannot be read or written, or is of a run on other data.
    """
    record = records.read_record(out, run)
    if record is not None:
        resuming.check_same_data(record, dataset, out)
        if records.has_ended(out, record, keep_checkpoint):
            return record
    records.remove_leftovers(out, run)

    mesh = make_mesh(devices)
    tasks.make_task(run, dataset)
    _check_batch_size(run, dataset, devices)
    optimizer = make_optimizer(run, steps_per_epoch=len(dataset.train_images) // run.batch_size)
    graphdef, state = init_state(run, dataset, optimizer)
    record, state, dynamics = resuming.from_checkpoint(record, state, out) or _start(run, dataset, state)
    record = resuming.note_environment(record, devices)

    if len(record.epochs) < run.epochs:
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        started = time.perf_counter()
        run_epoch = _compile_epoch(run, dataset, graphdef, optimizer, mesh, state)
        record = dataclasses.replace(record, compile_seconds=round(time.perf_counter() - started, 3))
        records.write_record(out, record)

        for epoch in range(len(record.epochs), run.epochs):
            state, metrics, statistics, finite = run_epoch(state, epoch)
            record = dataclasses.replace(record, epochs=(*record.epochs, metrics))
            if not finite:
                record = dataclasses.replace(record, status="diverged")
            # In this order, each file may know one epoch more than the next, but never one less.
            if dynamics is not None:
                dynamics = dynamics.append(statistics)
                records.write_dynamics(out, run, dynamics)
            records.write_record(out, record)
            if record.status == "running":
                records.write_checkpoint(out, run, resuming.to_arrays(state, epoch + 1))
            if on_epoch is not None:
                on_epoch(record)
            if record.status == "diverged":
                break

    if record.status == "running":
        # Before the checkpoint goes: a run killed here finds it again, and scores its network then.
        scores = _score(run, dataset, graphdef, mesh, state)
        record = dataclasses.replace(record, status="finished", scores=scores)
        records.write_record(out, record)
    if record.status == "diverged" or not keep_checkpoint:
        records.remove_checkpoint(out, run)
    return record


def load_model(run: Run, *, out: str | Path) -> nnx.Module:
    """Builds the model of a finished run that kept its checkpoint.

    Args:
      run: the run.
      out: folder of the records.

    Returns:
      The trained model, to be called as `model(images, train=False)`; its record's `data` has the mean and
      standard deviation by which to normalise images.

    Raises:
      RecordError: the run has no record, has not finished or kept no checkpoint, or a file is damaged.
    """
    record = records.read_record(out, run)
    if record is None or record.status != "finished":
        raise RecordError(f"run {run.name} has not finished in {out}")
    arrays = records.read_checkpoint(out, run)
    if arrays is None:
        raise RecordError(f"run {run.name} has no checkpoint in {out}: train it with --keep-checkpoints")
    data = record.data
    # Shapes alone: initial values would be computed, layer by layer, to be thrown away.
    model = nnx.eval_shape(lambda: _create_model(run, data["image_shape"], data["num_classes"]))
    graphdef, params, batch_stats = _split_model(model)
    params = resuming.from_arrays(params, arrays, run, "params/")
    batch_stats = resuming.from_arrays(batch_stats, arrays, run, "batch_stats/")
    return nnx.merge(graphdef, params, batch_stats)


def init_state(
    run: Run, dataset: Dataset, optimizer: optax.GradientTransformation
) -> tuple[nnx.GraphDef, TrainState]:
    """Builds the model and everything that training changes.

    Args:
      run: names the model and its dtype, and gives the seed.
      dataset: gives the shape of the images and the number of classes.
      optimizer: the run's.

    Returns:
      The model's graph definition and the state before the first step.

    Raises:
      ValueError: the model is unknown or does not take such images.
    """
    model = _create_model(run, dataset.train_images.shape[1:], dataset.num_classes)
    graphdef, params, batch_stats = _split_model(model)
    return graphdef, TrainState(params, batch_stats, optimizer.init(params))


def make_mesh(devices: int) -> Mesh:
    """Mesh of the first devices, with the single axis 'batch'.

    Raises:
      ValueError: there are not so many.
    """
    if not 1 <= devices <= jax.device_count():
        raise ValueError(f"devices must be from 1 to the {jax.device_count()} there are, got {devices}")
    return jax.make_mesh((devices,), ("batch",), (AxisType.Auto,), devices=jax.devices()[:devices])


def make_train_epoch(
    run: Run,
    dataset: Dataset,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
):
    """Makes the jitted function that trains for one epoch.

    Args:
      run: the run.
      dataset: gives mean and standard deviation, and the number of classes and of training images.
      graphdef: the model's, from `init_state`.
      optimizer: the run's.
      mesh: of the devices that share each batch; see `make_mesh`.

    Returns:
      A function `(state, images, labels, seed, epoch) -> (state, measurements)`: it takes the training
      images, uint8 [n, height, width, channels], their labels, the seed, uint32, and the number of epochs
      done, int32, and donates the state. The measurements are scalars: 'train_loss' (float32),
      'train_correct' (a sum of `Task.correct`), 'nonfinite_steps' (int32), 'finite_params' (bool); with
      `run.dynamics` also the float32 statistics of `GradientDynamics` for this epoch, [layers] each and
      'global_std' a scalar.
    """
    step = _make_step(run, dataset, graphdef, optimizer, mesh)

    def train_epoch(state, images, labels, seed, epoch):
        def step_at(state, batch):
            indices, augment_key = batch
            return step(state, (images[indices], labels[indices], augment_key))

        state, measured = lax.scan(step_at, state, _draw_batches(run, len(images), seed, epoch))
        return state, _over_epoch(state, measured)

    return jax.jit(train_epoch, donate_argnums=0, out_shardings=NamedSharding(mesh, PartitionSpec()))


def make_streamed_epoch(
    run: Run,
    dataset: Dataset,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    state: TrainState,
):
    """Compiles the training for one epoch on images that are read meanwhile, a few batches at a time.

    The batches, their order and their augmentation are those of `make_train_epoch`, as are the steps.

    Args:
      run: the run.
      dataset: the images; its labels are in memory.
      graphdef: the model's, from `init_state`.
      optimizer: the run's.
      mesh: of the devices that share each batch; see `make_mesh`.
      state: gives the shapes.

    Returns:
      A function `(state, epoch) -> (state, measurements)` that gives what that of `make_train_epoch` does.
    """
    step = _make_step(run, dataset, graphdef, optimizer, mesh)
    count = len(dataset.train_images)
    # Of the numbers of steps that divide the epoch, so that one program serves all.
    steps = count // run.batch_size
    chunk = max(divisor for divisor in range(1, CHUNK_STEPS + 1) if steps % divisor == 0)
    replicated = NamedSharding(mesh, PartitionSpec())
    by_batch = NamedSharding(mesh, PartitionSpec(None, "batch"))

    @jax.jit
    def draw_batches(seed, epoch):
        indices, keys = _draw_batches(run, count, seed, epoch)
        return indices.ravel(), jax.random.key_data(keys)

    def train_chunk(state, images, labels, keys):
        return lax.scan(step, state, (images, labels, jax.random.wrap_key_data(keys)))

    train_chunk = jax.jit(train_chunk, donate_argnums=0, out_shardings=replicated)
    over_epoch = jax.jit(_over_epoch, out_shardings=replicated)

    def read_chunks(epoch):
        order, keys = jax.device_get(draw_batches(np.uint32(run.seed), np.int32(epoch)))
        chunk_size = chunk * run.batch_size
        chunks = read_batches(dataset.train_images, order, chunk_size)
        for i, images in enumerate(chunks):
            labels = dataset.train_labels[order[i * chunk_size : (i + 1) * chunk_size]]
            batches = [array.reshape(chunk, run.batch_size, *array.shape[1:]) for array in (images, labels)]
            yield *jax.device_put(batches, by_batch), keys[i * chunk : (i + 1) * chunk]

    def train_epoch(state, epoch):
        measured = []
        for images, labels, keys in read_chunks(epoch):
            state, of_chunk = compiled(state, images, labels, keys)
            measured.append(of_chunk)
            _keep_pace(measured)
        of_steps = jax.tree.map(lambda *chunks: np.concatenate(chunks), *jax.device_get(measured))
        return state, over_epoch(state, of_steps)

    shape = (chunk, run.batch_size)
    images = jax.ShapeDtypeStruct((*shape, *dataset.train_images.shape[1:]), np.uint8, sharding=by_batch)
    labels = dataset.train_labels
    labels = jax.ShapeDtypeStruct((*shape, *labels.shape[1:]), labels.dtype, sharding=by_batch)
    keys = jax.eval_shape(lambda: jax.random.key_data(jax.random.split(jax.random.key(0), chunk)))
    compiled = train_chunk.lower(state, images, labels, keys).compile()
    return train_epoch


def _draw_batches(run: Run, count: int, seed: jax.Array, epoch: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which images the epoch's batches hold, [steps, batch], and a key for the augmentation of each."""
    steps = count // run.batch_size
    order_key, augment_keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), epoch))
    order = jax.random.permutation(order_key, count)[: steps * run.batch_size]
    return order.reshape(steps, run.batch_size), jax.random.split(augment_keys, steps)


def _make_step(
    run: Run,
    dataset: Dataset,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
):
    """One step, as `lax.scan` wants it: from state and batch to state and measurements of the step."""
    task = tasks.make_task(run, dataset)
    by_batch = NamedSharding(mesh, PartitionSpec("batch"))

    def loss_and_outputs(params, batch_stats, images, labels):
        model = nnx.merge(graphdef, params, batch_stats)
        logits = model(images, train=True)
        tasks.check_logits(logits.shape, dataset, run.model)
        return task.train_loss(logits, labels), (logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    def step(state, batch):
        images, labels, augment_key = batch
        images = lax.with_sharding_constraint(images, by_batch)
        labels = lax.with_sharding_constraint(labels, by_batch)
        images, labels = augment_both(images, labels, augment_key, run.augment)
        images = normalize(images, dataset.mean, dataset.std)
        (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_and_outputs, has_aux=True)(
            state.params, state.batch_stats, images, labels
        )
        # Optax mixes Python floats with integer counters, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        correct = jnp.sum(task.correct(logits, labels))
        measured = loss, correct, _all_finite((loss, gradients)), _gradient_statistics(run, opt_state)
        return TrainState(params, batch_stats, opt_state), measured

    return step


def _over_epoch(state: TrainState, measured) -> dict[str, jax.Array]:
    """Measurements of an epoch from the state at its end and what its steps measured, [steps] each."""
    losses, correct, finite, statistics = measured
    return {
        "train_loss": jnp.mean(losses),
        "train_correct": jnp.sum(correct),
        "nonfinite_steps": jnp.sum(~finite),
        "finite_params": _all_finite(state.params),
        **_over_steps(statistics),
    }


def _keep_pace(results: Sequence[Any]) -> None:
    """Waits for the last result but one: else ever more batches would wait for the device, in its memory."""
    if len(results) > 1:
        jax.block_until_ready(results[-2])


def make_evaluate(run: Run, dataset: Dataset, graphdef: nnx.GraphDef, mesh: Mesh):
    """Makes the jitted function that evaluates a model on all test images, each exactly once.

    Args:
      run: the run.
      dataset: gives mean, standard deviation and the number of test images.
      graphdef: the model's, from `init_state`.
      mesh: of the devices that share each batch; see `make_mesh`.

    Returns:
      A function `(state, images, labels) -> measurements` that takes the test images, uint8 [n, height,
      width, channels], and their labels. The measurements are scalars: 'test_loss' (float32, mean of
      `Task.test_losses`) and 'test_correct' (sum of `Task.correct`).
    """
    measure = _make_measure(run, dataset, graphdef)
    count = len(dataset.test_images)
    batches, batch_size = _evaluation_batches(dataset, mesh)
    padding = batches * batch_size - count
    by_batch = NamedSharding(mesh, PartitionSpec(None, "batch"))

    def in_batches(array):
        padded = jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))
        return lax.with_sharding_constraint(padded.reshape(batches, batch_size, *array.shape[1:]), by_batch)

    def evaluate(state, images, labels):
        batched = jax.tree.map(in_batches, (images, labels, jnp.ones(count, bool)))
        losses, correct = lax.map(lambda batch: measure(state, *batch), batched)
        return {"test_loss": jnp.sum(losses) / count, "test_correct": jnp.sum(correct)}

    return jax.jit(evaluate, out_shardings=NamedSharding(mesh, PartitionSpec()))


def make_streamed_evaluate(run: Run, dataset: Dataset, graphdef: nnx.GraphDef, mesh: Mesh, state: TrainState):
    """Compiles the evaluation on test images that are read meanwhile, a batch at a time.

    Args:
      run: the run.
      dataset: the images; its labels are in memory.
      graphdef: the model's, from `init_state`.
      mesh: of the devices that share each batch; see `make_mesh`.
      state: gives the shapes.

    Returns:
      A function `(state) -> measurements` that gives what that of `make_evaluate` does.
    """
    measure = _make_measure(run, dataset, graphdef)
    measure = jax.jit(measure, out_shardings=NamedSharding(mesh, PartitionSpec()))
    measure = measure.lower(state, *next(_test_batches(dataset, mesh))).compile()

    def evaluate(state):
        measured = []
        for batch in _test_batches(dataset, mesh):
            measured.append(measure(state, *batch))
            _keep_pace(measured)
        losses, correct = zip(*jax.device_get(measured), strict=True)
        return {"test_loss": np.float32(sum(losses) / len(dataset.test_images)), "test_correct": sum(correct)}

    return evaluate


def _make_measure(run: Run, dataset: Dataset, graphdef: nnx.GraphDef):
    """Sums of the loss and of what is right over those of a batch that are images and not padding."""
    task = tasks.make_task(run, dataset)

    def measure(state, images, labels, is_image):
        model = nnx.merge(graphdef, state.params, state.batch_stats)
        logits = model(normalize(images, dataset.mean, dataset.std), train=False)
        losses, correct = task.test_losses(logits, labels), task.correct(logits, labels)
        return jnp.sum(losses, where=is_image), jnp.sum(correct, where=is_image)

    return measure


def _test_batches(dataset: Dataset, mesh: Mesh) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
    """Test images and labels in batches of one size, on the devices, and which of them are not padding."""
    count = len(dataset.test_images)
    batch_size = _evaluation_batches(dataset, mesh)[1]
    by_batch = NamedSharding(mesh, PartitionSpec("batch"))
    for i, images in enumerate(read_batches(dataset.test_images, np.arange(count), batch_size)):
        labels = dataset.test_labels[i * batch_size : (i + 1) * batch_size]
        batch = images, labels, np.ones(len(images), bool)
        padding = batch_size - len(images)
        padded = [np.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1)) for array in batch]
        yield tuple(jax.device_put(padded, by_batch))


def _evaluation_batches(dataset: Dataset, mesh: Mesh) -> tuple[int, int]:
    """How many batches the test images take, and their size: nearly equal, so that little is padded."""
    count, height, width, _ = dataset.test_images.shape
    batches = math.ceil(count / min(EVALUATION_BATCH, max(1, EVALUATION_PIXELS // (height * width))))
    return batches, math.ceil(count / batches / mesh.size) * mesh.size


def _score(
    run: Run, dataset: Dataset, graphdef: nnx.GraphDef, mesh: Mesh, state: TrainState
) -> dict[str, float]:
    """Scores of the network on the test images, batch by batch."""
    task = tasks.make_task(run, dataset)
    if task.new_scores is None:
        return {}

    def predict(state, images):
        model = nnx.merge(graphdef, state.params, state.batch_stats)
        return task.outputs(model(normalize(images, dataset.mean, dataset.std), train=False))

    replicated = NamedSharding(mesh, PartitionSpec())
    predict = jax.jit(predict, out_shardings=replicated)
    state = jax.device_put(state, replicated)
    scores = task.new_scores()
    for images, labels, is_image in _test_batches(dataset, mesh):
        outputs, labels, is_image = jax.device_get((predict(state, images), labels, is_image))
        scores.update(outputs[is_image], labels[is_image])
    return scores.compute()


def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _gradient_statistics(run: Run, opt_state: optax.OptState) -> dict[str, jax.Array]:
    """One step's statistics, [layers] each and the global one a scalar; nothing without `run.dynamics`."""
    if not run.dynamics:
        return {}
    step = optax_gradnorm.gradient_dynamics(opt_state)
    std, mean = (jnp.stack(jax.tree.leaves(statistic)) for statistic in (step.std, step.mean))
    return {"std": std, "mean": jnp.abs(mean), "global_std": step.global_std}


def _over_steps(statistics: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """One epoch's statistics from those of its steps."""
    if not statistics:
        return {}
    over_steps = {name: jnp.mean(steps, axis=0) for name, steps in statistics.items()}
    return over_steps | {"smallest_std": jnp.min(statistics["std"], axis=0)}


def _create_model(run: Run, image_shape, num_classes: int) -> nnx.Module:
    height, width, channels = image_shape
    if height != width and not models.takes_any_size(run.model):
        raise ValueError(f"images must be square for {run.model}, got {height} x {width}")
    # Of JAX's generators this one compiles ten times faster than the default, once per layer shape.
    key = jax.random.key(run.seed, impl="rbg")
    return models.create(
        run.model,
        num_classes=num_classes,
        channels=channels,
        image_size=height,
        rngs=nnx.Rngs(key),
        dtype=jnp.dtype(run.dtype),
    )


def _split_model(model: nnx.Module):
    """The model as graph definition, parameters and running statistics."""
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def _compile_epoch(
    run: Run,
    dataset: Dataset,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    state: TrainState,
) -> Callable[[TrainState, int], tuple[TrainState, EpochMetrics, Mapping[str, np.ndarray], bool]]:
    """Compiles training and evaluation, once for all epochs."""
    compile_both = _compile_streamed if dataset.is_streamed else _compile_in_memory
    train_epoch, evaluate = compile_both(run, dataset, graphdef, optimizer, mesh, state)
    trained = len(dataset.train_images) // run.batch_size * run.batch_size

    def run_epoch(state, epoch):
        started = time.perf_counter()
        state, train_measurements = train_epoch(state, epoch)
        measured = jax.device_get(train_measurements | evaluate(state))
        metrics = EpochMetrics(
            epoch=epoch + 1,
            train_loss=_shortest(measured["train_loss"]),
            train_accuracy=float(measured["train_correct"]) / trained,
            test_loss=_shortest(measured["test_loss"]),
            test_accuracy=float(measured["test_correct"]) / len(dataset.test_images),
            nonfinite_steps=int(measured["nonfinite_steps"]),
            seconds=round(time.perf_counter() - started, 4),
        )
        statistics = {name: measured[name] for name in records.EPOCH_STATISTICS if name in measured}
        # On CPU a ReLU can turn NaN into 0, so that a finite loss alone does not show sound parameters.
        finite = math.isfinite(metrics.train_loss + metrics.test_loss) and bool(measured["finite_params"])
        return state, metrics, statistics, finite

    return run_epoch


def _compile_in_memory(run, dataset, graphdef, optimizer, mesh, state):
    """Puts the data on the devices; an epoch is one program, and evaluation another."""
    arrays = dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels
    *train_data, test_images, test_labels = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))
    # The seed is an argument, so that a run with another seed finds its program in the compilation cache.
    seed = np.uint32(run.seed)
    train_epoch = make_train_epoch(run, dataset, graphdef, optimizer, mesh)
    train_epoch = train_epoch.lower(state, *train_data, seed, np.int32(0)).compile()
    evaluate = make_evaluate(run, dataset, graphdef, mesh)
    evaluate = evaluate.lower(state, test_images, test_labels).compile()
    return (
        lambda state, epoch: train_epoch(state, *train_data, seed, np.int32(epoch)),
        lambda state: evaluate(state, test_images, test_labels),
    )


def _compile_streamed(run, dataset, graphdef, optimizer, mesh, state):
    """Leaves the data where they are; a program trains on a few batches, another evaluates on one."""
    return (
        make_streamed_epoch(run, dataset, graphdef, optimizer, mesh, state),
        make_streamed_evaluate(run, dataset, graphdef, mesh, state),
    )


def _shortest(value: np.ndarray) -> float:
    """The number with the fewest digits that is this float32: short in a record, and nothing is lost."""
    return float(str(np.float32(value)))


def _check_batch_size(run: Run, dataset: Dataset, devices: int) -> None:
    if run.batch_size > len(dataset.train_images):
        count = len(dataset.train_images)
        raise ValueError(f"batch_size is {run.batch_size}, but there are only {count} training images")
    if run.batch_size % devices:
        raise ValueError(f"batch_size is {run.batch_size}, which {devices} devices cannot share equally")
    if len(dataset.test_images) == 0:
        raise ValueError(f"dataset {dataset.name} has no test images")


def _start(
    run: Run, dataset: Dataset, state: TrainState
) -> tuple[RunRecord, TrainState, GradientDynamics | None]:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    dynamics = _no_dynamics(state) if run.dynamics else None
    return RunRecord(run, parameters=parameters, data=resuming.describe_data(dataset)), state, dynamics


def _no_dynamics(state: TrainState) -> GradientDynamics:
    """The layers, and statistics of no epoch."""
    std = optax_gradnorm.gradient_dynamics(state.opt_state).std
    layers = tuple(optax_gradnorm.layer_names(std))
    sizes = dict(
        zip(
            optax_gradnorm.layer_names(state.params),
            (leaf.size for leaf in jax.tree.leaves(state.params)),
            strict=True,
        )
    )
    per_layer = np.zeros((0, len(layers)), np.float32)
    return GradientDynamics(
        layers,
        np.array([sizes[layer] for layer in layers], np.int64),
        std=per_layer,
        smallest_std=per_layer,
        mean=per_layer,
        global_std=np.zeros(0, np.float32),
    )
