"""The Python examples of README.md and docs/, each page pasted into a fresh script."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: pathlib.Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_examples_run(page, tmp_path):
    script = tmp_path / "pasted.py"
    script.write_text("\n".join(blocks(page)))
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_readmes_results_are_those_of_the_committed_report():
    """A row of its table stands in the report word for word, where the report has more columns."""
    readme = (ROOT / "README.md").read_text()
    report = (ROOT / "experiments/results/compare/digits/report.md").read_text()
    reported = {tuple(cell.strip() for cell in row.split("|")) for row in report.splitlines()}
    section = readme[readme.index("## What the demo shows") :]
    rows = re.findall(r"^\| (?:sgdm|adam) .*$", section, flags=re.MULTILINE)
    assert rows
    for row in rows:
        cells = {cell.strip() for cell in row.split("|")}
        assert any(cells <= set(line) for line in reported), row
