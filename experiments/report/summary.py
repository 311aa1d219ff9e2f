"""What all studies found, in one place: the README's table, a page of the documentation and the forest plot."""

import collections
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.files import write_whole
from experiments.report import forest, front
from experiments.report.findings import (
    FILE,
    NO_DIFFERENCE,
    UNTOLD,
    VERDICTS,
    Finding,
    claims_table,
    insert,
    read_findings,
)
from experiments.report.markdown import escape
from experiments.report.pages import write_page
from experiments.report.sentences import describe, tell_detectable

ACCURACY_QUESTION = front.ACCURACY
PRESETS = ("full", "cpu")  # the first that a study has findings of

HEAD = """\
What each study found, rendered from its `findings.json`. A method *helps* or *harms*, against the optimizer alone,
where 0 is rejected after Holm's adjustment over the methods of one setting. There is *no difference that counts*
where the interval lies within plus and minus the smallest effect of interest, one point unless the protocol says
otherwise (5 % of a loss, 10 % of its roughness, one pixel; a protocol may ask for less, not for more). Else it
*cannot be told*, and so with fewer than three seeds. A claim that a rule decides is *shown* or *contradicted*, or it
*cannot be told*. Where a paper printed an effect, the last column says whether the interval holds it. Studies with a
PROTOCOL.md keep the words that it fixed in their own reports."""

HOW_TO_READ = """\
Intervals are 95 % Student t-intervals over the seeds, paired by seed. They say nothing about other images, nor about
another choice of the learning rate. Networks, images and epochs are smaller than the papers', most so that a CPU
trains them in hours; each report says on what it was trained. What is seen here may be absent at full size, and vice
versa. *After correction* stands where a single interval excludes 0, and Holm's correction for the other methods of
the setting does not. The *smallest detectable difference* is the one that such a study finds in 80 % of its
repetitions; a range is that of its settings."""

NOT_DECIDED = """\
The published runs of these studies are too small to decide what they ask, so what their reports found is in no table
above:"""


def collect(results: Path, studies: Sequence[str]) -> dict[str, list[Finding]]:
    """The findings of every study that has some, of its largest preset.

    Args:
      studies: their names, in the order of the summary.

    Raises:
      FileError: a file is damaged or of another version.
    """
    found = {}
    for study in studies:
        files = [results / study / preset / FILE for preset in PRESETS]
        some = next((findings for f in files if f.exists() and (findings := read_findings(f))), [])
        if some:
            found[study] = some
    return found


def headline_table(findings: Mapping[str, Sequence[Finding]]) -> str:
    """How all comparisons of the accuracy came out, and the claims table: a line for each headline."""
    everything = [finding for some in findings.values() for finding in some]
    table = claims_table([finding for finding in everything if finding.headline], short=True)
    return "\n\n".join(filter(None, [count_accuracy(everything), table]))


def count_accuracy(findings: Sequence[Finding]) -> str:
    """One sentence: how often each verdict on the test accuracy was reached, and by which methods if it was told.

    What two studies say of the same runs counts once, as the first of them says it.
    """
    found = {}
    for i, finding in enumerate(findings):
        if finding.question == ACCURACY_QUESTION:
            found.setdefault(finding.runs or i, finding)
    words = []
    few = (UNTOLD, NO_DIFFERENCE)
    for word in (*few, *(word for word in VERDICTS if word not in few)):
        methods = collections.Counter(finding.label for finding in found.values() if finding.verdict == word)
        told = ", ".join(f"{escape(method)} {count}" for method, count in methods.most_common())
        if methods:
            words.append(f"*{word}* in {methods.total()}" + ("" if word in few else f" ({told})"))
    return f"{ACCURACY_QUESTION}, {len(found)} comparisons: {'; '.join(words)}." if found else ""


def write_summary(
    findings: Mapping[str, Sequence[Finding]],
    readme: Path,
    docs: Path,
    results: Path,
    titles: Mapping[str, str],
    undecided: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes the README's answer with its figure, findings.md and forest.svg.

    Args:
      readme: page with the two markers, between which the answer goes.
      titles: of the studies, the headings of the page.
      undecided: by study whose findings count nowhere, why.

    Returns:
      What was written.

    Raises:
      ValueError: the README has no markers, or more than one pair; nothing is written.
      FileError: a file cannot be written.
    """
    insert(readme.read_text(), "")
    written = front.draw_all(results, findings)
    text = insert(readme.read_text(), front_page(findings, readme, docs, results, with_figure=bool(written)))
    forest.draw(docs / "forest.svg", findings)
    write_page(docs / "findings.md", _page(findings, titles, undecided or {}))
    write_whole(readme, lambda file: file.write(text.encode()))
    return [readme, docs / "findings.md", docs / "forest.svg", *written]


def front_page(
    findings: Mapping[str, Sequence[Finding]], readme: Path, docs: Path, results: Path, *, with_figure: bool
) -> str:
    """What stands between the README's markers: see `front.page`."""

    def from_readme(path: Path) -> str:
        return Path(os.path.relpath(path, readme.parent)).as_posix()

    return front.page(
        findings, f"{from_readme(results)}/", from_readme(docs / "findings.md"), with_figure=with_figure
    )


def _page(
    findings: Mapping[str, Sequence[Finding]], titles: Mapping[str, str], undecided: Mapping[str, str]
) -> list[str]:
    parts = ["# Findings", HEAD, "![Measured differences with their 95 % intervals](forest.svg)"]
    parts += ["## The main claims", headline_table(findings), "## Study by study"]
    for study, some in findings.items():
        title = titles[study]
        report = f"(`{study}`, report `experiments/results/{escape(some[0].link)}`)"
        parts.append(f"### {title[0].upper()}{title[1:]}")
        parts.append(" ".join(filter(None, [describe(some), tell_detectable(some), report])))
    if undecided:
        parts += ["## Not decided", NOT_DECIDED]
        parts.append("\n".join(f"- `{study}`: {why}." for study, why in undecided.items()))
    return [*parts, "## How to read them", HOW_TO_READ]
