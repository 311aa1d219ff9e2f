"""Fixtures that several modules share."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests.experiments import processes


@pytest.fixture(autouse=True)
def end_processes():
    """A test that fails leaves no process and no pipe behind, which would fail another test."""
    yield
    processes.end_all()


@pytest.fixture(scope="module")
def compile_once(tmp_path_factory):
    """Programs that several tests train are compiled once, as in a sweep."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.05,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
