"""The transformations once more, in NumPy: double precision, no masks, no mesh, no state."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# Its place before jax 0.8.
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
# Its name before flax 0.12.1.
as_pure = nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure


def exact(array) -> np.ndarray:
    """A wider copy: float64 for float16, bfloat16 and float32, 80 bits for float64; complex alike."""
    array = np.asarray(array)
    if np.iscomplexobj(array):
        return array.astype(np.complex128 if array.dtype == np.complex64 else np.clongdouble)
    return array.astype(np.longdouble if array.dtype in (np.float64, np.longdouble) else np.float64)


def std(layer) -> np.ndarray:
    """Population standard deviation; of a complex layer, sqrt(E|g - mean|^2)."""
    layer = exact(layer)
    return np.sqrt(np.mean(np.abs(layer - layer.mean()) ** 2))


def znorm(layer, eps=1e-10) -> np.ndarray:
    layer = exact(layer)
    if np.all(layer == layer.flat[0]):
        return np.zeros_like(layer)
    return (layer - layer.mean()) / (std(layer) + eps)


def centralize(layer, feature_axis=-1) -> np.ndarray:
    layer = exact(layer)
    feature_axis %= layer.ndim
    averaged = tuple(axis for axis in range(layer.ndim) if axis != feature_axis)
    if all(layer.shape[axis] == 1 for axis in averaged):  # a unit of one weight is left alone
        return layer
    return layer - layer.mean(averaged, keepdims=True)


def global_std(layers) -> np.floating:
    squares = sum(np.sum(np.abs(exact(g) - exact(g).mean()) ** 2) for g in layers)
    return np.sqrt(squares / sum(np.size(g) for g in layers))


def autoscale(sigma, first_sigma):
    def log_phi(s):
        return np.log(s) - np.log1p(s)

    return np.exp(log_phi(sigma) / (1 - log_phi(first_sigma)))


def gan(layers, first_sigma=None) -> list[np.ndarray]:
    """Updates of a tree's layers; at the first step `first_sigma` is their own."""
    sigma = global_std(layers)
    scale = autoscale(sigma, sigma if first_sigma is None else first_sigma) if sigma > 0 else 0.0
    return [scale * (exact(g) - exact(g).mean()) for g in layers]


def first_updates(name, layers) -> list[np.ndarray]:
    """The first updates of a tree's layers by the transformation of that name."""
    if name == "gan":
        return gan(layers)
    one_by_one = {"znorm": znorm, "centralize": centralize, "track_gradient_dynamics": exact}[name]
    return [one_by_one(layer) for layer in layers]


def error(update, expected, unit=1.0) -> float:
    """Largest |u - ref| / max(1, |ref|), with u and ref in multiples of `unit`."""
    update, expected = exact(update) / unit, expected / unit
    assert update.shape == expected.shape
    return float(np.max(np.abs(update - expected) / np.maximum(1, np.abs(expected))))


def ulp(expected, dtype) -> np.ndarray:
    """One unit in the last place of `dtype` at each value."""
    info = jnp.finfo(dtype)
    exponent = np.frexp(np.abs(expected))[1] - 1
    return np.ldexp(1.0, np.maximum(exponent, info.minexp) - info.nmant)
