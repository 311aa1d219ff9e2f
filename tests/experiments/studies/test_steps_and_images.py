"""The plans of `steps_and_images` and `shared_rate`: what is trained when, and at which learning rates."""

import dataclasses
import math
import random
import re

import pytest

from experiments.records import EpochMetrics, RunRecord
from experiments.report.findings import read_findings
from experiments.studies import shared_rate, steps_and_images
from experiments.studies.steps_and_images.plan import SIZES, TUNING_SEEDS

BEST = {"baseline": 0.1, "centralization": 0.18, "clipping": 3.0, "znorm": 8e-4, "gan": 40.0}


def record_of(run):
    """As if accuracy were a parabola over the logarithm of the rate."""
    best = BEST[run.method] if run.optimizer == "sgdm" else 0.01
    accuracy = 0.6 - 0.05 * math.log10(run.learning_rate / best) ** 2
    epochs = [
        EpochMetrics(n, 1.0, 0.5, *((1.0, accuracy) if run.evaluates(n) else (None, None)), 0, 1.0)
        for n in range(1, run.epochs + 1)
    ]
    return RunRecord(run, "finished", epochs=tuple(epochs))


def play(study, preset):
    """The runs of every round, each named when those before it have ended, and all records."""
    rounds, records = [], {}
    while new := [run for run in study.runs(preset, list(records.values())) if run not in records]:
        rounds.append(new)
        records |= {run: record_of(run) for run in new}
        assert len(rounds) < 30
    study.check_records(preset, list(records.values()))
    return rounds, list(records.values())


@pytest.fixture(scope="module")
def played():
    """`play` of the preset `cpu`."""
    return play(steps_and_images.STUDY, "cpu")


@pytest.mark.parametrize("preset", ["smoke", "full"])
def test_every_run_takes_its_steps_on_its_images(preset):
    size = SIZES[preset]
    _, records = play(steps_and_images.STUDY, preset)
    for run in (record.run for record in records):
        in_epoch = run.train_examples // run.batch_size
        assert (run.epochs - 1) * in_epoch < run.steps <= run.epochs * in_epoch
        assert round(run.warmup_epochs * in_epoch) == round(run.steps / 10)
        assert run.evaluated_epochs == 1
        if run.validation_examples:
            assert run.seed in TUNING_SEEDS
            assert run.train_examples + run.validation_examples <= size.all_images
        else:
            assert run.seed not in TUNING_SEEDS


def test_the_order_is_the_protocols(played):
    runs = [record.run for record in played[1] if record.run.seed < 100]
    reported = [(run.train_examples, run.steps, run.optimizer) for run in runs]
    assert list(dict.fromkeys(reported)) == [
        (50_000, 390, "sgdm"),
        (2_000, 390, "sgdm"),
        (2_000, 1_950, "sgdm"),
        (50_000, 1_950, "sgdm"),
        (50_000, 390, "adam"),
        (2_000, 390, "adam"),
        (50_000, 195, "sgdm"),
        (50_000, 975, "sgdm"),
    ]
    seeds = {steps: {run.seed for run in runs if run.steps == steps} for steps in (390, 1_950)}
    assert seeds == {390: set(range(10)), 1_950: set(range(5))}


def test_rates_are_the_best_of_grids_that_grow_and_are_refined(played):
    runs = [record.run for record in played[1]]
    part_a = [run for run in runs if (run.steps, run.optimizer) == (390, "sgdm")]
    tried = {
        method: {run.learning_rate for run in part_a if run.seed == 100 and run.method == method}
        for method in BEST
    }
    assert tried["baseline"] == {0.03, 0.055, 0.1, 0.18, 0.3, 1.0}
    assert tried["znorm"] == {1e-4, 3e-4, 5.5e-4, 1e-3, 1.8e-3, 3e-3}
    # Grown from 1 by 3, 10, 30 and 100, then refined.
    assert tried["gan"] == {0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 18.0, 30.0, 55.0, 100.0}
    reported = {run.method: run.learning_rate for run in part_a if run.seed == 0}
    assert reported == {"baseline": 0.1, "centralization": 0.18, "clipping": 3.0, "znorm": 1e-3, "gan": 30.0}


def test_the_first_rates_come_first_and_an_edge_is_extended():
    rounds, records = play(shared_rate.STUDY, "cpu")
    assert {(run.method, run.learning_rate) for run in rounds[0]} == {
        ("baseline", 0.01),
        ("baseline", 0.1),
        ("znorm", 0.01),
    }
    assert {(run.method, run.learning_rate) for run in rounds[2]} == {("znorm", 3e-4)}
    assert all(record.run.evaluated_epochs == 10 for record in records)
    assert {record.run.schedule for record in records} == {"constant"}


def noisy(run, accuracy):
    """A finished run with an accuracy that chance moves a little."""
    accuracy += random.Random(run.name).gauss(0, 0.002)
    epochs = [
        EpochMetrics(n, 1.0 / n, 0.5, *((1.0, accuracy) if run.evaluates(n) else (None, None)), 0, 1.0)
        for n in range(1, run.epochs + 1)
    ]
    return RunRecord(run, "finished", epochs=tuple(epochs))


@pytest.mark.parametrize(
    ("at_shared", "at_best", "verdict", "words"),
    [
        (0.58, 0.60, "shown", "**The gain is one of the rate**"),
        (0.58, 0.70, "contradicted", "**The gain is one of the method**"),
        (0.50, 0.60, "cannot be told", "**The gain was not found again, and nothing is explained**"),
        (
            0.58,
            0.63,
            "cannot be told",
            "**Whether the gain is one of the rate or of the method cannot be told**",
        ),
    ],
)
def test_the_cause_of_the_gain_is_judged_by_the_protocols_rule(at_shared, at_best, verdict, words, tmp_path):
    """The baseline has 0.50 at the shared rate and 0.59 at its best; half of a gain of 8 points is 4."""
    accuracies = {
        "baseline": {0.01: 0.50, 0.03: 0.55, 0.1: 0.59, 0.3: 0.57},
        "znorm": {0.01: at_shared, 0.003: at_best, 0.001: 0.45},
    }
    records = []
    while new := [r for r in shared_rate.make_runs("cpu", records) if r not in {x.run for x in records}]:
        records += [noisy(run, accuracies[run.method][run.learning_rate]) for run in new]
    shared_rate.make_report("cpu", records, tmp_path)
    (finding,) = read_findings(tmp_path / "findings.json")
    assert finding.verdict == verdict
    text = (tmp_path / "report.md").read_text()
    assert text.splitlines()[2].startswith(words)
    assert "at the best rates: ZNorm at 0.003 minus baseline at 0.1" in text
    assert "the rate alone: baseline at 0.1 minus baseline at 0.01" in text
    assert "+9.0 [" in text
    # Where the verdict is the same in every row, it is told all the same.
    assert "| verdict " in text
    head = text.split("## Results")[0]
    assert re.search(r"detectable differences \(80 % power, two-sided 5 %\): [\d.]+ to [\d.]+ points\.", head)
    # The secondary endpoints: all methods have the same losses here.
    losses = text.split("Training losses")[1].split("Test accuracy")[0]
    assert losses.count("1.000 [seeds agree]") == 6


@pytest.fixture(scope="module")
def part_a():
    """Records of the whole of part a; ZNorm gains 6 points."""
    better = {"baseline": 0.0, "centralization": 0.0, "clipping": -0.02, "znorm": 0.06, "gan": 0.0}
    records = []
    runs = []
    while not any(run.steps == 1_950 for run in runs):  # until the tuning of the next part has its turn
        new = [run for run in runs if run not in {record.run for record in records}]
        records += [
            noisy(run, 0.6 + better[run.method] - abs(math.log10(run.learning_rate / BEST[run.method])) / 9)
            for run in new
        ]
        runs = steps_and_images.make_runs("cpu", records)
    return records


def report(records, folder, preset="cpu"):
    """The page of `steps_and_images`."""
    steps_and_images.STUDY.report(preset, records, folder)
    return (folder / "report.md").read_text()


def test_a_cell_with_a_diverged_run_is_named_in_the_head(part_a, tmp_path):
    assert "diverged" not in report(part_a, tmp_path).split("## Results")[0]
    broken = [
        dataclasses.replace(record, status="diverged")
        if (record.run.method, record.run.train_examples, record.run.seed) == ("gan", 2_000, 3)
        else record
        for record in part_a
    ]
    head = report(broken, tmp_path).split("## Results")[0]
    assert re.search(
        r"With diverged runs: 2,000 images, 390 steps, SGDM, GAN, rate \d+ \(1 of 10\)\.\n", head
    )
    assert "390 steps on 50,000 images: ZNorm (+" in head  # what was found stays


def test_nothing_of_a_part_is_compared_while_a_method_is_still_tuned(part_a, tmp_path):
    """All reported runs that can be named have ended, but those of one method have no rate yet."""
    some = [
        record
        for record in part_a
        if (record.run.method, record.run.train_examples) != ("znorm", 2_000)
        or record.run.learning_rate < 6e-4
    ]
    assert len(some) < len(part_a)
    text = report(some, tmp_path)
    assert read_findings(tmp_path / "findings.json") == []
    assert "90 of 100 runs have ended. Nothing is compared before all have." in text


def test_a_part_is_compared_when_it_has_ended(part_a, tmp_path):
    text = report(part_a, tmp_path)
    found = {
        (finding.label, finding.group): finding.verdict
        for finding in read_findings(tmp_path / "findings.json")
        if finding.question.startswith("Test accuracy")
    }
    assert len(found) == 8  # four methods with two numbers of images
    assert {group.count("390 steps") for _, group in found} == {1}
    assert {verdict for (label, _), verdict in found.items() if label == "ZNorm"} == {"helps"}
    assert {verdict for (label, _), verdict in found.items() if label == "clipping by norm"} == {"harms"}
    # A quarter of a decade makes about 3 points here: more than the others' effects, less than ZNorm's 5.
    (resolution,) = [line for line in text.splitlines() if line.startswith("Smaller than the fall of")]
    assert ", GAN: " in resolution
    assert ", clipping by norm: " in resolution
    assert "ZNorm" not in resolution
    assert "Tuning of part a" in text
    assert "Tuning of part b" not in text  # none of its runs has ended
    assert "### Part b" not in text
    assert "Not compared yet, as their runs have not ended: part b, c, d, e." in text


def test_part_c_takes_the_higher_mean_of_two_candidates_also_where_both_have_diverged_runs(played, tmp_path):
    """Baseline: 0.5 at 0.1 and 0.6 at 0.3, with a run at the accuracy of chance in both."""
    changed = []
    for record in played[1]:
        run = record.run
        if run.seed < 100:
            status, accuracy = "finished", 0.5 + random.Random(run.name).gauss(0, 0.001)
            if (run.method, run.train_examples, run.steps) == ("baseline", 50_000, 1_950):
                accuracy = 0.1 if run.seed == 2 else 0.5 if run.learning_rate == 0.1 else 0.6
                status = "diverged" if run.seed == 2 else "finished"
            last = dataclasses.replace(record.epochs[-1], test_accuracy=accuracy)
            record = dataclasses.replace(record, status=status, epochs=(*record.epochs[:-1], last))
        changed.append(record)
    part_c = report(changed, tmp_path).split("### Part c")[1].split("### ")[0]
    row = next(line for line in part_c.splitlines() if line.startswith("| baseline"))
    assert [cell.strip() for cell in row.split("|")[2:4]] == ["0.3", "50.0 ± 22.4"]
    assert "**50.0 ± 22.4 diverged**" in part_c
    assert "a choice that sees the test images" in part_c
    assert "edge of the grid" not in part_c  # candidates are no grid
    assert "Not compared yet" not in part_c


def test_findings_name_the_network_of_their_preset(tmp_path):
    _, records = play(steps_and_images.STUDY, "smoke")
    report(records, tmp_path, "smoke")
    groups = {finding.group.split(", ")[1] for finding in read_findings(tmp_path / "findings.json")}
    assert groups == {"ResNet-8"}


@pytest.mark.parametrize("study", [steps_and_images.STUDY, shared_rate.STUDY])
def test_reports_are_written_at_every_point(study, tmp_path):
    _, records = play(study, "smoke")
    for count in (0, len(records) // 2, len(records)):
        folder = tmp_path / str(count) / "smoke"
        folder.mkdir(parents=True)
        study.report("smoke", records[:count], folder)
        assert (folder / "report.md").read_text().startswith("# ")
