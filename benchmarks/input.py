"""Input of ImageNet training: what an image costs with our reader, beside tf.data and PyTorch's DataLoader.

`python -m benchmarks.input` makes JPEGs of the size of ImageNet's out of two photographs, and lets every reader
decode, random-resized crop to 224 x 224, flip and batch them, each from its own usual files: array_record, TFRecord,
a folder. Every reader runs in a fresh process, in turns, with threads alone: after a first pass that warms up, the
CPU seconds of the process in a second pass count, which other work on the machine changes little, and the wall time,
which it does. Processes that decode, which ours and PyTorch's can start, would pay in addition for handing images
over. TensorFlow and PyTorch are optional: `pip install -e '.[input-peers]'`.
"""

# Without the optional packages the benchmark leaves their rows out.
# pyright: reportMissingImports=false, reportMissingModuleSource=false
import argparse
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments import data, machine
from experiments.data import crops
from experiments.data.streaming import read_batches
from experiments.options import Reading

RESULTS = Path(__file__).parent / "results"
SIZE, BATCH = 224, 64
IMAGES = 256  # different ones
NOTE = (
    "The machine did other work at the same time: CPU milliseconds per image (of all threads) are what counts, wall "
    "milliseconds are higher than on an idle machine."
)
# Images per second that an accelerator may ask for.
RATES = (1_000, 2_500, 5_000)


def write_images(folder: Path) -> float:
    """Writes the same JPEGs as a folder, array_record and TFRecord; returns their mean size in bytes."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    photographs = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    random, source = np.random.RandomState(0), folder / "images"
    for i in range(IMAGES):
        # As in ImageNet: the shorter side has 375 pixels on average, the longer one 500.
        width, height = random.randint(400, 600), random.randint(300, 450)
        left, top = random.randint(0, 640 - width + 1), random.randint(0, max(1, 427 - height + 1))
        box = (left, top, left + width, min(427, top + height))
        path = source / f"class{i % 2}" / f"{i:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photographs[i % 2].resize((width, height), Image.Resampling.BICUBIC, box=box).save(path, quality=95)
    data.prepare("folder", folder / "data", source=source)
    paths = sorted(source.rglob("*.jpg"))
    if importlib.util.find_spec("tensorflow"):
        import tensorflow as tf

        with tf.io.TFRecordWriter(str(folder / "images.tfrecord")) as writer:
            for path in paths:
                writer.write(path.read_bytes())
    return statistics.fmean(path.stat().st_size for path in paths)


def read_ours(folder: Path, count: int) -> Iterator[np.ndarray]:
    """Our reader."""
    images: Any = data.load(f"jpeg:images:{SIZE}", folder / "data", Reading(input_workers=0)).train_images
    order = np.resize(np.random.RandomState(0).permutation(len(images)), count)
    yield from read_batches(images.at_random(0, 0), order, BATCH)


def read_tf(folder: Path, count: int) -> Iterator[Any]:
    """tf.data as ImageNet pipelines have it: only the crop is decoded."""
    import tensorflow as tf

    def crop(encoded):
        shape = tf.image.extract_jpeg_shape(encoded)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros((1, 0, 4)),
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        top, left, _ = tf.unstack(begin)
        height, width, _ = tf.unstack(size)
        image = tf.image.decode_and_crop_jpeg(encoded, tf.stack([top, left, height, width]), channels=3)
        image = tf.image.resize(image, (SIZE, SIZE))
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8)

    dataset = tf.data.TFRecordDataset(str(folder / "images.tfrecord")).repeat().shuffle(IMAGES).take(count)
    yield from dataset.map(crop, tf.data.AUTOTUNE).batch(BATCH).prefetch(2).as_numpy_iterator()


def read_torch(folder: Path, count: int) -> Iterator[Any]:
    """PyTorch's DataLoader on a folder, cropped by torchvision."""
    import torch
    from torchvision import datasets, transforms

    torch.set_num_threads(1)
    change = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    images = datasets.ImageFolder(str(folder / "images"), transforms.Compose(change))
    sampler = torch.utils.data.RandomSampler(images, replacement=True, num_samples=count)
    yield from torch.utils.data.DataLoader(images, BATCH, sampler=sampler)


READERS: dict[str, Callable[[Path, int], Iterator[Any]]] = {
    "ours": read_ours,
    "tf.data": read_tf,
    "PyTorch DataLoader": read_torch,
}
NEEDS = {"tf.data": ("tensorflow",), "PyTorch": ("torch", "torchvision")}


def missing_package(reader: str) -> str | None:
    """The package that a reader needs and that is not installed."""
    needed = next((packages for start, packages in NEEDS.items() if reader.startswith(start)), ())
    return next((package for package in needed if importlib.util.find_spec(package) is None), None)


def time_reader(reader: str, folder: Path, count: int) -> dict[str, float]:
    """Milliseconds per image in a fresh process: of the CPU, all threads together, and of the wall."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.input",
        "--read",
        reader,
        str(count),
        "--folder",
        str(folder),
    ]
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(made.stdout)


def read(reader: str, folder: Path, count: int) -> dict[str, float]:
    """What `time_reader` gives, of this process."""
    for _ in READERS[reader](folder, 2 * BATCH):
        pass
    cpu, wall, images = time.process_time(), time.perf_counter(), 0
    for batch in READERS[reader](folder, count):
        images += len(batch[0]) if isinstance(batch, list) else len(batch)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu_ms": 1000 * cpu / images, "wall_ms": 1000 * wall / images}


def time_parts(folder: Path, count: int) -> dict[str, float]:
    """CPU milliseconds per image of the parts of our reader, in one thread."""
    images: Any = data.load(f"jpeg:images:{SIZE}", folder / "data").train_images
    split = images._split
    records = [i % len(split) for i in range(count)]
    encoded = [split.read(i)[0] for i in range(len(split))]
    parts = {
        "read a record": lambda i: split.read(i),
        "draw the crop": lambda i: crops.draw(0, 0, i),
        "decode, shrunk as far as possible": lambda i: crops.check(encoded[i]),
        "decode, crop and resize": lambda i: crops.decode(encoded[i], SIZE, crops.draw(0, 0, i)),
        "decode the whole, crop and resize": lambda i: decode_whole(encoded[i], i),
    }
    milliseconds = {}
    for name, part in parts.items():
        part(0)
        started = time.process_time()
        for i in records:
            part(i)
        milliseconds[name] = 1000 * (time.process_time() - started) / count
    return milliseconds


def decode_whole(encoded: bytes, i: int) -> np.ndarray:
    """As `crops.decode`, but the decoder does not shrink."""
    import io

    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        box = crops.random_box(*image.size, crops.draw(0, 0, i)[0])
        part = (box.left, box.top, box.left + box.width, box.top + box.height)
        return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=part))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1_280, help="of a pass")
    parser.add_argument("--out", type=Path, default=RESULTS / "input-cpu.json")
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(read(arguments.read[0], arguments.folder, int(arguments.read[1]))))
        return
    readers = []
    for reader in READERS:
        if package := missing_package(reader):
            print(f"skipped {reader}: {package} is not installed")
        else:
            readers.append(reader)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mean_bytes = write_images(folder)
        parts = [time_parts(folder, arguments.images // 5) for _ in range(arguments.rounds)]
        rounds: dict[str, list[dict[str, float]]] = {reader: [] for reader in readers}
        for i in range(arguments.rounds):
            for reader in readers[i % len(readers) :] + readers[: i % len(readers)]:
                rounds[reader].append(time_reader(reader, folder, arguments.images))
    versions = {}
    for package in ("pillow", "grain", "array_record", "tensorflow_cpu", "torch", "torchvision"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    content = {
        "note": NOTE,
        "environment": machine.describe_environment() | versions,
        "images": {"count": IMAGES, "mean_bytes": round(mean_bytes), "crop": SIZE, "batch": BATCH},
        "read": arguments.images,
        "rounds": rounds,
        "parts_cpu_ms": parts,
    }
    arguments.out.write_text(json.dumps(content, indent=2) + "\n")
    print(table(content))


def table(content: dict[str, Any]) -> str:
    """The record as text."""
    lines = [f"{'reader':34} {'CPU ms per image':>17} {'lowest':>7} {'highest':>8} {'images/s and core':>18}"]
    medians = {}
    for reader, rounds in content["rounds"].items():
        cpu = [entry["cpu_ms"] for entry in rounds]
        medians[reader] = statistics.median(cpu)
        lines.append(
            f"{reader:34} {medians[reader]:17.2f} {min(cpu):7.2f} {max(cpu):8.2f} {1000 / medians[reader]:18.0f}"
        )
    lines.append("")
    lines.append(f"{'parts of ours, one thread':34} {'CPU ms per image':>17}")
    for name in content["parts_cpu_ms"][0]:
        milliseconds = statistics.median(entry[name] for entry in content["parts_cpu_ms"])
        lines.append(f"{name:34} {milliseconds:17.2f}")
    lines.append("")
    lines.append(f"{'cores for images per second of':34} {' '.join(f'{rate:>9,}' for rate in RATES)}")
    for reader, milliseconds in medians.items():
        lines.append(f"{reader:34} {' '.join(f'{rate * milliseconds / 1000:9.1f}' for rate in RATES)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
