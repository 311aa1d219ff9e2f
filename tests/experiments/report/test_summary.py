"""What all studies found, in the README, the documentation and the forest plot."""

import dataclasses
import json
import re
import shutil

import pytest

from experiments import __main__ as main
from experiments.preflight import UsageError
from experiments.report import steps, summary
from experiments.report.findings import BEGIN, END, VERDICTS, Finding, write_findings


def finding(effect, low, high, **changes):
    options = {
        "claim": f"ZNorm raises accuracy by {effect}",
        "source": "Someone 2024",
        "measured": f"{effect:+.1f} [{low:+.1f}, {high:+.1f}] points; by the way",
        "interval": (low, high),
        "verdict": "cannot be told",
        "effect": effect,
        "paper": 2.5,
        "unit": "points",
        "group": "CIFAR-10, SGDM",
        "label": "ZNorm",
        "headline": True,
        "forest": True,
        "note": "a note",
    }
    return Finding(**{**options, **changes})


@pytest.fixture
def results(tmp_path):
    for study, preset, found in (
        ("first", "cpu", [finding(1.5, -0.5, 3.5), finding(7.0, 6.0, 8.0, headline=False, verdict="helps")]),
        ("second", "smoke", [finding(9.0, 8.0, 10.0)]),
        ("third", "cpu", [finding(4.0, 3.0, 5.0)]),
        ("third", "full", [finding(-2.0, -3.0, -1.0, group="LGG", verdict="harms")]),
        ("fourth", "cpu", []),
    ):
        folder = tmp_path / "results" / study / preset
        folder.mkdir(parents=True)
        found = [Finding(**{**f.__dict__, "link": f"{study}/{preset}/report.md"}) for f in found]
        write_findings(folder, found)
    return tmp_path / "results"


STUDIES = ("first", "second", "third", "fourth", "fifth")
TITLES = {"first": "ResNets on digits", "third": "what clipping does"}


def test_the_largest_preset_that_found_something_speaks_and_smoke_never(results):
    found = summary.collect(results, STUDIES)
    assert {study: [f.effect for f in some] for study, some in found.items()} == {
        "first": [1.5, 7.0],
        "third": [-2.0],
    }


def cells(page):
    rows = [row for row in page.splitlines() if row[:1] == "|"]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows][2:]


def test_every_headline_is_a_line_of_the_page_and_of_the_readme_nothing_but_the_answer_changes(
    results, tmp_path
):
    readme, docs = tmp_path / "README.md", tmp_path / "docs"
    docs.mkdir()
    readme.write_text(f"Before.\n\n{BEGIN}\n\n| old |\n\n{END}\n\nAfter.\n")
    found = summary.collect(results, STUDIES)
    written = [readme, docs / "findings.md", docs / "forest.svg"]
    assert summary.write_summary(found, readme, docs, results, TITLES) == written
    # No study of theirs is one that the README picks.
    line = "[All findings](docs/findings.md) hold 3 comparisons and claims, 1 of which *cannot be told*."
    assert readme.read_text() == f"Before.\n\n{BEGIN}\n\n{line}\n\n{END}\n\nAfter.\n"
    page = (docs / "findings.md").read_text()
    assert cells(page) == [
        [
            "ZNorm raises accuracy by 1.5",
            "Someone 2024",
            "+1.5 [-0.5, +3.5] points",
            "**cannot be told**",
            "yes: +2.5",
        ],
        [
            "ZNorm raises accuracy by -2.0",
            "Someone 2024",
            "-2.0 [-3.0, -1.0] points",
            "**harms**; a note",
            "no: +2.5 is above",
        ],
    ]
    headings = [line for line in page.splitlines() if line.startswith("### ")]
    assert headings == ["### ResNets on digits", "### What clipping does"]
    assert "`experiments/results/third/full/report.md`" in page
    # Written again, everything is the same to the byte.
    before = [path.read_bytes() for path in written]
    summary.write_summary(summary.collect(results, STUDIES), readme, docs, results, TITLES)
    assert [path.read_bytes() for path in written] == before


def pick(claim, question=summary.ACCURACY_QUESTION, **changes):
    return summary.front.Pick(claim, "digits", "first", question, "CIFAR-10, SGDM", "ZNorm", **changes)


def test_the_readmes_table_has_decided_claims_alone():
    picks = [
        pick("ZNorm helps"),
        pick("ZNorm is fast", question=summary.front.SPEED),
        pick("missing", question="?"),
    ]
    slow = {"question": summary.front.SPEED, "unit": "ratio", "link": "first/cpu/report.md"}
    for verdict, words in (
        ("helps", ["ZNorm helps", "ZNorm is fast"]),
        ("cannot be told", ["ZNorm is fast"]),
    ):
        some = [
            finding(1.5, 0.5, 2.5, question=summary.ACCURACY_QUESTION, verdict=verdict),
            finding(1.5, 0.5, 2.5, verdict="harms", **slow, measured="x 1.5 [0.5, 2.5]; by the way"),
        ]
        rows = cells(summary.front.table({"first": some}, "results/", picks))
        assert [row[0] for row in rows] == words
        assert rows[-1][2:] == ["loss x 1.5 [0.5, 2.5]", "[harms](results/first/cpu/report.md)"]
    assert summary.front.table({}, "results/", picks) == ""


def tuned(verdicts, optimizer):
    return [
        finding(
            effect,
            effect - 0.5,
            effect + 0.5,
            question=summary.ACCURACY_QUESTION,
            group=f"CIFAR-10, rates tuned, ResNet-20, {optimizer}",
            label=method,
            verdict=verdict,
        )
        for method, (effect, verdict) in zip(summary.front.METHODS, verdicts, strict=True)
    ]


def shared_rate(few, many):
    groups = ("CIFAR-10, rates shared, ResNet-20, SGDM", "CIFAR-10, the paper's regime, ResNet-20, SGDM")
    return [
        finding(effect, effect - 1, effect + 1, question=summary.ACCURACY_QUESTION, group=group)
        for effect, group in zip((few, many), groups, strict=True)
    ]


def test_the_readmes_answer_follows_the_verdicts(tmp_path, monkeypatch):
    no = "no difference that counts"
    some = tuned([(1.3, "helps"), (1.2, "helps"), (-1.0, "harms"), (0.2, no)], "SGDM")
    some += tuned([(0.1, no)] * 4, "Adam")
    answer = summary.front.answer({"cifar10_confirm": some})
    assert answer.startswith("**Not as your first move.** ")
    assert answer.endswith(
        "- SGD with momentum, five epochs: centralization (+1.3) and clipping by norm (+1.2) help; ZNorm (-1.0) "
        "harms; GAN (+0.2) makes no difference that counts.\n- Adam, five epochs: none of the 4 makes a difference "
        "that counts."
    )
    some[4:] = tuned([(3.0, "helps"), (0.1, no), (0.1, no), (2.0, "cannot be told")], "Adam")
    assert summary.front.answer({"cifar10_confirm": some}).endswith(
        "Adam, five epochs: centralization (+3.0) helps; GAN cannot be told; clipping by norm (+0.1) and ZNorm "
        "(+0.1) make no difference that counts."
    )
    assert "Adam" not in summary.front.answer({"cifar10_confirm": some[:-1]})

    drawn = []
    monkeypatch.setattr(summary.front.style, "save", lambda figure, path: drawn.append(figure))
    few, many = shared_rate(-6.5, 8.9)
    assert not summary.front.draw(tmp_path / "a.svg", {"cifar10_confirm": some})
    found = {"cifar10_confirm": [*some, many], "overlap_table1": [few]}
    assert summary.front.draw(tmp_path / "a.svg", found)
    (axes,) = drawn[0].axes
    circles = [line for line in axes.lines if line.get_marker() == "o"]
    places = [(float(line.get_xdata()[0]), line.get_markerfacecolor() == "white") for line in circles]
    assert places[:4] == [(1.3, False), (1.2, False), (-1.0, False), (0.2, False)]
    assert places[8:] == [(-6.5, True), (8.9, True)]


def test_a_single_interval_that_excludes_0_cannot_be_told_after_correction():
    for low, high, changes, word in (
        (-3.0, -0.1, {}, "cannot be told after correction"),
        (-3.0, 0.1, {}, "cannot be told"),
        (-3.0, -0.1, {"verdict": "harms"}, "harms"),
        (-3.0, -0.1, {"note": "fewer than 3 seeds"}, "cannot be told"),
        (-3.0, -0.1, {"question": "That it falls"}, "cannot be told"),
        (1.1, 1.2, {"unit": "ratio"}, "cannot be told after correction"),
        (0.9, 1.2, {"unit": "ratio"}, "cannot be told"),
    ):
        made = finding(low, low, high, **{"question": summary.ACCURACY_QUESTION, **changes})
        assert made.word == word
        assert f"**{word}**" in summary.claims_table([made])


def test_the_forest_plot_has_the_effects_where_they_are(results, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(summary.forest.style, "save", lambda figure, path: drawn.append(figure))
    findings = summary.collect(results, STUDIES)
    findings["first"] += [finding(0.0, 0.0, 0.0, interval=None), finding(0.0, 0.0, 0.0, forest=False)]
    summary.forest.draw(tmp_path / "forest.svg", findings)
    (axes,) = drawn[0].axes
    lines = [tuple(map(float, line.get_xdata())) for line in axes.lines[1:]]
    # Interval, effect and the paper's, of every finding.
    assert lines == [(-0.5, 3.5), (1.5,), (2.5,), (6, 8), (7,), (2.5,), (-3, -1), (-2,), (2.5,)]
    texts = [text.get_text() for text in axes.texts]
    assert [t for t in texts if "(" in t] == ["CIFAR-10, SGDM (first)", "LGG (third)"]
    assert texts.count("ZNorm") == 3


def test_a_readme_without_markers_stays_as_it_is_and_nothing_is_written(results, tmp_path):
    readme, docs = tmp_path / "README.md", tmp_path / "docs"
    docs.mkdir()
    for text in ("No markers.\n", f"{END} {BEGIN}\n", f"{BEGIN} {BEGIN} {END}\n"):
        readme.write_text(text)
        with pytest.raises(ValueError, match=re.escape(f"must have {BEGIN} once")):
            summary.write_summary(summary.collect(results, STUDIES), readme, docs, results, TITLES)
        assert readme.read_text() == text
        assert not list(docs.iterdir())


def test_what_a_file_holds_is_what_was_found(results):
    (row,) = json.loads((results / "third" / "full" / "findings.json").read_text())
    assert (row["effect"], row["interval"], row["paper"], row["verdict"]) == (
        -2.0,
        [-3.0, -1.0],
        2.5,
        "harms",
    )


def test_two_studies_of_one_setting_share_no_heading_in_the_forest_plot(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(summary.forest.style, "save", lambda figure, path: drawn.append(figure))
    other = finding(5.0, 4.0, 6.0, group="CIFAR-10, Adam")
    first, second = finding(1.0, 0.0, 2.0), finding(2.0, 1.0, 3.0)
    # The rows of a setting of one study lie together, in whatever order they come.
    summary.forest.draw(tmp_path / "forest.svg", {"first": [first, other, first], "second": [second]})
    (axes,) = drawn[0].axes
    texts = [text.get_text() for text in axes.texts]
    rows = [text for text in texts if text in ("ZNorm", "here [95 %]") or text.endswith(")")]
    assert rows[:-1] == [
        "CIFAR-10, SGDM (first)",
        "ZNorm",
        "ZNorm",
        "CIFAR-10, Adam (first)",
        "ZNorm",
        "CIFAR-10, SGDM (second)",
        "ZNorm",
    ]


def test_no_word_of_the_forest_plot_is_cut_off(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(summary.forest.style, "save", lambda figure, path: drawn.append(figure))
    long = "CIFAR-10, one rate for both methods, ResNet-20, RMSprop"
    rows = [
        finding(-10.0, -11.9, -8.1, verdict=v, group=long, measured="-10.0 [-11.9, -18.1] points")
        for v in VERDICTS
    ]
    summary.forest.draw(tmp_path / "forest.svg", {"znorm_architectures": rows})
    (figure,) = drawn
    for text in figure.axes[0].texts:
        extent = text.get_window_extent()
        assert 0 <= extent.x0 < extent.x1 <= figure.bbox.width, text.get_text()


def test_runs_that_two_studies_share_are_counted_once():
    def made(verdict, runs, **changes):
        return finding(
            1.0, 0.0, 2.0, question=summary.ACCURACY_QUESTION, verdict=verdict, runs=runs, **changes
        )

    found = [
        made("harms", "a"),
        made("helps", "b"),
        made("cannot be told", "a"),
        made("harms", "c", label="GAN"),
    ]
    # Records made by hand have no names of runs; then each counts.
    found += [made("cannot be told", ""), made("cannot be told", "")]
    counted = summary.count_accuracy(found)
    assert counted == (
        "Test accuracy against the baseline, 5 comparisons: *cannot be told* in 2; *helps* in 1 (ZNorm 1); "
        "*harms* in 2 (ZNorm 1, GAN 1)."
    )


def of_steps(effects, method="ZNorm"):
    """Findings of `steps_and_images` by images and steps."""
    group = "CIFAR-10, ResNet-20, tuned rates, {:,} images, {:,} steps, SGDM"
    return [
        finding(
            effect, effect - 1, effect + 1, question=steps.ACCURACY, group=group.format(*cell), label=method
        )
        for cell, effect in effects.items()
    ]


def test_the_figure_over_the_steps_has_a_line_for_each_number_of_images(tmp_path, monkeypatch):
    few, many = shared_rate(-6.5, 8.9)
    effects = {(2_000, 1_950): -1.0, (2_000, 390): 4.0, (50_000, 390): 3.0, (50_000, 1_950): -0.5}
    some = [*of_steps(effects), *of_steps({(50_000, 390): 0.5}, "centralization")]
    some.append(dataclasses.replace(some[0], question="Training loss", effect=99.0))
    found = {"steps_and_images": some, "cifar10_confirm": [many], "overlap_table1": [few]}
    drawn = []
    monkeypatch.setattr(steps.style, "save", lambda figure, path: drawn.append(figure))
    assert summary.front.draw_all(tmp_path, found) == [tmp_path / steps.FIGURE]
    znorm, centralization = drawn[0].axes
    marked = [line for line in znorm.lines if line.get_marker() in ("o", "s")]
    # Two numbers of images lie beside each other.
    few_x, many_x, *_ = places = [list(line.get_xdata()) for line in marked]
    assert places == [pytest.approx(x, rel=0.03) for x in ([390, 1_950], [390, 1_950], [320], [2_340])]
    assert few_x < many_x
    assert [list(line.get_ydata()) for line in marked] == [[4.0, -1.0], [3.0, -0.5], [-6.5], [8.9]]
    assert [line.get_markerfacecolor() == "white" for line in marked] == [False, False, True, True]
    ends = [(line.get_xdata()[0], *line.get_ydata()) for line in znorm.lines if line.get_marker() == "None"]
    assert (few_x[0], 3.0, 5.0) in ends
    assert [list(line.get_ydata()) for line in centralization.lines if line.get_marker() == "s"] == [[0.5]]
    page = summary.front.page(found, "results/", "findings.md", with_figure=True)
    assert "results/steps_and_images/cpu/effect_of_steps.svg" in page
    told = steps.tell(some)
    assert list(told.values()) == [
        "on 50,000 images +3.0 (cannot be told) after 390 steps, -0.5 (cannot be told) after 1,950 steps; on "
        "2,000 images +4.0 (cannot be told) after 390 steps, -1.0 (cannot be told) after 1,950 steps"
    ]
    small = [
        dataclasses.replace(f, verdict="helps", note="within the smallest effect of interest") for f in some
    ]
    assert "-1.0 (helps, by less than a point) after 1,950 steps" in next(iter(steps.tell(small).values()))

    # One number of steps is no line; then the older figure is the README's.
    del some[0]
    assert not steps.is_told(found)
    assert summary.front.draw_all(tmp_path, found) == []
    assert "tuned_and_shared.svg" in summary.front.page(found, "results/", "findings.md", with_figure=True)


def test_what_too_small_a_study_found_counts_nowhere_and_the_page_says_why(tmp_path):
    """As a user meets it: the command, with two studies that found something, of which one cannot decide."""
    for study in ("cifar10_confirm", "pcam"):
        folder = tmp_path / "results" / study / "cpu"
        folder.mkdir(parents=True)
        write_findings(folder, [finding(7.0, 6.0, 8.0, claim=f"found in {study}", verdict="helps")])
    readme, docs = tmp_path / "README.md", tmp_path / "docs"
    docs.mkdir()
    readme.write_text(f"{BEGIN}\n\n{END}\n")
    main.findings(tmp_path / "results", readme, docs)
    page = (docs / "findings.md").read_text()
    assert [row[0] for row in cells(page)] == ["found in cifar10_confirm"]
    assert "hold 1 comparisons and claims" in readme.read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("- `pcam`: ")]
    assert "one tuning seed" in line
    shutil.rmtree(tmp_path / "results" / "cifar10_confirm")
    with pytest.raises(UsageError, match="no findings below"):
        main.findings(tmp_path / "results", readme, docs)


def test_the_answer_names_every_method_where_training_is_short():
    words = {
        "centralization": (5.0, "helps"),
        "clipping by norm": (3.0, "helps"),
        "ZNorm": (-0.4, "cannot be told"),
        "GAN": (0.1, "no difference that counts"),
    }
    some = [
        dataclasses.replace(f, verdict=verdict)
        for method, (effect, verdict) in words.items()
        for f in of_steps({(50_000, 390): effect, (2_000, 390): effect + 1}, method)
    ]
    long = tuned([(1.3, "helps"), (1.2, "harms"), (-1.0, "harms"), (0.2, "harms")], "SGDM")
    found = {"cifar10_confirm": long, "steps_and_images": some}
    assert steps.tell(some) == {
        "SGD with momentum, 390 steps on 50,000 images": "centralization (+5.0) and clipping by norm (+3.0) help; "
        "ZNorm cannot be told; GAN (+0.1) makes no difference that counts",
        "SGD with momentum, 390 steps on 2,000 images": "centralization (+6.0) and clipping by norm (+4.0) help; "
        "ZNorm cannot be told; GAN (+1.1) makes no difference that counts",
    }
    assert summary.front.answer(found).startswith(
        "**Tune the learning rate first; then, with SGD and momentum, try centralization, and clipping by norm where "
        "training is short.** "
    )
    # What helps in one cell of two is no advice.
    found["steps_and_images"] = [
        dataclasses.replace(f, verdict="cannot be told") if " 2,000 images" in f.group else f for f in some
    ]
    assert summary.front.answer(found).startswith("**Not as your first move.** ")
    # A cell without one of the methods, and one number of steps, tell nothing.
    assert steps.tell([f for f in some if f.label != "GAN"]) == {}
