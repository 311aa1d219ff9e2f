"""Images and checkpoints of strangers: no waiting, bounded memory, and no answer that is none."""

import re
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from experiments import predict
from experiments.data import crops
from experiments.predict import read_image
from experiments.records import (
    read_checkpoint,
    write_checkpoint,
)

from . import processes, strange_files
from .data.jpegs import encode
from .predictions import CLASSIFIER, SEGMENTER, check_line, load, record_of, save, write_network


@pytest.mark.parametrize("kind", strange_files.SAID)
def test_what_is_no_file_is_not_waited_for(classifier, tmp_path, kind, call):
    said = strange_files.put(kind, tmp_path / "image.png")
    run = record_of(classifier, CLASSIFIER)
    code, printed, err = call("predict", run, tmp_path / "image.png", "--out", tmp_path / "a.json")
    assert (code, printed) == (2, "")
    check_line(err, re.escape(f"cannot read the image {tmp_path / 'image.png'}: {said}"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_read_upright(tmp_path, kind, orientation):
    """As viewers show it: what is stored is turned or mirrored as the EXIF data say."""
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255  # bright at the top on the left, where every orientation puts another corner
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose, by orientation
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo", kind, exif=exif)
    pixels = read_image(tmp_path / "photo", 3)
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).max() < 40  # JPEG loses something
    # Training sees the same.
    encoded = (tmp_path / "photo").read_bytes()
    np.testing.assert_array_equal(
        crops.decode(encoded, 8), crops.decode(encode(Image.fromarray(pixels), "PNG"), 8)
    )


def test_a_narrow_image_does_not_become_a_huge_picture(segmenter, tmp_path, call):
    image = save(tmp_path / "line.png", np.zeros((1, 60_000, 3), np.uint8))
    out = tmp_path / "mask.png"
    arguments = (record_of(segmenter, SEGMENTER), image, "--out", out, "--fit", "resize")
    code, _, err = call("predict", *arguments)
    assert code == 0, err
    assert load(out).shape == (1, 60_000)
    assert load(tmp_path / "mask_overlay.png").shape == (1, 60_000, 3)


def test_an_image_of_too_many_pixels_is_refused_with_the_bound(segmenter, tmp_path):
    """In a process of its own, where Pillow's warnings are no errors."""
    Image.new("L", (13_000, 13_000)).save(tmp_path / "large.png")
    arguments = (tmp_path / "large.png", "--out", tmp_path / "mask.png", "--fit", "as-is")
    code, out, err = processes.run("predict", record_of(segmenter, SEGMENTER), *arguments)
    assert (code, out) == (2, "")
    check_line(err, "large.png: it has too many pixels, at most 67,108,864 are read")


def test_a_network_that_would_take_too_much_memory_is_not_run(segmenter, tmp_path, monkeypatch, call):
    image = save(tmp_path / "large.png", np.zeros((1024, 1024, 3), np.uint8))
    out = tmp_path / "mask.png"
    arguments = (record_of(segmenter, SEGMENTER), image, "--out", out, "--fit")
    monkeypatch.setattr(predict, "MOST_MEMORY", 2**23)  # less than the normalized image
    code, printed, err = call("predict", *arguments, "as-is")
    assert (code, printed) == (2, "")
    said = (
        r"large\.png is too large for unet2: it would take \d\d\.\d MiB of memory, at most 8\.0 MiB are used"
    )
    check_line(err, said)
    assert not out.exists()
    code, _, err = call("predict", *arguments, "resize")
    assert code == 0, err


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("run", "shape", "classes", "out"),
    [(CLASSIFIER, [8, 8, 1], 10, "a.json"), (SEGMENTER, [16, 16, 3], 1, "a.png")],
)
def test_outputs_that_are_no_numbers_are_said_and_not_written(
    tmp_path, run, shape, classes, out, value, call
):
    write_network(run, shape, classes, tmp_path)
    arrays = read_checkpoint(tmp_path, run)
    name = next(name for name in arrays if name.endswith("bias"))
    arrays[name] = np.full_like(arrays[name], value)
    write_checkpoint(tmp_path, run, arrays)
    image = save(tmp_path / "image.png", np.zeros(shape[:2], np.uint8))
    code, printed, err = call("predict", record_of(tmp_path, run), image, "--out", tmp_path / out)
    assert (code, printed) == (2, "")
    check_line(err, f"{run.name} gives no numbers \\(NaN\\) for .*image.png")
    assert not (tmp_path / out).exists()


def test_a_checkpoint_of_another_network_takes_no_memory(tmp_path, call):
    """A small file whose array is large once it is unpacked."""
    write_network(CLASSIFIER, [8, 8, 1], 10, tmp_path)
    arrays = read_checkpoint(tmp_path, CLASSIFIER)
    name = next(name for name in arrays if name.endswith("kernel"))
    path = tmp_path / f"{CLASSIFIER.name}.npz"
    large = np.zeros((3_000_000,), np.float32)
    image = save(tmp_path / "image.png", np.zeros((8, 8), np.uint8))
    for extra in ({name: large}, {"params/more/kernel": large}):
        np.savez_compressed(path, **(arrays | extra))
        tracemalloc.start()
        try:
            code, printed, err = call(
                "predict", record_of(tmp_path, CLASSIFIER), image, "--out", tmp_path / "a.json"
            )
            assert tracemalloc.get_traced_memory()[1] < large.nbytes / 2
        finally:
            tracemalloc.stop()
        assert (code, printed) == (2, "")
        check_line(err, f"is of another model or optimizer: see '{next(iter(extra))}'; remove .*npz")
