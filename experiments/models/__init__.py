"""Models, by name: Flax NNX modules called as `model(images, train=True)`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.resnet import OverlapBlock, bottleneck_resnet, cifar_resnet
from experiments.models.signal_propagation.names import NormalizedName
from experiments.models.signal_propagation.plain import SHAPES, PlainNetwork
from experiments.models.signal_propagation.residual import NormalizedResNet
from experiments.models.unet import UNet
from experiments.models.vgg import VGG
from experiments.models.vit import VisionTransformer

CIFAR_DEPTHS = (8, 20, 32, 44, 56, 110, 152)
VISION_TRANSFORMERS = {
    "vit_tiny": partial(VisionTransformer, patch=16, width=192, depth=12, heads=3, pooling="token"),
    "vit96_small": partial(VisionTransformer, patch=4, width=96, depth=6, heads=3, pooling="mean"),
    "vit192_small": partial(VisionTransformer, patch=4, width=192, depth=6, heads=3, pooling="mean"),
}

MODELS: dict[str, Callable[..., nnx.Module]] = {
    **{f"resnet{depth}": partial(cifar_resnet, depth) for depth in CIFAR_DEPTHS},
    **{f"plain{depth}": partial(cifar_resnet, depth, shortcut="none") for depth in CIFAR_DEPTHS},
    **{f"resnet{depth}_overlap": partial(cifar_resnet, depth, block=OverlapBlock) for depth in CIFAR_DEPTHS},
    "resnet50": partial(bottleneck_resnet, 50),
    "resnet101": partial(bottleneck_resnet, 101),
    "vgg16": partial(VGG, use_batch_norm=False),
    "vgg16_bn": partial(VGG, use_batch_norm=True),
    **VISION_TRANSFORMERS,
    **{f"{name}_stacked": partial(build, stacked=True) for name, build in VISION_TRANSFORMERS.items()},
    **{f"{name}_drop": partial(build, stochastic_depth=0.1) for name, build in VISION_TRANSFORMERS.items()},
}


def create(
    name: str,
    *,
    num_classes: int,
    channels: int,
    image_size: int,
    rngs: nnx.Rngs,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> nnx.Module:
    """Builds a model.

    Args:
      name: one of `MODELS`. 'resnet20' and its like are the CIFAR family (so 'resnet152' is not the
        ImageNet network of that depth); 'resnet50' and 'resnet101' are the bottleneck networks;
        'plain56' is 'resnet56' without skip connections; 'resnet56_overlap' is 'resnet56' forwards, and
        backwards the gradient that leaves a shortcut is multiplied by 1.5.
        'vit_tiny' has patches of 16 pixels; 'vit96_small' and 'vit192_small', of that width, have patches of 4
        for small images; with '_stacked' the blocks' parameters are stacked, with '_drop' they have stochastic
        depth 0.1.
        Or a network with any normalizer, named as `experiments.models.signal_propagation.names` says: such as
        'cnn10w64:group_norm:size=8' or 'resnet56w32:weight_norm:skip_init'. Or a U-Net by its width and, if
        it is not BatchNorm, its normalizer: 'unet16', 'unet16:group_norm:size=8'.
      image_size: height and width of the images.
      rngs: stream 'params' initialises the parameters.
      dtype: of the computation, float32 or bfloat16; parameters and statistics are float32.

    Returns:
      A module; `model(images, train=True)` takes float images [n, height, width, channels], already
      normalised, and gives float32 logits [n, num_classes], a U-Net [n, height, width, 1]. In training,
      BatchNorm uses the batch's statistics and updates the running ones; otherwise it uses the running ones.

    Raises:
      ValueError: an unknown name, an image size or groups the model cannot take, or another dtype.
    """
    is_normalized = ":" in name or name.startswith("unet")
    if name not in MODELS and not is_normalized:
        raise ValueError(f"unknown model {name!r}; choose from {', '.join(MODELS)}, unetWIDTH")
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"dtype must be float32 or bfloat16, got {dtype}")
    build = partial(_create_normalized, name) if is_normalized else MODELS[name]
    return build(num_classes=num_classes, channels=channels, image_size=image_size, rngs=rngs, dtype=dtype)


def takes_any_size(name: str) -> bool:
    """Whether a model takes images of other sizes than the one it was built for."""
    # VGG's last layer and a Vision Transformer's position embeddings depend on the image size.
    return not name.startswith(("vgg", "vit"))


def has_stacked_blocks(name: str) -> bool:
    """Whether some of a model's parameters have a leading axis that counts blocks; see `experiments.models.axes`."""
    return name.endswith("_stacked")


def logits_in_training(model: Any, images: jax.Array, key: jax.Array) -> jax.Array:
    """Calls a model as training does; the key, which augmentation uses too, is for stochastic depth."""
    if isinstance(model, VisionTransformer) and model.stochastic_depth > 0:
        return model(images, train=True, key=jax.random.fold_in(key, 1))
    return model(images, train=True)


def _create_normalized(name: str, *, image_size: int, **options) -> nnx.Module:
    """Builds the network that a name says; the options are those of `create`.

    Raises:
      ValueError: it is no such name, the groups do not divide the features, or the depth is not 6n+2.
    """
    del image_size  # Any: the last layer sees the mean over the image, or each pixel.
    parsed = NormalizedName.parse(name)
    if parsed.network in SHAPES:
        shape = SHAPES[parsed.network]
        return PlainNetwork(shape, parsed.width, normalization=parsed.normalization, **options)
    if parsed.network == "unet":
        return UNet(parsed.width, normalization=parsed.normalization, **options)
    depth = int(parsed.network.removeprefix("resnet"))
    return NormalizedResNet(
        depth, parsed.width, residual=parsed.residual, normalization=parsed.normalization, **options
    )
