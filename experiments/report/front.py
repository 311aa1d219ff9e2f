"""The README's answer: one sentence, one figure and a short table of decided claims, rendered from findings."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.report import names, sentences, steps, style
from experiments.report.findings import HELPS, UNTOLD, Finding
from experiments.report.markdown import link, markdown_table, picture

ACCURACY = steps.ACCURACY
SPEED = "Training loss over all epochs against the baseline"
CLIPPING = "Test accuracy against the clipping by norm"
OPTIMIZERS = {"SGDM": "SGD with momentum", "Adam": "Adam"}
TUNED = "CIFAR-10, rates tuned, ResNet-20, {}"
METHODS = steps.ALL_METHODS
FIGURE = Path("cifar10_confirm/cpu/tuned_and_shared.svg")  # in the folder of all results
CAPTION = "Test accuracy of every method against the optimizer alone, with the paper's effects"
WIDTH, LINE = 7.2, 0.24  # inches, the second of a row


@dataclasses.dataclass(frozen=True)
class Pick:
    """Which finding is told, and in which words.

    Attributes:
      claim: in a few words.
      setting: where it was measured.
      study: of the finding, as the next three.
      question: what it answers.
      group: the study's name of the setting.
      label: of this one among those of the group.
    """

    claim: str
    setting: str
    study: str
    question: str
    group: str
    label: str

    def find(self, findings: Mapping[str, Sequence[Finding]]) -> Finding | None:
        """The finding; `None` where there is none, or more than one."""
        fields = (self.question, self.group, self.label)
        found = [f for f in findings.get(self.study, ()) if (f.question, f.group, f.label) == fields]
        return found[0] if len(found) == 1 else None


def _tuned(claim: str, optimizer: str, label: str, question: str = ACCURACY) -> Pick:
    setting = f"{OPTIMIZERS[optimizer]}, 50,000 images, 5 epochs"
    return Pick(claim, setting, "cifar10_confirm", question, TUNED.format(optimizer), label)


def _short(claim: str, images: str, question: str = ACCURACY) -> Pick:
    cell = f"{images} images, 390 steps"
    group = f"CIFAR-10, ResNet-20, tuned rates, {cell}, SGDM"
    return Pick(claim, f"{OPTIMIZERS['SGDM']}, {cell}", steps.STUDY, question, group, "ZNorm")


# At most eight. All of a ResNet-20 on CIFAR-10 with tuned rates, but for the last.
CLAIMS = (
    _short("ZNorm raises accuracy", "50,000"),
    _short("ZNorm raises accuracy", "2,000"),
    _tuned("ZNorm raises accuracy", "SGDM", "ZNorm"),
    _tuned("ZNorm is better than clipping", "SGDM", "ZNorm", CLIPPING),
    _short("ZNorm accelerates training", "50,000", SPEED),
    _tuned("ZNorm accelerates training", "SGDM", "ZNorm", SPEED),
    _tuned("GAN raises accuracy", "SGDM", "GAN"),
    Pick(
        "The gradients of a residual block's two paths point the same way",
        "ResNets, initialisation",
        "gradient_overlap",
        "The two paths' gradients are aligned, as the simulation takes them to be",
        "",
        "initialisation",
    ),
)
# Both methods at 0.01, a rate of ours: the paper states none.
SHARED = (
    Pick(
        "ZNorm",
        "2,000 images",
        "overlap_table1",
        ACCURACY,
        "CIFAR-10, rates shared, ResNet-20, SGDM",
        "ZNorm",
    ),
    Pick(
        "ZNorm",
        "10,000 images",
        "cifar10_confirm",
        ACCURACY,
        "CIFAR-10, the paper's regime, ResNet-20, SGDM",
        "ZNorm",
    ),
)
# 8 epochs of 40 batches, and 30 of 78.
SHARED_STEPS = {"overlap_table1": 320, "cifar10_confirm": 2_340}


def page(findings: Mapping[str, Sequence[Finding]], prefix: str, readme: str, *, with_figure: bool) -> str:
    """What stands between the README's markers.

    Args:
      prefix: from the README to the folder of all results.
      readme: from the README to the page of all findings.
      with_figure: shows the figure.
    """
    caption, path = (steps.CAPTION, steps.FIGURE) if steps.is_told(findings) else (CAPTION, FIGURE)
    figure = picture(caption, prefix + path.as_posix()) if with_figure else ""
    return "\n\n".join(
        filter(
            None,
            [
                answer(findings),
                figure,
                table(findings, prefix),
                count(findings, readme),
            ],
        )
    )


def answer(findings: Mapping[str, Sequence[Finding]]) -> str:
    """The advice, and a line for each setting that it rests on; empty where `cifar10_confirm` has not ended."""
    told = {
        f"{name}, five epochs": sentences.compare(some, rest=len(METHODS))
        for optimizer, name in OPTIMIZERS.items()
        if (some := _tuned_findings(findings, optimizer))
    }
    if not told:
        return ""
    told |= steps.tell(findings.get(steps.STUDY, ()))
    return (
        f"**{_advice(findings)}.** Measured with a ResNet-20 on CIFAR-10, the learning rate tuned for every method, "
        "in points of test accuracy:\n\n"
        + "\n".join(f"- {setting}: {words}." for setting, words in told.items())
    )


def _advice(findings: Mapping[str, Sequence[Finding]]) -> str:
    """What helps behind SGD with momentum: in training of any length, and in short training alone."""
    short = steps.helpful(findings)
    long = [f.label for f in _tuned_findings(findings, "SGDM") if f.verdict == HELPS]
    advice = [
        " and ".join(method for method in short if method in long),
        " and ".join(f"{method} where training is short" for method in short if method not in long),
    ]
    if not short:
        return "Not as your first move"
    return f"Tune the learning rate first; then, with SGD and momentum, try {', and '.join(filter(None, advice))}"


def _tuned_findings(findings: Mapping[str, Sequence[Finding]], optimizer: str) -> list[Finding]:
    """A finding for every method, with its label alone; empty where one is missing."""
    found = [_tuned("", optimizer, method).find(findings) for method in METHODS]
    return [dataclasses.replace(f, group="") for f in found if f] if all(found) else []


def table(findings: Mapping[str, Sequence[Finding]], prefix: str, picks: Sequence[Pick] = CLAIMS) -> str:
    """A Markdown table of the claims that are decided, each with its word, linked to the report."""
    rows = [["claim", "where", "measured [95 %]", "verdict"]]
    for pick in picks:
        finding = pick.find(findings)
        if finding is not None and finding.verdict != UNTOLD:
            measured = finding.measured.partition("; ")[0]
            if pick.question == SPEED:
                measured = f"loss {measured}"
            rows.append([pick.claim, pick.setting, measured, link(finding.verdict, prefix + finding.link)])
    return markdown_table(rows, left=4) if rows[1:] else ""


def count(findings: Mapping[str, Sequence[Finding]], target: str) -> str:
    """One line: how many rows the page of all findings rests on, and how many of them cannot be told.

    What two studies say of the same runs counts once.
    """
    everything = [finding for some in findings.values() for finding in some]
    rows = {(f.question, f.runs or i): f for i, f in reversed(list(enumerate(everything)))}
    untold = sum(finding.verdict == UNTOLD for finding in rows.values())
    total = f"{len(rows)} comparisons and claims"
    return f"{link('All findings', target)} hold {total}, {untold} of which *cannot be told*."


def draw_all(results: Path, findings: Mapping[str, Sequence[Finding]]) -> list[Path]:
    """Draws what can be drawn; returns the figures, in the folder of all results."""
    shared = [
        (pick.setting, SHARED_STEPS[pick.study], finding)
        for pick in SHARED
        if (finding := pick.find(findings))
    ]
    drawn = {
        FIGURE: draw(results / FIGURE, findings),
        steps.FIGURE: steps.draw(results / steps.FIGURE, findings, shared),
    }
    return [results / path for path, is_drawn in drawn.items() if is_drawn]


def draw(path: Path, findings: Mapping[str, Sequence[Finding]]) -> bool:
    """Draws the differences of accuracy, rates tuned, and ZNorm's at one shared rate as hollow marks.

    Args:
      path: of the figure, which ends with .svg.

    Returns:
      Whether it was drawn: nothing is, where one of the findings is missing.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    tuned = {name: _tuned_findings(findings, optimizer) for optimizer, name in OPTIMIZERS.items()}
    shared = [(pick, finding) for pick in SHARED if (finding := pick.find(findings))]
    if not all(tuned.values()) or len(shared) < len(SHARED):
        return False
    rows: list[str | tuple[str, Finding, bool]] = []
    for name, some in tuned.items():
        rows += [f"{name}, rates tuned, 50,000 images", *((f.label, f, False) for f in some)]
    rows.append("SGD with momentum, one rate (0.01) with and without ZNorm")
    rows += [(f"{pick.claim}, {pick.setting}", finding, True) for pick, finding in shared]
    with mpl.rc_context({**style.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(WIDTH, LINE * len(rows) + 1.1), dpi=100)
        height = figure.get_figheight()
        axes = figure.add_axes((0.24, 0.85 / height, 0.5, LINE * len(rows) / height))
        axes.axvspan(-steps.SMALLEST, steps.SMALLEST, color=style.GRAY, alpha=0.12, linewidth=0)
        axes.axvline(0, color=style.GRAY, linewidth=0.8)
        for place, row in enumerate(rows):
            _draw_row(axes, place, row)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks([])
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel("test accuracy against the optimizer alone, points (right: better)")
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
        figure.legend(handles=_marks(), loc="lower center", ncols=4, frameon=False, columnspacing=1.2)
        style.save(figure, path)
    return True


def _draw_row(axes: Any, place: int, row: str | tuple[str, Finding, bool]) -> None:
    beside = {"transform": axes.get_yaxis_transform(), "va": "center", "clip_on": False}
    if isinstance(row, str):
        background = {"facecolor": "white", "linewidth": 0, "pad": 1}
        axes.text(-0.46, place, style.plain(row), weight="bold", bbox=background, **beside)
        return
    label, finding, hollow = row
    colors = {names.METHODS[method]: color for method, (color, _) in style.METHOD_STYLES.items()}
    color = colors[finding.label]
    face = {"markerfacecolor": "white"} if hollow else {}
    if finding.interval is not None:
        axes.plot(finding.interval, (place, place), color=color, linewidth=1.6)
    axes.plot(finding.effect, place, "o", color=color, markersize=6, **face)
    if finding.paper is not None:
        axes.plot(finding.paper, place, **_PAPER)
    axes.text(-0.02, place, style.plain(label), ha="right", **beside)
    axes.text(1.02, place, style.plain(finding.measured.removesuffix(" points")), **beside)


_PAPER: dict[str, Any] = {"marker": "D", "linestyle": "none", "color": style.BLACK, "markersize": 4}


def _marks() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    circle = {"color": style.GRAY, "marker": "o", "markersize": 6}
    return [
        Line2D([], [], **circle, label="rates tuned [95 %]"),
        Line2D([], [], **circle, markerfacecolor="white", label="one rate"),
        Line2D([], [], **_PAPER, label="the paper's, ResNet-56"),
        Patch(color=style.GRAY, alpha=0.12, linewidth=0, label="within 1 point"),
    ]
