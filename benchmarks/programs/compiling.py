"""Programs of an update, compiled for a target: gradients are shapes, and nothing runs."""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_gradnorm
from benchmarks.programs.targets import H100, Target
from benchmarks.transforms import naive_lines
from optax_gradnorm._arguments import StackedAxes

# In front of Adam; what knows of stacked layers is told.
CHAINS: dict[str, Callable[[StackedAxes], optax.GradientTransformation]] = {
    "adam alone": lambda stacked_axes: optax.identity(),
    "clip_by_global_norm": lambda stacked_axes: optax.clip_by_global_norm(0.1),
    "naive lines": lambda stacked_axes: naive_lines(),
    "centralize": lambda stacked_axes: optax_gradnorm.centralize(stacked_axes=stacked_axes),
    "znorm": lambda stacked_axes: optax_gradnorm.znorm(stacked_axes=stacked_axes),
    "gan": lambda stacked_axes: optax_gradnorm.gan(stacked_axes=stacked_axes),
    "tracking": lambda stacked_axes: optax_gradnorm.track_gradient_dynamics(stacked_axes=stacked_axes),
}


class Compiled(NamedTuple):
    """A compiled update."""

    program: Any  # jax.stages.Compiled
    seconds: float  # to trace, lower and compile it


def prepare_environment() -> None:
    """Lets the plugins of absent accelerators load; must come before JAX starts a backend."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        # libtpu would ask the machine what TPU it has.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        # Its logs would go to a folder that all users of the machine share.
        "TPU_LOG_DIR": "disabled",
        # Nor is there a chip for which processes could quarrel.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        # The plugin for NVIDIA's GPUs would look for cuDNN, which runs programs and does not compile them.
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    }
    # Without a GPU nothing can be timed.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0".strip()


def make_mesh(target: Target, shape: tuple[int, ...] = (-1,), names: tuple[str, ...] = ("fsdp",)) -> Mesh:
    """Mesh of the target's devices, by default with the single axis 'fsdp'.

    Raises:
      RuntimeError: its compiler is not installed, or does not load.
    """
    if target.platform == "tpu":
        found = topologies.get_topology_desc(platform="tpu", topology_name=target.topology)
    else:
        found = topologies.get_topology_desc("h100", "cuda", target_config=H100, topology=target.topology)
    return Mesh(np.array(found.devices[: target.devices]).reshape(shape), names)


def compile_update(chain: str, grads: Any, stacked_axes: StackedAxes = None) -> Compiled:
    """Compiles an update of Adam with a transformation in front, whose states are donated.

    Moments lie as the gradients do; statistics are whole on every device.
    """
    transform, adam = CHAINS[chain](stacked_axes), optax.adam(1e-3)
    whole = NamedSharding(jax.tree.leaves(grads)[0].sharding.mesh, P())

    def place(leaf: Any, sharding: NamedSharding = whole) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = jax.tree.map(place, jax.eval_shape(transform.init, grads))
    adam_state = optax.tree_map_params(
        adam,
        lambda leaf, gradient: place(leaf, gradient.sharding),
        jax.eval_shape(adam.init, grads),
        grads,
        transform_non_params=place,
    )

    def update(gradients, state, adam_state):
        updates, state = transform.update(gradients, state)
        # Adam mixes Python floats with an integer counter, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, adam_state = adam.update(updates, adam_state)
        return (state, adam_state), updates

    shardings = jax.tree.map(lambda leaf: leaf.sharding, ((state, adam_state), grads))
    started = time.perf_counter()
    jitted = jax.jit(update, donate_argnums=(1, 2), out_shardings=shardings)
    program = jitted.lower(grads, state, adam_state).compile()
    return Compiled(program, time.perf_counter() - started)
