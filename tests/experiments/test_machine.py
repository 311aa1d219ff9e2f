"""The compilation cache in the temporary directory: gone with its process, whatever ends that."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from experiments import machine

HOLDER = """
import sys, time
from experiments import machine
with machine.compilation_cache() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A temporary directory of this test's own, and no cache that the user chose."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def start_holder() -> tuple[subprocess.Popen, Path]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    folder = Path(holder.stdout.readline().strip())
    (folder / "program").write_bytes(b"compiled")
    return holder, folder


def test_the_cache_of_a_killed_process_is_removed_and_that_of_a_live_one_is_kept(temporary):
    foreign = [temporary / name for name in ("compiled-123456", f"{machine.COMPILED}-mine-1")]
    for folder in foreign:
        folder.mkdir()
    killed, left = start_holder()
    killed.kill()
    killed.communicate()
    assert left.parent == temporary
    assert left.exists()

    live, held = start_holder()
    # On Windows one cannot ask whether a process lives without ending it, so nothing is removed there.
    kept = [] if os.name == "posix" else [left]
    try:
        assert left.exists() == bool(kept)
        with machine.compilation_cache() as own:
            assert Path(own).is_dir()
            assert (held / "program").exists()
    finally:
        live.communicate()  # which ends it in peace
    assert sorted(temporary.iterdir()) == sorted(foreign + kept)


def test_a_cache_that_the_user_chose_is_left(temporary, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(temporary / "mine"))
    with machine.compilation_cache() as folder:
        assert folder == str(temporary / "mine")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("version", ["0.10.2", "0.12.0.1", "0.13.0"])
def test_flags_that_a_jaxlib_may_not_know_are_not_set(version, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", {"jaxlib": version}.__getitem__)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    machine.use_onednn()
    assert ("--xla_cpu_use_onednn=true" in machine.xla_flags()) == version.startswith("0.12")


@pytest.mark.parametrize("flags", ["--xla_cpu_use_onednn=false", "flags.txt", "--xla_dump_to=/home/me --a=1"])
def test_flags_of_the_user_win(flags, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", {"jaxlib": "0.12.0"}.__getitem__)
    monkeypatch.setenv("XLA_FLAGS", flags)
    machine.use_onednn()
    if flags.endswith("--a=1"):
        assert os.environ["XLA_FLAGS"].startswith(f"{flags} --xla_cpu_use_onednn=true ")
        assert machine.xla_flags()[:2] == ["--xla_dump_to", "--a=1"]  # no path of the user's
    else:
        assert os.environ["XLA_FLAGS"] == flags


WORKER = """
import jax
from experiments import machine
machine.pin(machine.usable_cores()[0])
machine.use_onednn()
conv = lambda x, w: jax.lax.conv(x, w, (1, 1), "SAME")
shapes = (8, 16, 16, 16), (16, 16, 3, 3)
compiled = jax.jit(conv).lower(*map(jax.numpy.ones, shapes)).compile()
print(len(machine.xla_flags()), machine.xla_threads(), "onednn" in compiled.as_text())
"""


def test_the_flags_reach_xla():
    """In a process of its own, where the installed JAX knows them: one that it does not know would end it."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", WORKER]
    made = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    flags, threads, convolves = made.stdout.split()
    knows = importlib.metadata.version("jaxlib").startswith("0.12.")
    assert int(flags) == (len(machine.ONEDNN_FLAGS) if knows else 0)
    assert threads == "1"
    # oneDNN is for x86 alone.
    assert convolves == str(knows and platform.machine() == "x86_64")


def test_the_processor_has_a_name():
    name = machine.cpu_model()
    assert name
    assert "\n" not in name
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        assert f"model name\t: {name.partition(' (family')[0]}" in Path("/proc/cpuinfo").read_text()
