"""Strict JAX on eight forced host devices, for every test."""

import os

# Before JAX starts its backend; a caller's own choice stays.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples on every run, and no time limit on one: the first example compiles.
hypothesis.settings.register_profile(
    "reproducible", derandomize=True, deadline=None, database=None, max_examples=50
)
hypothesis.settings.load_profile("reproducible")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """What is marked `devices(n)` is skipped on an accelerator with fewer; a CPU has as many as it is asked for."""
    for marker in item.iter_markers("devices"):
        (needed,) = marker.args
        if (found := jax.device_count()) < needed:
            end = pytest.fail if jax.default_backend() == "cpu" else pytest.skip
            end(f"needs {needed} devices, found {found}; on a CPU, JAX_NUM_CPU_DEVICES={needed} forces them")


collect_ignore = ["experiments/models/make_torch_vit.py"]  # needs PyTorch
