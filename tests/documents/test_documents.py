"""The pages that people read: their examples run, their links lead somewhere, their numbers are measured ones."""

import json
import operator
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optax_gradnorm
from benchmarks import dynamics, training, transforms
from benchmarks import input as inputs
from benchmarks.programs import tables
from experiments import studies
from experiments.records import read_records
from experiments.report import findings, front, steps, summary

ROOT = pathlib.Path(__file__).parents[2]
LISTED = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True).stdout.split()
# In a source distribution, without git, the pages that are there.
DOCUMENTS = [ROOT / name for name in LISTED if (ROOT / name).exists()] or sorted(ROOT.glob("*.md"))
EXAMPLES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
# Sphinx reads these names of included parts; what follows the markers in README.md has to exist.
README = (ROOT / "README.md").read_text()


def name_of(page: pathlib.Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: pathlib.Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in EXAMPLES if blocks(page)], ids=name_of)
def test_examples_run(page, tmp_path):
    script = tmp_path / "pasted.py"
    script.write_text("\n".join(blocks(page)))
    command = [sys.executable, "-W", "error::UserWarning:optax_gradnorm", script]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | {"MPLBACKEND": "agg"}
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("page", [page for page in EXAMPLES if page.name != "README.md"], ids=name_of)
def test_code_fits_the_column_of_the_pages(page):
    for block in blocks(page):
        for line in block.splitlines():
            assert len(line) <= 79, line


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors that a page's headings get, on GitHub and by Sphinx alike."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```(?!\{include\}).*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^()\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", EXAMPLES, ids=name_of)
def test_included_parts_exist(page):
    for path, options in re.findall(r"^```\{include\} (\S+)\n(.*?)^```", page.read_text(), re.M | re.S):
        included = (page.parent / path).read_text()
        for marker in re.findall(r"^:(?:start-after|end-before): (.*)$", options, re.M):
            assert included.count(marker.strip('"')) == 1, marker


def test_every_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    files = [ROOT / ".ci/run", *ROOT.glob(".github/workflows/*.yml")]
    named = {
        name for file in files for name in re.findall(r"(?:^|run: )make ([a-z-]+)", file.read_text(), re.M)
    }
    for page in DOCUMENTS:
        named |= set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.M))
    assert {"lint", "test", "docs", "demo"} <= named <= targets


def naive(gradient):
    return (gradient - gradient.mean()) / (gradient.std() + 1e-10)


def normalize(gradient, **arguments):
    transform = optax_gradnorm.znorm(**arguments)
    return transform.update(gradient, transform.init(gradient))[0]


NOISE = jax.random.normal(jax.random.key(0), (64, 64))


@pytest.mark.parametrize(
    ("scale", "dtype", "wrong"),
    [(1e20, jnp.float32, 0.0), (300.0, jnp.float16, 0.0), (1e-4, jnp.float16, np.nan)],
)
def test_three_lines_of_ones_own_fail_where_the_readme_says(scale, dtype, wrong):
    gradient = (NOISE * scale).astype(dtype)
    if wrong == 0:
        assert not naive(gradient).any()
    else:
        assert not jnp.isfinite(naive(gradient)).any()
    normalized = np.asarray(normalize(gradient), np.float64)
    assert normalized.std() == pytest.approx(1, abs=2e-3)
    assert normalized.mean() == pytest.approx(0, abs=2e-3)


def test_three_lines_of_ones_own_mix_layers_where_the_readme_says():
    scales = jnp.array([1e-3, 1.0])[:, None, None]
    stack = scales * NOISE.reshape(2, 32, 64)
    assert naive(stack)[0].std() < 1e-2
    np.testing.assert_allclose(normalize(stack, stacked_axes=1).std(axis=(1, 2)), 1, atol=1e-3)

    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])

    def per_device(function):
        # Elements of one layer, half of them on each device.
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=P("data"), out_specs=P("data")))

    shards = jax.device_put(stack.reshape(64, 64), NamedSharding(mesh, P("data")))
    np.testing.assert_allclose(np.asarray(per_device(naive)(shards))[:32].std(), 1, atol=1e-3)
    whole = per_device(lambda g: normalize(g, axis_name="data", mask=True))(shards)
    np.testing.assert_allclose(whole, normalize(stack.reshape(64, 64)), atol=1e-5)

    bias = {"bias": 1e-6 * NOISE[0]}
    mask = {"bias": False}
    assert naive(bias["bias"]).std() == pytest.approx(1, abs=1e-3)
    np.testing.assert_array_equal(normalize(bias, mask=mask)["bias"], bias["bias"])


def test_an_update_of_znorm_has_the_norm_that_the_readme_says():
    for size in (8, 64):
        updates = normalize(NOISE[:size, :size] * 1e-7)
        assert float(jnp.linalg.norm(updates)) == pytest.approx(size, rel=1e-3)


def test_the_readmes_cost_is_that_of_the_committed_records():
    cost = README[README.index("<!-- cost: begin -->") : README.index("<!-- cost: end -->")]
    said = " ".join(cost.split())
    results = ROOT / "benchmarks/results"
    record = json.loads((results / "transforms-cpu.json").read_text())
    assert transforms.summary(record["results"]) in said
    record = json.loads((results / "training-cpu.json").read_text())
    assert training.summary(record["batch_size"], record["results"]) in said
    assert tables.summary(programs()) in said


def programs() -> dict[str, dict]:
    """The records of programs, by target."""
    paths = sorted((ROOT / "benchmarks/results").glob("programs-*.json"))
    return {path.stem.removeprefix("programs-"): json.loads(path.read_text()) for path in paths}


def test_what_the_pages_say_of_programs_is_that_of_the_committed_records():
    readme = (ROOT / "benchmarks/README.md").read_text()
    records = programs()
    assert {"h100", "v5e", "v5e-16"} <= set(records)
    for record in records.values():
        assert tables.table(record["target"]["title"], record["results"]).strip() in readme
    page = (ROOT / "docs/scale.md").read_text()
    assert tables.kernels_table(records["h100"]) in page
    several = [record for record in records.values() if record["target"]["devices"] > 1]
    assert tables.collectives_table(several) in page


def test_the_readmes_cost_on_a_gpu_is_that_of_the_committed_records():
    results = ROOT / "benchmarks/results"
    records = [
        json.loads((results / f"transforms-nvidia-{name}.json").read_text()) for name in ("h100", "h200")
    ]
    trees = [rows for record in records for rows in record["results"].values()]
    chains = [row for rows in trees for row in rows if row["chain"] in ("znorm", "gan")]
    ratios = [row["ratio_to_clip"] for row in chains]
    assert f"cost {min(ratios):.1f} to {max(ratios):.1f} times what clipping costs" in README
    added = json.loads((results / "training-nvidia-h200.json").read_text())["results"]["resnet20"]["shares"]
    percent = [added[name]["median_percent"] for name in ("znorm", "gan")]
    assert f"{min(percent):.0f} % of a step of ResNet-20" in README
    assert round(max(percent)) == round(min(percent))


def test_the_benchmarks_tables_are_those_of_the_committed_records():
    readme = (ROOT / "benchmarks/README.md").read_text()
    results = ROOT / "benchmarks/results"
    for name in (
        "transforms-cpu",
        "transforms-cpu-1cores",
        "transforms-nvidia-h200",
        "transforms-nvidia-h100",
    ):
        record = json.loads((results / f"{name}.json").read_text())
        for tree, rows in record["results"].items():
            assert transforms.table(tree, transforms.TREES[tree](), rows) in readme + "\n"
    record = json.loads((results / "dynamics-cpu.json").read_text())
    assert dynamics.table(record["results"]) in readme
    for name in ("training-cpu", "training-nvidia-h200"):
        record = json.loads((results / f"{name}.json").read_text())
        for model, rows in record["results"].items():
            title = training.title(model, record["batch_size"], record["cores"])
            assert training.table(title, rows) in readme
    assert inputs.table(json.loads((results / "input-cpu.json").read_text())) in readme


def found_in_all_studies():
    return summary.collect(ROOT / "experiments/results", studies.deciding_studies())


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 115


def test_the_readmes_answer_is_rendered_from_the_findings_of_the_studies():
    """Every number and word between its markers: at most eight rows, each decided and with one word."""
    found = found_in_all_studies()
    rendered = summary.front_page(
        found, ROOT / "README.md", ROOT / "docs", ROOT / "experiments/results", with_figure=True
    )
    assert findings.insert(README, rendered) == README
    part = README[README.index(findings.BEGIN) : README.index(findings.END)]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in part.splitlines() if row[:1] == "|"][
        2:
    ]
    assert len(rows) == len(front.CLAIMS) <= 8
    words = [re.fullmatch(r"\[([^]]+)\]\((experiments/results/.*/report\.md)\)", row[-1]) for row in rows]
    assert {word[1] for word in words if word} <= {*findings.VERDICTS} - {findings.UNTOLD}
    for word in words:
        assert word
        assert "## Results" in (ROOT / word[2]).read_text()
    told = {row[0] for row in rows}
    assert {"ZNorm accelerates training", "ZNorm is better than clipping", "GAN raises accuracy"} <= told


def test_the_readmes_answer_names_the_settings_that_the_records_have():
    """Images, epochs and the shared rate that stand beside ZNorm's numbers, in the table and in the figure."""
    picks = [(pick, pick in front.SHARED) for pick in (*front.CLAIMS, *front.SHARED) if "SGDM" in pick.group]
    for pick, shared in picks:
        records = read_records(ROOT / f"experiments/results/{pick.study}/cpu/records")
        runs = [r.run for r in records if not r.run.validation_examples and r.run.method == "znorm"]
        trained = [run for run in runs if run.optimizer == "sgdm" and (run.learning_rate == 0.01) == shared]
        settings = {
            f"{run.train_examples or 50_000:,} images"
            + ("" if shared else f", {run.steps:,} steps" if run.steps else f", {run.epochs} epochs")
            for run in trained
        }
        assert pick.study == steps.STUDY or len(settings) == 1
        assert any(setting in pick.setting for setting in settings)


def test_how_to_choose_has_the_numbers_of_the_findings():
    found = found_in_all_studies()
    page = (ROOT / "docs/choosing.md").read_text()
    few, many = (pick.find(found) for pick in front.SHARED)
    group = front.TUNED.format("SGDM")
    long = {f.label: f for f in found["cifar10_confirm"] if (f.question, f.group) == (front.ACCURACY, group)}
    short = {
        method: steps.find_effects(found[steps.STUDY], method)
        for method in ("ZNorm", "centralization", "clipping by norm")
    }
    for words, told in (
        ("ZNorm gained {} points of accuracy in one setting", [many]),
        ("lost {} in another", [few]),
        (
            "it gained {} points in 1,950 steps and {} in 390, and {} in 390 steps on 2,000 images",
            [long["centralization"], *(short["centralization"][images][390] for images in (50_000, 2_000))],
        ),
        (
            "Clipping by global norm gained {} and {};",
            [long["clipping by norm"], short["clipping by norm"][50_000][390]],
        ),
        (
            "ZNorm gained {} points in 390 steps on 50,000 images, and {} in 390 steps on 2,000;",
            [short["ZNorm"][images][390] for images in (50_000, 2_000)],
        ),
        ("in 1,950 steps on 50,000 images it lost {}.", [long["ZNorm"]]),
    ):
        effects = [finding.effect for finding in told if finding and finding.verdict != findings.UNTOLD]
        assert words.format(*(f"{abs(effect):.1f}" for effect in effects)) in " ".join(page.split())


def test_what_optax_has_is_there():
    section = README[README.index("## What optax has") : README.index("## Reproduce")]
    named = re.findall(r"`([a-z_.]+)`", section)
    assert {"novograd", "contrib.normalize", "contrib.adopt", "contrib.dowg"} <= set(named)
    for name in named:
        assert operator.attrgetter(name)(optax), name
