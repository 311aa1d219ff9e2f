"""Export with symbolic shapes: one program for layers of any size gives what each size gives by itself."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from .tables import each_transformation, gaussian


def updated(transformation, gradients):
    """The second update, so that the state of the first is read."""
    state = transformation.init(gradients)
    _, state = transformation.update(gradients, state)
    return transformation.update(gradients, state)


def exported(transformation, shapes, dtype, scope):
    specs = {
        name: jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape, scope=scope), dtype)
        for name, shape in shapes.items()
    }
    program = jax.export.export(jax.jit(lambda gradients: updated(transformation, gradients)))(specs)
    return lambda gradients: jax.tree.leaves(program.call(gradients))


def gradients_of(shapes, sizes, dtype):
    def array(shape):
        numbers = [sizes[axis] if axis in sizes else int(axis) for axis in shape.split(",")]
        return gaussian(*numbers, mean=0.5, dtype=dtype)

    return {name: array(shape) for name, shape in shapes.items()}


def assert_same(program, transformation, gradients, dtype):
    wanted = jax.tree.leaves(updated(transformation, gradients))
    found = program(gradients)
    for a, b in zip(found, wanted, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(
            np.asarray(a, np.float64),
            np.asarray(b, np.float64),
            rtol=2e-6 + float(jnp.finfo(dtype).eps),
            atol=2e-6,
        )


def by_dimensions(tree):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)


SIZES = [{"a": 2, "b": 3, "c": 1}, {"a": 200, "b": 300, "c": 3}]
SHAPES = {"kernel": "a,b", "conv": "3,3,b,a", "bias": "b", "stack": "c,a,b", "scale": "c,b"}
STACKED = {"kernel": 0, "conv": 0, "bias": 0, "stack": 1, "scale": 1}


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (jnp.float32, {}),
        (jnp.float32, {"mask": True}),
        (jnp.float16, {"mask": by_dimensions}),
    ],
    ids=["float32", "float32, everything", "float16, mask"],
)
@each_transformation
def test_layers_of_any_size(factory, dtype, options):
    transformation = factory(stacked_axes=STACKED, **options)
    scope = jax.export.SymbolicScope(["a>=2", "b>=2"])
    program = exported(transformation, SHAPES, dtype, scope)
    for sizes in SIZES:
        assert_same(program, transformation, gradients_of(SHAPES, sizes, dtype), dtype)


@each_transformation
def test_a_size_that_may_be_one_asks_for_a_mask(factory):
    shapes = {"kernel": "a,b"}
    with pytest.raises(
        ValueError, match=r"mask must say whether 'kernel' is a layer: .*a, b.*may be 1"
    ) as error:
        exported(factory(), shapes, jnp.float32, jax.export.SymbolicScope())
    assert "\n" not in str(error.value)


@each_transformation
def test_a_mask_decides_where_a_size_may_be_one(factory):
    shapes = {"kernel": "a,b"}
    transformation = factory(mask=True)
    program = exported(transformation, shapes, jnp.float32, jax.export.SymbolicScope())
    for sizes in ({"a": 1, "b": 4}, {"a": 4, "b": 1}):
        assert_same(program, transformation, gradients_of(shapes, sizes, jnp.float32), jnp.float32)
