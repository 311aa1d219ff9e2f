"""The networks against float64 NumPy, the literature's sizes, and their own plain twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import optax_gradnorm
from experiments import models
from experiments.models.layers import BatchNorm, conv
from experiments.models.resnet import BasicBlock, BottleneckBlock, ResNet
from experiments.models.vgg import GROUPS

from .made import abstract, apply, create, fill, images_for
from .numpy_networks import (
    array,
    conv_reference,
    linear_reference,
    max_pool_reference,
    norm_reference,
    relu,
    resnet_reference,
)


def tiny(block, blocks_per_stage, *, small_stem=True, shortcut="projection", seed=0):
    return ResNet(
        block,
        blocks_per_stage,
        (4, 8)[: len(blocks_per_stage)],
        shortcut=shortcut,
        small_stem=small_stem,
        num_classes=3,
        channels=2,
        dtype=jnp.dtype("float32"),
        rngs=nnx.Rngs(seed),
    )


# A second implementation of every layer, in float64.


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("resnet8", "projection"), ("plain8", "plain")],
)
def test_cifar_resnet_matches_numpy(name, kind, train):
    model = create(name)
    images = images_for((3, 8, 8, 3))
    expected = resnet_reference(model, images, train, kind)
    logits = apply(model, jnp.asarray(images), train=train)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("small_stem", [True, False])
def test_bottleneck_resnet_matches_numpy(small_stem, train):
    model = fill(lambda: tiny(BottleneckBlock, (1, 2), small_stem=small_stem))
    images = images_for((3, 16, 16, 2))
    expected = resnet_reference(model, images, train, "projection", small_stem)
    logits = apply(model, jnp.asarray(images), train=train)
    np.testing.assert_allclose(logits, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("name", "train"), [("vgg16", True), ("vgg16_bn", True), ("vgg16_bn", False)])
def test_vgg_matches_numpy(name, train):
    model = create(name, image_size=32)
    images = images_for((2, 32, 32, 3))
    x, layer = images.astype(np.float64), 0
    for group in GROUPS:
        for _ in group:
            x = conv_reference(model.convs[layer], x, 1)
            if name == "vgg16_bn":
                x = norm_reference(model.norms[layer], x, train)
            x = relu(x)
            layer += 1
        x = max_pool_reference(x, 2, 2, 0)
    expected = linear_reference(model.to_logits, x.reshape(len(x), -1))
    assert layer == 13
    logits = apply(model, jnp.asarray(images), train=train)
    np.testing.assert_allclose(logits, expected, rtol=5e-5, atol=5e-5 * np.abs(expected).max())


def test_batch_norm_matches_numpy_in_training_and_evaluation():
    layer = fill(lambda: BatchNorm(5, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    # Means far from zero show a variance taken as a difference of large numbers.
    x = images_for((16, 3, 3, 5)) * 0.1 + np.float32(100) * np.arange(5, dtype=np.float32)
    exact = x.astype(np.float64)
    mean, variance = array(layer.mean), array(layer.var)
    for _ in range(2):
        expected = norm_reference(layer, exact, train=True)
        np.testing.assert_allclose(layer(jnp.asarray(x), train=True), expected, atol=5e-3)
        mean = 0.9 * mean + 0.1 * exact.mean((0, 1, 2))
        variance = 0.9 * variance + 0.1 * exact.var((0, 1, 2))
        np.testing.assert_allclose(array(layer.mean), mean, rtol=1e-6)
        np.testing.assert_allclose(array(layer.var), variance, rtol=1e-5)
    expected = norm_reference(layer, exact, train=False)
    np.testing.assert_allclose(layer(jnp.asarray(x), train=False), expected, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(array(layer.mean), np.float32(array(layer.mean)))


def test_evaluation_changes_nothing_and_training_only_the_statistics():
    model = create("resnet8")
    images = jnp.asarray(images_for((4, 8, 8, 3)))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    apply(model, images, train=False)
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(model)), before)
    apply(model, images, train=True)
    after = nnx.state(model)
    changed = [
        not np.array_equal(new, old)
        for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True)
    ]
    is_statistic = [name.endswith(("mean", "var")) for name in optax_gradnorm.layer_names(after)]
    assert changed == is_statistic


# Sizes: He et al. 2015, table 6 (whose shortcuts have no parameters, as those of plain networks) and Simonyan and
# Zisserman's network for 32x32; the exact numbers follow from the layers' shapes, and for ResNet-50 and -101 are
# those of well-known libraries.
@pytest.mark.parametrize(
    ("name", "num_classes", "image_size", "count"),
    [
        ("plain20", 10, 32, 269_722),
        ("plain32", 10, 32, 464_154),
        ("plain44", 10, 32, 658_586),
        ("plain56", 10, 32, 853_018),
        ("plain110", 10, 32, 1_727_962),
        ("resnet8", 10, 8, 78_042),
        ("resnet20", 10, 32, 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64)),
        ("resnet56", 10, 32, 853_018 + 16 * 32 + 32 * 64 + 2 * (32 + 64)),
        ("vgg16", 10, 32, 14_719_818),
        ("vgg16_bn", 10, 32, 14_719_818 + 4_224),
        ("resnet50", 1000, 224, 25_557_032),
        ("resnet101", 1000, 224, 44_549_160),
    ],
)
def test_parameter_counts(name, num_classes, image_size, count):
    model = nnx.eval_shape(lambda: abstract(name, num_classes=num_classes, image_size=image_size))
    params = nnx.state(model, nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_every_network_of_the_papers_has_a_name():
    depths = (20, 32, 44, 56, 110, 152)
    for kind in ("resnet{}", "plain{}"):
        assert {kind.format(depth) for depth in depths} <= set(models.MODELS)
    others = {"resnet50", "resnet101", "vgg16", "vgg16_bn", "resnet20_overlap", "resnet56_overlap"}
    assert others <= set(models.MODELS)


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_large_networks_take_images_of_any_size(name):
    model = nnx.eval_shape(lambda: abstract(name, num_classes=7, channels=1, image_size=40))
    graph, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((2, 40, 40, 1), jnp.float32)
    logits = jax.eval_shape(lambda s, x: nnx.merge(graph, s)(x, train=False), state, images)
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)


@pytest.mark.parametrize("name", ["resnet8", "resnet8_overlap", "plain8", "vgg16", "vgg16_bn"])
@pytest.mark.usefixtures("no_dead_units")
def test_gradients_reach_every_parameter(name):
    size = 32 if name.startswith("vgg") else 8
    model = create(name, image_size=size)
    check_gradients(model, jnp.asarray(images_for((4, size, size, 3))))


@pytest.mark.parametrize("small_stem", [True, False])
@pytest.mark.usefixtures("no_dead_units")
def test_gradients_reach_every_parameter_of_bottleneck_networks(small_stem):
    model = fill(lambda: tiny(BottleneckBlock, (1, 2), small_stem=small_stem))
    # Were all pooled values positive, the BatchNorm behind them would undo any shift, and no gradient be left.
    model.norm.bias[...] -= 2
    check_gradients(model, jnp.asarray(images_for((4, 16, 16, 2))))


@pytest.fixture
def no_dead_units(monkeypatch):
    """A unit whose ReLU is zero for a few images has no gradient by right: a leaky one is never without."""
    monkeypatch.setattr(nnx, "relu", nnx.leaky_relu)


def check_gradients(model, images):
    """Every output unit of every parameter has a gradient, for some of the images."""
    graph, params, statistics = nnx.split(model, nnx.Param, ...)
    labels = jnp.arange(len(images)) % 3

    @jax.jit
    @jax.grad
    def gradient(params):
        logits = nnx.merge(graph, params, statistics, copy=True)(images, train=True)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean()

    gradients = gradient(params)
    for name, leaf in zip(optax_gradnorm.layer_names(gradients), jax.tree.leaves(gradients), strict=True):
        assert np.isfinite(leaf).all(), name
        per_unit = np.abs(leaf).reshape(-1, leaf.shape[-1]).max(0)
        assert (per_unit > 0).all(), name


def test_a_split_model_trains_inside_scan():
    graph, params, statistics = nnx.split(create("resnet8", channels=1), nnx.Param, ...)
    images = jnp.asarray(images_for((3, 4, 8, 8, 1)))

    def forward(params, statistics, batch):
        model = nnx.merge(graph, params, statistics, copy=True)
        logits = model(batch, train=True)
        return logits, nnx.split(model, nnx.Param, ...)[2]

    def body(statistics, batch):
        logits, statistics = forward(params, statistics, batch)
        return statistics, logits

    jitted = jax.jit(forward)
    scanned, logits = jax.jit(lambda s, x: jax.lax.scan(body, s, x))(statistics, images)
    assert jax.tree.structure(scanned) == jax.tree.structure(statistics)
    for i, batch in enumerate(images):
        expected, statistics = jitted(params, statistics, batch)
        np.testing.assert_allclose(logits[i], expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(jax.tree.leaves(scanned), jax.tree.leaves(statistics), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_block_is_its_branch_plus_its_shortcut():
    model = create("resnet8")
    assert len(model.blocks) == 3

    @nnx.jit
    def outputs(model, x):
        x = model.stem(x, train=False)
        pairs = []
        for block in model.blocks:
            y = block.branch(x, train=False) + block.shortcut(x, train=False)
            x = block(x, train=False)
            pairs.append((x, y))
        return pairs

    for x, y in outputs(model, jnp.asarray(images_for((2, 8, 8, 3)))):
        np.testing.assert_allclose(x, np.maximum(y, 0), rtol=1e-6, atol=1e-6)


def silence_branches(model):
    for block in model.blocks:
        block.norm2.scale[...] = jnp.zeros_like(block.norm2.scale[...])
    return model


def test_the_plain_twin_has_no_way_around_a_silent_branch():
    a, b = jnp.asarray(images_for((2, 1, 8, 8, 3)))
    model = silence_branches(create("resnet8"))
    assert np.abs(apply(model, a, train=False) - apply(model, b, train=False)).max() > 1e-3
    plain = silence_branches(create("plain8"))
    np.testing.assert_array_equal(apply(plain, a, train=False), apply(plain, b, train=False))
    with pytest.raises(ValueError, match="no shortcut"):
        plain.blocks[0].shortcut(a, train=False)


def test_the_seed_decides_the_weights_and_skip_connections_do_not():
    """Where no shape changes: a projection has weights of its own."""
    plain, skip, other = (
        nnx.to_pure_dict(nnx.state(tiny(BasicBlock, (2,), shortcut=shortcut, seed=seed), nnx.Param))
        for shortcut, seed in (("none", 0), ("projection", 0), ("none", 1))
    )
    jax.tree.map(np.testing.assert_array_equal, plain, skip)
    assert not np.array_equal(plain["conv"]["kernel"], other["conv"]["kernel"])


def test_convolutions_start_he_normal():
    kernel = np.asarray(conv(128, 256, 3, dtype=jnp.float32, rngs=nnx.Rngs(0)).kernel[...])
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 128)), rtol=0.01)
    np.testing.assert_allclose(kernel.mean(), 0, atol=3e-4)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    images = jnp.asarray(images_for((4, 8, 8, 3)))
    model = create("resnet8", dtype="bfloat16")
    logits = apply(model, images, train=True)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}

    graph, state = nnx.split(model)
    text = str(jax.make_jaxpr(lambda s: nnx.merge(graph, s)(images, train=False))(state))
    convolutions = [line for line in text.splitlines() if "= conv_general_dilated" in line]
    assert convolutions
    assert all(":bf16[" in line for line in convolutions)

    exact = apply(create("resnet8"), images, train=True)
    error = np.abs(logits - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.1


def test_layer_names_are_readable_and_in_network_order():
    model = nnx.eval_shape(lambda: tiny(BasicBlock, (12, 11)))
    names = optax_gradnorm.layer_names(nnx.state(model, nnx.Param))
    assert len(set(names)) == len(names)
    kernels = [name.removesuffix("/kernel") for name in names if name.endswith("kernel")]
    expected = ["conv"]
    for stage, depth in enumerate((12, 11)):
        for block in range(depth):
            expected += [f"stages/{stage}/{block}/conv1", f"stages/{stage}/{block}/conv2"]
            if stage > 0 and block == 0:
                expected.append(f"stages/{stage}/0/projection/conv")
    assert kernels == [*expected, "to_logits"]

    vgg = nnx.eval_shape(lambda: abstract("vgg16_bn", image_size=32))
    names = optax_gradnorm.layer_names(nnx.state(vgg, nnx.Param))
    kernels = [name for name in names if name.endswith("kernel")]
    assert kernels == [*(f"convs/{i}/kernel" for i in range(13)), "to_logits/kernel"]


def test_wrong_arguments_are_named():
    with pytest.raises(
        ValueError, match=r"unknown model 'resnet21'; choose from resnet8, .*vgg16_bn, vit_tiny, .*unetWIDTH$"
    ):
        models.create("resnet21", num_classes=2, channels=1, image_size=8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="image_size must be a multiple of 32 for VGG-16, got 8"):
        models.create("vgg16", num_classes=2, channels=1, image_size=8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="dtype must be float32 or bfloat16, got float16"):
        models.create("resnet8", num_classes=2, channels=1, image_size=8, rngs=nnx.Rngs(0), dtype="float16")


def test_stages_halve_the_image():
    def shapes():
        model = abstract("resnet20", image_size=32)
        x = model.stem(jnp.zeros((1, 32, 32, 3)), train=False)
        outputs = []
        for stage in model.stages:
            for block in stage:
                x = block(x, train=False)
            outputs.append((len(stage), x))
        return [output for _, output in outputs], [jnp.zeros(depth) for depth, _ in outputs]

    outputs, depths = jax.eval_shape(shapes)
    assert [output.shape for output in outputs] == [(1, 32, 32, 16), (1, 16, 16, 32), (1, 8, 8, 64)]
    assert [depth.shape for depth in depths] == [(3,), (3,), (3,)]
