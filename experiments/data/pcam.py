"""PatchCamelyon: patches of lymph node sections; the label says whether the centre 32x32 pixels hold tumour.

Veeling, Linmans, Winkens, Cohen and Welling, "Rotation Equivariant CNNs for Digital Pathology", 2018,
arXiv 1806.03962. `patch_camelyon` has whole patches; with `:validation` those of its validation split stand as the
test patches, so that settings are chosen on slides that are neither trained on nor tested. `pcam32` has their
centres, the pixels that decide the label, for networks of the size of CIFAR's.
"""

import dataclasses

from experiments.data.prepared import PreparedSet

_WHOLE = PreparedSet("patch_camelyon", image_shape=(96, 96, 3), num_classes=2)
SETS = {
    "patch_camelyon": _WHOLE,
    "patch_camelyon:validation": dataclasses.replace(_WHOLE, test_split="validation"),
    "pcam32": PreparedSet(
        "pcam32",
        image_shape=(32, 32, 3),
        num_classes=2,
        source="it is not in the catalogue of TensorFlow Datasets: crop the centres of patch_camelyon and "
        "write them with tfds.dataset_builders.store_as_tfds_dataset",
    ),
}
