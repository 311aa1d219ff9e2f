"""Collectives of the transformations under jit with sharded gradients, from compiled programs."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import scale

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.devices(8)

# Sums and maxima of scalars: of the largest magnitude, the rough mean, the mean and the mean square of a layer, once
# over each mesh axis that divides it.
STATISTICS = 4
AXES = 2
# Blocks hold six layers each, and the embedding is one more.
LAYERS = {1: 7, 2: 13}


def counted(name, blocks):
    mesh = scale.make_mesh(8)
    gradients = scale.transformer(mesh, blocks, width=64)
    with scale.as_on_accelerators():
        program = scale.compile_update(scale.make_transform(name), gradients, mesh).as_text()
    return scale.collectives(program)


@pytest.mark.parametrize("name", ["znorm", "gan", "track_gradient_dynamics"])
def test_four_scalars_a_layer_and_axis(name):
    for blocks, layers in LAYERS.items():
        found = counted(name, blocks)
        assert {c.kind for c in found} == {"all-reduce"}
        assert sum(c.arrays for c in found) == layers * STATISTICS * AXES
        assert sum(c.bytes for c in found) == 4 * layers * STATISTICS * AXES
        # XLA joins the scalars of a layer over both axes: two collectives remain for each, beside a few.
        assert len(found) <= 2 * layers + 6


def test_centralize_reduces_means_of_units_and_gathers_nothing():
    found = counted("centralize", 1)
    assert {c.kind for c in found} == {"all-reduce"}


def test_collectives_of_a_program():
    """Tuples, comments and layouts in types; those that start and end apart count once."""
    program = """
      %a = f32[] all-reduce(%x), channel_id=1
      %b = (f32[], f32[8,2]{1,0}, /*index=2*/bf16[3]{0:T(4)}) all-reduce(%x, %y, %z), channel_id=2
      %c = (f32[4]{0}, f32[8]{0}) all-gather-start(%x), channel_id=3
      %d = f32[8]{0} all-gather-done(%c)
      %e = f32[] get-tuple-element(%b), index=0
    """
    assert scale.collectives(program) == [
        ("all-reduce", 1, 4),
        ("all-reduce", 3, 4 + 64 + 6),
        ("all-gather", 1, 32),
    ]


def test_the_pages_numbers_are_those_of_the_record():
    record = json.loads((scale.RESULTS / "scale.json").read_text())
    rows = re.findall(
        r"^\| `(?:optax\.)?(\w+)` \|(.*)\|$", (ROOT / "docs/scale.md").read_text(), re.MULTILINE
    )
    assert {name for name, _ in rows} == {entry["transform"] for entry in record["results"]}
    for name, row in rows:
        _, separate, stacked, sent = row.split("|")
        entries = [entry for entry in record["results"] if entry["transform"] == name]
        whole = [entry for entry in entries if entry["parameters"] > 1e9]
        assert {entry["devices"] for entry in whole} == {8, 64, 512}
        for entry in whole:
            assert entry["collectives"] == int(stacked if entry["stacked"] else separate)
            if name != "centralize":
                assert f"{entry['bytes']:,}" in re.findall(r"[\d,]+", sent)
            else:
                assert f"{entry['bytes']:,}" in (ROOT / "docs/scale.md").read_text()
