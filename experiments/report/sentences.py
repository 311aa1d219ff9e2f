"""What findings say in words: two sentences for people, and a table that counts."""

import dataclasses
from collections.abc import Iterable, Sequence

from experiments.report.findings import (
    CONTRADICTED,
    HARM_SHOWN,
    HARMS,
    HELPS,
    NO_DIFFERENCE,
    SHOWN,
    TOO_SMALL,
    UNTOLD,
    VERDICTS,
    Finding,
)
from experiments.report.markdown import Markup, escape, markdown_table, paragraph

MOST_NAMED = 4  # more are counted
MOST_OF_THE_REST = 2  # named of those that make no difference or cannot be told
UNDECIDED = (UNTOLD, NO_DIFFERENCE, TOO_SMALL)
CLAIMS = "The claims"
LISTS = (
    "The paper's claims",
    "Beyond the paper",
    CLAIMS,
)  # of claims, where other questions are one claim each
PROPER_NOUNS = ("Tversky", "Hausdorff")  # keep their capital within a sentence

# Verbs for one comparison and for several.
_PREDICATES = {
    HELPS: ("helps", "help"),
    HARMS: ("harms", "harm"),
    NO_DIFFERENCE: ("makes no difference that counts", "make no difference that counts"),
    TOO_SMALL: ("is too small to count", "are too small to count"),
    UNTOLD: ("cannot be told", "cannot be told"),
}
_OPENINGS = {
    SHOWN: "a gain is shown for",
    HARM_SHOWN: "harm is shown for",
    CONTRADICTED: "the paper's effect is contradicted for",
}


def describe(findings: Sequence[Finding]) -> str:
    """The answer in two sentences: of the first question, and of another one that is decided either way.

    That is the next comparison, or the next claim if there is none.
    """
    if not findings:
        return "Nothing can be said yet: no run has ended that could be compared."
    first, *others = _by_question(findings).items()
    decided = [(q, some) for q, some in others if any(f.verdict not in UNDECIDED for f in some)]
    decided.sort(key=lambda item: not _is_comparison(item[0]))
    return paragraph(" ".join(_tell(question, some) for question, some in (first, *decided[:1])))


def answers_table(findings: Sequence[Finding]) -> str:
    """A Markdown table that counts every word that a question got, and names what got it, if few or decided."""
    rows = [["question", "answer", "in", "which"]]
    for question, some in _by_question(findings).items():
        shared, heading = _shared(some), question
        for word in VERDICTS:
            of_word = [finding for finding in some if finding.verdict == word]
            if not of_word:
                continue
            named = ""
            if word not in UNDECIDED or len(of_word) <= MOST_NAMED:
                named = "; ".join(_name(finding, shared) for finding in of_word)
            if rates := _count_other_rates(of_word):
                named += f" ({rates})"
            cells = [heading, f"**{word}**", f"{len(of_word)} of {len(some)}", named]
            rows.append([Markup(cell) for cell in cells])
            heading = ""
    return markdown_table(rows, left=4)


def describe_detectable(findings: Iterable[Finding]) -> str:
    """The smallest differences that 80 % of such studies would see, as a range for each question."""
    ranges: dict[tuple[str, str], list[float]] = {}
    for finding in _escaped(findings):
        if finding.detectable is not None:
            ranges.setdefault((finding.question, finding.unit), []).append(finding.detectable)
    words = [
        f"{_lower(question)} {_span(values)} {'%' if unit == 'ratio' else unit}"
        for (question, unit), values in ranges.items()
    ]
    text = "Smallest detectable differences (80 % power, two-sided 5 %): "
    return f"{text}{'; '.join(words)}." if words else ""


def compare(findings: Sequence[Finding], *, named: int = MOST_NAMED, rest: int = MOST_OF_THE_REST) -> str:
    """What several comparisons of one question came to, as clauses with the words of their verdicts.

    Args:
      findings: their texts are Markdown.
      named: how many of one decided word are named at most; more are counted.
      rest: the same of those that make no difference or cannot be told.
    """
    words = [word for word in VERDICTS if any(finding.verdict == word for finding in findings)]
    if len(findings) > 1 and len(words) == 1:
        if words == [NO_DIFFERENCE]:
            return f"none of the {len(findings)} makes a difference that counts"
        if words == [UNTOLD]:
            labels = list(dict.fromkeys(f.label for f in findings))
            few = len(labels) == len(findings) <= MOST_NAMED and all(labels)
            return f"nothing can be told of {_join(labels) if few else f'any of the {len(findings)} comparisons'}"
    clauses, counted, shared = [], False, _shared(findings)
    for word in words:
        some = [finding for finding in findings if finding.verdict == word]
        is_rest = word in UNDECIDED and len(words) > 1
        if len(some) <= (rest if is_rest else named):
            subject = _join(_grouped(some, shared))
        elif is_rest and word == words[-1]:
            subject = f"the other {len(some)}"
        else:
            subject = str(len(some)) if counted else f"{len(some)} of {len(findings)} comparisons"
            counted = True
        if word in _OPENINGS:
            clause = f"{_OPENINGS[word]} {subject}"
        else:
            clause = f"{subject} {_PREDICATES[word][len({f.label for f in some}) > 1 or len(some) > named]}"
        rates = _count_other_rates(some)
        clauses.append(f"{clause} ({rates})" if rates else clause)
    return "; ".join(clauses)


def _is_comparison(question: str) -> bool:
    return " against the " in question


def _tell(question: str, findings: Sequence[Finding]) -> str:
    """A sentence about one question."""
    if _is_comparison(question):
        return f"For {_lower(question)}, {compare(findings)}."
    parts, shared = [], _shared(findings)
    words = [word for word in VERDICTS if any(finding.verdict == word for finding in findings)]
    for word in words:
        some = [finding for finding in findings if finding.verdict == word]
        names = _join(_grouped(some, shared))
        is_rest = word == UNTOLD and len(words) > 1
        few = len(some) <= (MOST_OF_THE_REST if is_rest else MOST_NAMED)
        if question in LISTS:
            count = f"{len(some)} of {len(findings)}" if not parts else f"{len(some)}"
            are = "" if word == UNTOLD else "is " if len(some) == 1 else "are "
            parts.append(f"{count} {are}{word}{f' ({names})' if few else ''}")
            continue
        are = "" if parts or word == UNTOLD else "is "
        if few:
            where = f" for {names}" if len(findings) > 1 else ""
        elif len(words) == 1:
            where = f" in any of {len(some)} cases" if word == UNTOLD else f" in all {len(some)} cases"
        else:
            where = f" for the other {len(some)}" if is_rest else f" in {len(some)} of {len(findings)} cases"
        parts.append(f"{are}{word}{where}")
    if question in LISTS:
        return f"{question}: {_join(parts)}."
    clause = _lower(question)
    return f"That {clause}{',' if ', ' in clause else ''} {_join(parts)}."


def _join(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _grouped(findings: Sequence[Finding], shared: set[str]) -> list[str]:
    """A name for each label, and in brackets where and by how much."""
    places: dict[str, list[str]] = {}
    for finding in findings:
        name, _, place = (finding.label or finding.claim).partition(", ")
        parts = [place, *(part for part in _parts(finding) if part not in shared), _effect(finding)]
        places.setdefault(name, []).append(", ".join(filter(None, parts)))
    return [f"{name} ({'; '.join(some)})" if any(some) else name for name, some in places.items()]


def _count_other_rates(findings: Sequence[Finding]) -> str:
    """How many compare learning rates too, if one word was reached that says something of them."""
    count = sum(finding.other_rate for finding in findings if finding.verdict not in UNDECIDED)
    if not count:
        return ""
    return f"{count} of them at another learning rate" if len(findings) > 1 else "at another learning rate"


def _escaped(findings: Iterable[Finding]) -> list[Finding]:
    """The findings with all their texts as text of Markdown."""
    return [
        dataclasses.replace(
            f, **{n: escape(getattr(f, n)) for n in ("claim", "group", "label", "question", "unit")}
        )
        for f in findings
    ]


def _by_question(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    questions: dict[str, list[Finding]] = {}
    for finding in _escaped(findings):
        questions.setdefault(finding.question or CLAIMS, []).append(finding)
    return questions


def _lower(text: str) -> str:
    """With a small first letter, if it is not of a word such as F1."""
    return text[:1].lower() + text[1:] if text[1:2].islower() and not text.startswith(PROPER_NOUNS) else text


def _shared(findings: Sequence[Finding]) -> set[str]:
    """The parts of the setting that all have in common; of one finding alone nothing is taken to be."""
    if len(findings) == 1:
        return set()
    return set.intersection(*(set(_parts(finding)) for finding in findings))


def _parts(finding: Finding) -> list[str]:
    return [part for part in finding.group.split(", ") if part]


def _name(finding: Finding, shared: set[str]) -> str:
    """Which of the findings it is, with its effect, but without what all have in common."""
    parts = [finding.label, *(part for part in _parts(finding) if part not in shared)]
    name = ", ".join(part for part in parts if part) or finding.claim
    return f"{name} {_effect(finding)}".rstrip()


def _effect(finding: Finding) -> str:
    """The effect as it is printed; empty where there is none or it cannot be told."""
    if finding.effect is None or finding.verdict == UNTOLD:
        return ""
    effect = f"x {finding.effect:.2f}" if finding.unit == "ratio" else f"{finding.effect:+.1f}"
    if finding.verdict == CONTRADICTED and finding.paper is not None:
        side = "above" if finding.effect > finding.paper else "below"
        effect += f", {side} the paper's {finding.paper:+.1f}"
    return effect


def tell_detectable(findings: Sequence[Finding]) -> str:
    """The same in a sentence, of the first question; empty where that has no such differences."""
    same = [f for f in findings if f.detectable is not None and f.question == findings[0].question]
    if not same:
        return ""
    unit = "%" if same[0].unit == "ratio" else escape(same[0].unit)
    return f"The smallest detectable difference was {_span([f.detectable for f in same if f.detectable])} {unit}."


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return low if low == high else f"{low} to {high}"
