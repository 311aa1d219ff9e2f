"""Names for people: of methods, optimizers, networks and data sets."""

import re

METHODS = {
    "baseline": "baseline",
    "centralization": "centralization",
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
DATASETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "digits": "digits",
    "lgg": "LGG MRI",
    "pcam32": "PatchCamelyon, central 32 x 32 pixels",
    "stream:patch_camelyon": "PatchCamelyon",
}


def model(name: str) -> str:
    """A network, such as 'ResNet-20', 'VGG-16-BN', 'ViT of width 96' or 'U-Net of width 8'; others as they are."""
    if found := re.fullmatch(r"(resnet|plain|vgg)(\d+)(_bn)?", name):
        family, depth, norm = found.groups()
        return f"{ {'resnet': 'ResNet', 'plain': 'plain', 'vgg': 'VGG'}[family] }-{depth}" + (
            "-BN" if norm else ""
        )
    if found := re.fullmatch(r"unet(\d+)", name):
        return f"U-Net of width {found[1]}"
    if found := re.fullmatch(r"vit(\d+)_small(_stacked)?", name):
        return f"ViT of width {found[1]}"
    return name


def dataset(name: str) -> str:
    """A data set; with its options where it has some."""
    base, _, options = name.partition(":")
    if name in DATASETS or base not in DATASETS:
        return DATASETS.get(name, name)
    return f"{DATASETS[base]} ({options})" if options else DATASETS[base]
