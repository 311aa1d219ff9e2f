"""Whole-leaf statistics on eight devices: under jit with sharded arrays, inside shard_map, under pmap."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_gradnorm

from . import reference
from .tables import (
    each_normalizer,
    each_of_single_layers,
    each_of_whole_layers,
    each_transformation,
    first_update,
)

pytestmark = pytest.mark.devices(8)


def mesh(axis_type=AxisType.Auto):
    return jax.make_mesh((4, 2), ("data", "model"), (axis_type, axis_type))


@functools.cache
def gradients():
    """Leaves whose shards differ in mean and scale, so that a shard's own statistics are wrong."""
    generator = np.random.default_rng(0)

    def leaf(*shape):
        trend = np.linspace(0.1, 3.0, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        return jnp.asarray(generator.standard_normal(shape) * trend + trend**2, jnp.float32)

    return {
        "conv": {"kernel": leaf(8, 3, 8, 6), "bias": leaf(8)},
        "dense": {"kernel": leaf(16, 8) * 1e3},
        "constant": {"kernel": jnp.full((16, 8), 1 / 3)},
        "large": {"kernel": leaf(256, 160)},  # on a CPU other sums are taken of large leaves
    }


@functools.cache
def whole(factory):
    """Update and state without any sharding."""
    return first_update(factory)(gradients())


def assert_same(result, expected):
    for (path, actual), wanted in zip(
        jax.tree.leaves_with_path(result), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert actual.shape == wanted.shape, name
        actual, wanted = np.asarray(actual, np.float64), np.asarray(wanted, np.float64)
        assert np.abs(actual - wanted).max() <= 2e-6 * max(1e-30, np.abs(wanted).max()), name


# Where each leaf lies. The feature axis of centralize is whole in the first three.
LAYOUTS = {
    "replicated": jax.tree.map(lambda g: P(), gradients()),
    "one mesh axis": jax.tree.map(lambda g: P("data"), gradients()),
    "both mesh axes on one array axis": jax.tree.map(lambda g: P(("data", "model")), gradients()),
    "two array axes": {
        "conv": {"kernel": P("data", None, "model"), "bias": P("model")},
        "dense": {"kernel": P(None, "data")},
        "constant": {"kernel": P("model", "data")},
        "large": {"kernel": P("data", "model")},
    },
}


@pytest.mark.parametrize(
    ("layout", "axis_type"),
    [*((layout, AxisType.Auto) for layout in LAYOUTS), ("two array axes", AxisType.Explicit)],
    ids=str,
)
@each_transformation
def test_jit(factory, layout, axis_type):
    transformation = factory()
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh(axis_type), spec), LAYOUTS[layout])
    grads = jax.device_put(gradients(), shardings)
    with jax.set_mesh(mesh(axis_type)):
        updates, state = jax.jit(transformation.update)(grads, transformation.init(grads))
    assert_same((updates, state), whole(factory))
    for u, sharding in zip(jax.tree.leaves(updates), jax.tree.leaves(shardings), strict=True):
        assert u.sharding.is_equivalent_to(sharding, u.ndim)


def in_shard_map(transformation, layout, grads=None, **options):
    """The first update, computed shard by shard; a state in P() has to pass the replication check."""
    specs = LAYOUTS[layout] if isinstance(layout, str) else layout

    @functools.partial(jax.shard_map, mesh=mesh(), in_specs=(specs,), out_specs=(specs, P()), **options)
    def update(grads):
        return transformation.update(grads, transformation.init(grads))

    return jax.jit(update)(gradients() if grads is None else grads)


def axes_of(spec):
    names = [n for part in spec for n in ((part,) if isinstance(part, str) else part or ())]
    return tuple(names) or None


SHARD_MAP_FORMS = {
    "replicated, nothing said": ("replicated", None),
    "str": ("one mesh axis", "data"),
    "tuple of one": ("one mesh axis", ("data",)),
    "tuple": ("both mesh axes on one array axis", ("data", "model")),
    "tuple in another order": ("both mesh axes on one array axis", ("model", "data")),
    "pytree": ("two array axes", jax.tree.map(axes_of, LAYOUTS["two array axes"])),
    "function": ("two array axes", lambda tree: jax.tree.map(axes_of, LAYOUTS["two array axes"])),
    "prefix": ("one mesh axis", {"conv": "data", "dense": ("data",), "constant": "data", "large": "data"}),
}


# All forms with gan, whose state and updates need the statistics of every leaf; one with all layouts for the others.
@pytest.mark.parametrize(
    ("factory", "form"),
    [
        *((optax_gradnorm.gan, form) for form in SHARD_MAP_FORMS),
        (optax_gradnorm.znorm, "pytree"),
        (optax_gradnorm.track_gradient_dynamics, "pytree"),
    ],
)
def test_shard_map(factory, form):
    layout, axis_name = SHARD_MAP_FORMS[form]
    assert_same(in_shard_map(factory(axis_name=axis_name), layout), whole(factory))


MIXED = {
    "conv": {"kernel": P("data"), "bias": P()},
    "dense": {"kernel": P()},
    "constant": {"kernel": P(None, "model")},
    "large": {"kernel": P("data")},
}


@pytest.mark.parametrize("check_vma", [True, False])
@each_of_whole_layers
def test_shard_map_with_sharded_and_replicated_leaves(factory, check_vma):
    """A replicated leaf counts once, whatever the other leaves are sharded over."""
    transformation = factory(axis_name=jax.tree.map(axes_of, MIXED))
    assert_same(in_shard_map(transformation, MIXED, check_vma=check_vma), whole(factory))


@each_normalizer
def test_a_shard_that_may_be_a_row_or_a_part_of_a_bias(factory):
    """One row of a weight (8, 6), or an eighth of a LayerScale (1, 48): the shard (1, 6) looks the same."""
    grads = {"weights": jnp.ones((8, 6)), "bias": jnp.ones((8, 6))}
    run = functools.partial(in_shard_map, layout=P(("data", "model")), grads=grads)
    with pytest.raises(ValueError, match="mask must say whether 'weights' is a layer"):
        run(factory(axis_name=("data", "model")))
    updates, _ = run(factory(axis_name=("data", "model"), mask={"weights": True, "bias": False}))
    assert not np.any(updates["weights"])
    assert np.array_equal(updates["bias"], grads["bias"])


def test_shard_map_centralize():
    """Only the mesh axes that shard averaged axes are named: those of the feature axis are not."""
    layout = {
        "conv": {"kernel": P("data", None, None, "model"), "bias": P("data")},
        "dense": {"kernel": P("model", "data")},
        "constant": {"kernel": P(("data", "model"))},
        "large": {"kernel": P("data")},
    }
    averaged = {"conv": "data", "dense": "model", "constant": ("data", "model"), "large": "data"}
    result = in_shard_map(optax_gradnorm.centralize(axis_name=averaged), layout)
    assert_same(result, whole(optax_gradnorm.centralize))


@pytest.mark.parametrize(("feature_axis", "layout"), [(-1, P(None, "x")), (0, P("x"))])
def test_one_output_unit_per_device(feature_axis, layout):
    """The mesh axis of the output units is not named, and a shard of one unit has the shape of a bias."""
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
    grads = jax.random.normal(jax.random.key(0), (8, 8)) + 1

    def run(transformation):
        update = jax.shard_map(
            lambda g: transformation.update(g, transformation.init(g))[0],
            mesh=mesh, in_specs=layout, out_specs=layout,
        )  # fmt: skip
        return jax.jit(update)(grads)

    with pytest.raises(ValueError, match="mask must say whether '' is a layer"):
        run(optax_gradnorm.centralize(feature_axis=feature_axis))
    updates = run(optax_gradnorm.centralize(feature_axis=feature_axis, mask=True))
    np.testing.assert_allclose(updates, grads - grads.mean(1 + feature_axis, keepdims=True), atol=1e-6)


def test_tracking_refuses_a_layer_whose_shard_is_none():
    """A state made of whole leaves, and shards that look like biases: zeros would be recorded."""
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
    grads = {"a": jnp.ones((16, 8)), "b": jnp.ones((16, 16))}
    tracker = optax_gradnorm.track_gradient_dynamics()
    state = tracker.init(grads)
    update = jax.shard_map(
        lambda g: tracker.update(g, state)[0], mesh=mesh, in_specs=P(None, "x"), out_specs=P(None, "x")
    )
    with pytest.raises(
        ValueError, match="'a' is a layer in the parameters given to init, and not in updates"
    ):
        jax.jit(update)(grads)


class Pair(NamedTuple):
    first: Any
    second: Any


def test_axis_names_in_a_named_tuple():
    """A NamedTuple of parameters takes one of names; it is not a tuple of names for every leaf."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), (AxisType.Auto, AxisType.Auto))
    grads = Pair(gradients()["dense"]["kernel"], gradients()["dense"]["kernel"].T * 3)
    layout = Pair(P("x"), P("y"))
    transformation = optax_gradnorm.gan(axis_name=Pair("x", "y"))
    update = jax.shard_map(
        lambda g: transformation.update(g, transformation.init(g))[1].sigma,
        mesh=mesh, in_specs=(layout,), out_specs=P(), check_vma=False,
    )  # fmt: skip
    np.testing.assert_allclose(jax.jit(update)(grads), float(reference.global_std(grads)), rtol=3e-6)


def test_shard_map_without_axis_name_is_the_shards_own():
    """What axis_name is for: without it every shard is normalized alone."""
    updates, _ = in_shard_map(optax_gradnorm.znorm(), "one mesh axis")
    shards = np.asarray(updates["dense"]["kernel"]).reshape(4, 4, 8)
    assert np.abs(shards.mean((1, 2))).max() <= 1e-6
    with pytest.raises(AssertionError):
        assert_same(updates, whole(optax_gradnorm.znorm)[0])


@each_of_single_layers
def test_shard_map_over_a_stack_axis(factory):
    """Experts: each shard holds whole layers of the stack, so no axis is named."""
    stack = jnp.stack([gradients()["dense"]["kernel"] * (i + 1) + i for i in range(8)])
    layout = P(("data", "model"))
    result, _ = in_shard_map(factory(stacked_axes=1), layout, grads=stack)
    expected, _ = first_update(factory)(list(stack))
    assert_same(list(result), expected)


def test_shard_map_over_a_stack_axis_and_inside_the_layer():
    stack = jnp.stack([gradients()["dense"]["kernel"] * (i + 1) + i for i in range(4)])
    znorm = optax_gradnorm.znorm(stacked_axes=1, axis_name="model")
    result, _ = in_shard_map(znorm, P("data", "model"), grads=stack)
    for u, layer in zip(result, stack, strict=True):
        assert reference.error(u, reference.znorm(layer)) <= 2e-6


def test_gan_refuses_a_state_that_differs_between_shards():
    """A deviation that was not summed over the shards cannot leave as one number."""
    stack = jnp.stack([gradients()["dense"]["kernel"] * (i + 1) for i in range(8)])
    with pytest.raises(ValueError, match="replicat"):
        in_shard_map(optax_gradnorm.gan(stacked_axes=1), P(("data", "model")), grads=stack)


@each_of_whole_layers
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.complex64], ids=lambda dtype: dtype.__name__)
def test_shard_map_dtypes(factory, dtype):
    grads = (gradients()["dense"]["kernel"] * 1e30).astype(dtype)
    result, _ = in_shard_map(factory(axis_name="data"), P("data"), grads=grads)
    assert result.dtype == dtype
    (expected,) = reference.first_updates(factory.__name__, [grads])
    assert reference.error(result, expected, reference.std(expected)) <= 2e-6 + float(jnp.finfo(dtype).eps)


@each_of_whole_layers
def test_pmap(factory):
    transformation = factory(axis_name="devices")
    leaf = gradients()["dense"]["kernel"]
    shards = leaf.reshape(8, 2, 8)
    updates, state = jax.pmap(lambda g: transformation.update(g, transformation.init(g)), "devices")(shards)
    expected, expected_state = first_update(factory)(leaf)
    assert_same(np.asarray(updates).reshape(16, 8), expected)
    for scalars, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected_state), strict=True):
        assert np.allclose(np.asarray(scalars), float(wanted), rtol=2e-6, atol=0)


def test_vmap_with_an_axis_name():
    """A mapped axis is an axis: the statistics are those of all slices together."""
    leaf = gradients()["dense"]["kernel"]
    znorm = optax_gradnorm.znorm(axis_name="slices")
    update = jax.vmap(lambda g: znorm.update(g, znorm.init(g))[0], axis_name="slices")(leaf.reshape(4, 4, 8))
    assert reference.error(update.reshape(16, 8), reference.znorm(leaf)) <= 2e-6


def test_no_gather_under_jit():
    """Statistics of a sharded array are reduced where it lies; the array itself stays."""
    transformation = optax_gradnorm.gan()
    grads = jax.device_put(
        gradients(), jax.tree.map(lambda spec: NamedSharding(mesh(), spec), LAYOUTS["two array axes"])
    )
    state = transformation.init(grads)
    program = jax.jit(transformation.update).lower(grads, state).compile().as_text()
    assert "all-reduce" in program
    assert "all-gather" not in program
    assert "all-to-all" not in program
