"""Findings: what a study says about one claim. Reports, README, docs and the forest plot are rendered from them."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from experiments.files import read_bytes, write_whole
from experiments.records.schema import naming
from experiments.records.typed import Limits, decode, parse
from experiments.report.intervals import FEWEST_SEEDS, Interval
from experiments.report.markdown import Markup, escape, link, markdown_table, remove_tags

LEVEL = 0.05
WITHIN = "within the smallest effect of interest"  # a note on a method that helps or harms
FEW_SEEDS = f"fewer than {FEWEST_SEEDS} seeds"
# Words for a method beside what it is compared with.
HELPS, HARMS, NO_DIFFERENCE, UNTOLD = "helps", "harms", "no difference that counts", "cannot be told"
# Words for a claim that a rule decides.
SHOWN, CONTRADICTED = "shown", "contradicted"
# Words that some studies fixed in a PROTOCOL.md before their runs: their own reports use them, nothing else does.
HARM_SHOWN, TOO_SMALL = "harm shown", "too small to count"
# In the order in which they are told.
VERDICTS = (HELPS, SHOWN, HARMS, HARM_SHOWN, CONTRADICTED, UNTOLD, NO_DIFFERENCE, TOO_SMALL)
BEGIN, END = "<!-- findings: begin -->", "<!-- findings: end -->"
FILE = "findings.json"
DIGITS = 6  # significant ones in the file


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one study says about one claim.

    Attributes:
      claim: one sentence that can be true or false.
      source: who makes it; empty for a question of ours.
      measured: the number that decides, in words and with its unit.
      interval: its 95 % interval; `None` where the claim is not about a mean over seeds.
      verdict: one of `VERDICTS`, by `decide` or `judge`; in a report whose words a protocol fixed, by
        `decide_by_protocol`.
      link: the report, seen from the folder of all results; `pages.write_report` fills it in.
      note: what the verdict alone does not say.
      effect: `measured` as a number, in the unit of the interval; `None` where the claim has no one number.
      paper: the same as the paper printed it, if it did.
      unit: 'points' of accuracy in percent, 'ratio' to the baseline, or another.
      detectable: smallest effect that the study could have seen, in the same unit; of a ratio in percent.
      group: heading over the effects that are drawn together.
      label: of this one among them.
      other_rate: whether the compared runs have another learning rate than those they are compared with, where
        that is a part of what was measured.
      runs: which runs it is of, as one short word: two studies that share runs have findings of the same.
      question: what it answers together with others, such as 'test accuracy against the baseline'.
      headline: whether the table of all studies in the README names it.
      forest: whether the forest plot of all studies draws it.
    """

    claim: str
    source: str
    measured: str
    interval: tuple[float, float] | None
    verdict: str
    link: str = ""
    note: str = ""
    effect: float | None = None
    paper: float | None = None
    unit: str = ""
    detectable: Annotated[float, Limits(0)] | None = None
    group: str = ""
    label: str = ""
    other_rate: bool = False
    runs: str = ""
    question: str = ""
    headline: bool = False
    forest: bool = False

    def __post_init__(self):
        if self.verdict not in VERDICTS:
            raise ValueError(f"unknown verdict {self.verdict!r}; choose from {', '.join(VERDICTS)}")
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise ValueError(f"the interval {self.interval} ends before it begins")

    @property
    def word(self) -> str:
        """The verdict as tables print it: see `spell`."""
        is_comparison = " against the " in self.question and FEW_SEEDS not in self.note
        equal = 1.0 if self.unit == "ratio" else 0.0
        excludes = self.interval is not None and not self.interval[0] <= equal <= self.interval[1]
        return spell(self.verdict, corrected=is_comparison and excludes)

    @property
    def holds_paper(self) -> str:
        """Whether the interval holds the effect that the paper printed; a dash where one of the two is not known."""
        return compare_with_paper(self.interval, self.paper, self.unit) or "-"


def spell(verdict: str, *, corrected: bool) -> str:
    """A verdict, and whether it is that of the correction alone, where the interval of a comparison excludes 0."""
    return f"{verdict} after correction" if corrected and verdict == UNTOLD else verdict


def compare_with_paper(interval: tuple[float, float] | None, paper: float | None, unit: str) -> str:
    """Whether an interval holds the effect that a paper printed; empty where one of the two is not known.

    Args:
      interval: its ends, as they are printed.
      paper: the effect, likewise.
      unit: see `Finding`.
    """
    if paper is None or interval is None:
        return ""
    low, high = interval
    printed = f"x {paper:.2f}" if unit == "ratio" else f"{paper:+.1f}"
    if low <= paper <= high:
        return f"yes: {printed}"
    return f"no: {printed} is {'above' if paper > high else 'below'}"


def decide(interval: Interval, *, p: float, smallest: float, more_is_better: bool = True) -> str:
    """The word for a mean difference to what is compared with: the first that applies, with at least three seeds.

    Helps, harms: 0 is rejected after adjustment. No difference that counts: the interval lies within plus and minus
    the smallest effect of interest. Cannot be told: else.

    Args:
      p: the p-value of 0, adjusted for the other questions of its family.
      more_is_better: else a positive difference is harm.
    """
    if interval.n < FEWEST_SEEDS:
        return UNTOLD
    if interval.is_known and p <= LEVEL:
        return HELPS if (interval.mean > 0) == more_is_better else HARMS
    return NO_DIFFERENCE if interval.within(smallest) else UNTOLD


def decide_by_protocol(
    interval: Interval, *, p: float, smallest: float, more_is_better: bool = True, paper: float | None = None
) -> str:
    """The same in the words that the studies with a PROTOCOL.md fixed before their runs, for their own reports.

    Shown, harm shown: 0 is rejected after adjustment. Too small to count: the interval lies within plus and minus
    the smallest effect of interest. Contradicted: it excludes the paper's effect, also where that is smaller.

    Args:
      interval: see `decide`, as for the next three.
      paper: what the paper printed, if it did.
    """
    word = decide(interval, p=p, smallest=smallest, more_is_better=more_is_better)
    if word == UNTOLD and interval.n >= FEWEST_SEEDS and paper is not None and interval.excludes(paper):
        return CONTRADICTED
    return {HELPS: SHOWN, HARMS: HARM_SHOWN, NO_DIFFERENCE: TOO_SMALL, UNTOLD: UNTOLD}[word]


def judge(holds: bool | None) -> str:
    """The word for a claim that a rule decides: `None` where what was measured cannot."""
    return {True: SHOWN, False: CONTRADICTED, None: UNTOLD}[holds]


def claims_table(findings: Iterable[Finding], prefix: str = "", *, short: bool = False) -> str:
    """A Markdown table claim | source | measured | verdict, each verdict linked to its report.

    A last column says whether the interval holds the paper's effect, where one of the claims has such an effect.

    Args:
      findings: of one study or of several.
      prefix: from the page to the folder of all results, such as 'experiments/results/'; empty for no links.
      short: omits notes on what could not be told, and of what was measured all but the first part.
    """
    rows = [["claim", "source", "measured [95 % interval]", "verdict", "holds the paper's effect"]]
    for finding in findings:
        word = link(finding.word, prefix + finding.link) if prefix else f"**{finding.word}**"
        note = f"; {finding.note}" if finding.note and not (short and finding.verdict == UNTOLD) else ""
        measured = finding.measured.partition("; ")[0] if short else finding.measured
        verdict = Markup(word + escape(note))
        rows.append([finding.claim, finding.source or "-", measured, verdict, finding.holds_paper])
    if all(row[-1] == "-" for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    return markdown_table(rows, left=5)


def write_findings(folder: Path, findings: Sequence[Finding]) -> None:
    """Writes findings.json, the same bytes whenever the findings are the same.

    Raises:
      FileError: the file cannot be written; an older one is left as it was.
    """
    rows = [json.dumps(_to_fields(finding), sort_keys=True) for finding in findings]
    text = "[\n" + ",\n".join(rows) + "\n]\n"
    write_whole(folder / FILE, lambda file: file.write(text.encode()))


def read_findings(path: Path) -> list[Finding]:
    """Reads the findings of one study, or of all studies below a folder.

    Raises:
      RecordError: a file is missing, damaged or of another version; names the finding.
    """
    files = sorted(path.glob(f"**/{FILE}")) if path.is_dir() else [path]
    return [finding for file in files for finding in _read(file)]


def _read(path: Path) -> list[Finding]:
    with naming(path, "`python -m experiments report` writes it again"):
        try:
            text = read_bytes(path)
        except FileNotFoundError as error:
            raise ValueError("there is no such file") from error
        return list(decode(tuple[Finding, ...], parse(text), "findings"))


def insert(page: str, table: str) -> str:
    """A page with a table between its two markers, in place of what stood there.

    Raises:
      ValueError: the page has no markers, or more than one pair.
    """
    if (page.count(BEGIN), page.count(END)) != (1, 1) or page.index(BEGIN) > page.index(END):
        raise ValueError(f"the page must have {BEGIN} once and {END} once after it")
    return f"{page[: page.index(BEGIN)]}{BEGIN}\n\n{remove_tags(table)}\n\n{page[page.index(END) :]}"


def _to_fields(finding: Finding) -> dict[str, Any]:
    """What the file holds; numbers that are not finite, and an interval with such an end, are none."""
    fields = _rounded(dataclasses.asdict(finding))
    if None in (fields["interval"] or ()):
        fields["interval"] = None
    return fields


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
