"""Programs of updates: every transformation compiles for a TPU wherever it may stand, at a known cost."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optax_gradnorm
from benchmarks.programs.compiling import compile_update, make_mesh
from benchmarks.programs.reading import collectives, instructions, kernels, parameters, traffic
from benchmarks.programs.targets import TARGETS
from benchmarks.programs.trees import gradients, stacked_blocks, transformer

pytestmark = pytest.mark.usefixtures("compilers")

OURS = ("centralize", "znorm", "gan", "tracking")
each_chain = pytest.mark.parametrize("chain", OURS)
FACTORIES = {
    "centralize": optax_gradnorm.centralize,
    "znorm": optax_gradnorm.znorm,
    "gan": optax_gradnorm.gan,
    "tracking": optax_gradnorm.track_gradient_dynamics,
}
SHAPES = [(256, 512), (3, 3, 16, 32), (3, 3, 16, 32), (512,)]


def mesh_of(target):
    return make_mesh(TARGETS[target])


@each_chain
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("target", "layout"),
    [("v5e", "replicated"), ("v5e", "stacked"), ("v5e-16", "fsdp"), ("h100", "replicated")],
)
def test_compiles(target, layout, dtype, chain):
    compiled = compile_update(
        chain, gradients(SHAPES, mesh_of(target), layout, dtype), int(layout == "stacked")
    )
    assert kernels(instructions(compiled.program.as_text())) > 0


@each_chain
def test_compiles_inside_shard_map(chain):
    """Rows of a weight on sixteen devices, with the mesh axis named."""
    mesh = mesh_of("v5e-16")
    transform = FACTORIES[chain](axis_name="fsdp", mask=True)
    grads = {"kernel": jax.ShapeDtypeStruct((256, 512), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))}

    def update(grads):
        return transform.update(grads, transform.init(grads))

    def local_state(grads):
        return jax.tree.map(lambda leaf: P(), jax.eval_shape(transform.init, grads))

    update = jax.shard_map(update, mesh=mesh, in_specs=P("fsdp"), out_specs=(P("fsdp"), local_state(grads)))
    program = instructions(jax.jit(update).lower(grads).compile().as_text())
    assert 0 < len(collectives(program)) <= 3


@each_chain
def test_compiles_inside_scan(chain):
    """An epoch of updates in one loop."""
    optimizer = optax.chain(FACTORIES[chain](), optax.trace(0.9))
    grads = gradients(SHAPES, mesh_of("v5e"), "replicated")

    def epoch(grads):
        def step(state, scale):
            updates, state = optimizer.update([g * scale for g in grads], state)
            return state, updates[0][0]

        return jax.lax.scan(step, optimizer.init(grads), jnp.linspace(1.0, 2.0, 10))

    text = jax.jit(epoch).lower(grads).compile().as_text()
    assert " while(" in text


@each_chain
def test_collectives_do_not_grow_with_layers(chain):
    counted = []
    for layers in (2, 12):
        grads = gradients([(512, 256)] * layers, mesh_of("v5e-16"), "fsdp")
        program = instructions(compile_update(chain, grads).program.as_text())
        counted.append(len(collectives(program)))
    assert counted[0] == counted[1]
    assert 0 < counted[0] <= 3


def test_replicated_leaves_send_nothing():
    grads = gradients(SHAPES, mesh_of("v5e-16"), "replicated")
    assert not collectives(instructions(compile_update("gan", grads).program.as_text()))


# What goes over both axes that divide weights, and over each alone.
@pytest.mark.parametrize(
    ("chain", "stacked", "most"),
    [
        ("clip_by_global_norm", False, 3),
        ("clip_by_global_norm", True, 3),
        ("znorm", False, 8),
        ("znorm", True, 12),
        ("gan", False, 8),
        ("gan", True, 12),
    ],
)
def test_collectives_where_two_mesh_axes_divide_weights(chain, stacked, most):
    mesh = make_mesh(TARGETS["v5e-16"], (2, 4, 2), ("data", "fsdp", "tensor"))
    grads = transformer(mesh, 2, stacked=stacked, width=256)
    compiled = compile_update(chain, grads, stacked_blocks if stacked else None)
    found = collectives(instructions(compiled.program.as_text()))
    assert {c.kind for c in found} == {"all-reduce"}
    assert len(found) <= most
    # Largest magnitude, rough mean, mean and mean square: of the embedding and twelve layers over one axis and then
    # the other, of stacked ones over both at once.
    if chain != "clip_by_global_norm":
        assert sum(c.bytes for c in found) == 4 * 4 * (2 + 12 * (1 if stacked else 2))


@each_chain
@pytest.mark.parametrize(("target", "layers"), [("v5e", 24), ("h100", 2)])
def test_two_reads_for_statistics_and_one_for_adam(target, layers, chain):
    """Layers of 16 MB, together more than a TPU's fast memory holds."""
    grads = gradients([(2048, 2048)] * layers, mesh_of(target), "stacked")
    compiled = compile_update(chain, grads, 1).program
    program = instructions(compiled.as_text())
    own = parameters(program, "gradients")
    held = sum(parameter.results[0].padded_bytes for parameter in own)
    assert traffic(program, own).read <= 3.01 * held
    # Beside these reads, Adam reads two moments and writes three arrays.
    assert sum(traffic(program)) <= 8.05 * held
    assert compiled.memory_analysis().temp_size_in_bytes < 0.01 * held


@each_chain
def test_kernels_on_a_gpu_are_no_more_than_half_as_many_again_as_clippings(chain):
    """Layers of one shape share their scalar arithmetic."""
    grads = gradients([(512, 512)] * 12, mesh_of("h100"), "replicated")
    found, clipping = (
        kernels(instructions(compile_update(name, grads).program.as_text()))
        for name in (chain, "clip_by_global_norm")
    )
    # Tracking's state has the statistics of every layer one by one.
    assert found <= 1.5 * clipping + (12 if chain == "tracking" else 0)
