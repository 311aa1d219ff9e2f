"""Data flows one way: no module of the experiments needs itself, by way of others, and none imports upwards."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From below: each may import those before it. `experiments.run`, `files`, `options` and `machine` lie below all.
FLOORS = ("models", "data", "records", "training", "jobs", "report", "studies")


def modules() -> dict[str, Path]:
    paths = [path for path in (ROOT / "experiments").rglob("*.py") if "results" not in path.parts]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def imports(path: Path, known: set[str]) -> set[str]:
    """Modules imported when this one is, those for type checkers among them; not what functions import."""
    found = set()
    statements = list(ast.parse(path.read_text()).body)
    while statements:
        statement = statements.pop()
        if isinstance(statement, ast.If | ast.Try):
            statements += statement.body + statement.orelse
        elif isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            names = {alias.name: f"{statement.module}.{alias.name}" for alias in statement.names}
            found |= {full if full in known else statement.module for full in names.values()}
    return found & known


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(path, set(known)) - {name} for name, path in known.items()}


def test_no_module_needs_itself():
    order = list(graphlib.TopologicalSorter(graph()).static_order())
    assert order.index("experiments.run") < order.index("experiments.studies.study")


@pytest.mark.parametrize("floor", FLOORS)
def test_no_floor_imports_upwards(floor):
    above = FLOORS[FLOORS.index(floor) + 1 :]
    wrong = [
        f"{name} imports {imported}"
        for name, found in graph().items()
        if name.startswith(f"experiments.{floor}")
        for imported in found
        if imported.removeprefix("experiments.").partition(".")[0]
        in (*above, "reproduce", "preflight", "__main__")
    ]
    assert not wrong
