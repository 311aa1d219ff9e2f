"""What is a layer by default, in the trees of real modules; masks by name; names."""

import warnings

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_gradnorm
from optax_gradnorm import layer_names, layers

from .tables import each_transformation


@pytest.fixture(autouse=True)
def standard_promotion():
    """The frameworks' layers and optax's optimizers are not written for strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def arrays(module):
    """The trained arrays of an Equinox module."""
    return eqx.filter(module, eqx.is_inexact_array)


def nnx_params(module):
    return nnx.state(module, nnx.Param)


def haiku_params(f, *shapes):
    transformed = hk.transform_with_state(f)
    images = [jnp.ones(shape) for shape in shapes]
    return jax.eval_shape(transformed.init, jax.random.key(0), *images)[0]


def concrete(tree):
    """Gradients of 1e-4 in the place of shapes."""
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(1e-4 * generator.standard_normal(x.shape), jnp.float32), tree)


class Vit(nnx.Module):
    """Patches, class token, position embedding, one block with LayerScale, a head."""

    def __init__(self, rngs):
        self.patches = nnx.Conv(3, 8, (4, 4), (4, 4), rngs=rngs)
        self.class_token = nnx.Param(jnp.zeros((1, 1, 8)))
        self.positions = nnx.Param(jnp.zeros((1, 5, 8)))
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, rngs=rngs, decode=False)
        self.scale = nnx.Param(jnp.ones((1, 1, 8)))
        self.head = nnx.Linear(8, 3, rngs=rngs)


RNGS = nnx.Rngs(0)
KEY = jax.random.key(0)
TREES = {
    "eqx.nn.Conv1d": lambda: arrays(eqx.nn.Conv1d(2, 3, 3, key=KEY)),
    "eqx.nn.Conv2d": lambda: arrays(eqx.nn.Conv2d(2, 3, 3, key=KEY)),
    "eqx.nn.Conv3d": lambda: arrays(eqx.nn.Conv3d(2, 3, 3, key=KEY)),
    "eqx.nn.MultiheadAttention": lambda: arrays(
        eqx.nn.MultiheadAttention(
            2, 8, use_query_bias=True, use_key_bias=True, use_value_bias=True, use_output_bias=True, key=KEY
        )
    ),
    "hk.BatchNorm": lambda: haiku_params(
        lambda x: hk.BatchNorm(True, True, 0.9)(x, is_training=True), (2, 4, 4, 3)
    ),
    "hk.Conv2D NCHW": lambda: haiku_params(lambda x: hk.Conv2D(5, 3, data_format="NCHW")(x), (2, 3, 8, 8)),
    "hk.nets.ResNet18": lambda: haiku_params(
        lambda x: hk.nets.ResNet18(10)(x, is_training=True), (2, 32, 32, 3)
    ),
    "nnx.MultiHeadAttention": lambda: nnx_params(nnx.MultiHeadAttention(2, 8, rngs=RNGS, decode=False)),
    "nnx.LinearGeneral": lambda: nnx_params(nnx.LinearGeneral((4, 5), (2, 3), axis=(-2, -1), rngs=RNGS)),
    "nnx.BatchNorm": lambda: nnx_params(nnx.BatchNorm(4, rngs=RNGS)),
    "linen.MultiHeadDotProductAttention": lambda: nn.MultiHeadDotProductAttention(2).init(
        KEY, jnp.ones((1, 5, 8)), jnp.ones((1, 5, 8))
    )["params"],
    "vision transformer": lambda: nnx_params(Vit(RNGS)),
    "nnx.LoRA": lambda: nnx.state(nnx.LoRA(8, 2, 6, rngs=RNGS), nnx.LoRAParam),
    "dictionary": lambda: {"w": jnp.ones((3, 4)), "bias": jnp.ones((3, 4)), "b": jnp.ones((3, 1, 1))},
    "list": lambda: [jnp.ones((3, 4)), jnp.ones((1, 4)), jnp.ones(4), jnp.ones(())],
}
EXPECTED = {
    "eqx.nn.Conv1d": ["weight"],
    "eqx.nn.Conv2d": ["weight"],
    "eqx.nn.Conv3d": ["weight"],
    "eqx.nn.MultiheadAttention": [f"{part}_proj/weight" for part in ("query", "key", "value", "output")],
    "hk.BatchNorm": [],
    "hk.Conv2D NCHW": ["conv2_d/w"],
    "nnx.MultiHeadAttention": [f"{part}/kernel" for part in ("key", "out", "query", "value")],
    "nnx.LinearGeneral": ["kernel"],
    "nnx.BatchNorm": [],
    "linen.MultiHeadDotProductAttention": [f"{part}/kernel" for part in ("key", "out", "query", "value")],
    "vision transformer": [
        *(f"attention/{part}/kernel" for part in ("key", "out", "query", "value")),
        "head/kernel",
        "patches/kernel",
        "positions",
    ],
    "nnx.LoRA": ["lora_a", "lora_b"],
    "dictionary": ["w"],
    "list": ["0"],
}


def expected(name, tree):
    if name == "hk.nets.ResNet18":  # its convolutions and its linear layer, and no scale, offset or bias
        return [leaf for leaf in layer_names(tree) if leaf.endswith("/w")]
    return EXPECTED[name]


@pytest.mark.parametrize("name", TREES)
def test_layers_of(name):
    tree = TREES[name]()
    assert layers(tree) == expected(name, tree)


@pytest.mark.parametrize("name", TREES)
def test_layers_of_a_scanned_stack(name):
    """Three of the same modules stacked for `lax.scan`: the same leaves are layers."""
    stack = jax.tree.map(lambda x: jnp.zeros((3, *x.shape)), TREES[name]())
    assert layers(stack, stacked_axes=1) == expected(name, stack)


# The transformations ask the same rule: one tree with every kind of leaf for the others.
@pytest.mark.parametrize(
    ("name", "factory"),
    [
        *((name, optax_gradnorm.znorm) for name in TREES),
        ("vision transformer", optax_gradnorm.gan),
        ("vision transformer", optax_gradnorm.centralize),
    ],
)
def test_all_other_leaves_pass_through(name, factory):
    gradients = concrete(TREES[name]())
    transformation = factory()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A normalizer alone has no layers, and is told so.
        updates, _ = transformation.update(gradients, transformation.init(gradients))
    changed = [
        name
        for name, u, g in zip(
            layer_names(gradients), jax.tree.leaves(updates), jax.tree.leaves(gradients), strict=True
        )
        if not np.array_equal(u, g)
    ]
    assert changed == expected(name, gradients)


def test_an_equinox_bias_trains_with_centralization():
    """A bias (features, 1, 1) taken for a layer would have gradients of 0 alone."""
    model = eqx.nn.Conv2d(2, 3, 3, key=KEY)
    images = jax.random.normal(KEY, (2, 8, 8))
    optimizer = optax.chain(optax_gradnorm.centralize(feature_axis=0), optax.adam(1e-2))
    state = optimizer.init(arrays(model))
    before = model.bias

    @eqx.filter_jit
    def step(model, state):
        gradients = eqx.filter_grad(lambda model: jnp.mean(jnp.square(model(images) - 1)))(model)
        updates, state = optimizer.update(gradients, state)
        return eqx.apply_updates(model, updates), state

    for _ in range(20):
        model, state = step(model, state)
    assert jnp.all(jnp.abs(model.bias - before) > 0.05)


def test_a_mask_replaces_the_default_rule():
    tree = {"bias": jnp.arange(6.0).reshape(2, 3), "scale": jnp.arange(3.0), "kernel": jnp.ones((2, 3))}
    mask = {"bias": True, "scale": np.bool_(True), "kernel": jnp.asarray(False)}
    assert layers(tree, mask=mask) == ["bias", "scale"]


@each_transformation
def test_python_numbers_pass_through_inside_jit_and_outside(factory):
    gradients = {"kernel": jnp.arange(6.0).reshape(2, 3), "temperature": 0.7}
    has_units = factory is optax_gradnorm.centralize  # which a scalar has not
    transformation = factory(
        mask=(lambda tree: jax.tree.map(lambda x: jnp.ndim(x) > 1, tree)) if has_units else True
    )
    state = transformation.init(gradients)
    for update in (transformation.update, jax.jit(transformation.update)):
        updates, new_state = update(gradients, state)
        assert float(updates["temperature"]) == pytest.approx(0.7)
        assert jax.tree.structure(new_state) == jax.tree.structure(state)


def test_names_are_unique():
    tree = {"a/b": jnp.ones((2, 2)), "a": {"b": jnp.ones((2, 2)), "c": jnp.ones(2)}}
    names = layer_names(tree)
    assert names == ["['a']['b']", "a/c", "['a/b']"]
    assert layers(tree) == ["['a']['b']", "['a/b']"]
    # Also where a key looks like the spelling that tells two others apart.
    assert len(set(layer_names({"a": {"b": 1.0}, "a/b": 2.0, "['a/b']": 3.0}))) == 3


def test_tracking_while_an_optimizer_makes_a_weakly_typed_scalar_a_strong_one():
    params = {"kernel": jnp.ones((3, 4)), "temperature": jnp.asarray(0.7)}
    optimizer = optax.chain(optax_gradnorm.track_gradient_dynamics(mask=True), optax.sgd(0.1))
    initial = state = optimizer.init(params)
    for _ in range(3):
        gradients = jax.grad(lambda p: jnp.sum(p["kernel"] ** 3) * p["temperature"])(params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        assert jax.tree.structure(state) == jax.tree.structure(initial)
        dynamics = optax_gradnorm.gradient_dynamics(state)
        assert float(dynamics.global_std) == pytest.approx(float(dynamics.std["kernel"]))


def test_exclude_by_name():
    params = nnx_params(Vit(RNGS))
    assert layers(params, mask=optax_gradnorm.exclude("positions", "attention")) == [
        "head/kernel",
        "patches/kernel",
    ]
    # The default rule holds for the rest, stacked axes included.
    stack = {"embedding": jnp.ones((2, 3, 4)), "scale": jnp.ones((2, 3)), "kernel": jnp.ones((2, 3, 3))}
    assert layers(stack, mask=optax_gradnorm.exclude("embedding"), stacked_axes=1) == ["kernel"]


@pytest.mark.parametrize("frozen", [None, optax.MaskedNode()], ids=["None", "MaskedNode"])
def test_exclude_finds_the_names_of_frozen_leaves(frozen):
    gradients = {"embedding": {"table": frozen}, "kernel": jnp.arange(6.0).reshape(2, 3)}
    params = {"embedding": {"table": jnp.ones((4, 2))}, "kernel": jnp.ones((2, 3))}
    transformation = optax_gradnorm.znorm(mask=optax_gradnorm.exclude("embedding"))
    for tree in (params, gradients):
        updates, _ = transformation.update(gradients, transformation.init(tree))
        assert updates["embedding"]["table"] == frozen
        assert float(jnp.std(updates["kernel"])) == pytest.approx(1)


PARTS = {
    "encoder": {"embedding": jnp.ones((4, 2)), "blocks": jnp.arange(24.0).reshape(2, 3, 4) ** 2},
    "head": {"kernel": jnp.arange(6.0).reshape(2, 3)},
}


@pytest.mark.parametrize("labels", ["frozen", {"embedding": "frozen", "blocks": "frozen"}], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"mask": optax_gradnorm.exclude("embedding")},
        {"mask": {"encoder": {"embedding": False, "blocks": True}, "head": True}},
        {"stacked_axes": {"encoder": {"embedding": 0, "blocks": 1}, "head": 0}},
        {"axis_name": {"encoder": {"embedding": None, "blocks": ("x",)}, "head": None}},
    ],
    ids=["exclude", "mask", "stacked_axes", "axis_name"],
)
def test_an_argument_for_the_whole_tree_inside_partition(options, labels):
    """Optax replaces a frozen part by one node, be it a leaf or a subtree."""
    normalized = optax_gradnorm.znorm(**options)
    optimizer = optax.partition(
        {"frozen": optax.set_to_zero(), "trained": normalized}, {"encoder": labels, "head": "trained"}
    )
    updates, _ = optimizer.update(PARTS, optimizer.init(PARTS))
    assert float(jnp.std(updates["head"]["kernel"])) == pytest.approx(1)
    assert not jnp.any(updates["encoder"]["blocks"])


def test_an_argument_for_the_whole_tree_with_a_part_that_has_no_gradient():
    transformation = optax_gradnorm.znorm(stacked_axes={"encoder": {"embedding": 0, "blocks": 1}, "head": 0})
    updates, _ = transformation.update({"encoder": None, "head": PARTS["head"]}, transformation.init(PARTS))
    assert updates["encoder"] is None
    assert float(jnp.std(updates["head"]["kernel"])) == pytest.approx(1)


def test_exclude_takes_the_names_that_layers_prints():
    """Haiku's module names hold slashes."""
    params = {"heads/~/linear_0": {"w": jnp.ones((2, 3))}, "heads/~/linear_1": {"w": jnp.ones((3, 3))}}
    rest = ["heads/~/linear_1/w"]
    for name in ("linear_0", "heads/~/linear_0", "heads/~/linear_0/w"):
        assert layers(params, mask=optax_gradnorm.exclude(name)) == rest
    assert layers(params, mask=optax_gradnorm.exclude("heads")) == []


def test_a_flax_box_around_a_dictionary():
    """Statistics of a box that holds a layer and a bias are those of the same dictionary without the box."""
    content = {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jnp.ones(4)}
    boxed = nnx.State({"dense": nnx.Param(content), "single": nnx.Param(content["kernel"])})
    assert sorted(layer_names(boxed)) == ["dense/bias", "dense/kernel", "single"]
    tracker = optax_gradnorm.track_gradient_dynamics()
    _, state = tracker.update(boxed, tracker.init(boxed))
    assert layer_names(state.std) == ["dense/kernel", "single"]
    for std in jax.tree.leaves(state.std):
        assert float(std) == pytest.approx(float(jnp.std(content["kernel"])))


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1, 1), (5, 4, 3, 3)])
def test_rows_of_weights_by_stacked_axes_and_a_mask(shape):
    """As the authors' code has it, but for their unbiased deviation."""

    def weights(tree):
        return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)

    gradients = {"weight": jax.random.normal(KEY, shape), "bias": jnp.arange(5.0)}
    transformation = optax_gradnorm.znorm(stacked_axes=1, mask=weights)
    updates, _ = transformation.update(gradients, transformation.init(gradients))
    rows = np.asarray(gradients["weight"], np.float64).reshape(5, -1)
    expected = (rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True)
    np.testing.assert_allclose(updates["weight"].reshape(5, -1), expected, atol=2e-6)
    np.testing.assert_array_equal(updates["bias"], gradients["bias"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((), TypeError, "one name or more"),
        ((3,), TypeError, "strings"),
        (("embeding",), ValueError, r"exclude\('embeding'\): no leaf"),
    ],
)
def test_exclude_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        optax_gradnorm.znorm(mask=optax_gradnorm.exclude(*arguments)).init({"embedding": jnp.ones((2, 3))})


@each_transformation
@pytest.mark.parametrize(
    ("tree", "options"),
    [
        ({"flat": jnp.ones(12)}, {}),
        (
            {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
            {"stacked_axes": lambda t: {"kernel": 1, "bias": 0}},
        ),
    ],
    ids=["flattened parameters", "too many stacked axes"],
)
def test_a_tree_without_layers_is_noticed(factory, tree, options):
    with pytest.warns(UserWarning, match="no leaf is a layer") as caught:
        factory(**options).init(tree)
    assert caught[0].filename == __file__
    # It speaks of gradients of the same shapes: others, as one per example, may have layers.
    assert "gradients of these shapes pass through" in str(caught[0].message)


def test_no_warning_without_need():
    """Trees without floating-point leaves, and masks that say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optax_gradnorm.znorm().init({})
        optax_gradnorm.znorm().init({"table": jnp.arange(3), "frozen": None})
        optax_gradnorm.znorm(mask=False).init({"bias": jnp.ones(3)})


@pytest.mark.parametrize("feature_axis", [(-2, -1), {"query": (1, 2), "out": -1}, (1, 2)], ids=str)
def test_centralize_with_two_feature_axes(feature_axis):
    """The kernels of attention: (inputs, heads, dim) has a mean for each head and dimension."""
    attention = nnx_params(nnx.MultiHeadAttention(2, 8, rngs=RNGS, decode=False))
    gradients = concrete({name: attention[name]["kernel"][...] for name in ("query", "out")})
    if not isinstance(feature_axis, dict):
        gradients.pop("out")
    transformation = optax_gradnorm.centralize(feature_axis=feature_axis)
    updates, _ = transformation.update(gradients, transformation.init(gradients))
    query = np.asarray(gradients["query"], np.float64)
    np.testing.assert_allclose(updates["query"], query - query.mean(0, keepdims=True), rtol=0, atol=1e-10)
    if "out" in gradients:
        out = np.asarray(gradients["out"], np.float64)
        np.testing.assert_allclose(updates["out"], out - out.mean((0, 1), keepdims=True), rtol=0, atol=1e-10)


@pytest.mark.parametrize("feature_axis", [(-2, -1), (0, -1)], ids=str)
def test_feature_axes_that_leave_nothing_to_average_are_refused(feature_axis):
    """Given for attention, they must not let every other kernel pass through silently."""
    with pytest.raises(ValueError, match=r"feature_axis .* all axes of 'kernel', .* of shape \(3, 4\)"):
        optax_gradnorm.centralize(feature_axis=feature_axis).init({"kernel": jnp.ones((3, 4))})


def test_centralize_leaves_units_of_one_weight_alone():
    """A 1x1 depthwise convolution: the mean of one weight is the weight."""
    depthwise = jnp.arange(12.0).reshape(1, 1, 3, 4)
    transformation = optax_gradnorm.centralize(feature_axis=(-2, -1))
    updates, _ = transformation.update(depthwise, transformation.init(depthwise))
    assert np.array_equal(updates, depthwise)
