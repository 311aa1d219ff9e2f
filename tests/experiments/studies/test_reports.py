"""Reports of studies, from records made by hand."""

import dataclasses
import re

import pytest

from experiments.report.findings import VERDICTS, read_findings
from experiments.studies import load_studies, load_study

from ..report.made import make_record

# What any of the studies tells of a run beside its accuracy.
SCORES = (
    "f1", "roc_auc", "top_1", "top_5", "dice", "iou", "tversky", "hausdorff", "hausdorff95", "one_empty",
)  # fmt: skip
DATA = {"num_classes": 10, "train_images": 500, "test_images": 200, "image_shape": [32, 32, 3]}


def test_pcam_says_of_every_score_what_was_found(tmp_path):
    study = load_study("pcam")
    tuning = study.runs("cpu", [])
    records = [make_record(run, 0.5 + run.learning_rate) for run in tuning]
    reported = study.runs("cpu", records)[len(tuning) :]
    for run in reported:
        better = 0.2 if (run.method, run.optimizer) == ("gan", "adam") else 0.0
        noise = 0.01 * ((run.seed + len(run.method)) % 3 - 1)
        scores = {"roc_auc": 0.7 + noise, "f1": 0.7 - better + noise}
        data = {"train_images": 2000, "test_images": 1500, "image_shape": [32, 32, 3]}
        made = make_record(run, 0.6 + better + noise)
        records.append(dataclasses.replace(made, scores=scores, data=data))
    study.report("cpu", records, tmp_path)
    text = (tmp_path / "report.md").read_text()
    found = {
        (finding.question.split(" against")[0], finding.label, "Adam" in finding.group): finding.verdict
        for finding in read_findings(tmp_path / "findings.json")
    }
    assert found["Test accuracy", "GAN", True] == "helps"
    assert found["F1", "GAN", True] == "harms"
    assert found["Area under the ROC curve", "GAN", True] == "cannot be told"
    assert {word for key, word in found.items() if key[1:] != ("GAN", True)} == {"cannot be told"}
    assert "- Data: 2,000 training and 1,500 test patches of 32 x 32 pixels." in text
    assert "0.812" in text


def test_the_papers_accuracy_stands_beside_znorm_behind_adam(tmp_path):
    study = load_study("pcam")
    tuning = study.runs("full", [])
    records = [make_record(run, 0.8 if run.learning_rate == 0.001 else 0.7) for run in tuning]
    reported = study.runs("full", records)[len(tuning) :]
    # Chosen on the published validation split, reported on the test split.
    assert {run.dataset for run in tuning} == {"stream:patch_camelyon:validation"}
    assert {run.dataset for run in reported} == {"stream:patch_camelyon"}
    assert {(run.learning_rate, run.validation_examples) for run in reported} == {(0.001, 0)}
    assert {run.seed for run in reported}.isdisjoint(run.seed for run in tuning)
    records += [
        dataclasses.replace(make_record(run, 0.25), scores={"roc_auc": 0.375, "f1": 0.625})
        for run in reported
    ]
    study.report("full", records, tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert lines[0] == "# Tumour detection in PatchCamelyon"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    with_paper = [row for row in rows if "91.7" in row]
    assert [row[:2] for row in with_paper] == [["Adam", "ZNorm"]]
    assert sum("37.5 ± 0.0" in row and "62.5 ± 0.0" in row for row in rows) == 10


@pytest.mark.parametrize("name", list(load_studies()))
def test_a_partial_report_says_what_is_missing(name, tmp_path):
    study = load_study(name)
    runs = study.runs("smoke", [])
    records = [dataclasses.replace(make_record(run, 0.25), scores={"f1": 0.25}) for run in runs[:2]]
    study.report("smoke", records, tmp_path)
    text = (tmp_path / "report.md").read_text()
    known = study.runs("smoke", records)  # with those of a setting whose tuning these two ended
    head, _, rest = text.partition("## Results")
    assert f"{len(known) - 2} of {len(known)} runs are missing" in head
    assert "| setting " in head
    assert len(head.splitlines()[0]) < 80
    assert not any(word in line for word in ("shown", "**helps", "**harms") for line in head.splitlines())
    assert "How to read this report" in rest


@pytest.mark.parametrize("name", [name for name, study in load_studies().items() if study.runs("smoke", [])])
def test_a_full_report_misses_nothing(name, tmp_path):
    study = load_study(name)
    records = []
    while new := [run for run in study.runs("smoke", records) if run not in {r.run for r in records}]:
        records += [
            dataclasses.replace(make_record(run, 0.25), data=DATA, scores=dict.fromkeys(SCORES, 0.25))
            for run in new
        ]
    study.report("smoke", records, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "preset smoke" in text
    assert f"All {len(records)} runs have ended." in text
    assert "runs are missing" not in text
    assert "How to read this report" in text
    for figure in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (tmp_path / figure).exists(), figure
    for finding in read_findings(tmp_path):
        assert finding.verdict in VERDICTS


def test_full_preset_of_table_1_is_the_papers_protocol():
    runs = [run for run in load_study("overlap_table1").runs("full", []) if not run.validation_examples]
    assert {run.model for run in runs} == {"resnet56", "resnet110", "resnet152"}
    assert {(run.epochs, run.batch_size, run.augment, run.dataset) for run in runs} == {
        (100, 256, "none", "cifar10")
    }
    assert {(run.optimizer, run.learning_rate) for run in runs} == {("sgdm", 0.01), ("adam", 0.001)}
