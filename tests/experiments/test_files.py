"""Files of strangers: what is no file is not waited for, and nothing takes more memory than it is worth."""

import io
import os
import re
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from experiments import files, records
from experiments.files import FileError, Header, NpzError, file_size, in_words, read_bytes, read_npz
from experiments.pictures import open_image
from experiments.records import RecordError, RunRecord
from experiments.run import Run

from .strange_files import SAID, put


@pytest.mark.parametrize("kind", SAID)
@pytest.mark.parametrize("read", [file_size, read_bytes, files.open_regular, read_npz])
def test_what_is_no_file_is_said_at_once(tmp_path, read, kind):
    said = put(kind, tmp_path / "file")
    with pytest.raises(NpzError if read is read_npz else OSError, match=f"^{re.escape(said)}$"):
        read(tmp_path / "file")


def test_what_is_not_there_is_not_found(tmp_path):
    for read in (file_size, read_bytes, files.open_regular, read_npz):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "file")


def test_a_text_is_read_up_to_its_bound(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(OSError, match=r"^it has 5 bytes, at most 4 bytes are read$"):
        read_bytes(path, 4)
    os.truncate(path, 2**40)  # a hole: no disk holds it
    with pytest.raises(OSError, match=r"it has 1,024\.0 GiB, at most 256\.0 MiB are read"):
        read_bytes(path)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"),
        (1023, "1,023 bytes"),
        (1024, "1.0 KiB"),
        (2**20 * 3 // 2, "1.5 MiB"),
        (2**45, "32,768.0 GiB"),
    ],
)
def test_sizes_in_words(size, words):
    assert in_words(size) == words


def _npz_that_claims(path, shape, kept=16):
    """An .npz file with one array of so many bytes, whose header claims a shape of float64."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.npy", stream.getvalue() + bytes(kept))


@pytest.mark.parametrize("shape", [(10**15,), (1,), (3,), (-2,), (2**62, 2**62), (-1, -2)])
def test_a_header_that_does_not_fit_its_array_takes_no_memory(tmp_path, shape):
    _npz_that_claims(tmp_path / "a.npz", shape)
    with pytest.raises(NpzError, match=r"it is not a whole \.npz file: "):
        read_npz(tmp_path / "a.npz")
    _npz_that_claims(tmp_path / "a.npz", (2,))
    assert read_npz(tmp_path / "a.npz")["weights"].tolist() == [0, 0]


def test_what_takes_too_much_memory_is_refused_before_it_does(tmp_path, monkeypatch):
    path = tmp_path / "zeros.npz"
    np.savez_compressed(path, zeros=np.zeros(5_000_000), one=np.ones(1))
    assert path.stat().st_size < 100_000
    refusals = [({"most": 10**7}, "at most 9.5 MiB are read")]
    monkeypatch.setattr(files, "_memory", lambda: 2**25)
    refusals.append(({}, "at most 32.0 MiB are read"))
    tracemalloc.start()
    try:
        for options, said in refusals:
            with pytest.raises(NpzError, match=rf"its arrays take 38\.1 MiB of memory, {said}"):
                read_npz(path, **options)
        assert read_npz(path, ["one"])["one"].tolist() == [1]  # alone
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_check_sees_the_headers_before_anything_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros((2, 3), np.float32), b=np.array(7))

    def check(headers):
        assert headers == {"a": Header((2, 3), np.dtype("float32")), "b": Header((), np.dtype("int64"))}
        raise FileError("not these")

    with pytest.raises(FileError, match="not these"):
        read_npz(tmp_path / "a.npz", ["a"], check=check)


def test_python_objects_are_not_read(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object))
    with pytest.raises(NpzError, match=r"a\.npy holds Python objects"):
        read_npz(tmp_path / "a.npz")


def test_memory_that_there_is_not(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", a=np.zeros(3))

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(files.npy, "read_array", fail)
    with pytest.raises(NpzError, match="do not fit into memory"):
        read_npz(tmp_path / "a.npz")


POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 10 10
%%EndComments
{} loop
"""


def test_an_image_that_is_a_program_is_none(tmp_path):
    (tmp_path / "a.png").write_bytes(POSTSCRIPT)
    with pytest.raises(Image.UnidentifiedImageError), open_image(tmp_path / "a.png"):
        pass


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path):
    for side, is_read in ((8192, True), (8193, False), (13_000, False)):
        Image.new("1", (side, side)).save(tmp_path / "a.png")
        if is_read:
            with open_image(tmp_path / "a.png") as image:
                assert image.size == (8192, 8192)
        else:
            with (
                pytest.raises(ValueError, match="it has too many pixels, at most 67,108,864 are read"),
                open_image(tmp_path / "a.png"),
            ):
                pass


RUN = Run("digits", "resnet8", "znorm", "adam", 0.001, 10, 64, 0)
RECORD = RunRecord(RUN)


@pytest.mark.parametrize("kind", SAID)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        (f"records/{RUN.name}.json", lambda out: records.read_record(out, RUN)),
        (f"records/{RUN.name}.npz", lambda out: records.read_checkpoint(out, RUN)),
        (f"records/{RUN.name}.dynamics.npz", lambda out: records.read_dynamics(out, RECORD)),
        ("records/size.json", records.read_measurements),
        ("records.jsonl", records.read_published),
    ],
)
def test_a_record_that_is_no_file_is_not_waited_for(tmp_path, kind, name, read):
    (tmp_path / "records").mkdir()
    said = put(kind, tmp_path / name)
    message = re.escape(f"cannot read {tmp_path / name}: {said}; ")
    with pytest.raises(RecordError, match=rf"^{message}[^\n]*$"):
        read(tmp_path / "records")


def test_statistics_that_would_fill_the_memory_are_refused(tmp_path):
    path = tmp_path / f"{RUN.name}.dynamics.npz"
    np.savez_compressed(path, std=np.zeros((2**26 + 1,), np.float32))
    with pytest.raises(
        RecordError, match=r"its arrays take 256\.0 MiB of memory, at most 256\.0 MiB are read"
    ):
        records.read_dynamics(tmp_path, RECORD)
