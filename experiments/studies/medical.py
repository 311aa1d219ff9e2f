"""What the two studies of medical images share, after Yun 2024, "ZNorm: Z-Score Gradient Normalization"."""

SEEDS_ALONE = """\
The intervals are over seeds alone: the initialisation, the order of the images and their flips differ, the patients
never do. How much other patients would change is a further uncertainty, which nothing here measures."""

PAPER = """\
What reached us of Yun 2024, arXiv 2408.01215, gives two numbers, neither with its whole protocol:

| paper | what it is | data | network | epochs, batch, learning rate, augmentation, initialisation, seeds |
|-------|------------|------|---------|-------------------------------------------------------------------|
| 0.917 | test accuracy with ZNorm | PatchCamelyon | ResNet-101 | not stated |
| 0.812 | test accuracy with ZNorm | CIFAR-10 | ResNet-56 | not stated |

Nor is its optimizer stated with certainty: Adam is the only one that is named."""
