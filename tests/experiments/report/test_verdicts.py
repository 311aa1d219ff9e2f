"""The words for comparisons, on records made by hand."""

import pytest

from experiments.report import intervals
from experiments.report.cells import Cell, Row, make_cells, make_rows
from experiments.report.contrasts import ACCURACY, SPEED, Endpoint, make_contrasts, make_findings
from experiments.report.pages import describe_rates
from experiments.report.sentences import describe
from experiments.report.tables import certainty_table, results_table, training_table

from .made import make_record, make_run


def contrasts_of(*scores, endpoint=ACCURACY, **options):
    """Contrasts of made-up accuracies by seed: of the baseline, ZNorm, GAN and others."""
    methods = ("baseline", "znorm", "gan", "centralization", "clipping")[: len(scores)]
    runs = [make_run(m, s) for m in methods for s in range(len(scores[0]))]
    made = [
        make_record(run, accuracy)
        for run, accuracy in zip(runs, [a for some in scores for a in some], strict=True)
    ]
    rows = make_rows(make_cells(runs, made).values(), ["method"])
    return make_contrasts(rows, endpoint, **options)


BASE = [0.10, 0.20, 0.30, 0.25, 0.15]


def shifted(by, spread=0.001):
    return [a + by + spread * e for a, e in zip(BASE, (-1, 1, 0, 2, -2), strict=True)]


@pytest.mark.parametrize(
    ("shift", "spread", "paper", "word", "note", "holds"),
    [
        (0.10, 0.001, None, "helps", "", "-"),
        (-0.10, 0.001, None, "harms", "", "-"),
        (0.005, 0.001, None, "helps", "within the smallest effect of interest", "-"),
        (0.0, 0.001, None, "no difference that counts", "", "-"),
        (0.0, 0.02, 0.2, "cannot be told", "", "no: +20.0 is above"),
        (0.0, 0.02, 0.01, "cannot be told", "", "yes: +1.0"),
        (0.0, 0.02, None, "cannot be told", "", "-"),
        (0.10, 0.001, 0.02, "helps", "", "no: +2.0 is below"),
        # It excludes 0 and the paper's smaller effect, though not after adjustment: no refutation of a gain.
        (0.10, 0.04, 0.02, "cannot be told", "", "no: +2.0 is below"),
    ],
)
def test_the_first_word_that_applies_is_the_verdict(shift, spread, paper, word, note, holds):
    """What a paper printed has no say in the word, and a column of its own."""
    family = [shifted(0.0, 0.02)] * 3 if spread == 0.04 else []
    contrast, *_ = contrasts_of(BASE, shifted(shift, spread), *family, paper=lambda run: paper)
    (finding,) = make_findings([contrast], setting="digits")
    assert finding.verdict == word
    assert note in finding.note
    assert bool(note) == ("smallest effect" in finding.note)
    assert finding.holds_paper == holds
    assert finding.paper == (None if paper is None else pytest.approx(100 * paper))
    assert finding.effect == pytest.approx(100 * contrast.interval.mean)
    rows = make_rows([contrast.row.baseline, contrast.row.cell], ["method"])
    table = results_table(["method"], rows, make_contrasts(rows, ACCURACY, paper=lambda run: paper))
    assert paper is None or holds in table
    assert ("holds the paper's effect" in table) == (paper is not None)


@pytest.mark.parametrize(
    ("shift", "spread", "paper", "word", "note"),
    [
        (0.10, 0.001, None, "shown", ""),
        (-0.10, 0.001, None, "harm shown", ""),
        (0.03, 0.001, None, "shown", "too small to count"),
        (0.0, 0.02, 0.2, "too small to count", "below the paper's effect"),
        (0.0, 0.05, 0.2, "contradicted", "below the paper's effect"),
        (0.0, 0.05, 0.01, "cannot be told", ""),
        (0.10, 0.001, 0.02, "shown", "above the paper's effect"),
    ],
)
def test_a_protocols_words_stay_in_its_own_report(shift, spread, paper, word, note):
    """With a smallest effect of five points, which the common word does not take: a loss of two counts there."""
    options = {"smallest": lambda run: 0.05, "paper": lambda run: paper, "by_protocol": True}
    (contrast,) = contrasts_of(BASE, shifted(shift, spread), **options)
    (own,) = make_findings([contrast], setting="digits", own=True)
    assert (own.verdict, contrast.word) == (word, f"{word}; {own.note}" if own.note else word)
    assert note in own.note
    (common,) = make_findings([contrast], setting="digits")
    expected = {"shown": "helps", "harm shown": "harms"}.get(word, "cannot be told")
    assert common.verdict == expected
    assert "paper" not in common.note


def test_what_was_trained_at_another_rate_is_told_of_losses(tmp_path):
    runs = [
        make_run(m, s, learning_rate=0.03 if m == "gan" else 0.01)
        for m in ("baseline", "znorm", "gan")
        for s in range(3)
    ]
    records = [
        make_record(r, 0.5, (1.0 if r.method == "baseline" else 0.8) * (1 + 0.01 * r.seed * len(r.method)))
        for r in runs
    ]
    cells = make_cells(runs, records).values()
    rows = make_rows(cells, ["optimizer", "method"])
    found = make_findings(make_contrasts(rows, SPEED), setting="digits")
    assert [f.other_rate for f in found] == [False, True]
    assert describe(found).endswith(
        ", ZNorm (x 0.78) and GAN (x 0.76) help (1 of them at another learning rate)."
    )
    words = describe_rates(rows, cells)
    assert words.startswith(
        "Not at the baseline's learning rate, by 3 tuning seeds: SGDM, not 0.01: GAN 0.03. "
    )
    assert describe_rates(rows[:2], cells) == ""


def test_p_values_are_adjusted_over_the_methods_of_one_family():
    znorm, gan = contrasts_of(BASE, shifted(0.1), shifted(0.02, 0.02))
    assert znorm.p == pytest.approx(2 * znorm.interval.p)
    assert gan.p == pytest.approx(gan.interval.p)
    znorm, gan = contrasts_of(BASE, shifted(0.1), shifted(0.02, 0.02), described=("gan",))
    assert (znorm.p, gan.p) == (znorm.interval.p, gan.interval.p)


def test_the_pooled_variance_is_that_of_every_compared_cell_once():
    """Rows of which some share a cell, and of which what they are compared with has no row of its own."""
    values = {"baseline": BASE, "znorm": shifted(0.1, 0.03), "gan": shifted(0.05, 0.01)}
    cells = {
        method: Cell(
            make_run(method, 0), {s: make_record(make_run(method, s), a) for s, a in enumerate(some)}
        )
        for method, some in values.items()
    }
    pairs = (("znorm", "baseline"), ("znorm", "gan"))
    rows = [Row((f"{ours} minus {theirs}",), cells[ours], cells[theirs]) for ours, theirs in pairs]
    for contrast, (ours, theirs) in zip(make_contrasts(rows, ACCURACY), pairs, strict=True):
        expected = intervals.pooled(values[ours], values[theirs], list(values.values()))
        assert contrast.pooled.low == pytest.approx(expected.low)
        assert contrast.pooled.high == pytest.approx(expected.high)


def test_what_was_measured_is_printed_also_where_it_is_the_same_in_every_row():
    """Holm makes equal p-values of different ones; a table that drops what is the same would lose them."""
    found = contrasts_of(BASE, shifted(0.02, 0.02), shifted(0.02, -0.02))
    assert found[0].p == found[1].p
    table = certainty_table(["method"], found)
    assert f"{found[0].p:.2g}" in table
    assert f"{100 * found[0].detectable:.2g}" in table
    rows = [contrast.row for contrast in found]
    assert "5.00e-01" in training_table(["method"], rows)


def test_seeds_that_agree_and_two_seeds_tell_nothing():
    # 0.3 - 0.1 and 0.4 - 0.2 differ in their last digits.
    (contrast,) = contrasts_of([0.1, 0.2, 0.3], [0.3, 0.4, 0.5])
    assert ACCURACY.write_interval(contrast.interval) == "+20.0 [seeds agree]"
    assert contrast.verdict == "cannot be told"
    (contrast,) = contrasts_of([0.1, 0.2], [0.5, 0.61])
    assert (contrast.verdict, contrast.note) == ("cannot be told", "fewer than 3 seeds")


def test_where_less_is_better_a_higher_value_is_harm():
    distance = Endpoint("final_accuracy", "distance", "pixels", 0.01, more_is_better=False)
    (contrast,) = contrasts_of(BASE, shifted(0.1), endpoint=distance)
    assert contrast.word.startswith("harms")


def test_losses_are_compared_as_ratios():
    runs = [make_run(m, s) for m in ("baseline", "znorm") for s in range(3)]
    records = [
        make_record(r, 0.5, (0.8 if r.method == "znorm" else 1.0) * (1 + 0.001 * r.seed)) for r in runs
    ]
    records[4] = make_record(runs[4], 0.5, 0.8 * 1.01)
    rows = make_rows(make_cells(runs, records).values(), ["method"])
    (contrast,) = make_contrasts(rows, SPEED)
    (finding,) = make_findings([contrast], setting="digits")
    assert finding.effect == pytest.approx(0.8, rel=0.01)
    assert finding.verdict == "helps"  # less is better
    assert finding.interval[0] < 0.8 < finding.interval[1]
