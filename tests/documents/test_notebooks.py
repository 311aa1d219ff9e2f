"""Every notebook runs from a copy, is saved with outputs, and is in step with its plain-text twin."""

import pathlib
import re

import nbformat
import pytest

from notebooks.execute import execute, read_twin

FOLDER = pathlib.Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
STARTS_OF_PATHS = r"(?<![\w:/.])/(home|root|Users|tmp|usr|opt|work|content|mnt|var|private)\b"


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def figures(notebook) -> list[int]:
    """How many figures each cell shows."""
    return [sum("image/png" in o.get("data", {}) for o in cell.get("outputs", [])) for cell in notebook.cells]


def test_every_notebook_has_its_twin_and_every_twin_its_notebook():
    twins = {twin.stem for twin in FOLDER.glob("*.py")} - {"execute"}
    assert twins == {notebook.stem for notebook in NOTEBOOKS} != set()


def test_is_in_step_with_its_twin(path):
    def sources(notebook):
        return [(cell.cell_type, cell.source) for cell in notebook.cells]

    assert sources(nbformat.read(path, 4)) == sources(read_twin(path.with_suffix(".py")))


def test_is_saved_whole_and_clean(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 500_000
    assert notebook.metadata.kernelspec.name == "python3"
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))  # Saved after one run from top to bottom.
    assert sum(figures(notebook)) > 0
    for cell in notebook.cells:
        assert not cell.metadata
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            assert not re.search(STARTS_OF_PATHS, text)
            assert "Warning" not in text


def shorten(source: str) -> str:
    """Two epochs and two seeds take the same way through a cell as many."""
    source = re.sub(r"^EPOCHS = \d+$", "EPOCHS = 2", source, flags=re.MULTILINE)
    return re.sub(r"^SEEDS = range\(\d+\)$", "SEEDS = range(2)", source, flags=re.MULTILINE)


def test_what_trains_is_shortened():
    shortened = {twin.stem for twin in FOLDER.glob("*.py") if shorten(twin.read_text()) != twin.read_text()}
    assert shortened == {"quickstart", "gradient_dynamics", "gradient_overlap"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    """In small; `make notebooks` runs it at full size."""
    # As a reader's machine has it: the devices that are there, not this suite's eight.
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    saved = nbformat.read(path, 4)
    copy = nbformat.from_dict(saved)
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.source = shorten(cell.source)
            cell.outputs, cell.execution_count = [], None
    execute(copy, tmp_path)
    assert figures(copy) == figures(saved)
