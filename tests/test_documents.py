"""The Python examples of README.md and docs/, each page pasted into a fresh script."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks import dynamics, training, transforms
from benchmarks import input as inputs

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


def test_the_benchmarks_tables_are_those_of_the_committed_records():
    readme = (ROOT / "benchmarks/README.md").read_text()
    results = ROOT / "benchmarks/results"
    record = json.loads((results / "transforms-cpu.json").read_text())
    for tree, rows in record["results"].items():
        assert transforms.table(tree, transforms.TREES[tree](), rows) in readme + "\n"
    record = json.loads((results / "dynamics.json").read_text())
    assert dynamics.table(record["results"]) in readme
    record = json.loads((results / "training-cpu.json").read_text())
    for model, rows in record["results"].items():
        title = training.title(model, record["batch_size"], record["cores"])
        assert training.table(title, rows) in readme
    assert inputs.table(json.loads((results / "input-cpu.json").read_text())) in readme


def test_the_readmes_findings_are_those_of_the_reports_they_link_to():
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("## What the studies found") : readme.index("## Papers")]
    findings = re.split(r"^- ", section, flags=re.MULTILINE)[1:]
    assert findings
    for finding in findings:
        link = re.search(r"\((experiments/results/[^)]*report\.md)\)", finding)
        assert link, finding
        report = (ROOT / link[1]).read_text()
        numbers = re.findall(
            r"[+-]?\d\.\d+e\+\d+|[+-]\d\.\d{4} \[[^\]]+\]|\d\.\d{4} ± \d\.\d{4}|\d+ of \d+", finding
        )
        for number in (" ".join(number.split()) for number in numbers):
            assert number in report, number
