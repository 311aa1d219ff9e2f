"""Hostile text in records and findings, in pages as a reader of Markdown sees them."""

import dataclasses
import json
from xml.etree import ElementTree

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from markdown_it import MarkdownIt

from experiments import records
from experiments.files import FileError
from experiments.records import RecordError, RunRecord
from experiments.records.dynamics import GradientDynamics
from experiments.report import dynamics, pages, summary
from experiments.report.cells import make_cells, make_rows
from experiments.report.findings import (
    BEGIN,
    END,
    Finding,
    claims_table,
    read_findings,
    write_findings,
)
from experiments.report.markdown import Markup, escape, markdown_table
from experiments.report.sentences import answers_table, describe
from experiments.report.tables import results_table

from .made import make_record, make_run

# With raw HTML, tables and everything else that a page on the web may have.
READER = MarkdownIt("gfm-like", {"html": True, "linkify": False})
HOSTILE = (
    "<script>alert(1)</script>",
    END,
    "<!-- answer: begin -->",
    "`code` | column |\n\n# Heading\n- item",
    "[here](javascript:alert(1)) ![x](https://example.org/track.png)",
    "<https://example.org>",
    "~~~\nfence",
    "\\` \\<b> \\| \\](x)",
    "1. list",
    "\ud800 \x00 \x1b[31m \u202e",
    "$x_1 $ \\frac{",
)


def kinds(page: str) -> set[str]:
    """Every kind of markup in a page."""
    found = set()
    for token in READER.parse(page):
        found |= {token.type, *(child.type for child in token.children or ())}
    return found


def links(page: str) -> list[str]:
    """Where links and pictures lead to."""
    children = [child for token in READER.parse(page) for child in token.children or ()]
    return [str(child.attrs[key]) for child in children for key in ("href", "src") if key in child.attrs]


@hypothesis.given(
    st.text(alphabet="<>!-/a1`|[](){}\\#~*_\n\r &;.:\x00\ud800", max_size=40) | st.sampled_from(HOSTILE)
)
def test_escaped_text_is_one_line_without_markup(text):
    page = f"Text {escape(text)}"
    assert page.isprintable()
    allowed = {"paragraph_open", "inline", "paragraph_close", "text", "text_special"}
    emphasis = {f"{kind}_{end}" for kind in ("em", "strong", "s") for end in ("open", "close")}
    assert kinds(page) <= allowed | emphasis
    assert END not in page
    assert escape(escape(text)) == escape(text)


@hypothesis.given(st.lists(st.text(alphabet="<!-a`|[]()\\\n ", max_size=12), min_size=2, max_size=2))
def test_a_table_has_the_columns_and_rows_that_it_was_given(cells):
    (*_, end) = tokens = READER.parse(markdown_table([["one", "two"], cells, ["last", "row"]]))
    assert end.type == "table_close"
    assert [token.type for token in tokens].count("tr_open") == 3
    assert [token.type for token in tokens].count("td_open") == 4
    assert not kinds(markdown_table([["one", "two"], cells])) & {
        "html_inline",
        "code_inline",
        "link_open",
        "image",
    }
    assert "link_open" in kinds(markdown_table([["one"], [Markup("[x](y.md)")]]))


def test_ordinary_text_stays_as_it_is():
    for text in (
        "p < 0.05, R^2 = 0.9",
        "x 1.39 [1.38, 1.40]",
        "conv1/kernel & more > 3",
        "-1.0 [-1.5, -0.4]",
    ):
        assert escape(text) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_record_and_of_findings_stays_text(tmp_path, text):
    run = make_run("baseline", 0, model=text)
    environment = dict.fromkeys(("backend", "device_kind", "cpu_model", "commit", "jax", "python"), text)
    made = dataclasses.replace(make_record(run, 0.5), environment={**environment, "backend": "cpu"})
    failed = RunRecord(make_run("znorm", 0, model=text), "failed", message=text)
    cells = list(make_cells([made.run, failed.run], [made, failed]).values())
    rows = make_rows(cells, ["model", "method"])
    texts = {"claim": text, "source": text, "note": text, "group": text, "label": text, "question": text}
    finding = Finding(
        **texts, measured=text, interval=(0.0, 1.0), verdict="shown", effect=0.5, unit=text, detectable=1.0
    )
    finding = dataclasses.replace(finding, link=text, headline=True, forest=True)
    table = results_table(["network", "method"], rows)
    method = [f"Protocol: {pages.describe_protocol(run)}."]
    pages.write_report(tmp_path, text, cells, [finding, finding], results=[table], method=method)
    (tmp_path / "README.md").write_text(f"Text\n\n{BEGIN}\n\n{END}\n")
    found = {"study": read_findings(tmp_path / "findings.json")}
    for _ in range(2):  # the second time it finds its markers again
        summary.write_summary(
            found, tmp_path / "README.md", tmp_path, tmp_path / "results", {"study": "title"}
        )
    for name in ("report.md", "findings.md", "README.md"):
        page = (tmp_path / name).read_text().replace(BEGIN, "").replace(END, "")
        tokens = kinds(page)
        assert not tokens & {"html_block", "fence", "code_block"}, name
        assert "<script" not in page
        assert "<!--" not in page
        targets = [target.removeprefix("results/") for target in links(page)]
        assert {target for target in targets if ":" in target or "//" in target} == set(), name
        headings = [line for line in page.splitlines() if line.startswith("# ")]
        assert len(headings) == (name != "README.md")
    assert not kinds(describe([finding])) & {"heading_open", "bullet_list_open", "ordered_list_open", "fence"}
    assert kinds(claims_table([finding])) >= {"table_open"}
    assert kinds(answers_table([finding])) >= {"table_open"}
    assert "<svg" in (tmp_path / "forest.svg").read_text()


@pytest.mark.parametrize("text", HOSTILE)
def test_figures_and_the_names_of_their_files_take_any_text(tmp_path, text):
    run = make_run("baseline", 0, model=f"../../{text}", dynamics=True)
    ones = np.ones((2, 3), np.float32)
    layers = tuple(f"{text}{i}" for i in range(3))
    recorded = GradientDynamics(layers, np.array([1, 2, 3]), ones, ones, ones, ones[:, 0])
    records.write_dynamics(tmp_path / "a" / "records", run, recorded)
    page = dynamics.write_page(tmp_path / "a", tmp_path / "a" / "records", [make_record(run, 0.5)])
    assert page is not None
    assert not kinds(page.read_text()) & {"html_block", "html_inline", "fence", "code_inline", "link_open"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (figure,) = (tmp_path / "a").glob("*.svg")
    ElementTree.parse(figure)


def test_statistics_with_renamed_layers_are_refused_by_name(tmp_path):
    ones = np.ones((2, 2), np.float32)
    made = []
    for seed, layers in enumerate([("a", "b"), ("a", "b"), ("a", "c")]):
        run = make_run("baseline", seed, dynamics=True)
        records.write_dynamics(
            tmp_path, run, GradientDynamics(layers, np.array([1, 2]), ones, ones, ones, ones[:, 0])
        )
        made.append(make_record(run, 0.5))
    assert len(dynamics.read_all(tmp_path, made[:2])) == 2
    words = f"{made[0].run.name} and of {made[2].run.name}.*have other layers: 'b' and 'c'"
    with pytest.raises(RecordError, match=words):
        dynamics.read_all(tmp_path, made)
    with pytest.raises(RecordError, match=words):
        dynamics.write_page(tmp_path, tmp_path, made)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"interval": [1, 0]}, r"findings\[1\]: the interval"),
        ({"interval": [0, "x"]}, r"findings\[1\].interval\[1\] must be a finite number, got 'x'"),
        ({"interval": [0]}, r"findings\[1\].interval must be a list of 2"),
        ({"detectable": -1}, r"findings\[1\].detectable must be at least 0"),
        ({"verdict": "maybe"}, "unknown verdict 'maybe'"),
        ({"claim": None}, r"findings\[1\].claim must be a text"),
        ({"headline": 1}, r"findings\[1\].headline must be true or false"),
        ({"more": 1}, r"findings\[1\] has 'more'"),
    ],
)
def test_damaged_findings_are_named(tmp_path, change, complaint):
    write_findings(tmp_path, [Finding("claim", "", "x", None, "shown")] * 2)
    path = tmp_path / "findings.json"
    first, second = json.loads(path.read_text())
    path.write_text(json.dumps([first, second | change]))
    with pytest.raises(FileError, match=complaint) as error:
        read_findings(path)
    assert str(path) in str(error.value)
    assert "`python -m experiments report` writes it again" in str(error.value)
    for text in ("", "{}", "[3]", "["):
        path.write_text(text)
        with pytest.raises(FileError, match=str(path)):
            read_findings(path)
    write_findings(tmp_path, [Finding("claim", "", "x", (0.0, float("inf")), "shown")])
    assert read_findings(path)[0].interval is None
