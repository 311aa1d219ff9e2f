"""Real images as JPEG files and prepared sets, and ImageNet's archives in small."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

PHOTOS = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]  # 427 x 640 pixels


def photo(i: int) -> Image.Image:
    """One of many parts of two photographs, of sizes from 40 x 40 to 300 x 300."""
    random = np.random.RandomState(i)
    height, width = random.randint(40, 300, 2)
    top, left = random.randint(0, 427 - height), random.randint(0, 640 - width)
    return Image.fromarray(PHOTOS[i % 2][top : top + height, left : left + width])


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def write_folder(folder: Path, counts: dict[str, int]) -> Path:
    """`counts` are images by class, or by 'split/class'."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"image{i:03d}.jpg").write_bytes(encode(photo(100 * number + i)))
    return folder


def write_tar(path: Path | io.BytesIO, files: dict[str, bytes]) -> None:
    target = {"fileobj": path} if isinstance(path, io.BytesIO) else {"name": path}
    with tarfile.open(mode="w", **target) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_imagenet(folder: Path, train: dict[str, dict[str, bytes]], validation: dict[str, bytes]) -> Path:
    """The two archives: training images in a tar file per class inside a tar file."""
    folder.mkdir(parents=True, exist_ok=True)
    inner = {}
    for synset, files in train.items():
        stream = io.BytesIO()
        write_tar(stream, files)
        inner[f"{synset}.tar"] = stream.getvalue()
    write_tar(folder / "ILSVRC2012_img_train.tar", inner)
    write_tar(folder / "ILSVRC2012_img_val.tar", validation)
    return folder
