"""Images that are read while a network trains on them: memory stays the same, however many there are."""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np

from experiments import machine

# Number of images decoded ahead; batches and chunks of batches are gathered from them.
PREFETCHED = 512
THREADS_PER_CORE = 2
# The checksum of a streamed split reads so many images: a second at most, where all would take an epoch.
CHECKED_IMAGES = 128


class StreamedImages:
    """The images of a split, of which `read_batches` decodes a few at a time.

    Attributes:
      shape: [n, height, width, channels], as an array of them would have.
    """

    def __init__(self, split: Any, indices: np.ndarray, image_shape: Sequence[int]):
        """Names the images.

        Args:
          split: random access: `split[i]` is an image, uint8 [height, width, channels], and its label.
          indices: which of them these are, in order.
          image_shape: of each.
        """
        self._split, self._indices = split, indices
        self.shape = (len(indices), *image_shape)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, taken: np.ndarray) -> Self:
        """The subset that indices or booleans select, as in an array; nothing is read."""
        return type(self)(self._split, self._indices[taken], self.shape[1:])

    def checksum(self, start: int = 0) -> int:
        """CRC-32 of at most `CHECKED_IMAGES` of them, evenly spaced from the first to the last.

        Args:
          start: the checksum of what comes before them.
        """
        for i in np.linspace(0, len(self) - 1, min(len(self), CHECKED_IMAGES)).astype(int):
            start = zlib.crc32(self._content(int(self._indices[i])), start)
        return start

    def _content(self, record: int) -> bytes:
        """What `checksum` reads of an image of the split."""
        return self._split[record][0].tobytes()

    def read(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images and labels in order, in batches."""
        import grain

        threads = THREADS_PER_CORE * len(machine.usable_cores())
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=PREFETCHED)
        dataset = grain.MapDataset.source(_InOrder(self._split, self._indices))
        return iter(dataset.to_iter_dataset(options).batch(batch_size))


class _InOrder:
    """A split in another order, as Grain wants its sources."""

    def __init__(self, split: Any, indices: np.ndarray):
        self._split, self._indices = split, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> tuple[np.ndarray, int]:
        return self._split[int(self._indices[index])]


def read_batches(
    images: np.ndarray | StreamedImages,
    order: np.ndarray,
    batch_size: int,
    host_index: int = 0,
    host_count: int = 1,
) -> Iterator[np.ndarray]:
    """Yields images[order] in batches, uint8 [batch_size, height, width, channels]; the last may be smaller.

    Args:
      order: which ones, for all hosts.
      batch_size: of all hosts together.
      host_index: of several hosts, which share every batch, only the rows of this one are read and given.
      host_count: how many there are; divides `batch_size`.
    """
    order = order_of_host(order, batch_size, host_index, host_count)
    batch_size //= host_count
    if isinstance(images, StreamedImages):
        yield from (batch for batch, _ in images[order].read(batch_size))
    else:
        yield from (images[order[i : i + batch_size]] for i in range(0, len(order), batch_size))


def order_of_host(order: np.ndarray, batch_size: int, host_index: int, host_count: int) -> np.ndarray:
    """The part of every batch that one host reads: the hosts' parts in turn are the batch.

    Raises:
      ValueError: the hosts cannot share a batch equally, or there is no such host.
    """
    if host_count < 1 or not 0 <= host_index < host_count:
        raise ValueError(f"host_index must be from 0 to {host_count - 1}, got {host_index}")
    if batch_size % host_count:
        raise ValueError(f"batch_size is {batch_size}, which {host_count} hosts cannot share equally")
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    parts = [b[host_index * len(b) // host_count : (host_index + 1) * len(b) // host_count] for b in batches]
    return np.concatenate(parts) if parts else order
