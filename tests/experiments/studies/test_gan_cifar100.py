"""The rules that were fixed before the runs of `gan_cifar100`, on made-up records and gradients."""

import dataclasses
import random

import numpy as np
import pytest
from scipy import stats

from experiments import records as records_module
from experiments.records import EpochMetrics, RunRecord
from experiments.records.dynamics import GradientDynamics
from experiments.report.findings import read_findings
from experiments.studies.gan_cifar100 import STUDY
from experiments.studies.gan_cifar100.amplification import amplification_findings
from experiments.studies.gan_cifar100.plan import amplified_runs
from experiments.studies.observations import trend_findings
from experiments.studies.trends import Peak, summarize


def make_record(run, accuracy=0.5, loss=1.0):
    epochs = tuple(
        EpochMetrics(
            e,
            loss / e,
            0.5,
            1.0 if run.evaluates(e) else None,
            accuracy if run.evaluates(e) else None,
            0,
            1.0,
        )
        for e in range(1, run.epochs + 1)
    )
    return RunRecord(run, "finished", epochs=epochs)


SHARE = {"gan": 1, "znorm": 0.3, "layer_centralization": 0.2, "baseline": -0.1}  # of the spread over seeds


def play(points, spread):
    """Records of every run that is named until none is; by method so many points above the baseline."""
    records = []
    while todo := [
        run for run in STUDY.runs("cpu", records) if run not in {record.run for record in records}
    ]:
        for run in todo:
            chance = spread * (0, 1, -1, 0.5, -0.5)[run.seed] * SHARE[run.method]
            records.append(make_record(run, 0.5 + (points.get(run.method, 0) + chance) / 100))
    return records


def compared_seeds(records):
    return sorted({record.run.seed for record in records if record.run.train_examples is None})


@pytest.mark.parametrize(
    ("points", "spread", "seeds"), [(0, 0.05, 3), (9, 0.05, 3), (0, 1.0, 5), (9, 1.0, 5)]
)
def test_two_more_seeds_are_asked_for_by_the_width_of_the_interval_and_never_by_the_effect(
    points, spread, seeds
):
    assert compared_seeds(play({"gan": points}, spread)) == list(range(seeds))


def test_networks_that_are_amplified_come_last_and_have_equal_images_and_steps():
    first = STUDY.runs("cpu", [])
    assert {run.model for run in first} == {"resnet20"}
    amplified = amplified_runs("cpu")
    lengths = {(run.train_examples, run.epochs, run.batch_size, run.schedule) for run in amplified}
    assert len(lengths) == 1
    assert {run.model for run in amplified} == {"resnet20", "resnet56", "vgg16_bn"}
    named = set(STUDY.named("cpu", []))
    assert named.issuperset(record.run for record in play({}, 1.0))


def report(records, folder, factors=None):
    """The findings of a report whose runs have gradients that keep to one deviation."""
    for record in records:
        deviation = 1 / (factors or {}).get(record.run.model, 100)
        layers = np.full((record.run.epochs, 2), deviation * (1 + 0.01 * record.run.seed), np.float32)
        recorded = GradientDynamics(
            ("a/kernel", "b/kernel"), np.array([9, 9]), layers, layers, layers, layers[:, 0].copy()
        )
        records_module.write_record(folder / "records", record)
        records_module.write_dynamics(folder / "records", record.run, recorded)
    STUDY.report("cpu", records, folder)
    return {(f.question, f.label): f for f in read_findings(folder)}


def test_gan_is_held_against_the_optimizer_and_its_multiplier_against_the_centring_alone(tmp_path):
    found = report(play({"gan": 3, "layer_centralization": 3}, 0.05), tmp_path, {"vgg16_bn": 500})
    baseline = "Test accuracy against the baseline"
    assert found[baseline, "GAN"].verdict == found[baseline, "centralization of layers"].verdict == "helps"
    assert found[baseline, "ZNorm"].verdict == "no difference that counts"
    alone = found["Test accuracy against the centralization of layers", "GAN"]
    assert alone.verdict == "no difference that counts"
    assert found["ZNorm amplifies most in VGG", "baseline"].verdict == "shown"
    # The article says of GAN that accuracy is kept and training smoother, and nothing of the other questions.
    assert {question: f.source for (question, label), f in found.items() if f.source and label == "GAN"} == {
        baseline: "Yun 2025, arXiv 2509.03677: it is kept",
        "Roughness of the training loss against the baseline": "Yun 2025, arXiv 2509.03677",
    }
    assert (
        found["The global deviation falls from epoch 2 on", "ResNet-20, baseline"].verdict == "cannot be told"
    )
    assert "GAN beside the centring alone" in (tmp_path / "report.md").read_text()


def test_nothing_is_compared_before_all_runs_of_a_part_have_ended(tmp_path):
    records = play({"gan": 3}, 0.05)
    compared = [record for record in records if record.run.train_examples is None]
    assert report(compared[:-1], tmp_path / "first") == {}
    assert "11 of 12 runs have ended. Nothing is compared" in (tmp_path / "first/report.md").read_text()
    found = report([*compared, *records[len(compared) : -1]], tmp_path / "second")
    assert not [question for question, _ in found if "VGG" in question]
    assert [question for question, _ in found if "accuracy" in question]


def amplified(vgg, *others, spread=0.01):
    """The verdict for factors of VGG and of other networks, over five seeds."""
    dynamics = GradientDynamics(
        ("a",), np.array([9]), *[np.ones((3, 1), np.float32)] * 3, np.ones(3, np.float32)
    )
    summary = summarize(dynamics)

    def runs(factor, model):
        chance = random.Random(model)
        return [
            dataclasses.replace(summary, peak=Peak(factor * np.exp(chance.gauss(0, spread)), "a", 1))
            for _ in range(5)
        ]

    settings = {("vgg16_bn", "znorm"): runs(vgg, "vgg")}
    settings |= {(f"resnet{8 + 6 * i}", "znorm"): runs(factor, f"{i}") for i, factor in enumerate(others)}
    (finding,) = amplification_findings(settings, 200)
    return finding


def test_vgg_must_be_above_every_other_network_and_one_below_contradicts():
    assert amplified(20, 10, 15).verdict == "shown"
    assert amplified(20, 10, 25).verdict == "contradicted"
    assert amplified(20, 10, 20).verdict == "cannot be told"
    assert amplified(20, 10, 19.9).verdict == "cannot be told"
    assert amplified(20, 10, 15, spread=1.0).verdict == "cannot be told"
    assert amplified(20).verdict == "cannot be told"
    assert amplified(20).note == "this needs VGG and another network"
    assert amplified(20, 10).note == "in 200 steps of the paper's 58,500"


def test_the_ratio_is_that_of_geometric_means_with_welchs_interval():
    finding = amplified(20, 10)
    a, b = np.log(20) + _chances("vgg"), np.log(10) + _chances("0")
    errors = a.var(ddof=1) / 5, b.var(ddof=1) / 5
    freedom = sum(errors) ** 2 / sum(e**2 / 4 for e in errors)
    half = stats.t.ppf(0.975, freedom) * sum(errors) ** 0.5
    mean = a.mean() - b.mean()
    low, high = np.exp([mean - half, mean + half])
    assert f"x {np.exp(mean):.3f} [{low:.3f}, {high:.3f}] of ResNet-8's" in finding.measured


def _chances(name):
    chance = random.Random(name)
    return np.array([chance.gauss(0, 0.01) for _ in range(5)])


def falling(*changes, epochs=8):
    """The findings on gradients whose deviations change by so much from the second epoch to the last, by run."""
    runs = []
    for change in changes:
        curve = np.float32([3.0, *np.geomspace(1, change, epochs - 1)])
        layers = np.repeat(curve[:, None], 2, axis=1)
        runs.append(summarize(GradientDynamics(("a", "b"), np.array([9, 9]), layers, layers, layers, curve)))
    setting = ("resnet20", "baseline")
    return [f.verdict for f in trend_findings({setting: runs}, {"resnet20": 5_850}, headline=setting)]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ((0.5, 0.6, 0.7), "shown"),
        ((0.97, 0.971, 0.972), "shown"),  # a small fall is one: the first word that applies
        ((1.5, 1.6, 1.7), "contradicted"),
        ((1.03, 1.031, 1.032), "contradicted"),
        ((0.99, 1.0, 1.01), "no difference that counts"),
        ((0.5, 1.0, 2.0), "cannot be told"),
        ((0.5, 0.51), "cannot be told"),  # two runs
    ],
)
def test_the_fall_of_the_global_deviation_gets_the_first_word_that_applies(changes, word):
    assert falling(*changes)[0] == word


def test_two_runs_say_nothing_of_layers_that_part():
    assert falling(0.5, 0.6, 0.7)[1] == "contradicted"
    assert falling(0.5, 0.6)[1] == "cannot be told"


def test_two_runs_of_a_network_say_nothing_of_amplification():
    factor = {"vgg16_bn": 20.0, "resnet20": 10.0}
    dynamics = GradientDynamics(
        ("a",), np.array([9]), *[np.ones((3, 1), np.float32)] * 3, np.ones(3, np.float32)
    )
    summary = summarize(dynamics)
    settings = {
        (model, "znorm"): [
            dataclasses.replace(summary, peak=Peak(size * (1 + 1e-4 * n), "a", 1)) for n in range(2)
        ]
        for model, size in factor.items()
    }
    assert amplification_findings(settings, 200)[0].verdict == "cannot be told"


def test_gradients_of_a_run_that_diverged_do_not_count(tmp_path):
    """Its last epoch is an earlier one than that of the others, and its gradients may have overflowed."""
    records = play({}, 1.0)
    expected = report(records, tmp_path / "whole")
    broken = next(r for r in records if (r.run.method, r.run.seed, r.run.train_examples) == ("gan", 4, None))
    records[records.index(broken)] = dataclasses.replace(broken, status="diverged")
    found = report(records, tmp_path / "broken")
    question = "The global deviation falls from epoch 2 on", "ResNet-20, GAN"
    assert expected[question].measured.endswith("of 5 runs")
    assert found[question].measured.endswith("of 4 runs")
    assert found[question[0], "ResNet-20, ZNorm"].measured.endswith("of 5 runs")


def test_a_report_says_which_seeds_were_made_on_several_kinds_of_processors(tmp_path):
    records = [dataclasses.replace(r, environment={"device_kind": "one"}) for r in play({}, 0.05)]
    report(records, tmp_path / "one")
    assert "several kinds of processor" not in (tmp_path / "one/report.md").read_text()
    mixed = [
        dataclasses.replace(r, environment={"device_kind": "two"}) if r.run.seed == 1 and n % 2 else r
        for n, r in enumerate(records)
    ]
    report(mixed, tmp_path / "two")
    assert "**Runs of one seed are of several kinds of processor**: ResNet-20, AdamW" in (
        text := (tmp_path / "two/report.md").read_text()
    )
    assert "seed 1 (" in text
