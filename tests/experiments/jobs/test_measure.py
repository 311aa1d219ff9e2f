"""Measurements in real worker processes: some raise, some die, some were made before."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import records
from experiments.records import RecordError

ROOT = Path(__file__).parents[3]

SCRIPT = """
import json, math, os, signal, sys
from pathlib import Path
from experiments.jobs.measure import Context, Measurement, measure

def square(context, x):
    return {"square": x * x, "cores": len(os.sched_getaffinity(0)), "odd": [math.nan, -math.inf]}

def once(context, marker, kill):
    if not Path(marker).exists():
        Path(marker).touch()
        if kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError("not yet")
    return {"done": 1}

def never(context):
    raise ValueError("cannot be\\nmeasured")

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    measurements = [
        *(Measurement(f"square-{x}", square, {"x": x}) for x in range(3)),
        Measurement("raises-once", once, {"marker": str(folder / "raised"), "kill": False}),
        Measurement("dies-once", once, {"marker": str(folder / "died"), "kill": True}),
        Measurement("never", never, {}),
    ]
    failures = measure(
        measurements, out=folder / "measurements", context=Context(None, folder), workers=2
    )
    print(json.dumps(failures))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    (folder / "script.py").write_text(SCRIPT)
    return folder, *run_script(folder)


def run_script(folder: Path) -> tuple[list[str], dict[str, str]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, folder / "script.py", folder]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    *lines, failures = result.stdout.splitlines()
    return lines, json.loads(failures)


def test_what_failed_is_told_and_the_rest_is_measured(measured):
    folder, lines, failures = measured
    assert failures == {"never": "ValueError: cannot be measured"}
    made = records.read_measurements(folder / "measurements")
    assert set(made) == {"square-0", "square-1", "square-2", "raises-once", "dies-once"}
    assert [made[f"square-{x}"].values["square"] for x in range(3)] == [0, 1, 4]
    assert made["square-2"].arguments == {"x": 2}
    assert made["square-2"].values["cores"] == 1
    assert [float(value) for value in made["square-1"].values["odd"]][1] == float("-inf")
    assert made["square-0"].environment["device_kind"] == "cpu"
    assert any("failed raises-once: OSError: not yet" in line for line in lines)
    assert sum("] measured" in line for line in lines) == 5


def test_what_was_measured_is_not_measured_again(measured):
    folder, *_ = measured
    before = {path: path.stat().st_mtime_ns for path in (folder / "measurements").glob("*.json")}
    lines, failures = run_script(folder)
    assert set(failures) == {"never"}
    assert not any("] measured" in line for line in lines)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("content", ["", "{", '{"schema": 2}', '{"schema": 1, "name": "square"}', "[]"])
def test_a_damaged_measurement_is_named(tmp_path, content):
    (tmp_path / "square.json").write_text(content)
    with pytest.raises(RecordError, match=r"square\.json"):
        records.read_measurements(tmp_path)
