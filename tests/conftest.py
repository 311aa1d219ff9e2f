"""Strict JAX on eight forced host devices, for every test; one compilation cache for what they start."""

import gc
import os
import shutil
import tempfile

# Before JAX starts its backend; a caller's own choice stays.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import hypothesis
import jax
import pytest

# Known to the processes that tests start, and not to this one, which has read its environment: one cache for all of
# them, whichever worker of pytest starts them. An entry that another process is just writing is compiled again.
CACHE = "JAX_COMPILATION_CACHE_DIR"
DAMAGED_ENTRY = "Error reading persistent compilation cache entry"

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples on every run, and no time limit on one: the first example compiles.
hypothesis.settings.register_profile(
    "reproducible", derandomize=True, deadline=None, database=None, max_examples=50
)
hypothesis.settings.load_profile("reproducible")


def pytest_configure(config):
    """The process that starts the workers, or has none, makes the cache, unless the caller has one."""
    if CACHE not in os.environ:
        os.environ[CACHE] = tempfile.mkdtemp()
        os.environ.setdefault("PYTHONWARNINGS", f"ignore:{DAMAGED_ENTRY}")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(CACHE), ignore_errors=True))


def pytest_collection_finish():
    """What was imported stays, so that the collector need not look through it, which took a sixth of the time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """What is marked `devices(n)` is skipped on an accelerator with fewer; a CPU has as many as it is asked for."""
    for marker in item.iter_markers("devices"):
        (needed,) = marker.args
        if (found := jax.device_count()) < needed:
            end = pytest.fail if jax.default_backend() == "cpu" else pytest.skip
            end(f"needs {needed} devices, found {found}; on a CPU, JAX_NUM_CPU_DEVICES={needed} forces them")


collect_ignore = ["experiments/models/make_torch_vit.py"]  # needs PyTorch
