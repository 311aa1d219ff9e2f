"""CIFAR-10 and CIFAR-100: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009."""

from experiments.data.prepared import PreparedSet

SETS = {
    name: PreparedSet(name, image_shape=(32, 32, 3), num_classes=num_classes)
    for name, num_classes in {"cifar10": 10, "cifar100": 100}.items()
}
