"""Fixtures that several modules share."""

import os
import sys

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments.__main__ import main
from tests.experiments import processes
from tests.experiments.predictions import CLASSIFIER, SEGMENTER, write_network


@pytest.fixture(autouse=True)
def end_processes():
    """A test that fails leaves no process and no pipe behind, which would fail another test."""
    yield
    processes.end_all()


@pytest.fixture
def call(monkeypatch, capsys):
    """The command line in this process, of arguments: exit code, output and errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["experiments", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    monkeypatch.setenv("COLUMNS", "80")
    return call


@pytest.fixture(scope="module")
def compile_once():
    """Programs that several tests train are compiled once, as in a sweep."""
    options = {
        "jax_compilation_cache_dir": os.environ["JAX_COMPILATION_CACHE_DIR"],
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


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Folder of a network for digits."""
    return write_network(CLASSIFIER, [8, 8, 1], 10, tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """Folder of a network that makes masks of coloured images."""
    return write_network(SEGMENTER, [16, 16, 3], 1, tmp_path_factory.mktemp("segmenter"))
