"""What hosts tell each other arrives as it was, and what a stranger sends is never run."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from experiments import messages, sources
from experiments.files import FileError
from experiments.messages import MessageError
from experiments.records import EpochMetrics, RecordError, RunRecord
from experiments.records.dynamics import GradientDynamics

from .training.small import small_run

EPOCH = EpochMetrics(1, 0.1 + 0.2, 1 / 3, float("nan"), 0.5, 0, 1e-17)
DATA = {"train_images": 96, "test_images": 50, "image_shape": [8, 8, 1], "num_classes": 3}
DATA |= {"mean": [0.1], "std": [0.2]}
RECORD = RunRecord(small_run(), "diverged", parameters=7, epochs=(EPOCH,), data=DATA)


class RunsCode:
    """What runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_what_is_sent_arrives():
    value = {"none": None, "numbers": [1, 2.5, True], "text": "ü\n", "path": Path("/a b/c"), "record": RECORD}
    assert repr(messages.decode(messages.encode(value))) == repr(value)
    rows = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    sent = GradientDynamics(("a", "b", "c"), np.array([1, 2, 3]), rows, rows / 3, -rows, rows[:, 0])
    arrived = messages.decode(messages.encode(sent))
    assert arrived.layers == sent.layers
    for name in ("sizes", "std", "smallest_std", "mean", "global_std"):
        assert getattr(arrived, name).dtype == getattr(sent, name).dtype
        np.testing.assert_array_equal(getattr(arrived, name), getattr(sent, name))


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (RecordError("cannot read x"), FileError, "cannot read x"),
        (OSError(28, "No space left on device"), OSError, "[Errno 28] No space left on device"),
        (ValueError("batch_size is 3"), ValueError, "batch_size is 3"),
        (ZeroDivisionError("one"), RuntimeError, "ZeroDivisionError: one"),
    ],
)
def test_an_error_is_caught_on_every_host_as_on_its_own(error, kind, text):
    arrived = messages.decode(messages.encode([None, error]))[1]
    assert isinstance(arrived, kind)
    assert str(arrived) == text


@pytest.mark.parametrize("value", [object(), np.array([object()]), {1, 2}, np.datetime64(0, "s")])
def test_nothing_else_is_sent(value):
    with pytest.raises(TypeError):
        messages.encode(value)


def array(**changes):
    fields = json.loads(messages.encode(np.arange(3)))
    return json.dumps(fields | changes).encode()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff\xfe",
        b"[" * 1_000_000,
        b'{"__kind__": "os.system", "command": "true"}',
        b'{"__kind__": ["record"]}',
        b'{"__kind__": "path", "path": 3}',
        b'{"__kind__": "record", "run": {}}',
        b'{"__kind__": "record", "text": "{}"}',
        b'{"__kind__": "dynamics", "layers": 3}',
        array(dtype="O"),
        array(dtype="M8[s]"),
        array(shape=[4]),
        array(data="!"),
    ],
)
def test_what_is_no_message_is_refused_in_one_line(message):
    with pytest.raises(MessageError) as caught:
        messages.decode(message)
    assert 0 < len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_a_pickle_is_not_run(tmp_path):
    target = tmp_path / "made by a stranger"
    payload = pickle.dumps(RunsCode(target))
    with pytest.raises(MessageError):
        messages.decode(payload)
    assert not target.exists()
    pickle.loads(payload)  # It would have.
    assert target.is_dir()


def test_the_sources_are_told_apart_by_content(tmp_path, monkeypatch):
    """Without git, and whatever was changed since the commit."""
    package = tmp_path / "experiments"
    (package / "data").mkdir(parents=True)
    (package / "data" / "digits.py").write_text("A = 1\n")
    (package / "sources.py").write_text("")
    monkeypatch.setattr(sources, "__file__", str(package / "sources.py"))
    before = sources.digests()
    assert {
        "experiments/data/digits.py",
        "experiments/sources.py",
        "optax_gradnorm/_znorm.py",
    } <= before.keys()
    (package / "data" / "digits.py").write_text("A = 2\n")
    after = sources.digests()
    assert {name for name in before if before[name] != after[name]} == {"experiments/data/digits.py"}


def test_versions_are_those_of_this_environment():
    assert sources.versions()["numpy"] == np.__version__
