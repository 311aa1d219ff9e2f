"""Vision Transformers against PyTorch's encoder, and stacked blocks against the same blocks one by one."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_gradnorm
from experiments import models
from experiments.models import axes
from experiments.models.vit import VisionTransformer

# As make_torch_vit.py has them.
PATCH, WIDTH, HEADS, DEPTH, CLASSES, IMAGE_SIZE, CHANNELS = 4, 12, 3, 2, 5, 8, 2
TORCH = Path(__file__).with_name("torch_vit.npz")
SMALL = {"patch": PATCH, "width": WIDTH, "depth": DEPTH, "heads": HEADS, "pooling": "token"}
SHAPES = {"num_classes": CLASSES, "channels": CHANNELS, "image_size": IMAGE_SIZE}


def build(**options) -> VisionTransformer:
    return VisionTransformer(**{**SMALL, **SHAPES, "dtype": jnp.float32, "rngs": nnx.Rngs(0), **options})


def split(model):
    graphdef, params = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


def unstack(stacked):
    """The tree of the network whose blocks are not stacked, from that of the one whose blocks are."""
    rest = {name: leaf for name, leaf in stacked.items() if name != axes.STACKED}
    depth = len(jax.tree.leaves(stacked[axes.STACKED])[0])
    blocks = {i: jax.tree.map(lambda leaf, i=i: leaf[i], stacked[axes.STACKED]) for i in range(depth)}
    return {**rest, axes.SINGLE: blocks}


@pytest.fixture(scope="module")
def torch_arrays():
    with np.load(TORCH) as arrays:
        return dict(arrays)


def from_torch(arrays, prefix):
    """Arrays under PyTorch's names as a tree of ours."""

    def get(name):
        return arrays[f"{prefix}/{name}"]

    def linear(name):
        return {"kernel": get(f"{name}.weight").T, "bias": get(f"{name}.bias")}

    def norm(name):
        return {"scale": get(f"{name}.weight"), "bias": get(f"{name}.bias")}

    def block(name):
        weights = np.split(get(f"{name}.self_attn.in_proj_weight"), 3)
        biases = np.split(get(f"{name}.self_attn.in_proj_bias"), 3)
        attention = {
            part: {
                "kernel": weight.T.reshape(WIDTH, HEADS, WIDTH // HEADS),
                "bias": bias.reshape(HEADS, WIDTH // HEADS),
            }
            for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True)
        }
        out = linear(f"{name}.self_attn.out_proj")
        attention["out"] = out | {"kernel": out["kernel"].reshape(HEADS, WIDTH // HEADS, WIDTH)}
        mlp = {"mlp_in": linear(f"{name}.linear1"), "mlp_out": linear(f"{name}.linear2")}
        return {"attention": attention, **mlp, **{n: norm(f"{name}.{n}") for n in ("norm1", "norm2")}}

    return {
        "embedding": {
            "patches": {"kernel": get("patches.weight").transpose(2, 3, 1, 0), "bias": get("patches.bias")},
            "class_token": get("class_token"),
            "position": get("position"),
        },
        "encoder": {i: block(f"encoder.layers.{i}") for i in range(DEPTH)},
        "norm": norm("encoder.norm"),
        "to_logits": linear("to_logits"),
    }


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_logits_are_those_of_pytorch(torch_arrays, pooling):
    model = build()
    model.pooling = pooling  # Only the catalogue's networks with a mean have no class token.
    graphdef, params = split(model)
    loaded = jax.tree.map(jnp.asarray, from_torch(torch_arrays, "parameter"))
    jax.tree.map(lambda mine, theirs: np.testing.assert_equal(mine.shape, theirs.shape), params, loaded)
    images = jnp.asarray(torch_arrays["images"], jnp.float32)
    logits = jax.jit(lambda p: nnx.merge(graphdef, p)(images, train=False))(loaded)
    np.testing.assert_allclose(logits, torch_arrays[f"logits_{pooling}"], rtol=0, atol=5e-6)


def test_gradients_are_those_of_pytorch(torch_arrays):
    graphdef, _ = split(build())
    images, labels = jnp.asarray(torch_arrays["images"], jnp.float32), torch_arrays["labels"]

    @jax.jit
    @jax.grad
    def gradient(params):
        logits = nnx.merge(graphdef, params)(images, train=True)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean()

    ours = gradient(jax.tree.map(jnp.asarray, from_torch(torch_arrays, "parameter")))
    theirs = from_torch(torch_arrays, "gradient")
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=5e-6), ours, theirs)


@pytest.mark.parametrize("options", [{}, {"pooling": "mean"}, {"dtype": jnp.bfloat16}])
def test_stacked_blocks_are_the_same_network_from_the_same_weights(options):
    (single, params), (stacked, stacked_params) = (
        split(build(**options)),
        split(build(stacked=True, **options)),
    )
    jax.tree.map(np.testing.assert_array_equal, unstack(stacked_params), params)
    images = jax.random.normal(jax.random.key(0), (5, IMAGE_SIZE, IMAGE_SIZE, CHANNELS))

    def loss(params, graphdef):
        logits = nnx.merge(graphdef, params)(images, train=True)
        return jnp.mean(logits**2), logits

    run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    with jax.numpy_dtype_promotion("standard"):  # JAX's attention takes its softmax of halves in float32.
        gradients, logits = run(params, single)
        stacked_gradients, stacked_logits = run(stacked_params, stacked)
    tolerance = 1e-5 if "dtype" not in options else 0.05
    pairs = [(unstack(stacked_gradients), gradients), (stacked_logits, logits)]
    for actual, expected in pairs:
        error = optax.tree.norm(jax.tree.map(jnp.subtract, actual, expected))
        assert error <= tolerance * optax.tree.norm(expected)


TRANSFORMS = {
    "znorm": optax_gradnorm.znorm,
    "gan": optax_gradnorm.gan,
    "centralize": partial(optax_gradnorm.centralize, feature_axis=axes.feature_axis),
}


def random_gradients(params):
    """Gradients whose deviation and mean differ from leaf to leaf and from block to block."""
    random = np.random.default_rng(3)
    return jax.tree.map(
        lambda leaf: jnp.asarray(
            random.normal(
                random.normal(size=(len(leaf), *[1] * (leaf.ndim - 1))), random.uniform(0.1, 2), leaf.shape
            ),
            jnp.float32,
        ),
        params,
    )


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_stacked_tree_is_transformed_as_its_blocks_are_one_by_one(name):
    gradients = random_gradients(split(build(stacked=True, depth=3))[1])
    one_by_one = TRANSFORMS[name]()
    stacked = TRANSFORMS[name](stacked_axes=axes.stacked_axes)
    expected, _ = one_by_one.update(unstack(gradients), one_by_one.init(unstack(gradients)))
    actual, _ = jax.jit(stacked.update)(gradients, stacked.init(gradients))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6), unstack(actual), expected)
    # Without the argument, the whole stack would be one layer.
    as_one = TRANSFORMS[name]()
    wrong, _ = as_one.update(gradients, as_one.init(gradients))
    query = ("stacked_encoder", "attention", "query", "kernel")
    get = partial(jax.tree_util.tree_reduce, lambda tree, key: tree[key], query)
    assert np.abs(get(initializer=wrong) - get(initializer=actual)).max() > 1e-2


def test_statistics_of_a_stacked_tree_are_those_of_its_blocks():
    gradients = random_gradients(split(build(stacked=True, depth=3))[1])

    def statistics(tree, **options):
        tracker = optax_gradnorm.track_gradient_dynamics(**options)
        return optax_gradnorm.gradient_dynamics(tracker.update(tree, tracker.init(tree))[1])

    actual = statistics(gradients, stacked_axes=axes.stacked_axes)
    expected = statistics(unstack(gradients))
    np.testing.assert_allclose(actual.global_std, expected.global_std, rtol=1e-6)
    by_name = dict(zip(optax_gradnorm.layer_names(expected.std), jax.tree.leaves(expected.std), strict=True))
    seen = []
    for name, deviations in zip(
        optax_gradnorm.layer_names(actual.std), jax.tree.leaves(actual.std), strict=True
    ):
        names = axes.names_in_stack(name, 3) if deviations.ndim else [name]
        np.testing.assert_allclose(deviations.ravel(), [by_name[n] for n in names], rtol=1e-6)
        seen += names
    assert sorted(seen) == sorted(by_name)


def test_each_output_unit_of_attention_is_centralized():
    gradients = random_gradients(split(build(stacked=True))[1])
    transform = optax_gradnorm.centralize(feature_axis=axes.feature_axis, stacked_axes=axes.stacked_axes)
    updates, _ = transform.update(gradients, transform.init(gradients))
    attention = updates["stacked_encoder"]["attention"]
    for part in ("query", "key", "value"):  # [block, width, heads, features]
        np.testing.assert_allclose(attention[part]["kernel"].mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(attention["out"]["kernel"].mean((1, 2)), 0, atol=1e-6)
    original = gradients["stacked_encoder"]["attention"]
    for part in attention:
        np.testing.assert_array_equal(attention[part]["bias"], original[part]["bias"])


def test_layers_are_the_kernels_and_the_positions():
    def names(**options):
        _, params = split(nnx.eval_shape(lambda: build(**options)))
        return optax_gradnorm.layers(params, stacked_axes=axes.stacked_axes)

    blocks = ["attention/key", "attention/out", "attention/query", "attention/value", "mlp_in", "mlp_out"]
    expected = ["embedding/patches/kernel", "embedding/position"]
    expected += [f"encoder/{i}/{part}/kernel" for i in range(12) for part in blocks]
    assert names(depth=12) == [*expected, "to_logits/kernel"]
    stacked = [f"stacked_encoder/{part}/kernel" for part in blocks]
    assert names(depth=12, stacked=True) == [*expected[:2], *stacked, "to_logits/kernel"]


# 5,717,416: the published size of DeiT-Ti, the same network. The others: 12 width^2 + 13 width for each block.
@pytest.mark.parametrize(
    ("name", "num_classes", "image_size", "count"),
    [
        ("vit_tiny", 1000, 224, 5_717_416),
        ("vit_tiny_stacked", 1000, 224, 5_717_416),
        ("vit96_small", 100, 32, 6 * (12 * 96**2 + 13 * 96) + 96 * (48 + 1 + 64 + 2) + 97 * 100),
        ("vit192_small_drop", 100, 32, 6 * (12 * 192**2 + 13 * 192) + 192 * (48 + 1 + 64 + 2) + 193 * 100),
    ],
)
def test_parameter_counts(name, num_classes, image_size, count):
    options = {"num_classes": num_classes, "channels": 3, "image_size": image_size}
    model = nnx.eval_shape(lambda: models.create(name, rngs=nnx.Rngs(0), **options))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == count
    graphdef, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32)
    logits = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x, train=False), state, images)
    assert (logits.shape, logits.dtype) == ((2, num_classes), jnp.float32)


def test_gradients_reach_every_parameter_but_the_biases_of_keys():
    graphdef, params = split(build())
    images = jax.random.normal(jax.random.key(0), (5, IMAGE_SIZE, IMAGE_SIZE, CHANNELS))
    labels = jnp.arange(5)

    def loss(params):
        logits = nnx.merge(graphdef, params)(images, train=True)
        return -jax.nn.log_softmax(logits)[labels, labels].mean()

    gradients = jax.jit(jax.grad(loss))(params)
    for name, leaf in zip(optax_gradnorm.layer_names(gradients), jax.tree.leaves(gradients), strict=True):
        if name.endswith(
            "key/bias"
        ):  # It adds the same to all logits of a query, which softmax does not see.
            np.testing.assert_allclose(leaf, 0, atol=1e-7)
        else:
            assert (np.abs(leaf).reshape(-1, leaf.shape[-1]).max(0) > 1e-7).all(), name


@jax.numpy_dtype_promotion("standard")  # As above.
def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    images = jax.random.normal(jax.random.key(0), (4, IMAGE_SIZE, IMAGE_SIZE, CHANNELS))
    graphdef, params = split(build(dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(lambda p: nnx.merge(graphdef, p)(images, train=True))(params))
    products = [line for line in text.splitlines() if "= dot_general" in line]
    in_float32 = [line for line in products if ":bf16[" not in line]
    assert len(products) == 8 * DEPTH + 1
    assert len(in_float32) == DEPTH  # What softmax gets.
    half, exact = nnx.merge(graphdef, params)(images, train=True), build()(images, train=True)
    assert half.dtype == jnp.float32
    assert 0 < np.abs(half - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("stacked", [False, True])
def test_stochastic_depth_leaves_out_whole_branches_in_training_alone(stacked):
    model = build(stacked=stacked, depth=3, stochastic_depth=0.5)
    plain = build(stacked=stacked, depth=3)
    images = jax.random.normal(jax.random.key(0), (4, IMAGE_SIZE, IMAGE_SIZE, CHANNELS))
    np.testing.assert_array_equal(model(images, train=False), plain(images, train=False))
    with pytest.raises(ValueError, match="needs key in training"):
        model(images, train=True)

    keep = model.draw_depth(jax.random.key(1), 4000, jnp.float32)
    assert keep.shape == (3, 2, 4000, 1, 1)
    for factors, rate in zip(keep, (0, 0.25, 0.5), strict=True):
        np.testing.assert_allclose(np.unique(factors), [1.0] if rate == 0 else [0, 1 / (1 - rate)], rtol=1e-6)
        np.testing.assert_allclose(factors.mean(), 1, atol=0.06)
    # An image all of whose branches are dropped leaves the encoder as it came.
    x = model.embedding(images)
    keep = jnp.zeros((3, 2, 4, 1, 1)).at[:, :, 1].set(1.0)
    y = model.encode(x, keep)
    np.testing.assert_array_equal(y[0], x[0])
    np.testing.assert_allclose(y[1], plain.encode(x, None)[1], rtol=1e-5, atol=1e-6)
    one, same, other = (model(images, train=True, key=jax.random.key(k)) for k in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_network_learns_of_positions():
    """Without them, the mean over the tokens would not change when patches change places."""
    model = build(pooling="mean")
    images = jax.random.normal(jax.random.key(0), (2, IMAGE_SIZE, IMAGE_SIZE, CHANNELS))
    swapped = jnp.concatenate([images[:, PATCH:], images[:, :PATCH]], axis=1)
    assert np.abs(model(images, train=False) - model(swapped, train=False)).max() > 1e-3
    model.embedding.position[...] = jnp.zeros_like(model.embedding.position[...])
    np.testing.assert_allclose(model(images, train=False), model(swapped, train=False), atol=1e-6)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="image_size must be a multiple of 4 for patches of 4, got 10"):
        build(image_size=10)
    with pytest.raises(ValueError, match="stochastic_depth must be from 0 to less than 1, got 1"):
        build(stochastic_depth=1.0)
    assert not models.takes_any_size("vit96_small_stacked")
