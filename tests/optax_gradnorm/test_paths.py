"""What a bias is, and what `exclude` finds, on any path: joined keys, tuples, lists and boxes of one array."""

import functools
import os
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, traverse_util

import optax_gradnorm
from optax_gradnorm import exclude, layer_names, layers

from .tables import each_transformation

os.environ["KERAS_BACKEND"] = "jax"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # They import what JAX has deprecated.
    import haliax as hax
    import keras


@pytest.fixture(autouse=True)
def standard_promotion():
    """The frameworks' layers and optax's optimizers are not written for strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def attention():
    """Biases of attention have two axes, as weights do."""
    model = nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0), decode=False)
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


FLATTENED = {
    "/": lambda tree: traverse_util.flatten_dict(tree, sep="/"),
    ".": lambda tree: traverse_util.flatten_dict(tree, sep="."),
    "tuples": traverse_util.flatten_dict,
}
PARTS = ["key", "out", "query", "value"]


@pytest.mark.parametrize("flatten", FLATTENED.values(), ids=FLATTENED)
def test_flattened_dictionaries(flatten):
    tree = flatten({"block": attention()})
    separator = "." if "block.key.kernel" in tree else "/"
    named = {part: separator.join(("block", part, "kernel")) for part in PARTS}
    assert sorted(layers(tree)) == sorted(named.values())
    for name in ("query", named["query"]):
        assert set(layers(tree, mask=exclude(name))) == {*named.values()} - {named["query"]}
    assert layers(tree, mask=exclude("block")) == []
    with pytest.raises(ValueError, match="no leaf has that name"):
        layers(tree, mask=exclude("quer"))


def test_a_key_bias_of_rounding_noise_stays_noise():
    """Attention takes no notice of its key's bias, whose gradient is rounding."""
    model = nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0), decode=False)
    graph, params = nnx.split(model, nnx.Param)
    inputs = jax.random.normal(jax.random.key(0), (4, 5, 8))
    gradients = jax.jit(jax.grad(lambda p: jnp.mean(nnx.merge(graph, p)(inputs) ** 2)))(params)
    gradients = traverse_util.flatten_dict(nnx.to_pure_dict(gradients), sep="/")
    assert np.abs(gradients["key/bias"]).max() < 1e-6
    updates, _ = optax_gradnorm.znorm().update(gradients, optax.EmptyState())
    np.testing.assert_array_equal(updates["key/bias"], gradients["key/bias"])


MATRIX = jnp.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    "tree",
    [
        {"unbiased": MATRIX},
        {"bias_net": {"kernel": MATRIX}},
        {"bias": {"kernel": MATRIX}},
        {"bias/kernel": MATRIX},
        {"net.bias_net": MATRIX},
        {("bias", "w"): MATRIX},
        {"biases": [MATRIX]},
        [MATRIX],
        {0: MATRIX},
    ],
)
def test_layers_whose_path_only_contains_the_word(tree):
    assert layers(tree) == layer_names(tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"bias": [MATRIX, MATRIX]},
        {"bias": {0: MATRIX}},
        {"bias.0": MATRIX},
        {"layers/0/bias": MATRIX},
        {("layers", 0, "bias"): MATRIX},
    ],
)
def test_biases_under_indices(tree):
    assert "bias" not in "".join(
        layers(jax.tree.map(jnp.asarray, {k: v for k, v in tree.items() if k != "key"}))
    )


@jax.tree_util.register_pytree_node_class
class Box:
    """One array and what is known of it, as a library without key paths would write it."""

    def __init__(self, array):
        self.array = array

    def tree_flatten(self):
        return (self.array,), None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)


@jax.tree_util.register_pytree_with_keys_class
class ArrayLike(Box):
    """The same with key paths; it speaks as an array."""

    dtype = property(lambda self: self.array.dtype)
    ndim = property(lambda self: self.array.ndim)

    def tree_flatten_with_keys(self):
        return ((jax.tree_util.GetAttrKey("array"), self.array),), None


@jax.tree_util.register_pytree_node_class
class Pair:
    """Two arrays without names: which of them is a bias nobody can know."""

    def __init__(self, *arrays):
        self.arrays = arrays

    def tree_flatten(self):
        return self.arrays, None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)


@pytest.mark.parametrize(
    "box",
    [Box, ArrayLike, nnx.Param, lambda x: nnx.Param(Box(x))],
    ids=["Box", "ArrayLike", "Param", "nested"],
)
def test_boxes_of_one_array_leave_no_trace(box):
    gradients = {"key": {"kernel": box(MATRIX), "bias": box(MATRIX)}}
    assert layer_names(gradients) == ["key/bias", "key/kernel"]
    assert layers(gradients) == ["key/kernel"]
    assert layers({"embedding": gradients, "w": MATRIX}, mask=exclude("embedding")) == ["w"]
    # The same statistics as without the boxes, and none of their metadata.
    plain = {"key": {"kernel": MATRIX, "bias": MATRIX}}
    tracker = optax_gradnorm.track_gradient_dynamics()
    state, wanted = (tracker.update(tree, tracker.init(tree))[1] for tree in (gradients, plain))
    assert jax.tree.structure(state) == jax.tree.structure(wanted)
    assert state.std["key"]["kernel"] == wanted.std["key"]["kernel"] > 0


def test_a_node_of_two_nameless_arrays_is_no_bias():
    tree = {"bias": Pair(MATRIX, jnp.ones(3))}
    assert layers(tree) == ["bias/0"]


def test_a_module_with_one_array_keeps_its_name():
    """Equinox modules name their arrays; one with a single array is no box."""
    linear = eqx.nn.Linear(3, 2, use_bias=False, key=jax.random.key(0))
    tree = {"bias": eqx.filter(linear, eqx.is_inexact_array)}
    assert layers(tree) == layer_names(tree) == ["bias/weight"]


class HaliaxModel(eqx.Module):
    """As levanter's models: named arrays, a norm, a linear layer with two output axes, so that its bias has two."""

    embedding: hax.nn.Embedding
    norm: hax.nn.LayerNorm
    heads: hax.nn.Linear

    def __call__(self, tokens):
        hidden = self.norm(self.embedding(tokens)).array
        # Haliax's own products do not run on jax 0.12.
        weight = self.heads.weight.array.reshape(-1, hidden.shape[-1])
        return hidden @ weight.T + self.heads.bias.array.reshape(-1)


@functools.cache
def haliax_gradients():
    vocabulary, width, heads, size = (
        hax.Axis(name, length)
        for name, length in (("vocabulary", 9), ("width", 4), ("heads", 2), ("size", 3))
    )
    keys = jax.random.split(jax.random.key(0))
    model = HaliaxModel(
        hax.nn.Embedding.init(vocabulary, width, key=keys[0]),
        hax.nn.LayerNorm.init(width),
        hax.nn.Linear.init(width, (heads, size), key=keys[1]),
    )
    tokens = hax.named(jnp.arange(5), hax.Axis("position", 5))
    gradients = eqx.filter_jit(eqx.filter_grad(lambda model: jnp.mean((model(tokens) - 1) ** 2)))(model)
    return eqx.filter(model, eqx.is_inexact_array), gradients


@each_transformation
def test_haliax(factory):
    params, gradients = haliax_gradients()
    assert isinstance(gradients.heads.bias, hax.NamedArray)
    names = [f"embedding/{leaf}" for leaf in ("weight",)] + [
        "norm/weight",
        "norm/bias",
        "heads/weight",
        "heads/bias",
    ]
    assert layer_names(params) == layer_names(gradients) == names
    assert layers(params) == ["embedding/weight", "heads/weight"]
    assert layers(params, mask=exclude("embedding")) == ["heads/weight"]
    transformation = factory()
    updates, state = transformation.update(gradients, transformation.init(params))
    assert jax.tree.structure(updates) == jax.tree.structure(gradients)
    plain = dict(zip(names, jax.tree.leaves(gradients), strict=True))
    expected, _ = transformation.update(plain, transformation.init(plain))
    for name, update in zip(names, jax.tree.leaves(updates), strict=True):
        np.testing.assert_array_equal(update, expected[name])
    if factory is optax_gradnorm.track_gradient_dynamics:
        assert layer_names(state.std) == ["embedding/weight", "heads/weight"]
        assert all(isinstance(leaf, jax.Array) for leaf in (state.std.heads.weight, state.mean.heads.weight))


def keras_model():
    inputs = keras.Input((5, 8))
    hidden = keras.layers.MultiHeadAttention(2, 4)(inputs, inputs)
    outputs = keras.layers.Dense(2)(keras.layers.LayerNormalization()(hidden))
    return keras.Model(inputs, outputs)


def test_keras_by_path():
    """`stateless_call` on JAX: a dictionary by path has names, a list of values has none."""
    model = keras_model()
    variables = model.trainable_variables
    by_path = {variable.path: variable.value for variable in variables}
    assert len(by_path) == len(variables)
    kernels = [path for path in by_path if path.endswith("kernel")]
    assert len(kernels) == 5
    assert any(by_path[path].ndim > 1 for path in by_path if path.endswith("bias"))
    assert set(layers(by_path)) == set(kernels)
    mask = [path in kernels for path in by_path]
    assert [path.endswith("bias") for path, is_layer in zip(by_path, mask, strict=True) if is_layer] == [
        False
    ] * 5

    inputs = jax.random.normal(jax.random.key(0), (4, 5, 8))

    def loss(values):
        return jnp.mean(model.stateless_call(values, model.non_trainable_variables, inputs)[0] ** 2)

    gradients = jax.jit(jax.grad(loss))([variable.value for variable in variables])
    listed, _ = optax_gradnorm.znorm(mask=mask).update(gradients, optax.EmptyState())
    named, _ = optax_gradnorm.znorm().update(dict(zip(by_path, gradients, strict=True)), optax.EmptyState())
    for update, path in zip(listed, by_path, strict=True):
        np.testing.assert_array_equal(update, named[path])
