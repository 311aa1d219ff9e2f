"""Records of JPEG images of any size, decoded by Grain in worker processes or threads.

Which images a batch holds and how they are cropped is a function of seed, epoch and record alone, whatever the number
of workers or hosts.
"""

import contextlib
import itertools
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from experiments import machine
from experiments.data import crops
from experiments.data.dataset import DataError
from experiments.data.streaming import THREADS_PER_CORE, StreamedImages
from experiments.files import first_line

# What a worker hands over at once.
PIECE_BYTES = 2**22
# Held ready by every worker, in pieces, beside the one that it decodes and the one in the queue.
BUFFERED = 2
# In place of the label of a record that cannot be read.
UNREADABLE = np.iinfo(np.int32).min


class JpegSplit:
    """One split of a prepared folder: `read(i)` is encoded image i and its label.

    Files are opened where they are read, so that it can be sent to other processes.
    """

    def __init__(self, folder: Path, name: str, num_classes: int, shards: Sequence[tuple[str, int]]):
        """Names the split.

        Args:
          num_classes: labels go from 0 to one less.
          shards: names of its files, and how many records each holds.
        """
        self.folder, self.name, self.num_classes = folder, name, num_classes
        self.shards = tuple(shards)
        self._source: Any = None
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return sum(count for _, count in self.shards)

    def __reduce__(self):
        return JpegSplit, (self.folder, self.name, self.num_classes, self.shards)

    def where(self, i: int) -> str:
        """File and index in it of record i."""
        ends = itertools.accumulate(count for _, count in self.shards)
        for (name, count), end in zip(self.shards, ends, strict=True):
            if i < end:
                return f"{self.folder / name}, record {i - (end - count)}"
        raise IndexError(i)

    def read(self, i: int) -> tuple[bytes, int]:
        """Encoded image i and its label.

        Raises:
          DataError: the record cannot be read.
        """
        try:
            example = self._open()[i]
            encoded, label = bytes(example["image"]), int(example["label"])
        except Exception as error:  # array_record and TFDS raise many kinds.
            raise self.damage(i, error) from error
        return encoded, label

    def square(self, i: int, size: int, chance=None) -> np.ndarray:
        """Image i, decoded and cropped as `crops.decode` does.

        Raises:
          DataError: it is damaged; the message names the file and the record.
        """
        encoded, _ = self.read(i)
        try:
            return crops.decode(encoded, size, chance)
        except Exception as error:  # Pillow raises many kinds.
            raise self.damage(i, error) from error

    def damage(self, i: int, error: Exception) -> DataError:
        """What is said of a damaged record."""
        return DataError(
            f"{self.where(i)} is damaged: {first_line(error)}; restore the file, or exclude damaged images by "
            f"--skip-damaged"
        )

    def _open(self):
        with self._opening:
            if self._source is None:
                import tensorflow_datasets as tfds

                builder: Any = tfds.builder_from_directory(self.folder)
                skip = {"image": tfds.decode.SkipDecoding()}
                self._source = builder.as_data_source(split=self.name, decoders=skip)
        return self._source


class Chance(NamedTuple):
    """What the random crops of an epoch depend on, beside the record."""

    seed: int
    epoch: int


class JpegImages(StreamedImages):
    """The images of a split, each cropped to one size as it is read.

    Attributes:
      shape: [n, size, size, 3], as an array of them would have.
    """

    def __init__(
        self,
        split: JpegSplit,
        indices: np.ndarray,
        image_shape: Sequence[int],
        workers: int | None = None,
        chance: Chance | None = None,
    ):
        """Names the images.

        Args:
          indices: which of its records these are, in order.
          image_shape: [size, size, 3], after the crop.
          workers: processes that decode; 0 decodes in threads of this one; `None` chooses.
          chance: of the random crops and flips; `None` crops the centres.
        """
        super().__init__(split, indices, image_shape)
        self._workers, self._chance = workers, chance

    def __getitem__(self, taken: np.ndarray) -> Self:
        """Those that indices or booleans name, as of an array; nothing is read."""
        return type(self)(self._split, self._indices[taken], self.shape[1:], self._workers, self._chance)

    def at_random(self, seed: int, epoch: int) -> Self:
        """The same images with the random crops and flips of an epoch."""
        chance = Chance(int(seed), int(epoch))
        return type(self)(self._split, self._indices, self.shape[1:], self._workers, chance)

    def _content(self, record: int) -> bytes:
        """The encoded image: what a decoder makes of it may depend on its version."""
        return self._split.read(record)[0]

    def read(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images, uint8 [batch, size, size, 3], and labels, int32 [batch], in order; the last batch may be smaller.

        Raises:
          DataError: a record is damaged; the message names its file and its index there.
        """
        per_piece = max(1, min(batch_size, PIECE_BYTES // int(np.prod(self.shape[1:]))))
        decode = _DecodePiece(self._split, self.shape[1], self._chance)
        pieces = read_pieces(decode, self._indices, per_piece, self._workers)
        images, labels, filled = None, None, 0
        left = len(self)
        for piece_images, piece_labels in pieces:
            start = 0
            while start < len(piece_images):
                if images is None or labels is None:
                    count = min(batch_size, left)
                    images, labels = np.empty((count, *self.shape[1:]), np.uint8), np.empty(count, np.int32)
                    filled = 0
                taken = min(len(images) - filled, len(piece_images) - start)
                images[filled : filled + taken] = piece_images[start : start + taken]
                labels[filled : filled + taken] = piece_labels[start : start + taken]
                filled, start, left = filled + taken, start + taken, left - taken
                if filled == len(images):
                    yield images, labels
                    images = labels = None


class _DecodePiece:
    """Decodes the records of a piece: images, labels and what is wrong, if anything is."""

    def __init__(self, split: JpegSplit, size: int, chance: Chance | None):
        self.split, self.size, self.chance = split, size, chance

    def __call__(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
        images = np.zeros((len(records), self.size, self.size, 3), np.uint8)
        labels = np.zeros(len(records), np.int32)
        for row, record in enumerate(records.tolist()):
            chance = None if self.chance is None else crops.draw(*self.chance, record)
            try:
                encoded, labels[row] = self.split.read(record)
                try:
                    images[row] = crops.decode(encoded, self.size, chance)
                except Exception as error:  # Pillow raises many kinds.
                    raise self.split.damage(record, error) from error
            # As words: an error that leaves a worker process brings a page of its own.
            except DataError as error:
                return images, labels, str(error)
        return images, labels, ""


class CheckPiece:
    """Finds the damaged records of a piece; as `_DecodePiece`, but the images are which ones are whole."""

    def __init__(self, split: JpegSplit):
        self.split = split

    def __call__(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
        whole, labels = np.ones(len(records), bool), np.zeros(len(records), np.int32)
        for row, record in enumerate(records.tolist()):
            try:
                encoded, labels[row] = self.split.read(record)
                crops.check(encoded)
            except (
                ImportError,
                MemoryError,
            ):  # This is of the machine, and the file would be kept as damaged.
                raise
            except Exception:  # Whatever it is: the record is of no use.
                whole[row] = False
        return whole, labels, ""


class ReadLabels:
    """The labels of a piece, without decoding an image."""

    def __init__(self, split: JpegSplit):
        self.split = split

    def __call__(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
        labels = np.full(len(records), UNREADABLE, np.int32)
        for row, record in enumerate(records.tolist()):
            with contextlib.suppress(DataError):
                labels[row] = self.split.read(record)[1]
        return labels, labels, ""


class _Pieces:
    """Records in pieces, as Grain wants its sources."""

    def __init__(self, work: Callable, records: np.ndarray, per_piece: int):
        self.work, self.records, self.per_piece = work, records, per_piece

    def __len__(self) -> int:
        return -(-len(self.records) // self.per_piece)

    def __getitem__(self, index: Any) -> Any:
        start = int(index) * self.per_piece
        return self.work(self.records[start : start + self.per_piece])


def default_workers() -> int:
    """Worker processes for an accelerator's input: all cores but one; none where the network needs the cores."""
    is_worker = multiprocessing.current_process().daemon  # such a process may start no others
    return 0 if is_worker or machine.backend() == "cpu" else max(1, len(machine.usable_cores()) - 1)


def read_pieces(
    work: Callable, records: np.ndarray, per_piece: int, workers: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What `work` makes of all records, piece by piece, in order, in worker processes or threads."""
    import grain
    from absl import flags

    workers = default_workers() if workers is None else workers
    if workers and multiprocessing.current_process().daemon:
        workers = 0
    threads = 1 if workers else THREADS_PER_CORE * len(machine.usable_cores())
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, BUFFERED))
    pieces = _Pieces(work, records, per_piece)
    # Elements are whole pieces, so that workers, which take turns, change neither what is in them nor the order.
    dataset = grain.MapDataset.source(pieces).to_iter_dataset(options)
    if count := min(workers, len(pieces)):
        if not flags.FLAGS.is_parsed():  # Grain asks absl for its flags, which nothing here parses.
            flags.FLAGS.mark_as_parsed()
        processes = grain.multiprocessing.MultiprocessingOptions(count, per_worker_buffer_size=1)
        dataset = dataset.mp_prefetch(processes, worker_init_fn=_end_with_parent)
    iterator = iter(dataset)
    try:
        for images, labels, message in iterator:
            if message:
                raise DataError(message)
            yield images, labels
    finally:
        iterator.close()


def _end_with_parent(index: int, count: int) -> None:
    """In a worker process: where its parent is killed, it ends too."""
    del index, count
    threading.Thread(target=machine.exit_with_parent, daemon=True).start()
