"""Decoding and crops, against the formulas in float64 and against images decoded whole."""

import numpy as np
import pytest
from PIL import Image

from experiments.data import crops

from .jpegs import PHOTOS, encode


@pytest.mark.parametrize(("width", "height"), [(500, 375), (64, 300), (31, 33), (1, 1), (3, 1000)])
def test_random_boxes_lie_in_the_image_and_have_the_areas_and_ratios_wanted(width, height):
    areas, ratios = [], []
    for record in range(400):
        draws, _ = crops.draw(0, 0, record)
        box = crops.random_box(width, height, draws)
        assert box.left >= 0
        assert box.top >= 0
        assert box.left + box.width <= width
        assert box.top + box.height <= height
        areas.append(box.width * box.height / (width * height))
        ratios.append(box.width / box.height)
    if min(width, height) > 100:  # else whole pixels and the borders of the image decide
        assert min(areas) > 0.075
        assert max(areas) > 0.9
        random = np.random.RandomState(0)
        area = width * height * random.uniform(0.08, 1, 20_000)
        ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3), 20_000))
        fits = (np.sqrt(area * ratio) <= width) & (np.sqrt(area / ratio) <= height)
        assert np.mean(areas) == pytest.approx(area[fits].mean() / (width * height), abs=0.05)
        assert min(ratios) > 0.74
        assert max(ratios) < 1.35
        assert abs(np.mean(np.log(ratios))) < 0.05


def test_the_distribution_of_boxes_is_uniform_in_place():
    boxes = [crops.random_box(400, 400, crops.draw(7, 1, i)[0]) for i in range(3000)]
    places = [box.left / (400 - box.width) for box in boxes if box.width < 300]
    counts = np.histogram(places, bins=5, range=(0, 1))[0]
    assert counts.min() > 0.85 * counts.mean()
    flips = [crops.draw(7, 1, i)[1] for i in range(3000)]
    assert 0.47 < np.mean(flips) < 0.53


def test_draws_depend_on_seed_epoch_and_record_and_on_nothing_else():
    places = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2**32 - 1, 89, 1_281_166)]
    draws = [crops.draw(*place)[0] for place in places]
    assert len({array.tobytes() for array in draws}) == len(places)
    for place, array in zip(places, draws, strict=True):
        np.testing.assert_array_equal(crops.draw(*place)[0], array)
        assert ((array >= 0) & (array < 1)).all()
    # The same numbers on every machine and with every version of NumPy.
    key = [1 << 32 | 2, 3]
    expected = [value >> 11 for value in philox(key)[1:4]]
    assert (crops.draw(1, 2, 3)[0][0, :3] * 2**53).tolist() == expected


def philox(key):
    """First block of Philox4x64-10, after Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011."""
    mask, counter, key = 2**64 - 1, [1, 0, 0, 0], list(key)  # NumPy counts from 1
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [
            (second >> 64) ^ counter[1] ^ key[0], second & mask, (first >> 64) ^ counter[3] ^ key[1], first & mask
        ]  # fmt: skip
        key = [(key[0] + 0x9E3779B97F4A7C15) & mask, (key[1] + 0xBB67AE8584CAA73B) & mask]
    return counter


def reference(image: Image.Image, size: int, box: crops.Box) -> np.ndarray:
    """Pillow's resize of the image decoded whole."""
    part = (box.left, box.top, box.left + box.width, box.top + box.height)
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=part), float)


@pytest.mark.parametrize("size", [16, 32, 64, 224])
@pytest.mark.parametrize("chance", [None, 3, 8])
def test_the_decoder_that_shrinks_gives_the_image_that_a_whole_decode_gives(size, chance):
    encoded = encode(Image.fromarray(PHOTOS[0]), quality=95)
    draws = None if chance is None else crops.draw(0, 0, chance)
    found = crops.decode(encoded, size, draws).astype(float)
    assert found.shape == (size, size, 3)
    box = crops.centre_box(640, 427) if draws is None else crops.random_box(640, 427, draws[0])
    expected = reference(Image.fromarray(PHOTOS[0]), size, box)
    expected = expected[:, ::-1] if draws is not None and draws[1] else expected
    # Of 255: what JPEG loses and two ways to average a few pixels.
    assert np.abs(found - expected).mean() < 2
    assert np.abs(found - expected[:, ::-1]).mean() > 50


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG"), ("RGBA", "PNG"), ("P", "PNG")]
)
def test_grey_cmyk_and_png_images_become_rgb(mode, kind):
    encoded = encode(Image.fromarray(PHOTOS[1]).convert(mode), kind)
    found = crops.decode(encoded, 32)
    assert found.shape == (32, 32, 3)
    assert found.dtype == np.uint8
    if mode == "L":
        np.testing.assert_array_equal(found[..., 0], found[..., 2])


@pytest.mark.parametrize("size", [(1, 1), (2, 500), (33, 7)])
def test_images_smaller_than_the_crop_are_enlarged(size):
    assert crops.decode(encode(Image.new("RGB", size, (200, 10, 10))), 24).shape == (24, 24, 3)
    assert crops.decode(encode(Image.new("RGB", size)), 24, crops.draw(0, 0, 0)).max() == 0


def test_images_that_are_cut_off_or_something_else_raise():
    whole = encode(Image.fromarray(PHOTOS[0]))
    for bad in (whole[: len(whole) // 2], whole[:-2000], b"", b"no image"):
        for act in (lambda bad=bad: crops.decode(bad, 32), lambda bad=bad: crops.check(bad)):
            with pytest.raises(Exception, match=r".+"):
                act()
    crops.check(whole)
