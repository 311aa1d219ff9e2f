"""Names for people: of methods, optimizers, networks and data sets."""

import re
from collections.abc import Sequence

from experiments.run import Run

METHODS = {
    "baseline": "baseline",
    "centralization": "centralization",
    "layer_centralization": "centralization of layers",
    "clipping": "clipping by norm",
    "clipping_1": "clipping at 1",
    "clipping_value": "clipping by value",
    "znorm": "ZNorm",
    "gan": "GAN",
}
OPTIMIZERS = {
    "sgdm": "SGDM",
    "adam": "Adam",
    "adamw": "AdamW",
    "rmsprop": "RMSprop",
    "lars": "LARS",
    "lamb": "LAMB",
}
NORMALIZERS = {
    "batch_norm": "BatchNorm",
    "layer_norm": "LayerNorm",
    "instance_norm": "InstanceNorm",
    "group_norm": "GroupNorm",
    "frn": "filter response normalization",
    "variance_norm": "variance normalization",
    "evonorm_b0": "EvoNorm-B0",
    "evonorm_s0": "EvoNorm-S0",
    "weight_norm": "weight normalization",
    "scaled_ws": "scaled weight standardization",
}
DATASETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "digits": "digits",
    "imagenet2012": "ImageNet",
    "lgg": "LGG MRI",
    "pcam32": "PatchCamelyon, central 32 x 32 pixels",
    "patch_camelyon": "PatchCamelyon",
}


HEADINGS = {
    "model": "network",
    "batch_size": "batch",
    "train_examples": "images",
}  # of fields; others as they are


def headings(fields: Sequence[str]) -> tuple[str, ...]:
    """Headings of a table's columns, each of which holds a field of a run."""
    return tuple(HEADINGS.get(field, field) for field in fields)


def labels(run: Run, fields: Sequence[str]) -> tuple[str, ...]:
    """What stands in these columns, such as ('ResNet-20', 'SGDM', 'ZNorm')."""
    return tuple(label(run, field) for field in fields)


def label(run: Run, field: str) -> str:
    """The value of a field of a run, such as 'ResNet-20', 'batch 128' or '1,950 steps'."""
    value = getattr(run, field)
    match field:
        case "model":
            return model(value)
        case "optimizer":
            return OPTIMIZERS[value]
        case "method":
            return METHODS[value]
        case "learning_rate":
            return f"rate {value:g}"
        case "batch_size":
            return f"batch {value}"
        case "train_examples":
            return "all images" if value is None else f"{value:,} images"
        case "steps":
            return f"{run.epochs} epochs" if value is None else f"{value:,} steps"
    return f"{value}"


def model(name: str) -> str:
    """A network, such as 'ResNet-20', 'VGG-16-BN', 'ViT of width 96' or 'U-Net of width 8'; others as they are."""
    if found := re.fullmatch(r"(resnet|plain|vgg)(\d+)(_bn)?", name):
        family, depth, norm = found.groups()
        return f"{ {'resnet': 'ResNet', 'plain': 'plain', 'vgg': 'VGG'}[family] }-{depth}" + (
            "-BN" if norm else ""
        )
    if name.endswith("_overlap"):
        return f"{model(name.removesuffix('_overlap'))} with shortcut gradients x 1.5"
    if found := re.fullmatch(r"(cnn|uniform|resnet)(\d+)w(\d+)(?::(.*))?", name):
        family, depth, width, norm = found.groups()
        base = f"ResNet-{depth}" if family == "resnet" else f"{depth} plain layers"
        return f"{base}, width {width}" + (f", {normalizer(norm)}" if norm else "")
    if found := re.fullmatch(r"unet(\d+)", name):
        return f"U-Net of width {found[1]}"
    if found := re.fullmatch(r"vit(\d+)_small(_stacked)?", name):
        return f"ViT of width {found[1]}"
    return name


def normalizer(name: str) -> str:
    """A normalizer with its options, such as 'GroupNorm, size 8'; others as they are."""
    base, *options = name.split(":")
    return ", ".join([NORMALIZERS.get(base, base), *(o.replace("=", " ").replace("_", " ") for o in options)])


def dataset(name: str) -> str:
    """A data set, however it is read; with its options where it has some."""
    base, _, options = name.partition(":")
    if base == "stream":
        return dataset(options)
    if base == "jpeg":
        base, _, size = options.partition(":")
        return f"{dataset(base)}, JPEGs" + (f" at {size} x {size} pixels" if size else "")
    name = DATASETS.get(base, base)
    return f"{name} ({options})" if options else name
