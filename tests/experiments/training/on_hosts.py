"""One process of several: trains a small run.

on_hosts.py OUT COORDINATOR PROCESSES PROCESS DATA SHARD_PARAMS KILL SIGNAL: DATA is 'memory' or 'streamed', and KILL
the epoch after which this process sends itself the signal, or 0. Of a streamed set it prints how many images it read
so far.
"""

import dataclasses
import os
import sys
from pathlib import Path

import jax
import numpy as np

from experiments import hosts, models, supervision, training
from experiments.data.streaming import StreamedImages
from experiments.options import Devices

from .small import SMALL_MODELS, small_dataset, small_run

RUN = small_run(epochs=3, batch_size=16, dynamics=True, method="gan", optimizer="sgdm", learning_rate=0.1)


def make_dataset():
    return small_dataset(train=48, test=21)


class Split:
    """Random access to images, as a prepared set gives it; knows which were read."""

    def __init__(self, images, labels):
        self.images, self.labels, self.read = images, labels, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.read.append(index)
        return self.images[index], int(self.labels[index])


def stream(dataset):
    """The same data set, read while training; and its training split."""
    train = Split(dataset.train_images, dataset.train_labels)
    test = Split(dataset.test_images, dataset.test_labels)
    images = {
        f"{name}_images": StreamedImages(split, np.arange(len(split)), split.images.shape[1:])
        for name, split in (("train", train), ("test", test))
    }
    return dataclasses.replace(dataset, **images), train


def main():
    out, coordinator, processes, process, data, shard_params, kill, number = sys.argv[1:]
    models.MODELS.update(SMALL_MODELS)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    by_hand = {"coordinator": coordinator, "num_processes": int(processes), "process_id": int(process)}
    hosts.join(Devices(**by_hand), Path(out))
    dataset, split = make_dataset(), None
    if data == "streamed":
        dataset, split = stream(dataset)
        assert dataset.images_checksum  # It reads images too, which training then does not.
        split.read.clear()

    def on_epoch(record):
        if split is not None:
            print(len(split.read), flush=True)
        if len(record.epochs) == int(kill):
            os.kill(os.getpid(), int(number))

    options = {"devices": jax.device_count(), "shard_params": bool(int(shard_params))}
    training.train(RUN, dataset, out=out, on_epoch=on_epoch, keep_checkpoint=True, **options)
    hosts.leave()


if __name__ == "__main__":
    supervision.supervise(main)
