"""Fixtures of the library's tests."""

import jax
import pytest


@pytest.fixture
def standard_promotion():
    """For wrappers of optax, which are not written for strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield
