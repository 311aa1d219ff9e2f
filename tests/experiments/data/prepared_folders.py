"""Folders as TensorFlow Datasets leaves them, made without TensorFlow and without a network."""

import io
from pathlib import Path

import tensorflow_datasets as tfds
from PIL import Image


def write_prepared(data_dir, splits, *, name, version, num_classes, num_shards=3):
    """Prepares images as TensorFlow Datasets does after a download, in array_record format.

    Args:
      data_dir: where to.
      splits: by name, images [n, height, width, 3] and labels [n]; both may be lazy.
      name: of the set.
      version: of the set.
      num_classes: of the labels.
      num_shards: files per split.

    Returns:
      The prepared folder.
    """
    shape = next(iter(splits.values()))[0][0].shape

    def examples(split):
        for i, (image, label) in enumerate(zip(*splits[split], strict=True)):
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "PNG")
            yield i, {"id": f"{split}_{i:05d}", "image": stream.getvalue(), "label": int(label)}

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        pkg_dir_path = Path()

        def _info(self):
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=shape),
                "label": tfds.features.ClassLabel(num_classes=num_classes),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            return examples(split)

    Prepared.name = name
    config = tfds.download.DownloadConfig(num_shards=num_shards)
    builder = Prepared(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(download_config=config)
    return Path(data_dir) / name / version
