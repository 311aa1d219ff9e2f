"""The compilation cache in the temporary directory: gone with its process, whatever ends that."""

import os
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


@pytest.mark.skipif(os.name != "posix", reason="there is no harmless way to ask for a process")
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
    try:
        assert not left.exists()
        with machine.compilation_cache() as own:
            assert Path(own).is_dir()
            assert (held / "program").exists()
    finally:
        live.communicate()  # which ends it in peace
    assert sorted(temporary.iterdir()) == sorted(foreign)


def test_a_cache_that_the_user_chose_is_left(temporary, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(temporary / "mine"))
    with machine.compilation_cache() as folder:
        assert folder == str(temporary / "mine")
    assert list(temporary.iterdir()) == []
