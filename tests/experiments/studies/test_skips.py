"""`skips`: which runs it shares, and what it says of made-up ones, by the rules of its protocol."""

import dataclasses
import math
import random
import re
import statistics

import pytest

from experiments.records import EpochMetrics, RecordError, RunRecord, read_records
from experiments.report import names
from experiments.report.cells import make_cells
from experiments.report.contrasts import ACCURACY
from experiments.report.findings import read_findings
from experiments.report.pages import EXPERIMENTS
from experiments.run import Run
from experiments.studies import skips, steps_and_images
from experiments.studies.comparison import compare_methods
from experiments.studies.skips.answer import (
    Effects,
    answer,
    compare_networks,
    judge_claims,
)

MODELS = skips.SIZES["cpu"].models
RESIDUAL, PLAIN, OVERLAP = MODELS
BEST = {"baseline": 0.1, "centralization": 0.1, "clipping": 3.0, "znorm": 1e-3, "gan": 0.3}
TEN = range(10)
T_9 = 2.262157  # 97.5 % quantile of Student's t with 9 degrees of freedom, from a printed table


def record_of(run, accuracy):
    epochs = [
        EpochMetrics(
            n, (2 - accuracy) / n, 0.5, *((1.0, accuracy) if run.evaluates(n) else (None, None)), 0, 1.0
        )
        for n in range(1, run.epochs + 1)
    ]
    return RunRecord(run, "finished", epochs=tuple(epochs))


def by_rate(run, better=0.0):
    """A record as if accuracy fell off on both sides of the best rate, and chance moved it a little."""
    chance = random.Random(f"{run.method} {run.seed} {run.model}").gauss(0, 0.002)
    distance = math.log10(run.learning_rate / BEST[run.method])
    return record_of(run, 0.6 + better - 0.05 * distance**2 + chance)


def play(study, better=lambda run: 0.0, until=lambda run: False):
    """Records of all runs, round by round; ends before a round that has a run of `until`."""
    records = {}
    while new := [run for run in study.runs("cpu", list(records.values())) if run not in records]:
        if any(map(until, new)):
            break
        records |= {run: by_rate(run, better(run)) for run in new}
    return list(records.values())


def is_shared(run):
    """Whether `steps_and_images` makes it in part a, with all images, of what `skips` compares."""
    return (
        run.train_examples in (45_000, 50_000)
        and (run.steps, run.optimizer) == (390, "sgdm")
        and run.method in ("baseline", "znorm")
    )


def test_the_runs_of_the_resnet_are_those_of_the_other_study():
    mine = {record.run for record in play(skips.STUDY)}
    theirs = {
        r.run for r in play(steps_and_images.STUDY, until=lambda run: run.steps == 1_950) if is_shared(r.run)
    }
    assert {run for run in mine if run.model == RESIDUAL} == theirs
    assert len(theirs) == 2 * (2 * 6 + 10)  # methods; seeds and rates of the tuning, and reported seeds
    names_of_runs = {run.name for run in theirs}
    for model in (PLAIN, OVERLAP):  # the others differ in the network alone
        others = [dataclasses.replace(run, model=RESIDUAL) for run in mine if run.model == model]
        assert {run.name for run in others} == names_of_runs
    assert len(mine) == 3 * len(theirs)


def test_published_records_of_the_other_study_are_of_runs_of_this_one():
    published = read_records(EXPERIMENTS / "results/steps_and_images/cpu/records")
    shared = [record for record in published if is_shared(record.run)]
    assert len(shared) >= 8
    skips.STUDY.check_records("cpu", shared)


def noise(name, spread):
    """By seed; not the same for any two cells."""
    chance = random.Random(name)
    return [chance.gauss(0, spread / 100) for _ in TEN]


def effects(residual, plain, overlap, baseline=0.0, *, spread=0.05, spreads=None, plain_level=50.0):
    """ZNorm's effect in each network, and what amplified gradients change of the baseline, in points.

    Initial weights, which are the ResNet's and its overlapping twin's alike, are worth several points; `spread` is
    the standard deviation of every accuracy beyond that, `spreads` that of single networks.
    """
    levels = {RESIDUAL: (60.0, residual), PLAIN: (plain_level, plain), OVERLAP: (60.0 + baseline, overlap)}
    weights = {model: noise("plain" if model == PLAIN else "residual", 3.0) for model in MODELS}
    records = []
    for model, (level, effect) in levels.items():
        for method, points in (("baseline", level), ("znorm", level + effect)):
            some = noise(f"{model} {method}", (spreads or {}).get(model, spread))
            for seed in TEN:
                run = Run("cifar10", model, method, "sgdm", 0.1, 1, 50, seed)
                records.append(record_of(run, points / 100 + weights[model][seed] + some[seed]))
    cells = make_cells([record.run for record in records], records)
    return Effects(*compare_methods(cells.values(), skips.QUESTION).contrasts[ACCURACY.score])


def verdicts(found):
    return [finding.verdict for finding in judge_claims(found)]


@pytest.mark.parametrize(
    ("residual", "plain", "word"),
    [
        (4, 0, "shown"),
        (4, -3, "shown"),
        (4, 4, "contradicted"),  # helps without, as much
        (4, 2, "contradicted"),  # helps without, if less
        (0, 4, "contradicted"),
        (0, 0, "contradicted"),  # as little without as with
        (-3, -3, "contradicted"),
        (-3, -1, "contradicted"),  # harms less without
        (-1, -3, "cannot be told"),  # better with them, but no help: nothing that could need them
    ],
)
def test_whether_znorm_needs_skip_connections(residual, plain, word):
    assert verdicts(effects(residual, plain, 0))[0] == word


def test_no_help_without_skip_connections_must_be_shown_too():
    """An effect in the plain twin of which nothing can be told is no failure there."""
    found = effects(8, 0, 0, spreads={PLAIN: 3.0})
    assert compare_networks(found)[0].word == "larger"
    assert (found.residual.verdict, found.plain.verdict) == ("helps", "cannot be told")
    assert verdicts(found)[0] == "cannot be told"


@pytest.mark.parametrize(("level", "word"), [(10.0, "cannot be told"), (30.0, "shown")])
def test_a_twin_that_does_not_train_says_nothing(level, word):
    assert verdicts(effects(4, 0, 0, plain_level=level))[0] == word


@pytest.mark.parametrize(
    ("baseline", "residual", "overlap", "word"),
    [
        (-3, 1, 4, "shown"),
        (-3, 1, 1, "contradicted"),  # harms, and ZNorm does as much as without
        (-3, 1, -1, "contradicted"),  # harms, and ZNorm does less
        (0, 1, 4, "contradicted"),  # no harm
        (3, 1, 4, "contradicted"),  # a gain
    ],
)
def test_whether_znorm_mends_overlap(baseline, residual, overlap, word):
    assert verdicts(effects(residual, 0, overlap, baseline))[1] == word


@pytest.mark.parametrize(
    ("noisy", "words"),
    [
        ({MODELS[2]: 4.0}, ["cannot be told", "cannot be told"]),
        ({MODELS[0]: 2.5, MODELS[2]: 2.5}, ["harms", "cannot be told"]),
    ],
)
def test_chance_leaves_the_mending_untold(noisy, words):
    found = effects(1, 0, 2, -2 if len(noisy) == 1 else -6, spreads=noisy)
    _, of_baseline, of_mending = compare_networks(found)
    assert [of_baseline.word, of_mending.word] == words
    assert verdicts(found)[1] == "cannot be told"


def test_networks_of_the_same_weights_are_compared_seed_by_seed_and_others_are_not():
    found = effects(4, 1, 3, -2, spread=0.5)
    of_skips, of_baseline, of_mending = compare_networks(found)
    accuracies = {
        (cell.run.model, cell.run.method): list(cell.values("accuracy").values())
        for contrast in (found.residual, found.plain, found.overlap)
        for cell in contrast.cells
    }
    by_seed = {
        model: [a - b for a, b in zip(accuracies[model, "znorm"], accuracies[model, "baseline"], strict=True)]
        for model in MODELS
    }
    # The weights' three points cancel in these: else the interval would be that wide.
    pairs = [
        (of_baseline, accuracies[OVERLAP, "baseline"], accuracies[RESIDUAL, "baseline"]),
        (of_mending, by_seed[OVERLAP], by_seed[RESIDUAL]),
    ]
    for difference, ours, theirs in pairs:
        values = [a - b for a, b in zip(ours, theirs, strict=True)]
        half = T_9 * statistics.stdev(values) / math.sqrt(10)
        assert difference.interval.mean == pytest.approx(statistics.fmean(values))
        assert difference.interval.high == pytest.approx(statistics.fmean(values) + half, rel=1e-5)
        assert half < 0.01
    ours, theirs = by_seed[RESIDUAL], by_seed[PLAIN]
    error = math.sqrt((statistics.variance(ours) + statistics.variance(theirs)) / 10)
    assert of_skips.interval.mean == pytest.approx(statistics.fmean(ours) - statistics.fmean(theirs))
    width = (of_skips.interval.high - of_skips.interval.low) / 2 / error
    assert 2.100922 < width < T_9  # quantiles of 18 and of 9 degrees of freedom


def test_holm_is_over_three_networks_and_over_three_differences():
    found = effects(0.5, 0.9, 0.2, -0.4, spread=0.5)
    differences = compare_networks(found)
    for some, adjusted in (
        ([d.interval.p for d in differences], [d.p for d in differences]),
        (
            [c.interval.p for c in (found.residual, found.plain, found.overlap)],
            [c.p for c in (found.residual, found.plain, found.overlap)],
        ),
    ):
        ranked = sorted(range(3), key=some.__getitem__)
        expected, largest = {}, 0.0
        for factor, i in zip((3, 2, 1), ranked, strict=True):
            largest = max(largest, min(1.0, factor * some[i]))
            expected[i] = largest
        assert adjusted == pytest.approx([expected[i] for i in range(3)])


def test_the_answer_has_both_claims_and_their_numbers():
    text = answer(effects(4, 4, 4, -3))
    assert text.startswith("**That ZNorm needs skip connections is contradicted**: its effect +4.0 [")
    assert (
        "**That ZNorm mends the harm that gradient overlap does is contradicted**: shortcut gradients" in text
    )
    assert "x 1.5 change the baseline by -3.0 [" in text
    assert "**That ZNorm needs skip connections cannot be told**" in answer(effects(-1, -3, 0))


def test_a_report_follows_from_made_up_records(tmp_path):
    points = {(model, "znorm"): 0.06 for model in MODELS} | {(OVERLAP, "baseline"): -0.05}
    records = play(skips.STUDY, lambda run: points.get((run.model, run.method), 0.0))
    for folder, some in (("part", records[:-1]), ("whole", records)):
        (tmp_path / folder).mkdir()
        skips.STUDY.report("cpu", some, tmp_path / folder)
    part = (tmp_path / "part/report.md").read_text()
    assert (
        f"{len(records) - 1} of {len(records)} runs have ended. Nothing is compared before all have." in part
    )
    assert "vs baseline" not in part
    assert read_findings(tmp_path / "part/findings.json") == []

    text = (tmp_path / "whole/report.md").read_text()
    found = read_findings(tmp_path / "whole/findings.json")
    assert {f.question: f.verdict for f in found if f.headline} == {
        "ZNorm needs skip connections": "contradicted",
        "ZNorm mends the harm that gradient overlap does": "shown",
    }
    accuracy = [f for f in found if f.question == "Test accuracy against the baseline"]
    assert len(accuracy) == 3
    rows = {
        tuple(cell.strip() for cell in row.split("|"))[1]: row for row in text.splitlines() if row[:1] == "|"
    }
    in_twin = names.model(OVERLAP)
    assert in_twin == "ResNet-20 with shortcut gradients x 1.5"
    assert "| harms" in rows[f"baseline in {in_twin} minus that in ResNet-20"]
    assert f"ZNorm's effect in {in_twin} minus that in ResNet-20" in rows
    # Runs of one epoch have one training loss, which is neither a final one nor two endpoints.
    assert "final training loss" not in text
    assert "| mean training loss |" in re.sub(" +", " ", text)
    assert "training loss over all epochs: ratio to baseline [95 %]" in text
    # A quarter of a decade makes a third of a point here.
    (resolution,) = [line for line in text.splitlines() if line.startswith("Smaller than the fall of")]
    assert "ZNorm's effect in ResNet-20 minus that in plain-20" in resolution
    assert "baseline in" not in resolution


def test_nothing_is_compared_while_one_network_is_still_tuned(tmp_path):
    records = play(skips.STUDY)
    last = next(r for r in reversed(records) if r.run.model == OVERLAP and r.run.validation_examples)
    skips.STUDY.report("cpu", [r for r in records if r is not last], tmp_path)
    assert "Nothing is compared before all have." in (tmp_path / "report.md").read_text()
    assert read_findings(tmp_path / "findings.json") == []


def test_copied_records_of_another_kind_of_processor_are_named(tmp_path):
    records = [dataclasses.replace(r, environment={"device_kind": "one"}) for r in play(skips.STUDY)]
    copied = [
        dataclasses.replace(r, environment={"device_kind": "two"})
        if r.run.model == RESIDUAL and r.run.seed in (3, 7)
        else r
        for r in records
    ]
    skips.STUDY.report("cpu", copied, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "**Runs of one seed are of several kinds of processor**: SGDM" in text
    assert "seeds 3, 7 (" in text


def test_records_of_other_cells_of_the_other_study_are_refused():
    theirs = play(steps_and_images.STUDY, until=lambda run: run.steps == 1_950)
    mine = [record for record in theirs if is_shared(record.run)]
    skips.STUDY.check_records("cpu", mine)
    others = [record for record in theirs if not is_shared(record.run)]
    assert {record.run.method for record in others} > {"gan", "clipping"}
    for record in others[:: len(others) // 5]:
        with pytest.raises(RecordError, match="of no run that the protocol of skips"):
            skips.STUDY.check_records("cpu", [*mine, record])
