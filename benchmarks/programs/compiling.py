"""Programs of an update, compiled for a target: gradients are shapes, and nothing runs."""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_gradnorm
from benchmarks.programs.targets import H100, Target
from benchmarks.transforms import naive_lines

# In front of Adam; what knows of stacked layers is told.
CHAINS: dict[str, Callable[[int], optax.GradientTransformation]] = {
    "adam alone": lambda stacked: optax.identity(),
    "clip_by_global_norm": lambda stacked: optax.clip_by_global_norm(0.1),
    "naive lines": lambda stacked: naive_lines(),
    "centralize": lambda stacked: optax_gradnorm.centralize(stacked_axes=stacked),
    "znorm": lambda stacked: optax_gradnorm.znorm(stacked_axes=stacked),
    "gan": lambda stacked: optax_gradnorm.gan(stacked_axes=stacked),
    "tracking": lambda stacked: optax_gradnorm.track_gradient_dynamics(stacked_axes=stacked),
}
LAYOUTS = ("replicated", "fsdp", "stacked")


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


def make_mesh(target: Target) -> Mesh:
    """Mesh of the target's devices, with the single axis 'fsdp'.

    Raises:
      RuntimeError: its compiler is not installed, or does not load.
    """
    if target.platform == "tpu":
        found = topologies.get_topology_desc(platform="tpu", topology_name=target.topology)
    else:
        found = topologies.get_topology_desc("h100", "cuda", target_config=H100, topology=target.topology)
    return Mesh(np.array(found.devices[: target.devices]), ("fsdp",))


def gradients(shapes: list[tuple[int, ...]], mesh: Mesh, layout: str, dtype=jnp.float32) -> list[Any]:
    """Gradients as shapes with shardings.

    Args:
      shapes: of the leaves.
      mesh: of all devices.
      layout: 'replicated': whole on every device; 'fsdp': each leaf divided along its largest axis that the devices
        can share equally; 'stacked': that too, with leaves of one shape in a stack.
      dtype: of all leaves.
    """
    if layout == "stacked":
        shapes = [(shapes.count(shape), *shape) for shape in dict.fromkeys(shapes)]

    def place(shape: tuple[int, ...]) -> Any:
        own = range(int(layout == "stacked"), len(shape))
        axes = [axis for axis in own if shape[axis] % mesh.size == 0]
        spec: list[str | None] = [None] * len(shape)
        if layout != "replicated" and axes:
            spec[max(axes, key=lambda axis: shape[axis])] = "fsdp"
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))

    return [place(shape) for shape in shapes]


def compile_update(chain: str, grads: list[Any], layout: str = "replicated") -> Compiled:
    """Compiles an update of Adam with a transformation in front, whose states are donated.

    Moments lie as the gradients do; statistics are whole on every device.
    """
    transform, adam = CHAINS[chain](int(layout == "stacked")), optax.adam(1e-3)
    mesh = grads[0].sharding.mesh
    by_shape = {g.shape: g.sharding for g in grads}

    def placed(state: Any) -> Any:
        def place(leaf: Any) -> Any:
            sharding = by_shape.get(leaf.shape, NamedSharding(mesh, P()))
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(place, state)

    def update(gradients, state, adam_state):
        updates, state = transform.update(gradients, state)
        # Adam mixes Python floats with an integer counter, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, adam_state = adam.update(updates, adam_state)
        return (state, adam_state), updates

    states = placed(jax.eval_shape(transform.init, grads)), placed(jax.eval_shape(adam.init, grads))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, (states, grads))
    started = time.perf_counter()
    jitted = jax.jit(update, donate_argnums=(1, 2), out_shardings=shardings)
    program = jitted.lower(grads, *states).compile()
    return Compiled(program, time.perf_counter() - started)
