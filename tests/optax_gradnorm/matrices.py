"""Matrices with known singular values."""

import jax.numpy as jnp
import numpy as np


def singular_values(matrix):
    return np.linalg.svd(np.asarray(matrix, np.result_type(matrix.dtype, np.float64)), compute_uv=False)


def spectrum(values, size, seed=0):
    """A square matrix with the given largest singular values, all others 0.1."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    diagonal = np.full(size, 0.1)
    diagonal[: len(values)] = values
    return jnp.asarray(left @ np.diag(diagonal) @ right, jnp.float32)
