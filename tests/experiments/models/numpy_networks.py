"""Residual networks once more, in float64 NumPy."""

import numpy as np


def array(variable):
    return np.asarray(variable[...], np.float64)


def conv_reference(layer, x, stride):
    kernel = array(layer.kernel)
    pad = kernel.shape[0] // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height = (x.shape[1] - kernel.shape[0]) // stride + 1
    width = (x.shape[2] - kernel.shape[1]) // stride + 1
    y = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i, j in np.ndindex(kernel.shape[:2]):
        rows, columns = slice(i, i + height * stride, stride), slice(j, j + width * stride, stride)
        y += x[:, rows, columns][:, :height, :width] @ kernel[i, j]
    return y if layer.bias is None else y + array(layer.bias)


def norm_reference(layer, x, train):
    mean = x.mean((0, 1, 2)) if train else array(layer.mean)
    variance = x.var((0, 1, 2)) if train else array(layer.var)
    return (x - mean) / np.sqrt(variance + 1e-5) * array(layer.scale) + array(layer.bias)


def relu(x):
    return np.maximum(x, 0)


def max_pool_reference(x, window, stride, pad):
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=-np.inf)
    height, width = ((n - window) // stride + 1 for n in x.shape[1:3])
    y = np.empty((len(x), height, width, x.shape[-1]))
    for i, j in np.ndindex(height, width):
        y[:, i, j] = x[:, i * stride : i * stride + window, j * stride : j * stride + window].max((1, 2))
    return y


def linear_reference(layer, x):
    return x @ array(layer.kernel) + array(layer.bias)


def block_reference(block, x, stride, train, kind):
    y = branch_reference(block, x, stride, train)
    return relu(y if kind == "plain" else y + shortcut_reference(block, x, stride, train))


def branch_reference(block, x, stride, train):
    if hasattr(block, "conv3"):
        y = relu(norm_reference(block.norm1, conv_reference(block.conv1, x, 1), train))
        y = relu(norm_reference(block.norm2, conv_reference(block.conv2, y, stride), train))
        return norm_reference(block.norm3, conv_reference(block.conv3, y, 1), train)
    y = relu(norm_reference(block.norm1, conv_reference(block.conv1, x, stride), train))
    return norm_reference(block.norm2, conv_reference(block.conv2, y, 1), train)


def shortcut_reference(block, x, stride, train):
    if block.projection is None:
        return x
    return norm_reference(block.projection.norm, conv_reference(block.projection.conv, x, stride), train)


def resnet_reference(model, images, train, kind, small_stem=True):
    x = conv_reference(model.conv, images.astype(np.float64), 1 if small_stem else 2)
    x = relu(norm_reference(model.norm, x, train))
    if not small_stem:
        x = max_pool_reference(x, 3, 2, 1)
    for s, stage in enumerate(model.stages):
        for b, block in enumerate(stage):
            x = block_reference(block, x, 2 if s > 0 and b == 0 else 1, train, kind)
    return linear_reference(model.to_logits, x.mean((1, 2)))
