"""A user's own images through trained networks: real digits, real files, and what can be wrong with them."""

import dataclasses
import json
import struct
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from experiments import data, training
from experiments.predict import draw_mask, fit_image, read_image
from experiments.records import (
    RunRecord,
    find_record,
    read_record,
)

from . import processes
from .predictions import CLASSIFIER, SEGMENTER, check_line, load, record_of, save


def test_a_digit_gets_the_class_that_evaluation_gives_it(classifier, tmp_path):
    digits = data.load("digits")
    model = training.load_model(CLASSIFIER, out=classifier)
    logits = model((jnp.asarray(digits.test_images[:1], jnp.float32) / 255 - 0.4) / 0.2, train=False)
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
    image = save(tmp_path / "digit.png", digits.test_images[0, :, :, 0])
    out = tmp_path / "new folder" / "digit.json"
    code, printed, err = processes.run("predict", record_of(classifier, CLASSIFIER), image, "--out", out)
    assert code == 0, err
    answer = json.loads(out.read_text())
    assert answer.items() <= json.loads(printed).items()
    assert answer["probabilities"] == pytest.approx(expected, abs=2e-6)
    assert answer["class"] == expected.argmax()
    assert answer["probability"] == max(answer["probabilities"])
    assert sorted(path.name for path in out.parent.iterdir()) == ["digit.json", "digit_overlay.png"]
    overlay = load(out.parent / "digit_overlay.png")
    # The digit itself, magnified, and a line of text below it.
    magnified = digits.test_images[0].repeat(32, axis=0).repeat(32, axis=1)
    left = (overlay.shape[1] - 256) // 2
    np.testing.assert_array_equal(overlay[:256, left : left + 256], magnified.repeat(3, axis=2))
    assert (overlay[256:] < 128).any()


def test_a_mask_has_the_size_of_the_image_whatever_that_is(segmenter, tmp_path, call):
    rng = np.random.default_rng(0)
    name = ["--records", segmenter]
    for size, fit in (((33, 20), "as-is"), ((300, 400), "resize")):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        image = save(tmp_path / "photo.tif", pixels)
        out = tmp_path / "mask.png"
        code, printed, err = call("predict", SEGMENTER.name, image, "--out", out, *name, "--fit", fit)
        assert code == 0, err
        mask = load(out)
        assert mask.shape == size
        assert set(np.unique(mask)) <= {0, 255}
        assert json.loads(printed)["object_share"] == pytest.approx((mask > 0).mean(), abs=1e-6)
        assert min(load(tmp_path / "mask_overlay.png").shape[:2]) >= 256


def test_a_mask_finds_what_the_network_finds(segmenter, tmp_path, call):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[4:12, 6:10] = 255
    model = training.load_model(SEGMENTER, out=segmenter)
    trained_on = read_record(segmenter, SEGMENTER).data
    normalized = (pixels[None] / 255 - trained_on["mean"]) / trained_on["std"]
    logits = nnx.jit(lambda m, x: m(x, train=False))(model, jnp.asarray(normalized, jnp.float32))
    expected = logits[0, :, :, 0] > 0
    image = save(tmp_path / "image.png", pixels)
    out = tmp_path / "mask.png"
    code, _, err = call("predict", record_of(segmenter, SEGMENTER), image, "--out", out)
    assert code == 0, err
    np.testing.assert_array_equal(load(out) == 255, expected)


def test_an_overlay_shows_the_image_and_outlines_the_mask():
    pixels = np.random.default_rng(1).integers(0, 256, (300, 260, 3), np.uint8)
    mask = np.zeros((300, 260), bool)
    mask[100:140, 50:90] = True
    picture = np.asarray(draw_mask(pixels, mask)).astype(int)
    assert picture.shape == pixels.shape
    np.testing.assert_array_equal(picture[~mask], pixels[~mask])
    assert (picture[100, 50:90] == (213, 94, 0)).all()
    inside = picture[101:139, 51:89] - (0.6 * pixels[101:139, 51:89] + 0.4 * np.array((213, 94, 0)))
    assert np.abs(inside).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes_of_eight_bits_become_the_channels_that_are_wanted(mode, tmp_path):
    ending = "tif" if mode in ("CMYK", "YCbCr") else "png"
    white = Image.new("RGB", (5, 4), "white").convert(mode)
    white.save(tmp_path / f"white.{ending}")
    for channels in (1, 3):
        pixels = read_image(tmp_path / f"white.{ending}", channels)
        assert (pixels.shape, pixels.dtype) == ((4, 5, channels), np.uint8)
        assert (pixels >= 254).all()


def deep_png(color_type, channels):
    """A PNG of 2 x 2 pixels with 16 bits per channel, which Pillow reads and does not write."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 2, 2, 16, color_type, 0, 0, 0)
    row = b"\0" + bytes(range(4 * channels))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 2)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_colours_of_sixteen_bits_are_refused(tmp_path, color_type, channels):
    path = tmp_path / "deep.png"
    path.write_bytes(deep_png(color_type, channels))
    for wanted in (1, 3):
        with pytest.raises(ValueError, match=r"deep\.png has more than 8 bits per channel"):
            read_image(path, wanted)


def test_colours_packed_into_sixteen_bits_per_pixel_are_read(tmp_path):
    """A bitmap of 5, 6 and 5 bits."""
    size = 14 + 40 + 12 + 4
    header = struct.pack("<2sIHHI", b"BM", size, 0, 0, 66) + struct.pack("<IiiHHI", 40, 1, 1, 1, 16, 3)
    masks = struct.pack("<IIIIIIII", 4, 0, 0, 0, 0, 0xF800, 0x07E0, 0x001F)
    path = tmp_path / "packed.bmp"
    path.write_bytes(header + masks + struct.pack("<I", 0xF800))
    assert read_image(path, 3).tolist() == [[[255, 0, 0]]]


def test_every_image_that_is_none_is_said_in_one_line(classifier, tmp_path, call):
    digit = data.load("digits").test_images[0, :, :, 0]
    bad = {
        "missing.png": "there is no image",
        "text.png": "cannot read the image .*cannot identify",
        "empty.jpg": "cannot read the image",
        "truncated.png": "cannot read the image",
        "folder": "cannot read the image .*[Dd]irectory",
        "deep.png": "more than 8 bits",
        "float.tif": "more than 8 bits",
        "stack.tif": "has 3 frames",
        "large.png": "has 9 x 8 pixels, the training images had 8 x 8.*--fit resize .* --fit as-is",
    }
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    whole = save(tmp_path / "whole.png", noise).read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder").mkdir()
    save(tmp_path / "deep.png", digit.astype(np.uint16) * 257)
    save(tmp_path / "float.tif", digit.astype(np.float32))
    frames = [Image.fromarray(digit)] * 3
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    save(tmp_path / "large.png", np.pad(digit, ((0, 1), (0, 0))))
    for name, message in bad.items():
        code, printed, err = call(
            "predict",
            record_of(classifier, CLASSIFIER),
            tmp_path / name,
            "--out",
            tmp_path / "out" / "a.json",
        )
        assert (code, printed) == (2, ""), name
        check_line(err, message)
    assert not (tmp_path / "out").exists()


def test_every_damaged_byte_is_read_or_explained(tmp_path):
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (12, 12, 3), np.uint8)
    for ending in ("png", "jpg", "tif", "gif", "bmp"):
        path = tmp_path / f"image.{ending}"
        whole = save(path, noise).read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            damaged[rng.integers(len(whole))] = rng.integers(256)
            path.write_bytes(damaged[: rng.integers(len(whole) // 2, len(whole) + 1)])
            message = f"{path} in one line"
            try:
                assert read_image(path, 3).dtype == np.uint8
            except ValueError as error:
                message = str(error)
            assert str(path) in message
            assert "\n" not in message


def test_runs_and_files_that_cannot_be_are_said_in_one_line(classifier, segmenter, tmp_path, call):
    digit = save(tmp_path / "digit.png", data.load("digits").test_images[0, :, :, 0])
    colour = save(tmp_path / "colour.png", np.zeros((16, 16, 3), np.uint8))
    record = record_of(classifier, CLASSIFIER)
    _, known = find_record(record)
    copies = tmp_path / "copies"
    copies.mkdir()
    (copies / record.name).write_bytes(record.read_bytes())
    (tmp_path / "damaged.json").write_text("{")
    (tmp_path / "file").touch()
    (tmp_path / "taken.json").mkdir()
    unet = record_of(segmenter, SEGMENTER)
    for run, image, out, message in (
        (tmp_path / "none.json", digit, "a.json", "there is no record .*none.json"),
        (tmp_path / "damaged.json", digit, "a.json", "cannot read .*damaged.json"),
        (copies / record.name, digit, "a.json", "has no checkpoint .*--keep-checkpoints"),
        (record, digit, "a.png", "predicts a class, whose file has to end in .json"),
        (unet, colour, "a.json", "predicts a mask, whose file has to end in .png"),
        (unet, colour, "colour.png", "would be overwritten"),
        (record, digit, "file/a.json", "cannot write .*file/a.json"),
        (record, digit, "taken.json", "cannot write .*taken.json.*directory"),
    ):
        before = sorted(tmp_path.rglob("*"))
        code, printed, err = call("predict", run, image, "--out", tmp_path / out)
        assert (code, printed) == (2, ""), out
        check_line(err, message)
        assert sorted(tmp_path.rglob("*")) == before
    assert known.run == CLASSIFIER
    code, _, err = call("predict", "nobody", digit, "--out", "a.json", "--records", tmp_path)
    assert code == 2
    check_line(err, "there is no record .*nobody.json")


def test_a_network_of_one_size_takes_no_other():
    record = RunRecord(dataclasses.replace(CLASSIFIER, model="vgg16"), data={"image_shape": [32, 32, 1]})
    pixels = np.zeros((8, 9, 1), np.uint8)
    for fit in (None, "as-is"):
        with pytest.raises(
            ValueError, match=r"a.png has 8 x 9 pixels, .* 32 x 32, and vgg16 takes no others: --fit resize"
        ):
            fit_image(record, Path("a.png"), pixels, fit)
    assert fit_image(record, Path("a.png"), pixels, "resize").shape == (32, 32, 1)
