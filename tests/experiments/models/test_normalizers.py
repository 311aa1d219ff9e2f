"""Every normalizer against float64 NumPy, forward and backward, and the networks built with them."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import models
from experiments.models.conv import conv_general_dilated
from experiments.models.signal_propagation.names import NormalizedName
from experiments.models.signal_propagation.normalizers import NORMALIZERS, Normalization
from experiments.run import Run

from .numpy_normalizers import FEATURES, moments, reference_of, relu

SHAPE = (6, 5, 5, FEATURES)  # images, height, width, channels
KERNEL_SHAPE = (3, 3, 4, FEATURES)
NORMALIZATIONS = [
    *(Normalization(name, groups=4) if name in ("group_norm", "evonorm_s0") else Normalization(name)
      for name in NORMALIZERS),
    Normalization("group_norm", group_size=4),
]  # fmt: skip


def filled(normalization):
    """A normalizer whose parameters and running statistics are not those of the initialisation."""
    module = normalization.make(FEATURES, rngs=nnx.Rngs(0))
    random = np.random.default_rng(4)  # a seed with a negative epsilon for FRN
    graph, params, statistics = nnx.split(module, nnx.Param, ...)

    def draw(variables, signs):
        return jax.tree.map(
            lambda v: jnp.asarray(random.uniform(0.5, 1.5, v.shape) * random.choice(signs, v.shape), v.dtype),
            variables,
        )

    return nnx.merge(graph, draw(params, [-1, 1]), draw(statistics, [1]))


def images(seed=4):
    # A different mean and scale for each image and channel shows every wrong axis.
    random = np.random.default_rng(seed)
    n, _, _, c = SHAPE
    mean, scale = random.normal(size=(n, 1, 1, c)), random.uniform(0.5, 2, (n, 1, 1, c))
    return (random.normal(size=SHAPE) * scale + mean).astype(np.float32)


def parameters(module):
    flat = nnx.to_flat_state(nnx.state(module))
    return {path[-1]: np.asarray(variable[...], np.float64) for path, variable in flat}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("normalization", NORMALIZATIONS, ids=str)
def test_forward_and_gradient_match_numpy(normalization, train):
    module, reference = filled(normalization), reference_of(normalization)
    p, x = parameters(module), images()
    cotangent = np.random.default_rng(5).normal(size=SHAPE).astype(np.float32)
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    @jax.jit
    def run(params, x):
        def forward(params, x):
            return nnx.merge(graph, params, rest, copy=True)(x, train=train)

        y, pull_back = jax.vjp(forward, params, x)
        return y, pull_back(jnp.asarray(cotangent))

    y, (by_params, by_x) = run(params, jnp.asarray(x))
    expected = reference(x.astype(np.float64), p, train)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())

    # Central differences of the float64 reference along random directions of everything at once.
    gradients = {path[-1]: np.asarray(variable[...]) for path, variable in nnx.to_flat_state(by_params)}
    for seed in range(3):
        random = np.random.default_rng(seed)
        direction = {name: random.normal(size=p[name].shape) for name in gradients}
        x_direction = random.normal(size=SHAPE)

        def value(step, direction=direction, x_direction=x_direction):
            moved = {name: p[name] + step * direction.get(name, 0) for name in p}
            return np.sum(cotangent * reference(x + step * x_direction, moved, train))

        numeric = (value(1e-6) - value(-1e-6)) / 2e-6
        analytic = np.sum(by_x * x_direction)
        analytic += sum(np.sum(gradients[name] * direction[name]) for name in gradients)
        np.testing.assert_allclose(analytic, numeric, rtol=1e-3, atol=1e-3 * np.linalg.norm(by_x))


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm", "layer_norm", "group_norm"])
def test_gradient_is_the_papers_closed_form(name):
    """Lubana et al. 2021, equations 6 and 14: project out mean and output, divide by the deviation.

    With the weights in front, equations 8 and 15: the same times the weights' transpose.
    """
    normalization = Normalization(name, groups=4) if name == "group_norm" else Normalization(name)
    module, x = normalization.make(FEATURES, rngs=nnx.Rngs(0)), images()
    cotangent = np.random.default_rng(5).normal(size=SHAPE).astype(np.float32)
    normalize = jax.jit(lambda x: nnx.clone(module).normalize(x, train=True))
    _, pull_back = jax.vjp(normalize, jnp.asarray(x))
    (gradient,) = pull_back(jnp.asarray(cotangent))

    groups = {"batch_norm": FEATURES, "instance_norm": FEATURES, "layer_norm": 1, "group_norm": 4}[name]
    axes = (0, 1, 2, 4) if name == "batch_norm" else (1, 2, 4)
    grouped = (*SHAPE[:3], groups, -1)
    exact, upstream = (array.astype(np.float64).reshape(grouped) for array in (x, cotangent))
    mean, std = moments(exact, axes)
    normalized = (exact - mean) / std
    projected = upstream - upstream.mean(axes, keepdims=True)
    projected -= normalized * (upstream * normalized).mean(axes, keepdims=True)
    expected = (projected / std).reshape(SHAPE)
    np.testing.assert_allclose(gradient, expected, atol=2e-5)

    # A convolution of 1 x 1 pixels whose outputs are the x of above.
    kernel = np.random.default_rng(7).normal(size=(FEATURES, FEATURES))
    inputs = np.linalg.solve(kernel.T, x.astype(np.float64)[..., None])[..., 0]
    _, pull_back = jax.vjp(
        jax.jit(lambda y: normalize(y @ jnp.asarray(kernel, y.dtype))), jnp.asarray(inputs, jnp.float32)
    )
    (gradient,) = pull_back(jnp.asarray(cotangent))
    np.testing.assert_allclose(gradient, expected @ kernel.T, atol=1e-3)


@pytest.mark.parametrize("name", ["weight_norm", "scaled_ws", "layer_norm"])
def test_kernels_match_numpy(name):
    module = filled(Normalization(name))
    kernel = np.random.default_rng(6).normal(0.3, 0.1, KERNEL_SHAPE).astype(np.float32)
    exact = kernel.astype(np.float64)
    if name == "weight_norm":
        expected = parameters(module)["scale"] * exact / np.sqrt((exact**2).sum((0, 1, 2)))
    elif name == "scaled_ws":
        standardized = (exact - exact.mean((0, 1, 2))) / exact.std((0, 1, 2))
        expected = 1.7129 * parameters(module)["scale"] * standardized / math.sqrt(3 * 3 * 4)
    else:
        expected = exact
    np.testing.assert_allclose(module.normalize_kernel(jnp.asarray(kernel)), expected, rtol=2e-4, atol=1e-6)


def test_flax_layers_compute_the_same():
    x = jnp.asarray(images())
    options = {"epsilon": 1e-5, "use_fast_variance": False, "rngs": nnx.Rngs(0)}
    layers = {
        "layer_norm": nnx.LayerNorm(FEATURES, reduction_axes=(1, 2, 3), feature_axes=-1, **options),
        "instance_norm": nnx.InstanceNorm(FEATURES, **options),
        "group_norm": nnx.GroupNorm(FEATURES, 4, **options),
        "batch_norm": nnx.BatchNorm(FEATURES, use_running_average=False, **options),
    }
    for name, layer in layers.items():
        groups = 4 if name == "group_norm" else None
        module = Normalization(name, groups=groups).make(FEATURES, rngs=nnx.Rngs(0))
        np.testing.assert_allclose(module(x, train=True), nnx.relu(layer(x)), atol=2e-6, err_msg=name)


def test_weight_norm_is_flax_weight_norm():
    module = filled(Normalization("weight_norm"))
    conv = nnx.Conv(4, FEATURES, (3, 3), rngs=nnx.Rngs(1))
    kernel = conv.kernel[...]
    wrapped = nnx.WeightNorm(conv, rngs=nnx.Rngs(0))
    for path in wrapped.scales:
        wrapped.scales[path] = module.scale[...]
    x = jnp.asarray(images()[..., :4])
    ours = conv_general_dilated(x, module.normalize_kernel(kernel), (1, 1), ((1, 1), (1, 1)))
    np.testing.assert_allclose(ours, wrapped(x), atol=1e-4)  # its epsilon is another


@pytest.mark.parametrize("name", ["weight_norm", "scaled_ws"])
def test_weight_norm_and_scaled_ws_keep_the_variance_of_normal_inputs(name):
    module = Normalization(name).make(16, rngs=nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(0), (200_000, 1, 1, 32))
    kernel = jax.random.normal(jax.random.key(1), (1, 1, 32, 16))
    y = module.activate(inputs, train=True)[:, 0, 0] @ module.normalize_kernel(kernel)[0, 0]
    np.testing.assert_allclose(y.mean(axis=0), np.zeros(16), atol=0.02)
    np.testing.assert_allclose(y.var(axis=0), np.ones(16), atol=0.02)


@pytest.mark.parametrize("groups", [2.0, "2", True])
def test_groups_are_whole_numbers(groups):
    with pytest.raises(
        ValueError, match=re.escape(f"groups of group_norm must be a whole number, not {groups!r}")
    ):
        Normalization("group_norm", groups=groups)
    with pytest.raises(ValueError, match="group_size of group_norm must be a whole number"):
        Normalization("group_norm", group_size=groups)


@pytest.mark.parametrize("name", ["variance_norm", "evonorm_b0", "batch_norm"])
def test_running_statistics_are_a_moving_average_of_the_batches(name):
    module = Normalization(name).make(FEATURES, rngs=nnx.Rngs(0))
    expected = np.ones(FEATURES)
    for seed in (1, 2, 3):
        x = images(seed)
        module(jnp.asarray(x), train=True)
        expected = 0.9 * expected + 0.1 * x.astype(np.float64).var((0, 1, 2))
    statistics = parameters(module)
    np.testing.assert_allclose(statistics.get("running", statistics.get("var")), expected, rtol=1e-5)
    module(jnp.asarray(images(9)), train=False)
    assert all(np.array_equal(old, parameters(module)[name]) for name, old in statistics.items())


def shapes(name):
    """Shape and path of every convolution kernel of the network, in order."""
    build = lambda: models.create(name, num_classes=100, channels=3, image_size=32, rngs=nnx.Rngs(0))  # noqa: E731
    state = nnx.state(nnx.eval_shape(build), nnx.Param)
    flat = [("/".join(map(str, path)), leaf.shape) for path, leaf in nnx.to_flat_state(state)]
    return dict(flat)


def test_plain_networks_are_the_papers():
    for name, depth, features in (
        ("cnn10", 10, [64, 64, 128, 128, 256, 256, 512, 512, 512, 512]),
        ("cnn20", 20, [64] * 4 + [128] * 4 + [256] * 8 + [512] * 4),
        ("uniform30", 30, [64] * 30),
    ):
        found = shapes(f"{name}w64:batch_norm")
        kernels = [found[f"layers/{i}/conv/kernel"] for i in range(depth)]
        assert len([path for path in found if path.endswith("conv/kernel")]) == depth
        assert [kernel[-1] for kernel in kernels] == features
        assert all(before[-1] == after[-2] for before, after in itertools.pairwise(kernels))


def test_resnet56_is_the_papers():
    found = shapes("resnet56w32:layer_norm")
    kernels = {path: shape for path, shape in found.items() if path.endswith("conv/kernel")}
    assert len(kernels) == 1 + 2 * 27 + 2
    assert kernels["stages/1/0/projection/conv/kernel"] == (3, 3, 32, 64)
    assert [shape[-1] for path, shape in kernels.items() if "layer2" in path] == [32] * 9 + [64] * 9 + [
        128
    ] * 9


def test_strides_halve_the_image():
    model = models.create("cnn10w4:none", num_classes=3, channels=1, image_size=32, rngs=nnx.Rngs(0))
    x, sizes = jnp.zeros((1, 32, 32, 1)), []
    for layer in model.layers:
        x = layer(x, train=False)
        sizes.append(x.shape[1])
    assert sizes == [32, 16, 16, 8, 8, 4, 4, 2, 2, 2]


@pytest.mark.parametrize(
    "residual", ["", ":skip_init", ":nonlinearity_on_residual", ":skip_init:nonlinearity_on_residual"]
)
def test_residual_block_adds_where_it_says(residual):
    model = models.create(
        f"resnet8w4:weight_norm{residual}", num_classes=3, channels=2, image_size=8, rngs=nnx.Rngs(0)
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 4)), jnp.float32)

    def activate(x):
        return math.sqrt(2 * math.pi / (math.pi - 1)) * (relu(np.asarray(x)) - math.sqrt(1 / (2 * math.pi)))

    for block, strides in ((model.stages[0][0], 1), (model.stages[1][0], 2)):
        if block.gain is not None:
            assert block.gain[...] == 0
            block.gain[...] = jnp.full((), 0.3)

        def conv(layer, x, strides):
            kernel = layer.norm.normalize_kernel(layer.conv.kernel[...])
            return conv_general_dilated(jnp.asarray(x), kernel, (strides, strides), ((1, 1), (1, 1)))

        branch = np.asarray(conv(block.layer2, activate(conv(block.layer1, x, strides)), 1))
        shortcut = np.asarray(x if strides == 1 else conv(block.projection, x, strides))
        gain = 0.3 if "skip_init" in residual else 1
        if "nonlinearity" in residual:
            expected = gain * activate(branch) + shortcut
        else:
            expected = activate(gain * branch + shortcut)
        np.testing.assert_allclose(block(x, train=True), expected, atol=1e-5)


def test_bfloat16_convolves_in_bfloat16_only():
    options = {"num_classes": 3, "channels": 2, "image_size": 8, "rngs": nnx.Rngs(0)}
    model = models.create("resnet8w4:group_norm:groups=2", dtype="bfloat16", **options)
    graph, state = nnx.split(model)
    x = jnp.zeros((2, 8, 8, 2))
    text = str(jax.make_jaxpr(lambda s: nnx.merge(graph, s)(x, train=False))(state))
    convolutions = re.findall(r":(\w+)\[[\d,]*\] = conv_general_dilated", text)
    assert set(convolutions) == {"bf16"}
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}


def test_names_say_everything():
    assert NormalizedName.parse("resnet56w32:group_norm:size=8:skip_init") == NormalizedName(
        "resnet56", 32, Normalization("group_norm", group_size=8), frozenset({"skip_init"})
    )
    assert NormalizedName.parse("cnn20w64:evonorm_s0:groups=4").normalization.groups == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cnn10w64:bathnorm", "unknown normalizer 'bathnorm'; choose from none, batch_norm, .*scaled_ws"),
        ("cnn10w64:group_norm:size=7", "size of 7 does not divide 64 features; choose from 1, 2, 4, .*64"),
        ("cnn10w16:group_norm", "32 groups do not divide 16 features; choose from 1, 2, 4, 8, 16"),
        ("cnn10w64:group_norm:groups=0", "0 groups do not divide 64 features"),
        ("cnn10w64:layer_norm:size=2", "layer_norm has no groups; choose from group_norm, evonorm_s0"),
        ("cnn10w64:group_norm:size=2:groups=2", "a number of groups or a group size, not both"),
        ("cnn10w64:group_norm:size=2:size=4", "gives 'size' more than once"),
        ("resnet56w32:frn:skip_init:skip_init", "gives 'skip_init' more than once"),
        ("cnn10w64:frn:skip_init", "unknown option 'skip_init' .*choose from groups=N, size=N$"),
        ("resnet56w32:frn:skipinit", "unknown option 'skipinit' .*nonlinearity_on_residual$"),
        ("plain20:batch_norm", "unknown model .*NETWORK one of cnn10, cnn20, uniform30"),
        ("resnet57w32:frn", "depth must be 6n.2"),
    ],
)
def test_wrong_names_are_explained(name, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, num_classes=3, channels=1, image_size=8, rngs=nnx.Rngs(0))


def test_record_names_are_legal_and_distinct():
    names = [
        Run("cifar100", model, "baseline", "sgdm", 0.1, 1, 8, 0).name
        for model in ("cnn20w64:group_norm:size=8", "cnn20w64:group_norm_size=8", "resnet56w32:frn:skip_init")
    ]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"[\w.=-]+", name) for name in names)
