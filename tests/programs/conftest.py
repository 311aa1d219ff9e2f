"""Compilers of TPUs and NVIDIA GPUs, which `make test-programs` installs; elsewhere tests are skipped."""

import importlib.util

import pytest

from benchmarks.programs.compiling import prepare_environment

IS_INSTALLED = all(importlib.util.find_spec(name) for name in ("libtpu", "jax_cuda12_plugin"))

if IS_INSTALLED:  # Otherwise the other tests of the process keep their environment.
    prepare_environment()


@pytest.fixture
def compilers():
    if not IS_INSTALLED:
        pytest.skip("needs the compilers of accelerators: make test-programs")
